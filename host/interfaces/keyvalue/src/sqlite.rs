use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use stepwell_core::{LOG_AT_REST, StoreFile};
use tokio::sync::OnceCell;

use crate::client::{ClientError, KeyValueClient, Page, Reason};

/// Rows that one page of keys looks at, at most so many at a time.
const PAGE_ROWS: i64 = 1_000;

/// Readers side by side; there is one writer, as SQLite has it.
const READERS: u32 = 4;

/// A store in one SQLite file. A write that returned has been flushed to the disk.
pub struct SqliteStore {
    file: StoreFile,
    pools: OnceCell<Pools>,
    /// The last write could not be stored; a full disk lets reads in.
    writes_fail: AtomicBool,
}

struct Pools {
    /// One connection: writes queue here and not inside SQLite, where waiting means polling.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// A store in this file, which is made when it is first used.
    pub fn new(file: StoreFile) -> Self {
        Self {
            file,
            pools: OnceCell::new(),
            writes_fail: AtomicBool::new(false),
        }
    }

    /// Notes how a write went.
    fn noted<T>(&self, written: Result<T, ClientError>) -> Result<T, ClientError> {
        let written = written.map_err(|error| match error {
            ClientError::Unavailable {
                reason: Reason::NoSpace,
                ref detail,
            } => {
                let full = self.file.full().map(ClientError::Full);
                full.unwrap_or_else(|| ClientError::unavailable(Reason::Storage, detail))
            }
            _ => error,
        });
        // What is refused for its value, or since the file is as large as it may be, says nothing of the disk.
        match &written {
            Ok(_) => self.writes_fail.store(false, Ordering::Relaxed),
            Err(ClientError::Unavailable { .. }) => self.writes_fail.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        written
    }

    async fn pools(&self) -> Result<&Pools, ClientError> {
        self.pools.get_or_try_init(|| open(&self.file)).await
    }

    /// The connection that writes.
    async fn writer(&self) -> Result<PoolConnection<Sqlite>, ClientError> {
        let mut writer = self.pools().await?.writer.acquire().await?;
        if self.file.log_is_full() {
            // SQLite itself begins its log anew only while nobody reads from it, which may never be; this waits for those who do.
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
                .execute(&mut *writer)
                .await?;
        }
        Ok(writer)
    }
}

async fn open(file: &StoreFile) -> Result<Pools, ClientError> {
    if let Some(directory) = file.path.parent() {
        tokio::fs::create_dir_all(directory)
            .await
            .map_err(|error| ClientError::unavailable(Reason::Storage, error))?;
    }
    let options = SqliteConnectOptions::new()
        .filename(&file.path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", LOG_AT_REST.to_string())
        .busy_timeout(Duration::from_secs(5));
    let bounded = file.clone();
    let writer = pool()
        .max_connections(1)
        .after_connect(move |connection, _| {
            let file = bounded.clone();
            Box::pin(async move { bound(connection, &file).await })
        })
        .connect_with(options.clone())
        .await?;
    // Keys are bytes, since SQLite's texts end at a NUL for some of its functions. An id is given once and stays with its
    // key, which makes it a cursor.
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS entries (
            id    INTEGER PRIMARY KEY AUTOINCREMENT,
            key   BLOB NOT NULL UNIQUE,
            value BLOB NOT NULL
        ) STRICT",
    )
    .execute(&writer)
    .await?;
    let readers = pool()
        .max_connections(READERS)
        .connect_with(options)
        .await?;
    Ok(Pools { writer, readers })
}

/// Has this connection write no more than the file may have.
async fn bound(connection: &mut SqliteConnection, file: &StoreFile) -> Result<(), sqlx::Error> {
    let size = sqlx::query_scalar::<_, i64>("PRAGMA page_size");
    let size = size.fetch_one(&mut *connection).await?.unsigned_abs();
    let already = sqlx::query_scalar::<_, i64>("PRAGMA page_count");
    let already = already.fetch_one(&mut *connection).await?.unsigned_abs();
    let pages = file.pages(size, already);
    let pragma = format!("PRAGMA max_page_count = {pages}");
    connection.execute(AssertSqlSafe(pragma)).await?;
    Ok(())
}

/// When the disk is full, SQLite ends a transaction by itself; sqlx then has nothing to undo, takes it for open all the same,
/// and makes the next one a part of it: nothing would be stored any more, without a word. Such a connection is closed.
fn pool() -> SqlitePoolOptions {
    SqlitePoolOptions::new().before_acquire(|connection, _| {
        let is_at_rest = !connection.is_in_transaction();
        Box::pin(async move { Ok(is_at_rest) })
    })
}

const SELECT: &str = "SELECT value FROM entries WHERE key = ?1";
const UPSERT: &str = "INSERT INTO entries (key, value) VALUES (?1, ?2)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const DELETE: &str = "DELETE FROM entries WHERE key = ?1";

#[async_trait]
impl KeyValueClient for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, ClientError> {
        let mut connection = self.pools().await?.readers.acquire().await?;
        select(&mut connection, key).await
    }

