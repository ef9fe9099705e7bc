use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::CatalogError;
use crate::db::{CHANNEL, Db};

/// How often the generation is read even if nobody told of a change: notifications may be lost with a connection.
const POLL: Duration = Duration::from_secs(5);

/// Follows the changes that other hosts make in PostgreSQL, for as long as it is polled.
pub(crate) async fn follow(db: Arc<Db>) {
    let Some(pool) = db.postgres() else {
        return;
    };
    let told = Notify::new();
    tokio::join!(listen(pool, &told), look(&db, &told));
}

async fn listen(pool: &PgPool, told: &Notify) {
    loop {
        let error = receive(pool, told).await;
        // Polling goes on meanwhile, and readiness says what is the matter.
        tracing::debug!(%error, "cannot listen for changes of the catalog");
        sleep(Duration::from_secs(1)).await;
    }
}

async fn receive(pool: &PgPool, told: &Notify) -> sqlx::Error {
    let listening = async {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        loop {
            // Also when the connection was lost and made again, since that may have lost a notification.
            told.notify_one();
            listener.try_recv().await?;
        }
    };
    let result: Result<std::convert::Infallible, sqlx::Error> = listening.await;
    match result {
        Err(error) => error,
    }
}

async fn look(db: &Db, told: &Notify) {
    loop {
        match generation(db).await {
            Ok(generation) => db.publish(generation),
            Err(error) => tracing::debug!(%error, "cannot look for changes of the catalog"),
        }
        // Either way it is time to look.
        let _ = timeout(POLL, told.notified()).await;
    }
}

async fn generation(db: &Db) -> Result<u64, CatalogError> {
    db.read().await?.generation().await
}
