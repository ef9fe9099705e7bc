//! A database behind a binding, and guests that call the interface as a component would.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, of which each test file uses a part"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use stepwell_core::{
    Action, BindingKind, Call, CpuAccount, Grant, Grants, Name, RunId, STORE_SIZE, Secret,
    StepScope,
};
use stepwell_sql::wit::{
    Error, Host, HostConnection, HostTransaction, Isolation, QueryOptions, Rows,
    TransactionOptions, Value,
};
use stepwell_sql::{Databases, DatabasesView, OpenConnection, OpenTransaction, SqlBindingConfig};
use stepwell_test_services::Postgres;
use tempfile::TempDir;
use wasmtime::component::{Resource, ResourceTable};

/// The operator's name for the binding; guests call it `db`.
pub const BINDING: &str = "results";
pub const READ: &[Action] = &[Action::Read];
pub const WRITE: &[Action] = &[Action::Write];
pub const READ_WRITE: &[Action] = &[Action::Read, Action::Write];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

pub struct Fixture {
    pub databases: Databases,
    pub backend: Backend,
    pub url: String,
    pub directory: TempDir,
    /// Who is charged for all guests.
    pub cpu: Arc<CpuAccount>,
}

/// One server for all tests of a file; each test has a database of its own.
pub static SERVER: LazyLock<Postgres> = LazyLock::new(|| Postgres::start().unwrap());
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Fixture {
    pub fn sqlite() -> Self {
        Self::sqlite_of(STORE_SIZE)
    }

    pub fn sqlite_of(max_size: u64) -> Self {
        Self::open(
            Backend::Sqlite,
            String::new(),
            SqlBindingConfig::Sqlite { max_size },
        )
    }

    /// The same file, with another bound.
    pub fn reopened(self, max_size: u64) -> Self {
        let bindings = [(BINDING.to_owned(), SqlBindingConfig::Sqlite { max_size })].into();
        let databases = Databases::open(self.directory.path(), bindings).unwrap();
        Self { databases, ..self }
    }

    pub fn postgres(max_connections: u32) -> Self {
        let name = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = SERVER.create_database(&name).unwrap();
        Self::postgres_at(url, max_connections)
    }

    pub fn postgres_at(url: String, max_connections: u32) -> Self {
        let config = SqlBindingConfig::Postgres {
            url: Secret::new(url.clone()),
            max_connections,
            statement_timeout: Duration::from_secs(20),
        };
        Self::open(Backend::Postgres, url, config)
    }

    fn open(backend: Backend, url: String, config: SqlBindingConfig) -> Self {
        let directory = TempDir::new().unwrap();
        let bindings = BTreeMap::from([(BINDING.to_owned(), config)]);
        Self {
            databases: Databases::open(directory.path(), bindings).unwrap(),
            backend,
            url,
            directory,
            cpu: Arc::default(),
        }
    }

    pub fn pick<T>(&self, sqlite: T, postgres: T) -> T {
        match self.backend {
            Backend::Sqlite => sqlite,
            Backend::Postgres => postgres,
        }
    }

    pub fn guest(&self, actions: &[Action]) -> Guest<'_> {
        self.guest_for(actions, Duration::from_secs(60))
    }

    pub fn guest_for(&self, actions: &[Action], wall: Duration) -> Guest<'_> {
        let mut grants = Grants::default();
        let grant = Grant {
            binding: BINDING.to_owned(),
            actions: actions.to_vec(),
            prefix: String::new(),
        };
        grants.insert(BindingKind::Sql, "db", grant);
        let name = |text: &str| text.parse::<Name>().unwrap();
        let scope = StepScope {
            namespace: name("default"),
            pipeline: name("pipeline"),
            revision: 1,
            step: name("step"),
            plugin: "plugin@1.0.0".to_owned(),
            digest: None,
            grants,
            config: Vec::new(),
            cpu: self.cpu.clone(),
        };
        Guest {
            databases: &self.databases,
            call: Call {
                scope: Arc::new(scope),
                run: RunId::new(),
                deadline: Instant::now() + wall,
            },
            table: ResourceTable::new(),
        }
    }
}

