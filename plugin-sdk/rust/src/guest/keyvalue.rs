use super::bindings::wasi::keyvalue::{atomics, batch, store};
use crate::keyvalue::{Error, Keys};

/// Swaps that `update` tries before it gives up.
const UPDATE_ATTEMPTS: usize = 100;

#[derive(Debug)]
pub(crate) struct Bucket(store::Bucket);

pub(crate) fn open(name: &str) -> Result<Bucket, Error> {
    store::open(name).map(Bucket).map_err(error)
}

impl Bucket {
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(key).map_err(error)
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.0.set(key, value).map_err(error)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        self.0.delete(key).map_err(error)
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Error> {
        self.0.exists(key).map_err(error)
    }

    pub(crate) fn keys(&self, cursor: Option<&str>) -> Result<Keys, Error> {
        let page = self.0.list_keys(cursor).map_err(error)?;
        Ok(Keys {
            keys: page.keys,
            cursor: page.cursor,
        })
    }

    pub(crate) fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        atomics::increment(&self.0, key, delta).map_err(error)
    }

    pub(crate) fn update(
        &self,
        key: &str,
        mut change: impl FnMut(Option<Vec<u8>>) -> Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let mut seen = atomics::Cas::new(&self.0, key).map_err(error)?;
        for _ in 0..UPDATE_ATTEMPTS {
            let value = change(seen.current().map_err(error)?);
            match atomics::swap(seen, &value) {
                Ok(()) => return Ok(value),
                Err(atomics::CasError::StoreError(reason)) => return Err(error(reason)),
                Err(atomics::CasError::CasFailed(now)) => seen = now,
            }
        }
        Err(Error::Other(format!(
            "'{key}' is changed too often by others"
        )))
    }

    pub(crate) fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let entries = batch::get_many(&self.0, &owned(keys)).map_err(error)?;
        Ok(entries.into_iter().map(|(_, value)| value).collect())
    }

    pub(crate) fn set_many(&self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
            .collect();
        batch::set_many(&self.0, &entries).map_err(error)
    }

    pub(crate) fn delete_many(&self, keys: &[&str]) -> Result<(), Error> {
        batch::delete_many(&self.0, &owned(keys)).map_err(error)
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn error(error: store::Error) -> Error {
    match error {
        store::Error::NoSuchStore => Error::NoSuchStore,
        store::Error::AccessDenied => Error::AccessDenied,
        store::Error::Other(reason) => Error::other(reason),
    }
}
