use super::current;
use crate::config::Error;

pub(crate) fn get(key: &str) -> Result<Option<String>, Error> {
    Ok(current()
        .map_err(Error::Host)?
        .config
        .borrow()
        .get(key)
        .cloned())
}

pub(crate) fn all() -> Result<Vec<(String, String)>, Error> {
    let host = current().map_err(Error::Host)?;
    let config = host.config.borrow();
    Ok(config
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect())
}
