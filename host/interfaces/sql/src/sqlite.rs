//! The embedded backend: one SQLite file for each binding, never the catalog's.
//!
//! Two kinds of connections, each confined for good when it is opened: readers, which cannot write, and one writer.

mod error;
mod guard;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use rustix::process::{getpriority_process, setpriority_process};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Either, Executor};
use stepwell_core::{LOG_AT_REST, StoreFile};
use tokio::sync::oneshot;

use crate::client::{Access, Capacity, Database, Isolation, Transaction};
use crate::permit::Permit;
use crate::pool::{Lease, Pool, Pooled};
use crate::{Column, Rows, SqlError, SqlErrorKind, Statement, Value};

use self::error::{NO_SPACE, from_sqlx};
use self::guard::{Interrupt, Shape};
use self::values::Declared;

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
            "the log of the binding is as large as its file may be, and a transaction that reads keeps it from being emptied",
        ))
    }
}

fn hit_store_size() {
    metrics::counter!("stepwell_limit_hits_total", "limit" => "store_size").increment(1);
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

/// A connection that its guard has confined.
struct Confined {
    connection: SqliteConnection,
    interrupt: Arc<Interrupt>,
    access: Access,
    file: Arc<StoreFile>,
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Its thread may be in the middle of a statement that nobody waits for any more.
        self.interrupt.stop();
    }
}

impl Pooled for Confined {
    async fn reset(&mut self) -> bool {
        self.interrupt.arm(Instant::now() + BUSY);
        let is_fit = match in_transaction(&mut self.connection).await {
            Some(true) => self.connection.execute("ROLLBACK").await.is_ok(),
            Some(false) => true,
            None => false,
        };
        self.interrupt.charge_to(None);
        is_fit
    }

    /// Some functions of SQL cannot be interrupted, and its thread goes on until they are done: `instr` takes minutes for what is
    /// as long as it may be.
    fn abandon(self, permit: Permit) {
        self.interrupt.keep(permit);
    }
}

async fn in_transaction(connection: &mut SqliteConnection) -> Option<bool> {
    let mut handle = connection.lock_handle().await.ok()?;
    Some(guard::in_transaction(&mut handle))
}

/// Runs one of the host's own statements.
async fn control(
    lease: &mut Lease<Confined>,
    sql: &'static str,
    deadline: Instant,
) -> Result<(), SqlError> {
    let mut busy = lease.start()?;
    busy.interrupt.arm(deadline);
    let result = busy.connection.execute(sql).await;
    let result = result.map_err(|error| busy.explain(&error)).map(|_| ());
    busy.finish();
    result
}

async fn query(lease: &mut Lease<Confined>, statement: Statement) -> Result<Rows, SqlError> {
    let mut rows = Rows::default();
    let mut columns = Vec::new();
    run(lease, statement, |shape, kept| match kept {
        None => {
            columns = shape
                .columns
                .iter()
                .map(|(_, declared)| declared.as_deref().and_then(Declared::parse))
                .collect();
            Ok(0)
        }
        Some(row) => {
            let row = values::read_row(row, &columns)?;
            let size = row.iter().map(Value::size).sum();
            rows.rows.push(row);
            Ok(size)
        }
    })
    .await
    .map(|(shape, _)| {
        rows.columns = name_columns(shape, &rows.rows);
        rows
    })
}

async fn execute(lease: &mut Lease<Confined>, statement: Statement) -> Result<u64, SqlError> {
    let counts = statement.counts_rows();
    let (shape, changed) = run(lease, statement, |_, _| Ok(0)).await?;
    // For all others SQLite repeats the count of the last statement that has one.
    Ok(if counts && !shape.reads_only {
        changed
    } else {
        0
    })
}