/// What a store has of this interface; dropping it is what happens when an instance is discarded.
pub struct Guest<'a> {
    databases: &'a Databases,
    call: Call,
    table: ResourceTable,
}

impl Guest<'_> {
    fn view(&mut self) -> DatabasesView<'_> {
        DatabasesView {
            databases: self.databases,
            call: &self.call,
            table: &mut self.table,
        }
    }

    pub async fn open(&mut self, name: &str) -> Result<Resource<OpenConnection>, Error> {
        self.view().open(name.to_owned()).await.unwrap()
    }

    pub async fn query(&mut self, sql: &str, params: Vec<Value>) -> Result<Rows, Error> {
        self.query_with(sql, params, None, None).await
    }

    pub async fn query_bounded(
        &mut self,
        sql: &str,
        max_rows: Option<u32>,
        max_bytes: Option<u64>,
    ) -> Result<Rows, Error> {
        self.query_with(sql, Vec::new(), max_rows, max_bytes).await
    }

    async fn query_with(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        max_rows: Option<u32>,
        max_bytes: Option<u64>,
    ) -> Result<Rows, Error> {
        let connection = self.open("db").await?;
        let options = QueryOptions {
            max_rows,
            max_bytes,
        };
        let result = HostConnection::query(
            &mut self.view(),
            borrow(&connection),
            sql.to_owned(),
            params,
            options,
        )
        .await
        .unwrap();
        HostConnection::drop(&mut self.view(), connection)
            .await
            .unwrap();
        result
    }

    pub async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        let connection = self.open("db").await?;
        let result = HostConnection::execute(
            &mut self.view(),
            borrow(&connection),
            sql.to_owned(),
            params,
        )
        .await
        .unwrap();
        HostConnection::drop(&mut self.view(), connection)
            .await
            .unwrap();
        result
    }

    pub async fn begin(
        &mut self,
        isolation: Isolation,
        read_only: bool,
    ) -> Result<Resource<OpenTransaction>, Error> {
        let connection = self.open("db").await?;
        let options = TransactionOptions {
            isolation,
            read_only,
        };
        self.view().begin(connection, options).await.unwrap()
    }

    pub async fn query_in(
        &mut self,
        transaction: &Resource<OpenTransaction>,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Rows, Error> {
        let options = QueryOptions {
            max_rows: None,
            max_bytes: None,
        };
        HostTransaction::query(
            &mut self.view(),
            borrow(transaction),
            sql.to_owned(),
            params,
            options,
        )
        .await
        .unwrap()
    }

    pub async fn execute_in(
        &mut self,
        transaction: &Resource<OpenTransaction>,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<u64, Error> {
        HostTransaction::execute(
            &mut self.view(),
            borrow(transaction),
            sql.to_owned(),
            params,
        )
        .await
        .unwrap()
    }

    pub async fn commit(&mut self, transaction: Resource<OpenTransaction>) -> Result<(), Error> {
        self.view().commit(transaction).await.unwrap()
    }

    pub async fn rollback(&mut self, transaction: Resource<OpenTransaction>) -> Result<(), Error> {
        self.view().rollback(transaction).await.unwrap()
    }

    pub async fn drop_transaction(&mut self, transaction: Resource<OpenTransaction>) {
        HostTransaction::drop(&mut self.view(), transaction)
            .await
            .unwrap();
    }
}

fn borrow<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

/// The case of the error.
pub fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.unwrap_err() {
        Error::NotGranted(_) => "not-granted",
        Error::Invalid(_) => "invalid",
        Error::Constraint(_) => "constraint",
        Error::Aborted(_) => "aborted",
        Error::Unavailable(_) => "unavailable",
        Error::Overloaded(_) => "overloaded",
        Error::DeadlineExceeded => "deadline-exceeded",
        Error::TooLarge(_) => "too-large",
        Error::Internal(_) => "internal",
    }
}

/// The SQLSTATE of the error.
pub fn sqlstate<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result.unwrap_err() {
        Error::Invalid(failure) | Error::Constraint(failure) | Error::Aborted(failure) => {
            failure.sqlstate
        }
        error => panic!("{error:?} has no SQLSTATE"),
    }
}
