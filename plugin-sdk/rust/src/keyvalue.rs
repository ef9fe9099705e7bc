//! Keys and values that outlive the run (`wasi:keyvalue`).
//!
//! ```yaml
//! grants: {keyvalue: {cache: {binding: main-redis, actions: [read, write], prefix: "digits:"}}}
//! ```
//! ```
//! # use stepwell_sdk::{keyvalue, Error};
//! fn greet(name: &str) -> Result<i64, Error> {
//!     let cache = keyvalue::open("cache")?;
//!     cache.set("last", name)?;
//!     Ok(cache.increment("greetings", 1)?)
//! }
//! # let host = stepwell_sdk::testing::Host::new().keyvalue("cache");
//! # assert_eq!(host.call(|| greet("Ada")).unwrap(), 1);
//! ```

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a store did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The pipeline grants no store of this name to this step.
    NoSuchStore,
    /// The grant does not allow this.
    AccessDenied,
    /// The store cannot be reached or did not answer in time; later may help. A write may or may not have happened.
    Unavailable(String),
    /// Anything else, such as a key or a value that is refused: the text says more.
    Other(String),
    /// A value is not the JSON that was expected.
    Json(String),
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The interface has one case for a store that is down and for a value that is refused; only the host's words tell them apart.
    #[cfg_attr(
        not(target_family = "wasm"),
        allow(dead_code, reason = "for components")
    )]
    pub(crate) fn other(text: String) -> Self {
        let temporary = ["is not available", "is busy"];
        if temporary.iter().any(|words| text.contains(words)) {
            Self::Unavailable(text)
        } else {
            Self::Other(text)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchStore => f.write_str("no such key-value store is granted to this step"),
            Self::AccessDenied => f.write_str("the key-value grant does not allow this"),
            Self::Unavailable(reason) | Self::Other(reason) => {
                write!(f, "key-value store: {reason}")
            }
            Self::Json(reason) => write!(f, "value is not the expected JSON: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

/// A page of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The keys, in no particular order.
    pub keys: Vec<String>,
    /// What to ask for the next page with; none: this was the last one.
    pub cursor: Option<String>,
}

/// A store, seen through the step's grant: every key lives under the grant's prefix, which the step neither sees nor leaves.
/// Keys may have up to 1 KiB, values up to 1 MiB.
#[derive(Debug)]
pub struct Bucket(crate::host::keyvalue::Bucket);

/// Opens the store that the step's grants call `name`.
///
/// # Errors
/// [`Error::AccessDenied`] if there is no such grant, [`Error::NoSuchStore`] if the operator's binding is gone.
pub fn open(name: &str) -> Result<Bucket, Error> {
    crate::host::keyvalue::open(name).map(Bucket)
}

impl Bucket {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(key)
    }

    /// The value of a key, read as JSON.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Json`] if it does not fit.
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get(key)?
            .map(|value| serde_json::from_slice(&value).map_err(json))
            .transpose()
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.0.set(key, value.as_ref())
    }

    /// Sets the value of a key to this JSON.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Json`] if the value cannot be JSON.
    pub fn set_json<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), Error> {
        self.set(key, serde_json::to_vec(value).map_err(json)?)
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.0.delete(key)
    }

    /// Whether there is such a key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        self.0.exists(key)
    }

    /// A page of the keys: the first without a cursor, the next with that of the page before. This walks the whole store: do not
    /// use it where a known key would do.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys(&self, cursor: Option<&str>) -> Result<Keys, Error> {
        self.0.keys(cursor)
    }

    /// Adds to the number in a key, which counts as 0 if it is not there, and returns the sum. Others that add at the same time are not lost.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Other`] if the value is no number or the sum does not fit.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.0.increment(key, delta)
    }

    /// Changes a key's value as a whole: if somebody else changed it meanwhile, `change` is called again with what is there now. Gives
    /// the new value.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Other`] if others are quicker a hundred times.
    pub fn update(
        &self,
        key: &str,
        change: impl FnMut(Option<Vec<u8>>) -> Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        self.0.update(key, change)
    }

    /// The values of many keys, in the same order.
    ///
    /// # Errors
    /// [`Error`].
    pub fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.0.get_many(keys)
    }

    /// Sets many keys, all or none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn set_many(&self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        self.0.set_many(entries)
    }

    /// Removes many keys.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete_many(&self, keys: &[&str]) -> Result<(), Error> {
        self.0.delete_many(keys)
    }
}

fn json(error: serde_json::Error) -> Error {
    Error::Json(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_down_is_told_from_a_value_that_is_refused() {
        for text in [
            "get: the store is not available: it cannot be reached",
            "set: the store 'cache' is busy, and the time for this operation is up",
        ] {
            assert!(Error::other(text.to_owned()).is_temporary(), "{text}");
        }
        let refused =
            Error::other("set: a value of 2MiB is too large: values have up to 1MiB".to_owned());
        assert!(!refused.is_temporary());
    }
}