    async fn set(&self, key: &str, value: Bytes) -> Result<(), ClientError> {
        let write = async {
            let mut connection = self.writer().await?;
            upsert(&mut connection, key, &value).await
        };
        self.noted(write.await)
    }

    async fn delete(&self, key: &str) -> Result<(), ClientError> {
        let write = async {
            let query = sqlx::query(DELETE).bind(key.as_bytes());
            query.execute(&mut *self.writer().await?).await?;
            Ok(())
        };
        self.noted(write.await)
    }

    async fn exists(&self, key: &str) -> Result<bool, ClientError> {
        let query = sqlx::query_scalar::<_, i64>("SELECT 1 FROM entries WHERE key = ?1")
            .bind(key.as_bytes());
        Ok(query
            .fetch_optional(&self.pools().await?.readers)
            .await?
            .is_some())
    }

    async fn list(&self, prefix: &str, cursor: u64) -> Result<Page, ClientError> {
        let readers = &self.pools().await?.readers;
        let mut after = i64::try_from(cursor).unwrap_or(i64::MAX);
        loop {
            let rows: Vec<(i64, Vec<u8>)> =
                sqlx::query_as("SELECT id, key FROM entries WHERE id > ?1 ORDER BY id LIMIT ?2")
                    .bind(after)
                    .bind(PAGE_ROWS)
                    .fetch_all(readers)
                    .await?;
            let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == PAGE_ROWS);
            let next = rows.last().map(|(id, _)| *id).filter(|_| full);
            let keys: Vec<String> = rows
                .into_iter()
                .filter(|(_, key)| key.starts_with(prefix.as_bytes()))
                .filter_map(|(_, key)| String::from_utf8(key).ok())
                .collect();
            match next {
                // Rows of other prefixes only: an empty page would look like the end to many a caller.
                Some(id) if keys.is_empty() => after = id,
                next => {
                    let next = next.and_then(|id| u64::try_from(id).ok());
                    return Ok(Page { keys, next });
                }
            }
        }
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, ClientError> {
        let write = async {
            let mut writer = self.writer().await?;
            let mut transaction = writer.begin().await?;
            let current = match select(&mut transaction, key).await? {
                None => 0,
                Some(value) => number(&value).ok_or(ClientError::NotANumber)?,
            };
            let sum = current.checked_add(delta).ok_or(ClientError::Overflow)?;
            upsert(&mut transaction, key, sum.to_string().as_bytes()).await?;
            transaction.commit().await?;
            Ok(sum)
        };
        self.noted(write.await)
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<Bytes>,
        value: Bytes,
    ) -> Result<bool, ClientError> {
        let query = match &expected {
            Some(expected) => {
                sqlx::query("UPDATE entries SET value = ?2 WHERE key = ?1 AND value = ?3")
                    .bind(key.as_bytes())
                    .bind(&*value)
                    .bind(&**expected)
            }
            None => sqlx::query(
                "INSERT INTO entries (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
            )
            .bind(key.as_bytes())
            .bind(&*value),
        };
        let write = async {
            let done = query.execute(&mut *self.writer().await?).await?;
            Ok(done.rows_affected() == 1)
        };
        self.noted(write.await)
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, ClientError> {
        // One transaction, so that the values belong together.
        let mut transaction = self.pools().await?.readers.begin().await?;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(select(&mut transaction, key).await?);
        }
        Ok(values)
    }

