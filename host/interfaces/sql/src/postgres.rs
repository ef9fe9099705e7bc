//! PostgreSQL.
//!
//! Every statement of a guest runs inside a transaction that the host began and whose access is fixed: a read-only one has taken its snapshot
//! before the guest's statement runs, after which the server lets nobody make it read-write, and it always ends in a rollback, which also
//! undoes what functions such as `set_config` changed. A guest's text goes through the extended protocol, which takes one statement, and
//! [`Statement`] has refused those that end transactions or change sessions. What functions can still leave in a session is reset before the
//! connection serves anyone else.

mod decode;
mod encode;
mod oid;
mod run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use stepwell_core::Secret;

use crate::client::{Access, Capacity, Database, Isolation, Transaction};
use crate::permit::Permit;
use crate::pool::{Busy, Lease, Pool, Pooled};
use crate::{Rows, SqlError, SqlErrorKind, Statement, Value};

use self::run::{execute, query, stale};

/// How long connecting, and asking an idle connection for a sign of life, may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Statements that each connection keeps prepared.
const CACHED: usize = 64;

/// Forgets what a user may have changed in the session; what `DISCARD ALL` does, but for prepared statements, which are the host's.
const RESET: &str = "ROLLBACK; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// The host's own settings: no notices, which guests can raise, and no statement outlives its connection by more than this. Servers before 14 and
/// some systems do not know the second; there it is the statement timeout that ends it.
const SETTINGS: &str =
    "SET client_min_messages = error; SET client_connection_check_interval = '200ms'";
const FEWER_SETTINGS: &str = "SET client_min_messages = error";

/// A PostgreSQL database.
pub(crate) struct Postgres {
    options: PgConnectOptions,
    max_connections: usize,
    statement_timeout: Duration,
    idle: Arc<Pool<Session>>,
}

/// The address of a database cannot be read. It does not say more, since the address holds a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the url is not a PostgreSQL address such as postgres://user:password@host:5432/database")]
pub struct InvalidUrl;

impl Postgres {
    /// Connects when it is first used.
    pub(crate) fn new(
        url: &Secret,
        max_connections: u32,
        statement_timeout: Duration,
    ) -> Result<Self, InvalidUrl> {
        let known = ["postgres://", "postgresql://"];
        if !known.iter().any(|scheme| url.expose().starts_with(scheme)) {
            return Err(InvalidUrl);
        }
        let options: PgConnectOptions = url.expose().parse().map_err(|_| InvalidUrl)?;
        Ok(Self {
            options: options
                .application_name("stepwell")
                .statement_cache_capacity(CACHED)
                .disable_statement_logging(),
            max_connections: usize::try_from(max_connections.clamp(1, 1000)).unwrap_or(1),
            statement_timeout,
            idle: Pool::new(),
        })
    }

    async fn connect(&self) -> Result<Session, SqlError> {
        let connecting = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            let settings = match connection.execute(SETTINGS).await {
                Ok(_) => SETTINGS,
                Err(_) => FEWER_SETTINGS,
            };
            connection.execute(settings).await?;
            Ok::<_, sqlx::Error>(Session {
                connection,
                settings,
            })
        };
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => {
                // The reason may name the server, so it is for the log alone.
                tracing::warn!(%error, "cannot connect to PostgreSQL");
                Err(SqlError::unavailable())
            }
            Err(_) => {
                tracing::warn!("PostgreSQL did not answer a new connection within {CONNECT:?}");
                Err(SqlError::unavailable())
            }
        }
    }

    /// A connection with a transaction begun. Idle ones that the server has given up in the meantime are passed over.
    async fn begin_on_any(
        &self,
        begin: Begin,
        deadline: Instant,
        mut permit: Permit,
    ) -> Result<Lease<Session>, SqlError> {
        loop {
            let idle = self.idle.take();
            let is_new = idle.is_none();
            let session = match idle {
                Some(session) => session,
                None => self.connect().await?,
            };
            let mut lease = Lease::new(session, permit, Arc::clone(&self.idle));
            let timeout = self.statement_timeout(deadline);
            let begun = tokio::time::timeout(CONNECT, begin_on(&mut lease, begin, timeout)).await;
            match begun {
                Ok(Ok(())) => return Ok(lease),
                Ok(Err(error)) if is_new || error.kind != SqlErrorKind::Unavailable => {
                    return Err(error);
                }
                Err(_) if is_new => return Err(SqlError::unavailable()),
                _ => {
                    permit = lease
                        .discard()
                        .ok_or_else(|| SqlError::internal("the permit is gone"))?;
                }
            }
        }
    }

    /// Runs one statement in a transaction of its own. Connections that prepared it before a table changed are closed, one after another.
    async fn single<T>(
        &self,
        statement: &Statement,
        access: Access,
        mut permit: Permit,
        run: impl for<'a> Fn(
            &'a mut Lease<Session>,
            &'a Statement,
        ) -> BoxFuture<'a, Result<T, SqlError>>
        + Send
        + Sync,
    ) -> Result<T, SqlError> {
        loop {
            let begin = Begin::single(access);
            let mut lease = self.begin_on_any(begin, statement.deadline, permit).await?;
            match run(&mut lease, statement).await {
                Err(error) if error == stale() => {
                    permit = lease
                        .discard()
                        .ok_or_else(|| SqlError::internal("the permit is gone"))?;
                }
                Err(error) => return Err(error),
                Ok(answer) => {
                    end(&mut lease, access).await?;
                    return Ok(answer);
                }
            }
        }
    }

    fn statement_timeout(&self, deadline: Instant) -> Duration {
        let remaining = deadline.saturating_duration_since(Instant::now());
        // The server takes 0 for no timeout at all.
        self.statement_timeout
            .min(remaining)
            .clamp(Duration::from_millis(1), Duration::from_secs(86_400))
    }
}

