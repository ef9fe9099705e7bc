//! `wasi:keyvalue@0.2.0-draft`.

use wasmtime::component::{Linker, Resource};

use super::{Bucket, Error, HasKeyValue, KeyValueView};

mod generated {
    wasmtime::component::bindgen!({
        path: "../../../wit/keyvalue/0.2.0-draft",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": crate::host::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => crate::host::Error },
    });
}

pub(crate) use generated::wasi::keyvalue::{atomics, batch, store};

pub(crate) fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> KeyValueView<'_>,
) -> wasmtime::Result<()> {
    store::add_to_linker::<T, HasKeyValue>(linker, view)?;
    atomics::add_to_linker::<T, HasKeyValue>(linker, view)?;
    batch::add_to_linker::<T, HasKeyValue>(linker, view)
}

impl store::Host for KeyValueView<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        KeyValueView::open(self, &identifier)
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        Ok(match error {
            Error::NoSuchStore => store::Error::NoSuchStore,
            Error::AccessDenied => store::Error::AccessDenied,
            Error::Other(text) => store::Error::Other(text),
        })
    }
}

impl store::HostBucket for KeyValueView<'_> {
    async fn get(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> Result<Option<Vec<u8>>, Error> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.ctx.get(&bucket, &key).await?.map(Vec::from))
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.set(&bucket, &key, value).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.delete(&bucket, &key).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.exists(&bucket, &key).await
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Result<store::KeyResponse, Error> {
        let bucket = self.bucket(&bucket)?;
        let page = self.ctx.list_keys(&bucket, cursor.unwrap_or(0)).await?;
        Ok(store::KeyResponse {
            keys: page.keys,
            cursor: page.next,
        })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for KeyValueView<'_> {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<u64, Error> {
        let bucket = self.bucket(&bucket)?;
        let delta = i64::try_from(delta).map_err(|_| {
            Error::Other(format!(
                "increment: {delta} does not fit 63 bits, as counters do"
            ))
        })?;
        let sum = self.ctx.increment(&bucket, &key, delta).await?;
        u64::try_from(sum).map_err(|_| {
            Error::Other(format!(
                "increment: the sum {sum} is below zero; it was added all the same"
            ))
        })
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        let bucket = self.bucket(&bucket)?;
        let values = self.ctx.get_many(&bucket, &keys).await?;
        let answer = |(key, value): (String, Option<bytes::Bytes>)| Some((key, value?.into()));
        Ok(keys.into_iter().zip(values).map(answer).collect())
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.set_many(&bucket, key_values).await
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.delete_many(&bucket, &keys).await
    }
}
