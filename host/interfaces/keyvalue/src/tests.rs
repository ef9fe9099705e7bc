//! Both backends pass the same tests, through the functions that guests call.

mod contract;
mod faults;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Action, BindingKind, Call, Grant, Grants, RunId, Secret, StepScope};
use stepwell_test_services::Redis;
use wasmtime::component::{Resource, ResourceTable};

use crate::host::draft2::{atomics, batch, store};
use crate::host::{Bucket, Cas, Error};
use crate::{KeyValueBindingConfig, KeyValueCtx, KeyValueView, KeyValues};

/// A host with one binding, `main`.
pub(crate) struct Backend {
    pub(crate) stores: Arc<KeyValues>,
    pub(crate) url: String,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Backend {
    pub(crate) fn local() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let max_size = stepwell_core::STORE_SIZE;
        let config = [("main".to_owned(), KeyValueBindingConfig::Local { max_size })];
        Self {
            stores: Arc::new(KeyValues::open(directory.path(), config.into())),
            url: String::new(),
            _kept: Box::new(directory),
        }
    }

    /// None: there is no Redis on this machine, which is a failure where everything must be tested.
    pub(crate) fn redis() -> Option<Self> {
        let redis = start_redis()?;
        let url = redis.url();
        Some(Self {
            stores: redis_stores(&url),
            url,
            _kept: Box::new(std::sync::Mutex::new(redis)),
        })
    }

    /// A guest with one grant, `cache`, on everything under `prefix`.
    pub(crate) fn guest(&self, prefix: &str) -> Guest {
        self.guest_with("cache", prefix, &[Action::Read, Action::Write])
    }

    pub(crate) fn guest_with(&self, name: &str, prefix: &str, actions: &[Action]) -> Guest {
        guest(&self.stores, name, prefix, actions, Duration::from_secs(60))
    }
}

pub(crate) fn start_redis() -> Option<Redis> {
    match Redis::start() {
        Ok(redis) => Some(redis),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped, no Redis: {error:#}");
            None
        }
        Err(error) => panic!("no Redis: {error:#}"),
    }
}

pub(crate) fn redis_stores(url: &str) -> Arc<KeyValues> {
    let url = Secret::new(url);
    let config = [("main".to_owned(), KeyValueBindingConfig::Redis { url })];
    Arc::new(KeyValues::open("/nonexistent".as_ref(), config.into()))
}

pub(crate) fn guest(
    stores: &Arc<KeyValues>,
    name: &str,
    prefix: &str,
    actions: &[Action],
    time: Duration,
) -> Guest {
    let mut grants = Grants::default();
    let grant = Grant {
        binding: "main".to_owned(),
        actions: actions.to_vec(),
        prefix: prefix.to_owned(),
    };
    let gone = Grant {
        binding: "no-longer-there".to_owned(),
        ..grant.clone()
    };
    grants.insert(BindingKind::Keyvalue, name, grant);
    grants.insert(BindingKind::Keyvalue, "gone", gone);
    let scope = StepScope {
        namespace: "default".parse().unwrap(),
        pipeline: "p".parse().unwrap(),
        revision: 1,
        step: "s".parse().unwrap(),
        plugin: "p@1.0.0".to_owned(),
        digest: None,
        grants,
        config: Vec::new(),
        cpu: Arc::default(),
    };
    let call = Call {
        scope: Arc::new(scope),
        run: RunId::new(),
        deadline: Instant::now() + time,
    };
    Guest {
        ctx: KeyValueCtx::new(stores.clone(), call),
        table: ResourceTable::new(),
    }
}

/// The second draft's functions, as the generated bindings call them.
pub(crate) struct Guest {
    ctx: KeyValueCtx,
    table: ResourceTable,
}

pub(crate) type Answer<T> = Result<T, Error>;

