//! The SQLite file behind an index. It is written before anything is acknowledged, and read only when the index opens.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row as _, SqliteConnection};
use stepwell_core::LOG_AT_REST;

use super::memory::Space;
use crate::client::{SparseValues, Vector};

const FORMAT: i64 = 1;

/// The open file; whoever has it is the only process that does.
pub(crate) struct File {
    connection: SqliteConnection,
    /// The last transaction may not have ended.
    in_doubt: bool,
}

/// What one call changes in one namespace.
pub(crate) enum Changes {
    /// Rows to write whole.
    Put(Vec<Vector>),
    /// Rows to delete.
    Remove(Vec<String>),
    /// All rows are deleted.
    Clear,
}

/// Why a file cannot be used; texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("its directory cannot be made: {0}")]
    Directory(std::io::Error),
    #[error("its file is in use by another process")]
    InUse,
    #[error("its file is damaged ({0}): restore it from a copy, or move it away to start empty")]
    Damaged(String),
    #[error("its file was written by a newer version of Stepwell (format {0})")]
    Newer(i64),
    #[error(
        "its file holds vectors of {stored} dimensions, the configuration says {configured}: set dimension = {stored}, or move the file away to start empty"
    )]
    Dimension { stored: u32, configured: u32 },
    #[error("it holds more than {0} bytes, which is as much as one embedded index may")]
    Full(usize),
    #[error("its file cannot be opened: {0}")]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<i32>().ok());
        // The low byte is SQLite's primary code.
        match code.map(|code| code & 0xff) {
            Some(5 | 6) => Self::InUse,
            Some(11 | 26) => Self::Damaged(error.to_string()),
            _ => Self::Database(error),
        }
    }
}

impl File {
    /// Opens or makes the file and reads all of it.
    pub(crate) async fn open(
        path: &Path,
        dimension: u32,
        max_bytes: usize,
    ) -> Result<(Self, BTreeMap<String, Space>), OpenError> {
        if let Some(directory) = path.parent() {
            tokio::fs::create_dir_all(directory)
                .await
                .map_err(OpenError::Directory)?;
        }
        // Only with an exclusive lock is what is in memory all that there is.
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(1))
            // A large write does not leave a log of its size behind.
            .pragma("journal_size_limit", LOG_AT_REST.to_string())
            .disable_statement_logging()
            .connect()
            .await?;
        prepare(&mut connection, dimension).await?;
        let spaces = load(&mut connection, dimension, max_bytes).await?;
        let file = Self {
            connection,
            in_doubt: false,
        };
        Ok((file, spaces))
    }

    /// Writes one call's changes, all or none of them, and has them on disk when it returns.
    ///
    /// When the disk is full, SQLite ends a transaction by itself. sqlx's own ones then count as open all the same, and the next
    /// would be a part of one that nobody commits: so these statements are ours, and `BEGIN` fails within a transaction.
    pub(crate) async fn commit(
        &mut self,
        space: &str,
        changes: &Changes,
    ) -> Result<(), sqlx::Error> {
        if self.in_doubt {
            // It fails where there is nothing to undo any more.
            let _ = self.execute("ROLLBACK").await;
        }
        self.in_doubt = true;
        self.execute("BEGIN IMMEDIATE").await?;
        self.write(space, changes).await?;
        self.execute("COMMIT").await?;
        self.in_doubt = false;
        Ok(())
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(sql).execute(&mut self.connection).await?;
        Ok(())
    }

    async fn write(&mut self, space: &str, changes: &Changes) -> Result<(), sqlx::Error> {
        match changes {
            Changes::Put(vectors) => {
                for vector in vectors {
                    sqlx::query(
                        "INSERT INTO vectors (space, id, dense, sparse, metadata) VALUES (?, ?, ?, ?, ?)
                         ON CONFLICT (space, id) DO UPDATE SET dense = excluded.dense, sparse = excluded.sparse, metadata = excluded.metadata",
                    )
                    .bind(space)
                    .bind(&vector.id)
                    .bind(dense_bytes(&vector.values))
                    .bind(vector.sparse.as_ref().map(sparse_bytes))
                    .bind(vector.metadata.as_ref().and_then(|metadata| serde_json::to_string(metadata).ok()))
                    .execute(&mut self.connection)
                    .await?;
                }
            }
            Changes::Remove(ids) => {
                for id in ids {
                    sqlx::query("DELETE FROM vectors WHERE space = ? AND id = ?")
                        .bind(space)
                        .bind(id)
                        .execute(&mut self.connection)
                        .await?;
                }
            }
            Changes::Clear => {
                sqlx::query("DELETE FROM vectors WHERE space = ?")
                    .bind(space)
                    .execute(&mut self.connection)
                    .await?;
            }
        }
        Ok(())
    }

    /// Whether the file can still be read.
    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT value FROM meta WHERE key = 'dimension'")
            .fetch_optional(&mut self.connection)
            .await
            .map(drop)
    }

    pub(crate) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "vector index file did not close cleanly");
        }
    }
}

