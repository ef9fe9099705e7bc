use std::sync::Arc;
use std::time::Duration;

use stepwell_core::Principal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::db::Db;
use crate::watch::follow;
use crate::{CatalogError, InvalidLocation, Location};

/// How long the database has to answer a [`Catalog::ping`].
const PING: Duration = Duration::from_secs(3);

/// How long after a change that failed it is tried out whether changes can be stored again.
const QUIET: Duration = Duration::from_secs(30);

/// How much a catalog keeps where nothing else says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogLimits {
    /// Revisions of one pipeline, the current one included: an older one goes when a new one comes.
    pub revisions: u64,
    /// Pipelines of a namespace that has no quota of them.
    pub pipelines: u64,
}

impl Default for CatalogLimits {
    fn default() -> Self {
        Self {
            revisions: 1_000,
            pipelines: 20_000,
        }
    }
}

/// The catalog. Share it in an `Arc`; every operation may be called from many tasks at once.
///
/// It connects when it is first used and again after the database was away: until then, operations answer
/// [`CatalogError::Unavailable`].
pub struct Catalog {
    pub(crate) db: Arc<Db>,
    /// Whose changes these are.
    pub(crate) by: Principal,
    pub(crate) limits: CatalogLimits,
    backend: &'static str,
    follower: Option<Arc<Follower>>,
}

/// Ends with the last catalog that shares it.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Catalog {
    /// A catalog at this place; nothing is connected to or created yet. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`InvalidLocation`] when the PostgreSQL URL cannot be read.
    pub fn new(location: &Location) -> Result<Self, InvalidLocation> {
        let db = Arc::new(Db::new(location)?);
        let follower = db
            .postgres()
            .is_some()
            .then(|| Arc::new(Follower(tokio::spawn(follow(db.clone())))));
        Ok(Self {
            db,
            by: Principal::host(),
            limits: CatalogLimits::default(),
            backend: location.backend(),
            follower,
        })
    }

    /// The same catalog with other limits.
    #[must_use]
    pub fn limited(mut self, limits: CatalogLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The same catalog, in whose audit log changes are this principal's. Otherwise they are the host's own.
    #[must_use]
    pub fn by(&self, principal: &Principal) -> Self {
        Self {
            db: self.db.clone(),
            by: principal.clone(),
            limits: self.limits,
            backend: self.backend,
            follower: self.follower.clone(),
        }
    }

    /// Connects, and creates or migrates the tables under a lock. Every other operation does so if this has not succeeded; a
    /// host calls it at its start to learn of [`CatalogError::TooNew`], which will not pass, and of
    /// [`CatalogError::Unavailable`], which may.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn migrate(&self) -> Result<(), CatalogError> {
        self.db.migrate().await
    }

    /// `sqlite` or `postgres`.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Asks the database for a sign of life, and answers the catalog's generation.
    ///
    /// # Errors
    /// [`CatalogError`], after a few seconds at most.
    pub async fn ping(&self) -> Result<u64, CatalogError> {
        let ping = async { self.db.read().await?.generation().await };
        timeout(PING, ping)
            .await
            .unwrap_or_else(|_| Err(CatalogError::unavailable("it did not answer in time")))
    }

    /// Whether changes can be stored, which a full disk or another process may prevent while [`Catalog::ping`] succeeds. It is
    /// known from the last change, and tried out only some time after one that failed.
    ///
    /// # Errors
    /// [`CatalogError`], after a few seconds at most.
    pub async fn check_writes(&self) -> Result<(), CatalogError> {
        timeout(PING, self.db.check_writes(QUIET))
            .await
            .unwrap_or_else(|_| Err(CatalogError::unavailable("it did not answer in time")))
    }

    /// Tells of changes: the value is the newest generation that this host has heard of. A change made through this `Catalog`
    /// is told at once; one that another host makes in PostgreSQL usually at once, and within seconds if its
    /// notification got lost. Several changes may be told as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.db.generations()
    }

    /// Ends every connection, once the operations under way have ended.
    pub async fn close(&self) {
        if let Some(follower) = &self.follower {
            follower.0.abort();
        }
        self.db.close().await;
    }
}