impl Guest {
    pub(crate) fn view(&mut self) -> KeyValueView<'_> {
        KeyValueView {
            ctx: &mut self.ctx,
            table: &mut self.table,
        }
    }

    pub(crate) async fn open(&mut self, name: &str) -> Answer<Handle> {
        let bucket = store::Host::open(&mut self.view(), name.to_owned()).await?;
        Ok(Handle(bucket.rep()))
    }

    /// The one bucket that [`Backend::guest`] grants.
    pub(crate) async fn cache(&mut self) -> Handle {
        self.open("cache").await.unwrap()
    }

    pub(crate) async fn get(&mut self, bucket: Handle, key: &str) -> Answer<Option<Vec<u8>>> {
        store::HostBucket::get(&mut self.view(), bucket.borrow(), key.to_owned()).await
    }

    pub(crate) async fn set(&mut self, bucket: Handle, key: &str, value: &[u8]) -> Answer<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        store::HostBucket::set(&mut self.view(), bucket.borrow(), key, value).await
    }

    pub(crate) async fn delete(&mut self, bucket: Handle, key: &str) -> Answer<()> {
        store::HostBucket::delete(&mut self.view(), bucket.borrow(), key.to_owned()).await
    }

    pub(crate) async fn exists(&mut self, bucket: Handle, key: &str) -> Answer<bool> {
        store::HostBucket::exists(&mut self.view(), bucket.borrow(), key.to_owned()).await
    }

    pub(crate) async fn list(
        &mut self,
        bucket: Handle,
        cursor: Option<&str>,
    ) -> Answer<(Vec<String>, Option<String>)> {
        let cursor = cursor.map(str::to_owned);
        let page = store::HostBucket::list_keys(&mut self.view(), bucket.borrow(), cursor).await?;
        Ok((page.keys, page.cursor))
    }

    /// Every key, page by page, in order and each once.
    pub(crate) async fn list_all(&mut self, bucket: Handle) -> Vec<String> {
        let (mut keys, mut cursor) = self.list(bucket, None).await.unwrap();
        while let Some(next) = cursor {
            let page = self.list(bucket, Some(&next)).await.unwrap();
            keys.extend(page.0);
            cursor = page.1;
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    pub(crate) async fn increment(&mut self, bucket: Handle, key: &str, by: i64) -> Answer<i64> {
        atomics::Host::increment(&mut self.view(), bucket.borrow(), key.to_owned(), by).await
    }

    pub(crate) async fn cas(&mut self, bucket: Handle, key: &str) -> Answer<Resource<Cas>> {
        atomics::HostCas::new(&mut self.view(), bucket.borrow(), key.to_owned()).await
    }

    pub(crate) async fn current(&mut self, cas: &Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        let cas = Resource::new_borrow(cas.rep());
        atomics::HostCas::current(&mut self.view(), cas).await
    }

    pub(crate) async fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: &[u8],
    ) -> Result<(), atomics::CasError> {
        atomics::Host::swap(&mut self.view(), cas, value.to_owned())
            .await
            .unwrap()
    }

    pub(crate) async fn get_many(
        &mut self,
        bucket: Handle,
        keys: &[String],
    ) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        batch::Host::get_many(&mut self.view(), bucket.borrow(), keys.to_vec()).await
    }

    pub(crate) async fn set_many(
        &mut self,
        bucket: Handle,
        entries: Vec<(String, Vec<u8>)>,
    ) -> Answer<()> {
        batch::Host::set_many(&mut self.view(), bucket.borrow(), entries).await
    }

    pub(crate) async fn delete_many(&mut self, bucket: Handle, keys: &[String]) -> Answer<()> {
        batch::Host::delete_many(&mut self.view(), bucket.borrow(), keys.to_vec()).await
    }
}

/// A guest's handle on a bucket.
#[derive(Clone, Copy)]
pub(crate) struct Handle(pub(crate) u32);

impl Handle {
    pub(crate) fn borrow(self) -> Resource<Bucket> {
        Resource::new_borrow(self.0)
    }
}

/// The words of an error that has some.
pub(crate) fn words<T: std::fmt::Debug>(answer: Answer<T>) -> String {
    match answer.unwrap_err() {
        Error::Other(words) => words,
        error => panic!("{error:?}"),
    }
}