async fn prepare(connection: &mut SqliteConnection, dimension: u32) -> Result<(), OpenError> {
    let format: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await?;
    if format > FORMAT {
        return Err(OpenError::Newer(format));
    }
    let mut transaction = connection.begin().await?;
    for statement in [
        "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
        "CREATE TABLE IF NOT EXISTS vectors (
             space TEXT NOT NULL, id TEXT NOT NULL, dense BLOB NOT NULL, sparse BLOB, metadata TEXT,
             PRIMARY KEY (space, id)) STRICT",
        "PRAGMA user_version = 1",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    let stored: Option<u32> = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'dimension'")
        .fetch_optional(&mut *transaction)
        .await?;
    if let Some(stored) = stored.filter(|stored| *stored != dimension) {
        let used: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM vectors)")
            .fetch_one(&mut *transaction)
            .await?;
        if used {
            return Err(OpenError::Dimension {
                stored,
                configured: dimension,
            });
        }
    }
    if stored != Some(dimension) {
        sqlx::query("INSERT INTO meta (key, value) VALUES ('dimension', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(dimension)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn load(
    connection: &mut SqliteConnection,
    dimension: u32,
    max_bytes: usize,
) -> Result<BTreeMap<String, Space>, OpenError> {
    let dimension = dimension as usize;
    let mut spaces: BTreeMap<String, Space> = BTreeMap::new();
    let mut bytes = 0;
    let mut rows =
        sqlx::query("SELECT space, id, dense, sparse, metadata FROM vectors ORDER BY rowid")
            .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let id: String = row.try_get("id")?;
        let metadata = match row.try_get::<Option<&str>, _>("metadata")? {
            None => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|_| damaged(&id, "metadata"))?),
        };
        let sparse = match row.try_get::<Option<&[u8]>, _>("sparse")? {
            None => None,
            Some(bytes) => Some(read_sparse(bytes).ok_or_else(|| damaged(&id, "sparse values"))?),
        };
        let values = read_dense(row.try_get("dense")?)
            .filter(|values| {
                values.len() == dimension && values.iter().all(|value| value.is_finite())
            })
            .ok_or_else(|| damaged(&id, "values"))?;
        let vector = Vector {
            id,
            values,
            sparse,
            metadata,
        };
        bytes += super::memory::footprint(&vector);
        if bytes > max_bytes {
            return Err(OpenError::Full(max_bytes));
        }
        spaces
            .entry(row.try_get("space")?)
            .or_insert_with(|| Space::new(dimension))
            .put(vector);
    }
    Ok(spaces)
}

fn damaged(id: &str, part: &str) -> OpenError {
    OpenError::Damaged(format!(
        "vector '{}' has unreadable {part}",
        id.escape_debug()
    ))
}

fn dense_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn read_dense(bytes: &[u8]) -> Option<Vec<f32>> {
    let (values, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| {
        values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    })
}

/// All indices, then all values.
fn sparse_bytes(sparse: &SparseValues) -> Vec<u8> {
    let indices = sparse.indices.iter().flat_map(|index| index.to_le_bytes());
    let values = sparse.values.iter().flat_map(|value| value.to_le_bytes());
    indices.chain(values).collect()
}

fn read_sparse(bytes: &[u8]) -> Option<SparseValues> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || !words.len().is_multiple_of(2) {
        return None;
    }
    let (indices, values) = words.split_at(words.len() / 2);
    Some(SparseValues {
        indices: indices
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect(),
        values: values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(id: &str, size: usize) -> Vector {
        Vector {
            id: id.to_owned(),
            values: vec![1.0; size],
            sparse: None,
            metadata: None,
        }
    }

    #[tokio::test]
    async fn what_is_acknowledged_after_the_disk_was_full_is_stored() {
        const DIMENSION: u32 = 1 << 10;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sqlite");
        let (mut file, _) = File::open(&path, DIMENSION, 1 << 30).await.unwrap();
        for round in 0..2 {
            // Commits fail and end their transactions, as they do when the disk is full.
            let mut handle = file.connection.lock_handle().await.unwrap();
            handle.set_commit_hook(|| false);
            drop(handle);
            for _ in 0..2 {
                let full = Changes::Put(vec![vector("full", DIMENSION as usize)]);
                assert!(file.commit("s", &full).await.is_err());
            }
            let mut handle = file.connection.lock_handle().await.unwrap();
            handle.remove_commit_hook();
            drop(handle);
            let small = vec![vector(&format!("small{round}"), DIMENSION as usize)];
            file.commit("s", &Changes::Put(small)).await.unwrap();
            // Statements fail too: there are no more pages than there are.
            file.execute("PRAGMA max_page_count = 1").await.unwrap();
            let large = (0..100).map(|id| vector(&format!("large{id}"), DIMENSION as usize));
            let full = file.commit("s", &Changes::Put(large.collect())).await;
            assert!(full.is_err());
            file.execute("PRAGMA max_page_count = 1073741823")
                .await
                .unwrap();
        }
        file.close().await;
        let (_, spaces) = File::open(&path, DIMENSION, 1 << 30).await.unwrap();
        let ids = spaces["s"].page("", None, 10).0;
        assert_eq!(ids, ["small0", "small1"]);
    }
}
