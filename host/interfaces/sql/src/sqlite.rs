//! The embedded backend: one SQLite file for each binding, never the catalog's.
//!
//! Two kinds of connections, each confined for good when it is opened: readers, which cannot write, and one writer.

mod confined;
mod error;
mod guard;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::process::{getpriority_process, setpriority_process};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use stepwell_core::{ByteSize, LOG_AT_REST, StoreFile};
use tokio::sync::oneshot;

use crate::client::{Access, Capacity, Database, Isolation, Transaction};
use crate::permit::Permit;
use crate::pool::{Lease, Pool};
use crate::{Rows, SqlError, SqlErrorKind, Statement};

use self::confined::{Confined, control, execute, query};
use self::error::{NO_SPACE, hit_store_size};
use self::guard::Interrupt;

const READERS: usize = 8;
/// How long a statement waits for a lock of another process; within the host there is one writer.
const BUSY: Duration = Duration::from_secs(2);
/// How far behind the host's other threads those of the connections are, as `nice` has it: what guests' statements compute gives way
/// to requests, as guests do that compute for long.
const NICE: i32 = 5;

/// Begins a transaction and takes its snapshot, and with it the schema: without one, a statement is compiled for the tables that the connection last saw, and
/// sqlx's thread ends when they turn out to have changed.
const SNAPSHOT: &str = "BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1";

/// An SQLite file.
pub(crate) struct Sqlite {
    file: Arc<StoreFile>,
    readers: Arc<Pool<Confined>>,
    writer: Arc<Pool<Confined>>,
}

impl Sqlite {
    /// The file is made when it is first used.
    pub(crate) fn new(file: StoreFile) -> Self {
        Self {
            file: Arc::new(file),
            readers: Pool::new(),
            writer: Pool::new(),
        }
    }

    async fn lease(&self, access: Access, permit: Permit) -> Result<Lease<Confined>, SqlError> {
        if access == Access::Write && self.file.log_is_full() {
            self.empty_log().await?;
        }
        let pool = match access {
            Access::Read => &self.readers,
            Access::Write => &self.writer,
        };
        let connection = match pool.take() {
            Some(connection) => connection,
            None => self.connect(access).await?,
        };
        connection.interrupt.charge_to(permit.cpu());
        Ok(Lease::new(connection, permit, Arc::clone(pool)))
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.file.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .row_buffer_size(8)
            // In files, what a statement sorts or remembers could fill the disk; in memory, it is bounded.
            .pragma("temp_store", "MEMORY")
            // A large transaction does not leave a log of its size behind.
            .pragma("journal_size_limit", LOG_AT_REST.to_string())
            .disable_statement_logging()
    }

    async fn connect(&self, access: Access) -> Result<Confined, SqlError> {
        if let Some(directory) = self.file.path.parent() {
            tokio::fs::create_dir_all(directory).await.map_err(|error| {
                tracing::error!(%error, path = %directory.display(), "cannot make the directory of SQLite bindings");
                SqlError::unavailable()
            })?;
        }
        let failed = |error: sqlx::Error| self.cannot_open(&error);
        let mut connection = open(self.options()).await.map_err(failed)?;
        match access {
            Access::Read => {
                let only = connection.execute("PRAGMA query_only = ON");
                only.await.map_err(failed)?;
            }
            Access::Write => {
                let size = sqlx::query_scalar::<_, i64>("PRAGMA page_size");
                let already = sqlx::query_scalar::<_, i64>("PRAGMA page_count");
                let size = size.fetch_one(&mut connection).await.map_err(failed)?;
                let already = already.fetch_one(&mut connection).await.map_err(failed)?;
                let (size, already) = (size.unsigned_abs(), already.unsigned_abs());
                let pages = self.file.pages(size, already);
                let bound = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
                connection.execute(bound).await.map_err(failed)?;
            }
        }
        let interrupt = Arc::new(Interrupt::default());
        let mut handle = connection.lock_handle().await.map_err(failed)?;
        guard::confine(&mut handle, access, &interrupt)?;
        drop(handle);
        Ok(Confined {
            connection,
            interrupt,
            access,
            file: Arc::clone(&self.file),
        })
    }

    fn cannot_open(&self, error: &sqlx::Error) -> SqlError {
        tracing::error!(%error, path = %self.file.path.display(), "cannot open an SQLite binding");
        SqlError::unavailable()
    }

