//! Reads the step's `config` map (`wasi:config/store`).
//!
//! ```yaml
//! config: {neighbours: "5"}
//! ```
//! ```
//! # use stepwell_sdk::{config, Error};
//! # fn read() -> Result<usize, Error> {
//! let neighbours: usize = config::get_or("neighbours", 3)?;
//! # Ok(neighbours)
//! # }
//! # let host = stepwell_sdk::testing::Host::new().config("neighbours", "5");
//! # assert_eq!(host.call(read).unwrap(), 5);
//! ```

use std::fmt;
use std::str::FromStr;

/// Why configuration could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The host could not provide it.
    Host(String),
    /// There is no such key.
    Missing(String),
    /// The value is not what the step expects.
    Invalid {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether trying again later may help: it does not, configuration stays as it is for a whole revision.
    pub fn is_temporary(&self) -> bool {
        false
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(reason) => write!(f, "cannot read the step's config: {reason}"),
            Self::Missing(key) => write!(f, "the step's config has no '{key}'"),
            Self::Invalid { key, value, reason } => {
                write!(f, "the step's config '{key}' is '{value}': {reason}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// The value of a key.
///
/// # Errors
/// [`Error::Host`].
pub fn get(key: &str) -> Result<Option<String>, Error> {
    crate::host::config::get(key)
}

/// The value of a key that must be there, parsed.
///
/// # Errors
/// [`Error`].
pub fn require<T: FromStr<Err: fmt::Display>>(key: &str) -> Result<T, Error> {
    parse(key)?.ok_or_else(|| Error::Missing(key.to_owned()))
}

/// The value of a key, parsed, or `default` if it is not there.
///
/// # Errors
/// [`Error`].
pub fn get_or<T: FromStr<Err: fmt::Display>>(key: &str, default: T) -> Result<T, Error> {
    Ok(parse(key)?.unwrap_or(default))
}

/// All keys and values.
///
/// # Errors
/// [`Error::Host`].
pub fn all() -> Result<Vec<(String, String)>, Error> {
    crate::host::config::all()
}

fn parse<T: FromStr<Err: fmt::Display>>(key: &str) -> Result<Option<T>, Error> {
    let Some(value) = get(key)? else {
        return Ok(None);
    };
    match value.parse() {
        Ok(parsed) => Ok(Some(parsed)),
        Err(reason) => Err(Error::Invalid {
            key: key.to_owned(),
            value,
            reason: reason.to_string(),
        }),
    }
}
