use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{BindingKind, Name, Secret, StoreFile};
use tokio::sync::Semaphore;

use crate::client::{ClientError, KeyValueClient, Reason};
use crate::redis::RedisStore;
use crate::sqlite::SqliteStore;

/// Operations of one binding that may be under way at once; more of them wait within their deadline.
const CONCURRENT_OPERATIONS: usize = 128;

/// Time for a store to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// One `[bindings.keyvalue.NAME]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueBindingConfig {
    /// A SQLite file in the data directory.
    Local {
        /// Bytes that it may have.
        max_size: u64,
    },
    /// A Redis server.
    Redis {
        /// `redis://`, `rediss://` or `unix://`, with user and password if need be.
        url: Secret,
    },
}

/// Every key-value binding of the host. Nothing is opened or connected to before it is used, so that a store that is down
/// keeps nobody from starting.
pub struct KeyValues {
    stores: BTreeMap<String, Arc<Store>>,
}

/// One binding.
pub(crate) struct Store {
    pub(crate) name: String,
    pub(crate) client: Arc<dyn KeyValueClient>,
    pub(crate) permits: Arc<Semaphore>,
    backend: &'static str,
}

/// How a binding is just now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BindingState {
    /// The operator's name for it.
    pub name: String,
    /// `local` or `redis`.
    pub backend: &'static str,
    /// Why it cannot be used, if it cannot; neither an address nor a credential.
    pub down: Option<String>,
}

impl KeyValues {
    /// The bindings of a configuration; embedded ones are files in `DATA_DIR/keyvalue`.
    pub fn open(data_dir: &Path, bindings: BTreeMap<String, KeyValueBindingConfig>) -> Self {
        let clients = bindings.into_iter().map(|(name, config)| {
            let (backend, client): (_, Arc<dyn KeyValueClient>) = match config {
                KeyValueBindingConfig::Local { max_size } => {
                    ("local", local(data_dir, &name, max_size))
                }
                KeyValueBindingConfig::Redis { url } => ("redis", Arc::new(RedisStore::new(&url))),
            };
            (name, backend, client)
        });
        Self::from_clients(clients)
    }

    /// Bindings of any clients, with the word for their backend.
    pub fn from_clients(
        clients: impl IntoIterator<Item = (String, &'static str, Arc<dyn KeyValueClient>)>,
    ) -> Self {
        let stores = clients.into_iter().map(|(name, backend, client)| {
            let store = Store {
                name: name.clone(),
                client,
                permits: Arc::new(Semaphore::new(CONCURRENT_OPERATIONS)),
                backend,
            };
            (name, Arc::new(store))
        });
        Self {
            stores: stores.collect(),
        }
    }

    /// The names of all bindings.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stores.keys().map(String::as_str)
    }

    /// Asks every store, side by side, whether it answers.
    pub async fn state(&self) -> Vec<BindingState> {
        let probes: Vec<_> = self
            .stores
            .values()
            .cloned()
            .map(|store| tokio::spawn(async move { store.state().await }))
            .collect();
        let mut states = Vec::with_capacity(probes.len());
        for probe in probes {
            states.extend(probe.await.ok());
        }
        states
    }

    pub(crate) fn store(&self, binding: &str) -> Option<Arc<Store>> {
        self.stores.get(binding).cloned()
    }
}

impl Store {
    async fn state(&self) -> BindingState {
        let probe = tokio::time::timeout(PROBE_TIMEOUT, self.client.probe()).await;
        let down = match probe {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(ClientError::unavailable(Reason::TimedOut, "").to_string()),
        };
        BindingState {
            name: self.name.clone(),
            backend: self.backend,
            down,
        }
    }
}

fn local(data_dir: &Path, name: &str, max_size: u64) -> Arc<dyn KeyValueClient> {
    // Configuration allows names only; a text that is none must all the same never become a path.
    let file = name
        .parse::<Name>()
        .map_or_else(|_| hex(name), |name| name.to_string());
    Arc::new(SqliteStore::new(StoreFile {
        kind: BindingKind::Keyvalue,
        binding: name.to_owned(),
        path: data_dir.join("keyvalue").join(format!("{file}.sqlite")),
        max_size,
    }))
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("_{byte:02x}")).collect()
}

/// Describes this crate's metrics; call it once, when the recorder is installed.
pub fn describe_metrics() {
    metrics::describe_histogram!(
        "stepwell_keyvalue_seconds",
        metrics::Unit::Seconds,
        "time of key-value operations by binding, operation and outcome (ok, denied, refused, unavailable)"
    );
}
