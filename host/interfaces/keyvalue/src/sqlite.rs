use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::Connection as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use tokio::sync::OnceCell;

use crate::client::{ClientError, KeyValueClient, Page, Reason};

/// Rows that one page of keys looks at, at most so many at a time.
const PAGE_ROWS: i64 = 1_000;

/// Readers side by side; there is one writer, as SQLite has it.
const READERS: u32 = 4;

/// A store in one SQLite file. A write that returned has been flushed to the disk.
pub struct SqliteStore {
    file: PathBuf,
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
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            pools: OnceCell::new(),
            writes_fail: AtomicBool::new(false),
        }
    }

    /// Notes how a write went.
    fn noted<T>(&self, written: Result<T, ClientError>) -> Result<T, ClientError> {
        // What is refused for its value says nothing of the disk.
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
}

async fn open(file: &std::path::Path) -> Result<Pools, ClientError> {
    if let Some(directory) = file.parent() {
        tokio::fs::create_dir_all(directory)
            .await
            .map_err(|error| ClientError::unavailable(Reason::Storage, error))?;
    }
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5));
    let writer = pool()
        .max_connections(1)
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
            let mut connection = self.pools().await?.writer.acquire().await?;
            upsert(&mut connection, key, &value).await
        };
        self.noted(write.await)
    }

    async fn delete(&self, key: &str) -> Result<(), ClientError> {
        let write = async {
            let query = sqlx::query(DELETE).bind(key.as_bytes());
            query.execute(&self.pools().await?.writer).await?;
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
            let mut transaction = self.pools().await?.writer.begin().await?;
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
            let done = query.execute(&self.pools().await?.writer).await?;
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
            let mut transaction = self.pools().await?.writer.begin().await?;
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
            let mut transaction = self.pools().await?.writer.begin().await?;
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

impl From<sqlx::Error> for ClientError {
    fn from(error: sqlx::Error) -> Self {
        let reason = match &error {
            sqlx::Error::PoolTimedOut => Reason::TimedOut,
            _ => Reason::Storage,
        };
        Self::unavailable(reason, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let store = SqliteStore::new(&file);
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
        for store in [&store, &SqliteStore::new(&file)] {
            assert_eq!(store.get_many(&keys).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn every_write_is_flushed() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::new(directory.path().join("a.sqlite"));
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