    /// Has what is in the log moved into the file, and the log cut: SQLite itself begins it anew only while nobody reads from it, so
    /// that those who read by turns would have it grow for as long as others write. Whoever began to read before is waited for.
    async fn empty_log(&self) -> Result<(), SqlError> {
        let failed = |error: sqlx::Error| self.cannot_open(&error);
        // Of its own, since the others may do nothing like this.
        let mut connection = open(self.options()).await.map_err(failed)?;
        let emptied = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
        if let Err(error) = emptied {
            tracing::warn!(%error, binding = self.file.binding, "the log of an SQLite binding cannot be emptied");
        }
        if !self.file.log_is_full() {
            return Ok(());
        }
        hit_store_size();
        Err(SqlError::new(
            SqlErrorKind::Overloaded,
            NO_SPACE,
            format!(
                "the log of the binding '{name}' is as large as its file may be, which is {size}, and a transaction that reads keeps it from being emptied; try again when that has ended, or have the operator raise bindings.sql.{name}.max_size",
                name = self.file.binding,
                size = ByteSize(self.file.max_size.max(LOG_AT_REST)),
            ),
        ))
    }
}

#[async_trait]
impl Database for Sqlite {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            connections: READERS,
            writers: Some(1),
        }
    }

    async fn query(
        &self,
        statement: Statement,
        access: Access,
        permit: Permit,
    ) -> Result<Rows, SqlError> {
        let mut lease = self.lease(access, permit).await?;
        if access == Access::Read {
            control(&mut lease, SNAPSHOT, statement.deadline).await?;
        }
        query(&mut lease, statement).await
    }

    async fn execute(&self, statement: Statement, permit: Permit) -> Result<u64, SqlError> {
        let mut lease = self.lease(Access::Write, permit).await?;
        execute(&mut lease, statement).await
    }

    async fn begin(
        &self,
        _: Isolation,
        access: Access,
        deadline: Instant,
        permit: Permit,
    ) -> Result<Box<dyn Transaction>, SqlError> {
        let mut lease = self.lease(access, permit).await?;
        let begin = match access {
            Access::Read => SNAPSHOT,
            // The lock is taken at once, so that a transaction that reads first is not refused its first write.
            Access::Write => "BEGIN IMMEDIATE",
        };
        control(&mut lease, begin, deadline).await?;
        Ok(Box::new(SqliteTransaction { lease, deadline }))
    }

    async fn probe(&self, permit: Permit) -> Result<(), SqlError> {
        let mut lease = self.lease(Access::Read, permit).await?;
        let deadline = Instant::now() + BUSY;
        control(&mut lease, SNAPSHOT, deadline).await
    }

    async fn is_superuser(&self, _: Permit) -> Result<bool, SqlError> {
        Ok(false)
    }

    async fn close(&self) {
        for pool in [&self.readers, &self.writer] {
            while let Some(connection) = pool.take() {
                drop(connection);
            }
        }
    }
}

/// Opens a connection. Its thread has the priority of the one that starts it.
async fn open(options: SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let (sender, opened) = oneshot::channel();
    std::thread::Builder::new()
        .name("sqlite-open".into())
        .spawn(move || {
            if let Err(error) = give_way() {
                tracing::warn!(%error, "SQLite cannot be given a low priority");
            }
            // Whoever asked may have gone.
            let _ = sender.send(futures::executor::block_on(SqliteConnection::connect_with(
                &options,
            )));
        })
        .map_err(sqlx::Error::Io)?;
    opened.await.map_err(|_| sqlx::Error::WorkerCrashed)?
}

/// Lowers the priority of the calling thread; on Linux that is all that this is about.
fn give_way() -> rustix::io::Result<()> {
    if getpriority_process(None)? < NICE {
        setpriority_process(None, NICE)?;
    }
    Ok(())
}

struct SqliteTransaction {
    lease: Lease<Confined>,
    deadline: Instant,
}

#[async_trait]
impl Transaction for SqliteTransaction {
    async fn query(&mut self, statement: Statement) -> Result<Rows, SqlError> {
        query(&mut self.lease, statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        execute(&mut self.lease, statement).await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), SqlError> {
        control(&mut self.lease, "COMMIT", self.deadline).await
    }

    async fn rollback(mut self: Box<Self>) -> Result<(), SqlError> {
        control(&mut self.lease, "ROLLBACK", self.deadline).await
    }
}

#[cfg(test)]
mod tests;