/// Runs a guest's statement; `each` is told its shape first and then gets every row, and answers the row's size.
async fn run(
    lease: &mut Lease<Confined>,
    statement: Statement,
    mut each: impl FnMut(&Shape, Option<&sqlx::sqlite::SqliteRow>) -> Result<usize, SqlError> + Send,
) -> Result<(Shape, u64), SqlError> {
    let mut busy = lease.start()?;
    busy.interrupt.arm(statement.deadline);
    let inspected = busy.inspect(&statement).await;
    let shape = match inspected {
        Ok(shape) => shape,
        Err(error) => {
            busy.finish();
            return Err(error);
        }
    };
    each(&shape, None)?;
    let arguments = match values::arguments(&statement.parameters) {
        Ok(arguments) => arguments,
        Err(error) => {
            busy.finish();
            return Err(error);
        }
    };
    // Never a compiled statement of before, for the same reason as [`SNAPSHOT`].
    let query = sqlx::query_with(AssertSqlSafe(statement.sql.clone()), arguments).persistent(false);
    let mut changed = None;
    let (mut count, mut bytes) = (0_usize, 0_usize);
    let confined = &mut *busy;
    let mut stream = confined.connection.fetch_many(query);
    let failed = loop {
        match stream.try_next().await {
            Ok(Some(Either::Left(done))) => changed = Some(done.rows_affected()),
            Ok(Some(Either::Right(row))) => {
                count += 1;
                bytes += each(&shape, Some(&row))?;
                statement.check_result(count, shape.columns.len(), bytes)?;
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    drop(stream);
    let result = match (failed, changed) {
        (None, Some(changed)) => Ok((shape, changed)),
        (Some(error), _) => Err(confined.explain(&error)),
        // sqlx's thread has ended: another process changed a table between compiling and running.
        (None, None) => return Err(values::table_changed()),
    };
    busy.finish();
    result
}

fn name_columns(shape: Shape, rows: &[Vec<Value>]) -> Vec<Column> {
    shape
        .columns
        .into_iter()
        .enumerate()
        .map(|(index, (name, declared))| {
            let stored = || {
                rows.iter()
                    .filter_map(|row| row.get(index))
                    .find(|value| **value != Value::Null)
                    .map_or("NULL", values::storage_class)
                    .to_owned()
            };
            Column {
                name,
                type_name: declared.unwrap_or_else(stored),
            }
        })
        .collect()
}

impl Confined {
    async fn inspect(&mut self, statement: &Statement) -> Result<Shape, SqlError> {
        let mut handle = self
            .connection
            .lock_handle()
            .await
            .map_err(|error| from_sqlx(&error))?;
        // Compiling a hostile statement may take until the deadline, so the runtime's other tasks must not wait for this thread.
        let shape = off_the_runtime(|| guard::inspect(&mut handle, &statement.sql));
        drop(handle);
        let shape = shape.map_err(|error| self.refine(error))?;
        if shape.parameters != statement.parameters.len() {
            return Err(SqlError::invalid(
                "07001",
                format!(
                    "the statement has {} parameters, but {} were given",
                    shape.parameters,
                    statement.parameters.len()
                ),
            ));
        }
        Ok(shape)
    }

    fn explain(&self, error: &sqlx::Error) -> SqlError {
        self.refine(from_sqlx(error))
    }

    /// Says what only the connection knows of an error.
    fn refine(&self, error: SqlError) -> SqlError {
        match error.sqlstate.as_str() {
            "57014" if self.interrupt.was_out_of_memory() => {
                SqlError::too_large("the statement needs too much memory")
            }
            NO_SPACE => match self.file.full() {
                Some(why) => {
                    hit_store_size();
                    SqlError::too_large(why)
                }
                None => {
                    tracing::error!(
                        binding = self.file.binding,
                        "an SQLite database cannot be written: the disk is full"
                    );
                    error
                }
            },
            // A reader's authorizer denies everything that writes.
            "42501" if self.access == Access::Read => SqlError::invalid(
                "25006",
                "the statement does more than read, which is not allowed here",
            ),
            _ => error,
        }
    }
}

fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use tokio::sync::{OwnedRwLockReadGuard, RwLock};

    use super::*;

    /// What fills SQLite's memory, which is the process's, is not tested beside others.
    static MEMORY: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

    struct Directory {
        directory: tempfile::TempDir,
        _others: OwnedRwLockReadGuard<()>,
    }

    impl Directory {
        fn path(&self) -> &std::path::Path {
            self.directory.path()
        }
    }

    async fn connections() -> (Directory, [Confined; 2]) {
        let others = MEMORY.clone().read_owned().await;
        let (directory, both) = connections_of_one().await;
        let directory = Directory {
            directory,
            _others: others,
        };
        (directory, both)
    }

    fn file(directory: &tempfile::TempDir) -> StoreFile {
        StoreFile {
            kind: stepwell_core::BindingKind::Sql,
            binding: "test".to_owned(),
            path: directory.path().join("sql").join("test.sqlite"),
            max_size: stepwell_core::STORE_SIZE,
        }
    }

    async fn connections_of_one() -> (tempfile::TempDir, [Confined; 2]) {
        let directory = tempfile::TempDir::new().unwrap();
        let sqlite = Sqlite::new(file(&directory));
        let mut writer = sqlite.connect(Access::Write).await.unwrap();
        writer.interrupt.arm(Instant::now() + BUSY);
        let create = "CREATE TABLE t (a INTEGER, n TEXT UNIQUE)";
        writer.connection.execute(create).await.unwrap();
        let reader = sqlite.connect(Access::Read).await.unwrap();
        reader.interrupt.arm(Instant::now() + BUSY);
        (directory, [reader, writer])
    }

    /// The first keyword is checked elsewhere: this is what holds if that ever lets something through.
    #[tokio::test]
    async fn the_authorizer_alone_denies_what_leaves_the_database() {
        let (directory, connections) = connections().await;
        let other = directory.path().join("other.sqlite");
        let other = other.display();
        for mut confined in connections {
            for sql in [
                format!("ATTACH '{other}' AS other"),
                format!("VACUUM INTO '{other}'"),
                "DETACH main".to_owned(),
                "PRAGMA journal_mode = OFF".to_owned(),
                "PRAGMA query_only = OFF".to_owned(),
                "SELECT * FROM pragma_table_info('t')".to_owned(),
                "SELECT load_extension('/lib/x.so')".to_owned(),
                "SELECT LOAD_EXTENSION('/lib/x.so')".to_owned(),
                "SELECT fts3_tokenizer('simple')".to_owned(),
                "SAVEPOINT a".to_owned(),
                "CREATE TEMP TABLE u (a)".to_owned(),
                "CREATE TABLE temp.u (a)".to_owned(),
                "CREATE VIEW temp.u AS SELECT 1".to_owned(),
                "CREATE TRIGGER temp.g AFTER INSERT ON t BEGIN SELECT 1; END".to_owned(),
                "CREATE VIRTUAL TABLE u USING fts5(a)".to_owned(),
                "UPDATE sqlite_schema SET sql = ''".to_owned(),
            ] {
                let result = confined
                    .connection
                    .execute(AssertSqlSafe(sql.clone()))
                    .await;
                assert!(result.is_err(), "{:?}: {sql}", confined.access);
            }
        }
        assert!(!directory.path().join("other.sqlite").exists());
    }

    #[tokio::test]
    async fn tables_may_be_changed_in_every_usual_way() {
        let (_directory, [_, mut writer]) = connections().await;
        for sql in [
            "CREATE INDEX i ON t (a)",
            "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 7",
            "ALTER TABLE t RENAME COLUMN b TO c",
            "ALTER TABLE t DROP COLUMN c",
            "ALTER TABLE t RENAME TO u",
            "CREATE VIEW v AS SELECT a FROM u",
            "CREATE TRIGGER g AFTER INSERT ON u BEGIN UPDATE u SET a = a + 1; END",
            "INSERT INTO u (a) VALUES (1) ON CONFLICT DO NOTHING",
            "CREATE TABLE w AS SELECT * FROM v",
            "ANALYZE",
            "REINDEX",
            "DROP TRIGGER g",
            "DROP VIEW v",
            "DROP INDEX i",
            "DROP TABLE u",
        ] {
            let result = writer.connection.execute(sql).await;
            result.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    #[tokio::test]
    async fn a_readers_authorizer_denies_every_write() {
        let (_directory, [mut reader, _]) = connections().await;
        for sql in [
            "INSERT INTO t (a) VALUES (1)",
            "WITH x AS (SELECT 1) INSERT INTO t (a) SELECT * FROM x",
            "UPDATE t SET a = 1",
            "DELETE FROM t",
            "DROP TABLE t",
            "CREATE TABLE u (a)",
            "REINDEX",
            "ANALYZE",
        ] {
            assert!(reader.connection.execute(sql).await.is_err(), "{sql}");
        }
        reader.connection.execute("SELECT a FROM t").await.unwrap();
    }

    #[tokio::test]
    async fn statements_are_seen_before_they_run() {
        let (_directory, [_, mut writer]) = connections().await;
        let mut handle = writer.connection.lock_handle().await.unwrap();
        let mut inspect = |sql: &str| guard::inspect(&mut handle, sql);
        let shape = inspect("SELECT a AS b, $2 + $1 FROM t;  -- end").unwrap();
        assert_eq!((shape.parameters, shape.reads_only), (2, true));
        assert_eq!(
            shape.columns.first(),
            Some(&("b".to_owned(), Some("INTEGER".to_owned())))
        );
        assert!(!inspect("DELETE FROM t").unwrap().reads_only);
        let trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;";
        inspect(trigger).unwrap();
        for wrong in [
            "SELECT 1; SELECT 2",
            "SELECT 1; nonsense",
            "SELECT ?",
            "SELECT ?1",
            "SELECT :a",
            "SELECT @a",
            "SELECT $a",
            "SELECT $0",
            "SELECT $01",
            "SELECT $1::x",
            "SELECT $99999999999999999999",
            "",
            "--",
        ] {
            assert!(inspect(wrong).is_err(), "{wrong}");
        }
    }

    /// `instr` looks at every byte of one text for every byte of the other, and nothing interrupts it.
    const UNSTOPPABLE: &str =
        "SELECT instr(printf('%.600000c', 'a'), printf('%.300000c', 'a') || 'b')";

    fn permits() -> crate::permit::Permits {
        let capacity = Capacity {
            connections: 1,
            writers: None,
        };
        crate::permit::Permits::new(capacity, metrics::Gauge::noop())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_permit_is_given_back_when_its_statement_has_really_ended() {
        let (_directory, [mut reader, _]) = connections().await;
        // Nobody waits for it any more after a moment.
        let statement = reader.connection.execute(UNSTOPPABLE);
        let outcome = tokio::time::timeout(Duration::from_millis(50), statement).await;
        assert!(outcome.is_err(), "it is no long statement: {outcome:?}");
        let permits = permits();
        let permit = permits.try_acquire(Access::Read).unwrap();
        let pool = Pool::new();
        let mut lease = Lease::new(reader, permit, pool);
        let _ = lease.start().unwrap();
        drop(lease);
        assert!(permits.try_acquire(Access::Read).is_none());
        let soon = Instant::now() + Duration::from_secs(60);
        let waited = permits.acquire(Access::Read, soon).await;
        assert!(waited.is_ok(), "{waited:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn statements_give_way_to_requests() {
        let own = getpriority_process(None).unwrap();
        let (_directory, [mut reader, _]) = connections().await;
        let nice = Arc::new(std::sync::Mutex::new(None));
        let of_thread = nice.clone();
        let mut handle = reader.connection.lock_handle().await.unwrap();
        handle.set_progress_handler(1, move || {
            *of_thread.lock().unwrap() = getpriority_process(None).ok();
            true
        });
        drop(handle);
        reader.connection.execute("SELECT 1").await.unwrap();
        assert_eq!(*nice.lock().unwrap(), Some(own.max(NICE)));
        assert_eq!(getpriority_process(None).unwrap(), own);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_statement_remembers_is_in_memory_and_bounded() {
        let _alone = MEMORY.write().await;
        let (_directory, [mut reader, _]) = connections_of_one().await;
        reader
            .interrupt
            .arm(Instant::now() + Duration::from_secs(60));
        let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 300)
            SELECT count(*) FROM (SELECT DISTINCT randomblob(4000000 + x) FROM c)";
        let error = reader.connection.execute(sql).await.unwrap_err();
        let error = reader.explain(&error);
        assert_eq!(error.kind, crate::SqlErrorKind::TooLarge, "{error:?}");
    }

    #[test]
    fn a_statement_pays_for_what_it_takes_and_not_for_what_others_hold() {
        let interrupt = Interrupt::default();
        interrupt.arm(Instant::now() + BUSY);
        assert!(interrupt.goes_on_with(600 << 20, 590 << 20));
        assert!(!interrupt.was_out_of_memory());
        assert!(!interrupt.goes_on_with(600 << 20, 500 << 20));
        assert!(interrupt.was_out_of_memory());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_values_of_a_result_are_bounded_however_short_they_are() {
        let _others = MEMORY.read().await;
        let directory = tempfile::TempDir::new().unwrap();
        let sqlite = Sqlite::new(file(&directory));
        let permits = permits();
        let query = async |rows: usize| {
            let columns = ["NULL"; 200].join(", ");
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows}) SELECT {columns} FROM n"
            );
            let soon = Instant::now() + Duration::from_secs(60);
            let statement = Statement::new(sql, Vec::new(), soon).unwrap();
            let permit = permits.acquire(Access::Read, soon).await.unwrap();
            sqlite.query(statement, Access::Read, permit).await
        };
        assert_eq!(query(100).await.unwrap().rows.len(), 100);
        let error = query(crate::statement::MAX_VALUES / 200 + 1)
            .await
            .unwrap_err();
        assert!(error.message.contains("values"), "{error:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_cannot_fill_the_hosts_memory() {
        let _alone = MEMORY.write().await;
        let (_directory, [mut reader, _]) = connections_of_one().await;
        let columns = vec!["printf('%.*c', 8000000, 'x')"; 190].join(", ");
        let sql = format!("SELECT {columns}");
        let error = reader
            .connection
            .execute(AssertSqlSafe(sql))
            .await
            .unwrap_err();
        let error = reader.explain(&error);
        assert_eq!(error.kind, crate::SqlErrorKind::TooLarge, "{error:?}");
    }
}
