//! The two databases behind one face: transactions that take the same statements (both know `$1`, `ON CONFLICT` and
//! `RETURNING`) and rows that are read the same way.

mod migrate;
mod row;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Database, Encode, Transaction, Type};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use self::migrate::{migrate_postgres, migrate_sqlite};
pub(crate) use self::row::{Row, millis, now, signed};
use crate::audit::Act;
use crate::location::postgres_options;
use crate::place::Place;
use crate::{CatalogError, InvalidLocation, Location};

/// The channel on which PostgreSQL tells of changes.
pub(crate) const CHANNEL: &str = "stepwell_catalog";

/// How long to wait for a connection: a database that is down is noticed after this.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one statement may take; the largest carries a component's bytes.
const STATEMENT: Duration = Duration::from_secs(60);
/// How long a change may wait for those before it.
const TURN: Duration = Duration::from_secs(30);

/// A database, connected to when it is first used.
pub(crate) struct Db {
    pool: Pool,
    /// Of SQLite.
    place: Option<Place>,
    migrated: OnceCell<()>,
    /// Changes of this host are made one at a time; across hosts, the database sees to it.
    writer: Arc<Semaphore>,
    last_write: Arc<LastWrite>,
    generation: watch::Sender<u64>,
}

/// Whether the last change could be stored: a full disk or another process may keep changes out and let reads in.
#[derive(Default)]
pub(crate) struct LastWrite {
    /// When it failed, and why.
    failed: Mutex<Option<(Instant, &'static str)>>,
}

impl LastWrite {
    /// Only what the database is to blame for counts.
    fn note<T>(&self, result: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if let Err(CatalogError::Unavailable { reason, .. }) = &result {
            *self.lock() = Some((Instant::now(), reason));
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, &'static str)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Db {
    pub(crate) fn new(location: &Location) -> Result<Self, InvalidLocation> {
        let pool = match location {
            Location::Sqlite(path) => Pool::Sqlite(
                SqlitePoolOptions::new()
                    .max_connections(5)
                    .acquire_timeout(TURN)
                    .before_acquire(|connection, _| {
                        let is_at_rest = is_at_rest(connection);
                        Box::pin(async move { Ok(is_at_rest) })
                    })
                    .connect_lazy_with(
                        SqliteConnectOptions::new()
                            .filename(path)
                            .foreign_keys(true)
                            .busy_timeout(Duration::from_secs(10))
                            .journal_mode(SqliteJournalMode::Wal)
                            // In WAL mode, only FULL makes a commit survive the loss of power.
                            .synchronous(SqliteSynchronous::Full)
                            .pragma("journal_size_limit", "16777216"),
                    ),
            ),
            Location::Postgres(url) => Pool::Postgres(
                PgPoolOptions::new()
                    .max_connections(8)
                    .acquire_timeout(CONNECT)
                    .connect_lazy_with(postgres_options(url)?),
            ),
        };
        let place = match location {
            Location::Sqlite(path) => Some(Place::new(path)),
            Location::Postgres(_) => None,
        };
        Ok(Self {
            pool,
            place,
            migrated: OnceCell::new(),
            writer: Arc::new(Semaphore::new(1)),
            last_write: Arc::default(),
            generation: watch::Sender::new(0),
        })
    }

    pub(crate) fn postgres(&self) -> Option<&PgPool> {
        match &self.pool {
            Pool::Sqlite(_) => None,
            Pool::Postgres(pool) => Some(pool),
        }
    }

    /// Follows the generation, as far as this host knows it.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Makes a generation known to this host; an older one than the last is news from before it.
    pub(crate) fn publish(&self, generation: u64) {
        publish(&self.generation, generation);
    }

    /// Creates or migrates the tables, once; every transaction does it first.
    pub(crate) async fn migrate(&self) -> Result<(), CatalogError> {
        let migrate = || async {
            match &self.pool {
                Pool::Sqlite(pool) => {
                    migrate_sqlite(&pool.connect_options()).await?;
                    self.place.iter().for_each(Place::remember);
                    Ok(())
                }
                Pool::Postgres(pool) => {
                    within(STATEMENT, migrate_postgres(&pool.connect_options())).await
                }
            }
        };
        self.migrated.get_or_try_init(migrate).await.map(|_| ())
    }

    /// A transaction that sees the catalog as it is at one moment.
    pub(crate) async fn read(&self) -> Result<Tx, CatalogError> {
        self.migrate().await?;
        let inner = match &self.pool {
            Pool::Sqlite(pool) => Inner::Sqlite(within(STATEMENT, pool.begin()).await?),
            Pool::Postgres(pool) => {
                let begin = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
                Inner::Postgres(within(STATEMENT, begin).await?)
            }
        };
        Ok(self.transaction(inner, None))
    }

    /// A transaction that changes the catalog: no other does until it ends.
    pub(crate) async fn write(&self) -> Result<Tx, CatalogError> {
        self.last_write.note(self.begin_write().await)
    }

    /// Whether changes can be stored, as far as is known. Something is written only where the last change failed this long ago:
    /// there may be room for so little, and none for what others try.
    pub(crate) async fn check_writes(&self, quiet: Duration) -> Result<(), CatalogError> {
        self.check_place()?;
        let failed = *self.last_write.lock();
        match failed {
            None => return Ok(()),
            Some((at, reason)) if at.elapsed() < quiet => {
                return Err(CatalogError::unavailable(reason));
            }
            Some(_) => {}
        }
        let mut tx = self.write().await?;
        tx.execute(
            "UPDATE catalog_state SET generation = generation WHERE id = 1",
            &[],
        )
        .await?;
        tx.commit_quietly().await
    }

    fn check_place(&self) -> Result<(), CatalogError> {
        self.place.as_ref().map_or(Ok(()), Place::check)
    }

    async fn begin_write(&self) -> Result<Tx, CatalogError> {
        self.migrate().await?;
        self.check_place()?;
        let turn = timeout(TURN, self.writer.clone().acquire_owned());
        let Ok(Ok(permit)) = turn.await else {
            return Err(CatalogError::unavailable("earlier changes take too long"));
        };
        let inner = match &self.pool {
            Pool::Sqlite(pool) => {
                let begin = pool.begin_with("BEGIN IMMEDIATE");
                Inner::Sqlite(within(STATEMENT, begin).await?)
            }
            Pool::Postgres(pool) => {
                let mut transaction = within(STATEMENT, pool.begin()).await?;
                // The lock is this catalog's own; a host that hangs with it is cut off.
                let lock = sqlx::raw_sql(
                    "SET LOCAL lock_timeout = '30s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '60s'; \
                     SELECT pg_advisory_xact_lock(6010263974105278547)",
                );
                within(STATEMENT, lock.execute(&mut *transaction)).await?;
                Inner::Postgres(transaction)
            }
        };
        Ok(self.transaction(inner, Some(permit)))
    }

    pub(crate) async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    fn transaction(&self, inner: Inner, permit: Option<OwnedSemaphorePermit>) -> Tx {
        Tx {
            inner,
            last_write: permit.is_some().then(|| self.last_write.clone()),
            _permit: permit,
            generation: self.generation.clone(),
            acts: Vec::new(),
        }
    }
}

/// A transaction; dropping it undoes it.
pub(crate) struct Tx {
    inner: Inner,
    /// After the transaction, so that it is given back when that has ended.
    _permit: Option<OwnedSemaphorePermit>,
    /// Told how a change went; none: this only reads.
    last_write: Option<Arc<LastWrite>>,
    generation: watch::Sender<u64>,
    /// What was recorded: told to the log once it has happened.
    pub(crate) acts: Vec<Act>,
}

enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A statement's parameter.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A number that may be null.
    Number(Option<i64>),
    /// A text that may be null.
    Word(Option<&'a str>),
}

impl Tx {
    /// Runs a statement that answers rows.
    pub(crate) async fn rows(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, CatalogError> {
        check(values)?;
        let rows = match &mut self.inner {
            Inner::Sqlite(tx) => {
                let rows = bind(sql, values).fetch_all(&mut **tx);
                let rows = within(STATEMENT, rows).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect())
            }
            Inner::Postgres(tx) => {
                let rows = bind(sql, values).fetch_all(&mut **tx);
                let rows = within(STATEMENT, rows).await;
                rows.map(|rows| rows.into_iter().map(Row::Postgres).collect())
            }
        };
        self.noted(rows)
    }

    fn noted<T>(&self, result: Result<T, CatalogError>) -> Result<T, CatalogError> {
        match &self.last_write {
            Some(last) => last.note(result),
            None => result,
        }
    }

    /// Runs a statement that answers one row or none.
    pub(crate) async fn row(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<Row>, CatalogError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs a statement that answers nothing.
    pub(crate) async fn execute(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<(), CatalogError> {
        check(values)?;
        let done = match &mut self.inner {
            Inner::Sqlite(tx) => {
                let done = within(STATEMENT, bind(sql, values).execute(&mut **tx)).await;
                done.map(drop)
            }
            Inner::Postgres(tx) => {
                let done = within(STATEMENT, bind(sql, values).execute(&mut **tx)).await;
                done.map(drop)
            }
        };
        self.noted(done)
    }

    /// The generation that this transaction sees.
    pub(crate) async fn generation(&mut self) -> Result<u64, CatalogError> {
        let row = self
            .row("SELECT generation FROM catalog_state WHERE id = 1", &[])
            .await?;
        row.ok_or_else(|| CatalogError::Corrupt("catalog_state has no row".to_owned()))?
            .unsigned(0)
    }

    /// Makes the change last without telling anybody: of what no host keeps a copy.
    pub(crate) async fn commit_quietly(self) -> Result<(), CatalogError> {
        end(self.inner, self.last_write.as_deref()).await?;
        self.acts.iter().for_each(Act::log);
        Ok(())
    }

    /// Makes the change last, and tells every host of it; answers the new generation.
    pub(crate) async fn commit(mut self) -> Result<u64, CatalogError> {
        self.execute(
            "UPDATE catalog_state SET generation = generation + 1 WHERE id = 1",
            &[],
        )
        .await?;
        let generation = self.generation().await?;
        if let Inner::Postgres(tx) = &mut self.inner {
            let notify = sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL);
            within(STATEMENT, notify.execute(&mut **tx)).await?;
        }
        end(self.inner, self.last_write.as_deref()).await?;
        publish(&self.generation, generation);
        self.acts.iter().for_each(Act::log);
        Ok(generation)
    }
}

async fn end(inner: Inner, last_write: Option<&LastWrite>) -> Result<(), CatalogError> {
    let ended = match inner {
        Inner::Sqlite(tx) => within(STATEMENT, tx.commit()).await,
        Inner::Postgres(tx) => within(STATEMENT, tx.commit()).await,
    };
    let Some(last) = last_write else {
        return ended;
    };
    if ended.is_ok() {
        *last.lock() = None;
    }
    last.note(ended)
}

/// Whether a connection of the pool may be used. When the disk is full, SQLite ends a transaction by itself; sqlx then has
/// nothing to undo, takes it for open all the same, and makes the next one a part of it: nothing would be stored any more,
/// without a word, and reads would see what was there then.
fn is_at_rest(connection: &SqliteConnection) -> bool {
    !connection.is_in_transaction()
}

fn publish(sender: &watch::Sender<u64>, generation: u64) {
    sender.send_if_modified(|known| {
        let newer = generation > *known;
        *known = generation.max(*known);
        newer
    });
}

/// PostgreSQL has no NUL in a text. What callers send must not be taken for a failure of the database because of it.
fn check(values: &[Value<'_>]) -> Result<(), CatalogError> {
    let has_nul = |value: &Value<'_>| match value {
        Value::Text(text) | Value::Word(Some(text)) => text.contains('\0'),
        Value::Int(_) | Value::Bytes(_) | Value::Number(_) | Value::Word(None) => false,
    };
    if values.iter().any(has_nul) {
        return Err(CatalogError::Nul);
    }
    Ok(())
}

fn bind<'q, DB: Database>(
    sql: &'static str,
    values: &[Value<'q>],
) -> Query<'q, DB, <DB as Database>::Arguments>
where
    i64: Encode<'q, DB> + Type<DB>,
    Option<i64>: Encode<'q, DB>,
    &'q str: Encode<'q, DB> + Type<DB>,
    Option<&'q str>: Encode<'q, DB>,
    &'q [u8]: Encode<'q, DB> + Type<DB>,
{
    values
        .iter()
        .fold(sqlx::query(sql), |query, value| match *value {
            Value::Int(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Number(number) => query.bind(number),
            Value::Word(text) => query.bind(text),
        })
}

async fn within<T, E: Into<CatalogError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, CatalogError> {
    match timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(CatalogError::unavailable("it did not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::Principal;

    use super::*;
    use crate::{AuditQuery, Catalog};

    /// How large the file may grow, in pages, as its connections see it: a full disk, as far as SQLite can tell.
    async fn most_pages(catalog: &Catalog, pages: u32) {
        let Pool::Sqlite(pool) = &catalog.db.pool else {
            panic!("not SQLite")
        };
        let mut all = Vec::new();
        for _ in 0..pool.options().get_max_connections() {
            let mut connection = pool.acquire().await.unwrap();
            let pragma = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            sqlx::query(pragma).execute(&mut *connection).await.unwrap();
            all.push(connection);
        }
    }

    #[tokio::test]
    async fn what_is_acknowledged_after_the_disk_was_full_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(directory.path().join("catalog.sqlite"));
        let catalog = Catalog::new(&location).unwrap();
        let refusal = |number: usize| catalog.record_refusal("test", format!("number {number}"));
        refusal(0).await.unwrap();
        for _ in 0..2 {
            // No more than there is.
            most_pages(&catalog, 1).await;
            let large = Act::new("test", None, "x".repeat(1 << 20));
            let mut tx = catalog.db.write().await.unwrap();
            let full = tx.record(&Principal::host(), large).await;
            assert!(
                matches!(full, Err(CatalogError::Unavailable { .. })),
                "{full:?}"
            );
            drop(tx);
            assert!(catalog.ping().await.is_ok());
            let check = catalog.check_writes().await;
            assert!(
                matches!(check, Err(CatalogError::Unavailable { .. })),
                "{check:?}"
            );
        }
        most_pages(&catalog, 1 << 30).await;
        catalog.db.check_writes(Duration::ZERO).await.unwrap();
        catalog.check_writes().await.unwrap();
        for number in 1..=5 {
            refusal(number).await.unwrap();
            let seen = catalog.audit(&AuditQuery::default()).await.unwrap();
            assert_eq!(seen.items.len(), number + 1);
        }
        drop(catalog);
        let again = Catalog::new(&location).unwrap();
        let stored = again.audit(&AuditQuery::default()).await.unwrap();
        assert_eq!(stored.items.len(), 6);
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_that_goes_into_a_file_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.sqlite");
        let catalog = Catalog::new(&Location::Sqlite(path.clone())).unwrap();
        let refusal = || catalog.record_refusal("test", "subject".to_owned());
        refusal().await.unwrap();
        catalog.db.check_writes(Duration::ZERO).await.unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        for replaced in [false, true] {
            if replaced {
                std::fs::copy(&elsewhere, &path).unwrap();
            }
            let lost = refusal().await.unwrap_err().to_string();
            assert!(lost.contains("removed or replaced"), "{lost}");
            let ready = catalog.db.check_writes(Duration::ZERO).await;
            assert!(ready.is_err(), "it is said before a change is tried");
            // Whatever is read meanwhile, nothing empty takes its place.
            let _ = catalog.audit(&AuditQuery::default()).await;
            assert_eq!(path.exists(), replaced);
        }
        std::fs::rename(&elsewhere, &path).unwrap();
        refusal().await.unwrap();
        catalog.db.check_writes(Duration::ZERO).await.unwrap();
        let stored = catalog.audit(&AuditQuery::default()).await.unwrap();
        assert_eq!(stored.items.len(), 2);
    }
}
