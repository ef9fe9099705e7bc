use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::time::{Instant, sleep};

use crate::CatalogError;
use crate::db::{CONNECT, TURN, within};
use crate::error::migration;

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/postgres");

/// How long a catalog's file may be empty when it is made.
const EMPTY: Duration = Duration::from_secs(3);

/// SQLite's migrator has no lock of its own, and turning on WAL does not wait for another process that is doing the same:
/// so all of it happens in one exclusive transaction, and is tried again while another process is at it.
pub(super) async fn migrate_sqlite(options: &SqliteConnectOptions) -> Result<(), CatalogError> {
    if let Some(directory) = options.get_filename().parent() {
        tokio::fs::create_dir_all(directory)
            .await
            .map_err(sqlx::Error::Io)?;
    }
    refuse_emptied(options.get_filename()).await?;
    let give_up = Instant::now() + TURN;
    loop {
        match try_migrate_sqlite(options).await {
            Err(error) if error.is_busy() && Instant::now() < give_up => {
                sleep(Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
}

/// SQLite takes an empty file for a new database: a catalog that was cut to nothing would be a host without pipelines, and all would
/// seem well.
async fn refuse_emptied(path: &Path) -> Result<(), CatalogError> {
    let give_up = Instant::now() + EMPTY;
    while tokio::fs::metadata(path)
        .await
        .is_ok_and(|file| file.is_file() && file.len() == 0)
    {
        if Instant::now() >= give_up {
            return Err(CatalogError::Corrupt(
                "its file is there and empty: put a backup in its place, or delete it to begin with nothing"
                    .to_owned(),
            ));
        }
        // Another process that has just made it is about to write.
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn try_migrate_sqlite(options: &SqliteConnectOptions) -> Result<(), CatalogError> {
    // Here alone: one that is gone later must not be made anew, and empty.
    let options = options.clone().create_if_missing(true);
    let mut connection = options.connect().await?;
    let mut transaction = connection.begin_with("BEGIN EXCLUSIVE").await?;
    SQLITE_MIGRATIONS
        .run_direct(None, &mut *transaction, false)
        .await
        .map_err(|error| migration(error, newest(&SQLITE_MIGRATIONS)))?;
    transaction.commit().await?;
    Ok(connection.close().await?)
}

/// The migrator holds a lock of the session while it works; a connection of its own frees it, whatever happens.
pub(super) async fn migrate_postgres(options: &PgConnectOptions) -> Result<(), CatalogError> {
    let mut connection = within(CONNECT, options.connect()).await?;
    let migrated = POSTGRES_MIGRATIONS
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|error| migration(error, newest(&POSTGRES_MIGRATIONS)));
    match (migrated, connection.close().await) {
        (Ok(()), closed) => Ok(closed?),
        (error, _) => error,
    }
}

fn newest(migrations: &Migrator) -> i64 {
    migrations
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}