#[async_trait]
impl Database for Postgres {
    fn backend(&self) -> &'static str {
        "postgres"
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            connections: self.max_connections,
            writers: None,
        }
    }

    async fn query(
        &self,
        statement: Statement,
        access: Access,
        permit: Permit,
    ) -> Result<Rows, SqlError> {
        self.single(&statement, access, permit, |lease, statement| {
            Box::pin(query(lease, statement))
        })
        .await
    }

    async fn execute(&self, statement: Statement, permit: Permit) -> Result<u64, SqlError> {
        self.single(&statement, Access::Write, permit, |lease, statement| {
            Box::pin(execute(lease, statement))
        })
        .await
    }

    async fn begin(
        &self,
        isolation: Isolation,
        access: Access,
        deadline: Instant,
        permit: Permit,
    ) -> Result<Box<dyn Transaction>, SqlError> {
        let begin = Begin { isolation, access };
        let lease = self.begin_on_any(begin, deadline, permit).await?;
        Ok(Box::new(PgTransaction {
            lease,
            access,
            statement_timeout: self.statement_timeout,
        }))
    }

    async fn probe(&self, permit: Permit) -> Result<(), SqlError> {
        let deadline = Instant::now() + CONNECT;
        let begin = Begin::single(Access::Read);
        let mut lease = self.begin_on_any(begin, deadline, permit).await?;
        end(&mut lease, Access::Read).await
    }

    async fn is_superuser(&self, permit: Permit) -> Result<bool, SqlError> {
        let deadline = Instant::now() + CONNECT;
        let begin = Begin::single(Access::Read);
        let mut lease = self.begin_on_any(begin, deadline, permit).await?;
        let sql = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
        let statement = Statement::new(sql.to_owned(), Vec::new(), deadline)?;
        let rows = query(&mut lease, &statement).await?;
        end(&mut lease, Access::Read).await?;
        let first = rows.rows.first().and_then(|row| row.first());
        Ok(first == Some(&Value::Boolean(true)))
    }

    async fn close(&self) {
        while let Some(session) = self.idle.take() {
            // The server closes what does not say goodbye, too.
            let _ = tokio::time::timeout(CONNECT, session.connection.close()).await;
        }
    }
}

struct PgTransaction {
    lease: Lease<Session>,
    access: Access,
    statement_timeout: Duration,
}

impl PgTransaction {
    /// Gives the next statement its time, and makes sure that the transaction is still the one that the host began.
    async fn prepare(&mut self, statement: &Statement) -> Result<(), SqlError> {
        let remaining = statement.deadline.saturating_duration_since(Instant::now());
        let timeout = self.statement_timeout.min(remaining).as_millis().max(1);
        let access = match self.access {
            Access::Read => "on",
            Access::Write => "off",
        };
        let sql = format!(
            "SELECT pg_catalog.set_config('statement_timeout', '{timeout}', true), \
             pg_catalog.current_setting('{MARK}', true) = '{access}' \
             AND pg_catalog.current_setting('transaction_read_only') = '{access}'"
        );
        let mut busy = self.lease.start()?;
        let row = sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_one(&mut busy.connection)
            .await;
        let row = settle(busy, row)?;
        let as_begun = row
            .try_get_unchecked::<&str, _>(1)
            .is_ok_and(|text| text == "t");
        if as_begun {
            Ok(())
        } else {
            Err(SqlError::internal(
                "the transaction is no longer the one that was begun",
            ))
        }
    }
}