    async fn set_many(&self, entries: &[(String, Bytes)]) -> Result<(), ClientError> {
        let write = async {
            let mut writer = self.writer().await?;
            let mut transaction = writer.begin().await?;
            for (key, value) in entries {
                upsert(&mut transaction, key, value).await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        self.noted(write.await)
    }

    async fn delete_many(&self, keys: &[String]) -> Result<(), ClientError> {
        let write = async {
            let mut writer = self.writer().await?;
            let mut transaction = writer.begin().await?;
            for key in keys {
                let query = sqlx::query(DELETE).bind(key.as_bytes());
                query.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        self.noted(write.await)
    }

    async fn probe(&self) -> Result<(), ClientError> {
        sqlx::query("SELECT 1 FROM entries LIMIT 1")
            .execute(&self.pools().await?.readers)
            .await?;
        if !self.writes_fail.load(Ordering::Relaxed) {
            return Ok(());
        }
        let write = async {
            // It writes a page, and changes nothing that anybody reads.
            sqlx::query("PRAGMA user_version = 0")
                .execute(&self.pools().await?.writer)
                .await?;
            Ok(())
        };
        self.noted(write.await)
    }
}

async fn select(
    connection: &mut SqliteConnection,
    key: &str,
) -> Result<Option<Bytes>, ClientError> {
    let value: Option<Vec<u8>> = sqlx::query_scalar(SELECT)
        .bind(key.as_bytes())
        .fetch_optional(connection)
        .await?;
    Ok(value.map(Bytes::from))
}

async fn upsert(
    connection: &mut SqliteConnection,
    key: &str,
    value: &[u8],
) -> Result<(), ClientError> {
    let query = sqlx::query(UPSERT).bind(key.as_bytes()).bind(value);
    query.execute(connection).await?;
    Ok(())
}

/// The number in a value, as strictly as Redis reads it: no sign but `-`, no leading zeros, no spaces.
fn number(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// SQLite's code of a disk, or a file, that is full.
const SQLITE_FULL: &str = "13";

impl From<sqlx::Error> for ClientError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        let reason = match &error {
            sqlx::Error::PoolTimedOut => Reason::TimedOut,
            _ if code.as_deref() == Some(SQLITE_FULL) => Reason::NoSpace,
            _ => Reason::Storage,
        };
        Self::unavailable(reason, error)
    }
}

#[cfg(test)]
pub(crate) fn file_of(path: &std::path::Path, max_size: u64) -> StoreFile {
    StoreFile {
        kind: stepwell_core::BindingKind::Keyvalue,
        binding: "main".to_owned(),
        path: path.to_owned(),
        max_size,
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::STORE_SIZE;

    use super::*;

    #[tokio::test]
    async fn a_file_has_no_more_than_its_size_and_deleting_makes_room() {
        const MAX: u64 = 1 << 20;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.sqlite");
        let store = SqliteStore::new(file_of(&file, MAX));
        let value = Bytes::from(vec![7; 10_000]);
        let mut stored = 0;
        let full = loop {
            match store.set(&stored.to_string(), value.clone()).await {
                Ok(()) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 200, "it holds more than its size");
        };
        assert!(stored > 60, "{stored}");
        let ClientError::Full(why) = &full else {
            panic!("{full:?}")
        };
        assert!(why.contains("bindings.keyvalue.main.max_size"), "{why}");
        let many: Vec<_> = (0..50).map(|n| (format!("m{n}"), value.clone())).collect();
        assert_eq!(store.set_many(&many).await, Err(full.clone()));
        assert_eq!(store.get("m0").await, Ok(None));
        // It is nothing that keeps the host from working.
        assert_eq!(store.probe().await, Ok(()));
        assert!(!store.writes_fail.load(Ordering::Relaxed));
        // Reads and deletes go on, also after the host was started again.
        let again = SqliteStore::new(file_of(&file, MAX));
        assert_eq!(again.get("0").await.unwrap(), Some(value.clone()));
        for key in 0..stored {
            again.delete(&key.to_string()).await.unwrap();
        }
        again.set("new", value).await.unwrap();
        let length = std::fs::metadata(&file).unwrap().len();
        assert!(length <= MAX, "{length}");
    }

    #[tokio::test]
    async fn a_file_that_is_larger_already_grows_no_more_and_can_be_read_and_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.sqlite");
        let value = Bytes::from(vec![7; 100_000]);
        let many: Vec<_> = (0..30).map(|n| (format!("m{n}"), value.clone())).collect();
        let large = SqliteStore::new(file_of(&file, STORE_SIZE));
        large.set_many(&many).await.unwrap();
        drop(large);
        let store = SqliteStore::new(file_of(&file, 1 << 20));
        let full = store.set_many(&[("more".to_owned(), value.clone())]).await;
        assert!(matches!(full, Err(ClientError::Full(_))), "{full:?}");
        assert_eq!(store.get("m29").await.unwrap(), Some(value.clone()));
        store.delete("m28").await.unwrap();
        store.delete("m29").await.unwrap();
        store.set("more", value).await.unwrap();
    }

    #[test]
    fn numbers_are_read_as_redis_reads_them() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"-9223372036854775808"), Some(i64::MIN));
        for bad in [
            "",
            "+1",
            "01",
            "-0",
            " 1",
            "1.0",
            "9223372036854775808",
            "x",
        ] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
    }

