use std::collections::BTreeMap;
use std::rc::Rc;

use super::{State, current};
use crate::keyvalue::{Error, Keys};

pub(super) type Store = BTreeMap<String, Vec<u8>>;

pub(crate) struct Bucket {
    name: String,
    host: Rc<State>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bucket").field(&self.name).finish()
    }
}

pub(crate) fn open(name: &str) -> Result<Bucket, Error> {
    let host = current().map_err(Error::Other)?;
    if !host.keyvalue.borrow().contains_key(name) {
        return Err(Error::AccessDenied);
    }
    Ok(Bucket {
        name: name.to_owned(),
        host,
    })
}

impl Bucket {
    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> Result<T, Error> {
        let mut stores = self.host.keyvalue.borrow_mut();
        stores
            .get_mut(&self.name)
            .map(act)
            .ok_or(Error::NoSuchStore)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.with(|store| store.get(key).cloned())
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.set_many(&[(key, value)])
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        self.delete_many(&[key])
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Error> {
        self.with(|store| store.contains_key(key))
    }

    pub(crate) fn keys(&self, _: Option<&str>) -> Result<Keys, Error> {
        self.with(|store| Keys {
            keys: store.keys().cloned().collect(),
            cursor: None,
        })
    }

    pub(crate) fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.with(|store| {
            let number = match store.get(key) {
                None => Some(0),
                Some(value) => std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse::<i64>().ok()),
            };
            let sum = number
                .ok_or_else(|| Error::Other(format!("the value of '{key}' is no number")))?
                .checked_add(delta)
                .ok_or_else(|| Error::Other(format!("the sum in '{key}' does not fit 64 bits")))?;
            store.insert(key.to_owned(), sum.to_string().into_bytes());
            Ok(sum)
        })?
    }

    pub(crate) fn update(
        &self,
        key: &str,
        mut change: impl FnMut(Option<Vec<u8>>) -> Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let value = change(self.get(key)?);
        self.set(key, &value)?;
        Ok(value)
    }

    pub(crate) fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.with(|store| keys.iter().map(|key| store.get(*key).cloned()).collect())
    }

    pub(crate) fn set_many(&self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        self.with(|store| {
            store.extend(
                entries
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), value.to_vec())),
            );
        })
    }

    pub(crate) fn delete_many(&self, keys: &[&str]) -> Result<(), Error> {
        self.with(|store| store.retain(|key, _| !keys.contains(&key.as_str())))
    }
}