#[async_trait]
impl Transaction for PgTransaction {
    async fn query(&mut self, statement: Statement) -> Result<Rows, SqlError> {
        self.prepare(&statement).await?;
        query(&mut self.lease, &statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        self.prepare(&statement).await?;
        execute(&mut self.lease, &statement).await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), SqlError> {
        end(&mut self.lease, self.access).await
    }

    async fn rollback(mut self: Box<Self>) -> Result<(), SqlError> {
        end(&mut self.lease, Access::Read).await
    }
}

/// A connection.
struct Session {
    connection: PgConnection,
    settings: &'static str,
}

impl Pooled for Session {
    async fn reset(&mut self) -> bool {
        self.connection.execute(RESET).await.is_ok()
            && self.connection.execute(self.settings).await.is_ok()
    }
}

/// How to begin.
#[derive(Clone, Copy)]
struct Begin {
    isolation: Isolation,
    access: Access,
}

impl Begin {
    fn single(access: Access) -> Self {
        Self {
            isolation: Isolation::ReadCommitted,
            access,
        }
    }
}

/// A setting that lives as long as the transaction that made it, and holds its access.
const MARK: &str = "stepwell.read_only";

/// Begins, in one round trip; the `SELECT` takes the snapshot.
async fn begin_on(
    lease: &mut Lease<Session>,
    begin: Begin,
    timeout: Duration,
) -> Result<(), SqlError> {
    let isolation = match begin.isolation {
        Isolation::ReadCommitted => "READ COMMITTED",
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    };
    let (access, mark) = match begin.access {
        Access::Read => ("READ ONLY", "on"),
        Access::Write => ("READ WRITE", "off"),
    };
    let timeout = timeout.as_millis().max(1);
    let sql = format!(
        "BEGIN ISOLATION LEVEL {isolation}, {access}; SET LOCAL statement_timeout = {timeout}; \
         SET LOCAL {MARK} = '{mark}'; SELECT 1"
    );
    let mut busy = lease.start()?;
    let begun = sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut busy.connection)
        .await;
    settle(busy, begun).map(|_| ())
}

/// Ends the transaction: a read-only one by a rollback.
async fn end(lease: &mut Lease<Session>, access: Access) -> Result<(), SqlError> {
    let mut busy = lease.start()?;
    let ended = match access {
        Access::Read => busy.connection.execute("ROLLBACK").await,
        Access::Write => busy.connection.execute("COMMIT").await,
    };
    settle(busy, ended).map(|_| ())
}

/// Finishes what is in order after an error, which is what the server itself reported, and leaves the rest to be closed.
fn settle<T>(busy: Busy<'_, Session>, result: Result<T, sqlx::Error>) -> Result<T, SqlError> {
    match result {
        Ok(value) => {
            busy.finish();
            Ok(value)
        }
        Err(error) => {
            let in_order = matches!(&error, sqlx::Error::Database(error)
                // Somebody has meddled with the statements that the host prepared.
                if !matches!(error.code().as_deref(), Some("26000" | "42P05")));
            let error = from_sqlx(error);
            if in_order && error.kind != SqlErrorKind::Unavailable {
                busy.finish();
            }
            Err(error)
        }
    }
}

fn from_sqlx(error: sqlx::Error) -> SqlError {
    match error {
        sqlx::Error::Database(error) => {
            let sqlstate = error.code().unwrap_or_default().into_owned();
            let message = error.message().to_owned();
            let error = SqlError::from_sqlstate(&sqlstate, message);
            match error.kind {
                SqlErrorKind::Unavailable | SqlErrorKind::Internal => {
                    tracing::warn!(%error, sqlstate, "PostgreSQL failed");
                    SqlError {
                        message: "the database failed".to_owned(),
                        ..error
                    }
                }
                _ => error,
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => SqlError::unavailable(),
        error => {
            tracing::error!(%error, "a PostgreSQL connection failed");
            SqlError::internal("the database connection failed")
        }
    }
}