    /// Makes commits fail and end their transactions, as they do when the disk is full.
    async fn fail_commits(store: &SqliteStore, fail: bool) {
        let mut writer = store.pools().await.unwrap().writer.acquire().await.unwrap();
        let mut handle = writer.lock_handle().await.unwrap();
        if fail {
            handle.set_commit_hook(|| false);
        } else {
            handle.remove_commit_hook();
        }
    }

    #[tokio::test]
    async fn what_is_acknowledged_after_the_disk_was_full_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.sqlite");
        let store = SqliteStore::new(file_of(&file, STORE_SIZE));
        assert_eq!(store.increment("count", 1).await.unwrap(), 1);
        store.set("text", Bytes::from("x")).await.unwrap();
        fail_commits(&store, true).await;
        let entry = ("full".to_owned(), Bytes::from("x"));
        let full = store.set_many(&[entry]).await;
        assert!(
            matches!(full, Err(ClientError::Unavailable { .. })),
            "{full:?}"
        );
        fail_commits(&store, false).await;
        // What is undone for another reason changes nothing either.
        let refused = store.increment("text", 1).await;
        assert_eq!(refused, Err(ClientError::NotANumber));
        for count in 2..=5 {
            assert_eq!(store.increment("count", 1).await.unwrap(), count);
        }
        store.set("set", Bytes::from("here")).await.unwrap();
        let many = ("many".to_owned(), Bytes::from("here"));
        store.set_many(&[many]).await.unwrap();
        let keys = ["count", "set", "many"].map(str::to_owned);
        let expected = ["5", "here", "here"].map(|value| Some(Bytes::from(value)));
        // Another connection sees only what is stored.
        for store in [&store, &SqliteStore::new(file_of(&file, STORE_SIZE))] {
            assert_eq!(store.get_many(&keys).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn every_write_is_flushed() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::new(file_of(&directory.path().join("a.sqlite"), STORE_SIZE));
        let writer = &store.pools().await.unwrap().writer;
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(writer)
            .await
            .unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(writer)
            .await
            .unwrap();
        assert_eq!((synchronous, journal.as_str()), (2, "wal"));
    }
}
