use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use stepwell_core::{BindingKind, Name, Secret, StoreFile};

use crate::client::{Access, Database};
use crate::permit::Permits;
use crate::postgres::{InvalidUrl, Postgres};
use crate::sqlite::Sqlite;

/// What is behind a binding.
#[derive(Clone, Debug)]
pub enum SqlBindingConfig {
    /// A file of its own in the data directory.
    Sqlite {
        /// Bytes that it may have.
        max_size: u64,
    },
    /// A PostgreSQL database.
    Postgres {
        /// `postgres://user:password@host:port/database`.
        url: Secret,
        /// Most connections at once, from 1 to 1000.
        max_connections: u32,
        /// The longest that one statement may take.
        statement_timeout: Duration,
    },
}

/// A binding that cannot be used as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBinding {
    /// Its address cannot be read.
    #[error("the SQL binding '{0}': {1}")]
    Url(String, InvalidUrl),
    /// Its name would not do as a file's.
    #[error("'{0}' is not a name for an SQL binding")]
    Name(String),
}

/// The operator's SQL bindings, shared by the whole process.
#[derive(Default)]
pub struct Databases {
    bindings: BTreeMap<String, Binding>,
}

pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) database: Box<dyn Database>,
    pub(crate) permits: Permits,
}

/// How a binding is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingState {
    /// The operator's name for it.
    pub name: String,
    /// `sqlite` or `postgres`.
    pub backend: &'static str,
    /// Why it cannot be used now, without address or credential; none: it can.
    pub down: Option<String>,
}

/// How long a sign of life may take.
const PROBE: Duration = Duration::from_secs(2);

impl Databases {
    /// Takes the bindings as they are configured. Nothing is connected yet, so a database that is down is no error.
    ///
    /// # Errors
    /// [`InvalidBinding`] for what can never work.
    pub fn open(
        data_dir: &Path,
        bindings: BTreeMap<String, SqlBindingConfig>,
    ) -> Result<Self, InvalidBinding> {
        let bindings = bindings
            .into_iter()
            .map(|(name, config)| Ok((name.clone(), Binding::new(data_dir, name, config)?)))
            .collect::<Result<_, _>>()?;
        Ok(Self { bindings })
    }

    /// Asks every binding for a sign of life. One whose connections are all in use counts as alive.
    pub async fn state(&self) -> Vec<BindingState> {
        join_all(self.bindings.values().map(Binding::state)).await
    }

    /// Whether the binding's role may do everything on its server: `doctor` warns of it. None when there is no such binding, or when
    /// it cannot be asked now.
    pub async fn is_superuser(&self, binding: &str) -> Option<bool> {
        let binding = self.bindings.get(binding)?;
        let deadline = Instant::now() + PROBE;
        let permit = binding.permits.acquire(Access::Read, deadline).await.ok()?;
        let answer = tokio::time::timeout(PROBE, binding.database.is_superuser(permit)).await;
        answer.ok()?.ok()
    }

    /// Refuses new statements and closes idle connections.
    pub async fn close(&self) {
        for binding in self.bindings.values() {
            binding.permits.close();
            binding.database.close().await;
        }
    }

    pub(crate) fn get(&self, binding: &str) -> Option<&Binding> {
        self.bindings.get(binding)
    }
}

impl Binding {
    fn new(
        data_dir: &Path,
        name: String,
        config: SqlBindingConfig,
    ) -> Result<Self, InvalidBinding> {
        // The name becomes a file's, so it must be one that leads nowhere else.
        if name.parse::<Name>().is_err() {
            return Err(InvalidBinding::Name(name));
        }
        let database: Box<dyn Database> = match config {
            SqlBindingConfig::Sqlite { max_size } => Box::new(Sqlite::new(StoreFile {
                kind: BindingKind::Sql,
                binding: name.clone(),
                path: data_dir.join("sql").join(format!("{name}.sqlite")),
                max_size,
            })),
            SqlBindingConfig::Postgres {
                url,
                max_connections,
                statement_timeout,
            } => Box::new(
                Postgres::new(&url, max_connections, statement_timeout)
                    .map_err(|error| InvalidBinding::Url(name.clone(), error))?,
            ),
        };
        let in_use = metrics::gauge!(
            "stepwell_sql_connections_in_use",
            "binding" => name.clone(),
            "backend" => database.backend(),
        );
        Ok(Self {
            permits: Permits::new(database.capacity(), in_use),
            name,
            database,
        })
    }

    async fn state(&self) -> BindingState {
        let down = match self.permits.try_acquire(Access::Read) {
            None => None,
            Some(permit) => match tokio::time::timeout(PROBE, self.database.probe(permit)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.message),
                Err(_) => Some("the database does not answer".to_owned()),
            },
        };
        BindingState {
            name: self.name.clone(),
            backend: self.database.backend(),
            down,
        }
    }
}
