use std::sync::Arc;

use bytes::Bytes;
use stepwell_core::{Action, Call};

use super::operation::Operation;
use super::{Bucket, Error};
use crate::client::Page;
use crate::keyvalues::KeyValues;

/// Keys that are read at once, so that a list of large values is refused before all of them are in memory.
const READ_CHUNK: usize = 16;

/// What one call needs for key-value functions.
pub struct KeyValueCtx {
    pub(super) stores: Arc<KeyValues>,
    pub(super) call: Call,
    /// Bytes that this call's compare-and-swap handles remember.
    pub(super) remembered: usize,
}

impl KeyValueCtx {
    /// The state for one call.
    pub fn new(stores: Arc<KeyValues>, call: Call) -> Self {
        Self {
            stores,
            call,
            remembered: 0,
        }
    }

    pub(super) async fn get(&self, bucket: &Bucket, key: &str) -> Result<Option<Bytes>, Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Read, "get").await?;
        let key = operation.key(key)?;
        let value = operation.run(operation.store.client.get(&key)).await?;
        if let Some(value) = &value {
            operation.value(value)?;
        }
        Ok(value)
    }

    pub(super) async fn set(
        &self,
        bucket: &Bucket,
        key: &str,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Write, "set").await?;
        let key = operation.key(key)?;
        operation.value(&value)?;
        operation
            .run(operation.store.client.set(&key, value.into()))
            .await
    }

    pub(super) async fn delete(&self, bucket: &Bucket, key: &str) -> Result<(), Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Write, "delete").await?;
        let key = operation.key(key)?;
        operation.run(operation.store.client.delete(&key)).await
    }

    pub(super) async fn exists(&self, bucket: &Bucket, key: &str) -> Result<bool, Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Read, "exists").await?;
        let key = operation.key(key)?;
        operation.run(operation.store.client.exists(&key)).await
    }

    pub(super) async fn list_keys(&self, bucket: &Bucket, cursor: u64) -> Result<Page, Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Read, "list-keys").await?;
        let page = operation
            .run(operation.store.client.list(&operation.prefix, cursor))
            .await?;
        Ok(Page {
            keys: page
                .keys
                .iter()
                .filter_map(|key| key.strip_prefix(&operation.prefix))
                .map(str::to_owned)
                .collect(),
            next: page.next,
        })
    }

    pub(super) async fn increment(
        &self,
        bucket: &Bucket,
        key: &str,
        delta: i64,
    ) -> Result<i64, Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Write, "increment").await?;
        let key = operation.key(key)?;
        operation
            .run(operation.store.client.increment(&key, delta))
            .await
    }

    pub(super) async fn get_many(
        &self,
        bucket: &Bucket,
        keys: &[String],
    ) -> Result<Vec<Option<Bytes>>, Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Read, "get-many").await?;
        let stored = operation.keys(keys)?;
        let mut values = Vec::with_capacity(stored.len());
        let mut bytes = 0;
        for chunk in stored.chunks(READ_CHUNK) {
            let found = operation
                .run(operation.store.client.get_many(chunk))
                .await?;
            for value in found.iter().flatten() {
                operation.value(value)?;
                bytes += value.len();
            }
            operation.total(bytes)?;
            values.extend(found);
        }
        Ok(values)
    }

    pub(super) async fn set_many(
        &self,
        bucket: &Bucket,
        entries: Vec<(String, Vec<u8>)>,
    ) -> Result<(), Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Write, "set-many").await?;
        operation.entries(entries.len())?;
        operation.total(entries.iter().map(|(_, value)| value.len()).sum())?;
        let mut stored = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            operation.value(&value)?;
            stored.push((operation.key(&key)?, Bytes::from(value)));
        }
        operation
            .run(operation.store.client.set_many(&stored))
            .await
    }

    pub(super) async fn delete_many(&self, bucket: &Bucket, keys: &[String]) -> Result<(), Error> {
        let operation = Operation::begin(&self.call, bucket, Action::Write, "delete-many").await?;
        let stored = operation.keys(keys)?;
        operation
            .run(operation.store.client.delete_many(&stored))
            .await
    }
}
