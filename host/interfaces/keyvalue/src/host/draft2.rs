//! `wasi:keyvalue@0.2.0-draft2`.

use wasmtime::component::{Linker, Resource};

use super::{Bucket, Cas, Error, HasKeyValue, KeyValueView};

mod generated {
    wasmtime::component::bindgen!({
        path: "../../../wit/keyvalue/0.2.0-draft2",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::host::Bucket,
            "wasi:keyvalue/atomics.cas": crate::host::Cas,
        },
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
        cursor: Option<String>,
    ) -> Result<store::KeyResponse, Error> {
        let bucket = self.bucket(&bucket)?;
        let cursor = match &cursor {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                let shown: String = text.chars().take(40).collect();
                Error::Other(format!("list-keys: '{shown}' is no cursor of this store"))
            })?,
        };
        let page = self.ctx.list_keys(&bucket, cursor).await?;
        Ok(store::KeyResponse {
            keys: page.keys,
            cursor: page.next.map(|next| next.to_string()),
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
        delta: i64,
    ) -> Result<i64, Error> {
        let bucket = self.bucket(&bucket)?;
        self.ctx.increment(&bucket, &key, delta).await
    }

    async fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), atomics::CasError>> {
        Ok(match KeyValueView::swap(self, cas, value).await {
            Ok(None) => Ok(()),
            Ok(Some(newer)) => Err(atomics::CasError::CasFailed(newer)),
            Err(error) => {
                let error = store::Host::convert_error(self, error)?;
                Err(atomics::CasError::StoreError(error))
            }
        })
    }
}

impl atomics::HostCas for KeyValueView<'_> {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>, Error> {
        let bucket = self.bucket(&bucket)?;
        self.remember(&bucket, key).await
    }

    async fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.remembered(&cas)?.map(Vec::from))
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.forget(cas)?;
        Ok(())
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, Error> {
        let bucket = self.bucket(&bucket)?;
        let values = self.ctx.get_many(&bucket, &keys).await?;
        let values = values.into_iter().map(|value| value.map(Vec::from));
        Ok(keys.into_iter().zip(values).collect())
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
