mod ctx;
pub(crate) mod draft;
pub(crate) mod draft2;
mod operation;

use std::sync::Arc;

use bytes::Bytes;
use stepwell_core::{Action, BindingKind, ByteSize};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};

use crate::keyvalues::Store;

pub use ctx::KeyValueCtx;
use operation::Operation;
pub use operation::{MAX_BATCH, MAX_BATCH_BYTES, MAX_KEY, MAX_VALUE};

/// What the host functions see of a store's state.
pub struct KeyValueView<'a> {
    /// This interface's own state.
    pub ctx: &'a mut KeyValueCtx,
    /// Where the guest's handles live; its capacity bounds their number.
    pub table: &'a mut ResourceTable,
}

/// Tells the linker that functions take a [`KeyValueView`].
pub struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// Links `wasi:keyvalue` `store`, `atomics` and `batch`, in both versions.
///
/// # Errors
/// When one of them is linked already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> KeyValueView<'_>,
) -> wasmtime::Result<()> {
    draft::add_to_linker(linker, view)?;
    draft2::add_to_linker(linker, view)
}

/// A store as one grant shows it.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub struct Bucket {
    /// The guest's name for it.
    name: Arc<str>,
    store: Arc<Store>,
}

/// What a key held when the handle was made.
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub struct Cas {
    bucket: Bucket,
    key: String,
    seen: Option<Bytes>,
}

/// What both versions of the interface can tell a guest.
#[derive(Debug, PartialEq, Eq)]
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub enum Error {
    /// The binding is gone.
    NoSuchStore,
    /// There is no grant.
    AccessDenied,
    /// Anything else.
    Other(String),
}

impl Error {
    fn outcome(&self) -> &'static str {
        match self {
            Self::AccessDenied => "denied",
            Self::NoSuchStore => "unavailable",
            Self::Other(_) => "refused",
        }
    }
}

impl From<ResourceTableError> for Error {
    fn from(error: ResourceTableError) -> Self {
        Self::Other(match error {
            ResourceTableError::Full => "too many open handles in one call: drop some".to_owned(),
            error => error.to_string(),
        })
    }
}

impl KeyValueView<'_> {
    fn open(&mut self, identifier: &str) -> Result<Resource<Bucket>, Error> {
        let grants = &self.ctx.call.scope.grants;
        let grant = grants
            .get(BindingKind::Keyvalue, identifier)
            .ok_or(Error::AccessDenied)?;
        let store = self
            .ctx
            .stores
            .store(&grant.binding)
            .ok_or(Error::NoSuchStore)?;
        let bucket = Bucket {
            name: identifier.into(),
            store,
        };
        Ok(self.table.push(bucket)?)
    }

    fn bucket(&self, bucket: &Resource<Bucket>) -> Result<Bucket, Error> {
        Ok(self.table.get(bucket)?.clone())
    }

    /// A handle that remembers what a key holds now. What it remembers is not shown to the guest, so that this needs the
    /// right to write only.
    async fn remember(&mut self, bucket: &Bucket, key: String) -> Result<Resource<Cas>, Error> {
        let operation = Operation::begin(&self.ctx.call, bucket, Action::Write, "cas").await?;
        let stored = operation.key(&key)?;
        let seen = operation.run(operation.store.client.get(&stored)).await?;
        let bytes = seen.as_ref().map_or(0, Bytes::len);
        if self.ctx.remembered + bytes > MAX_BATCH_BYTES {
            return Err(operation.refuse(format!(
                "the compare-and-swap handles of this call would remember more than {}: drop some",
                ByteSize(MAX_BATCH_BYTES as u64)
            )));
        }
        let bucket = bucket.clone();
        let handle = self.table.push(Cas { bucket, key, seen })?;
        self.ctx.remembered += bytes;
        Ok(handle)
    }

    /// What a handle remembers. Reading it is reading the store.
    fn remembered(&self, cas: &Resource<Cas>) -> Result<Option<Bytes>, Error> {
        let cas = self.table.get(cas)?;
        self.ctx
            .call
            .grant(BindingKind::Keyvalue, &cas.bucket.name, Action::Read)
            .map_err(|_| Error::AccessDenied)?;
        Ok(cas.seen.clone())
    }

    fn forget(&mut self, cas: Resource<Cas>) -> Result<Cas, ResourceTableError> {
        let cas = self.table.delete(cas)?;
        let bytes = cas.seen.as_ref().map_or(0, Bytes::len);
        self.ctx.remembered = self.ctx.remembered.saturating_sub(bytes);
        Ok(cas)
    }

    /// Swaps; where the key holds something else by now, answers a handle that has seen that.
    async fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> Result<Option<Resource<Cas>>, Error> {
        let cas = self.forget(cas)?;
        let operation =
            Operation::begin(&self.ctx.call, &cas.bucket, Action::Write, "swap").await?;
        operation.value(&value)?;
        let stored = operation.key(&cas.key)?;
        let swap = operation.store.client.swap(&stored, cas.seen, value.into());
        if operation.run(swap).await? {
            return Ok(None);
        }
        drop(operation);
        Ok(Some(self.remember(&cas.bucket, cas.key).await?))
    }
}
