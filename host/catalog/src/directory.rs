use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use stepwell_core::{Digest, Name, Principal, Quotas};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::db::{millis, now};
use crate::tokens::{Entries, Token, hash, is_well_formed};
use crate::{Catalog, CatalogError};

/// How long what was last read is good while the database is away.
const TRUST: Duration = Duration::from_secs(300);
/// How often it is read again when nothing is heard.
const LOOK: Duration = Duration::from_secs(15);
/// How long one reading may take, and how soon after a failed one the next is tried.
const READ: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);
/// How often last uses and old records are seen to.
const NOTE: Duration = Duration::from_secs(60);
const FORGET: Duration = Duration::from_secs(3600);
/// Milliseconds between two uses of a token that are told apart.
const COARSE: i64 = 120_000;

/// Namespaces and tokens in this host's memory, following the catalog.
///
/// What is asked for is answered from memory. It is read again first when the catalog has changed since, and when something is
/// asked for that is not there: what another host has just made is found, and what it has revoked is gone as soon as
/// this host hears of it. While the database is away, what was read is good for five minutes.
pub struct Directory {
    catalog: Catalog,
    keep_audit: Duration,
    changes: watch::Receiver<u64>,
    known: ArcSwapOption<Sight>,
    /// One reading at a time; holds when the last one failed.
    reading: tokio::sync::Mutex<Option<Instant>>,
    quotas: watch::Sender<Arc<HashMap<Name, Quotas>>>,
    /// Uses that are not stored yet: token and time.
    used: Mutex<HashMap<String, i64>>,
}

/// Neither this host's memory nor the database can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog cannot be asked who bears a token, or which namespaces there are")]
pub struct Unavailable;

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotVerified {
    /// It does not look like one.
    #[error("the token is malformed")]
    Malformed,
    /// There is no such token: never made, or revoked.
    #[error("the token is not valid")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It cannot be looked for.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What is known, and since when.
struct Sight {
    loaded: Arc<Loaded>,
    generation: u64,
    /// Nothing of it is older.
    seen: Instant,
}

struct Loaded {
    access: u64,
    tokens: HashMap<Digest, Known>,
    namespaces: Arc<HashMap<Name, Quotas>>,
}

struct Known {
    principal: Principal,
    expires_at: Option<i64>,
    last_used_at: AtomicI64,
}

impl Directory {
    /// The directory of a catalog, which is read when it is first needed. Records of the audit log are kept this long.
    pub fn new(catalog: &Catalog, keep_audit: Duration) -> Self {
        Self {
            changes: catalog.changes(),
            catalog: catalog.by(&Principal::host()),
            keep_audit,
            known: ArcSwapOption::empty(),
            reading: tokio::sync::Mutex::default(),
            quotas: watch::Sender::default(),
            used: Mutex::default(),
        }
    }

    /// Who bears a token. Usually this touches nothing but memory.
    ///
    /// # Errors
    /// [`NotVerified`]
    pub async fn verify(&self, token: &str) -> Result<Principal, NotVerified> {
        if !is_well_formed(token) {
            return Err(NotVerified::Malformed);
        }
        let asked = Instant::now();
        // Found by its hash, which nobody can steer: how long that takes says nothing of the tokens that there are.
        let hash = hash(token);
        let sight = self
            .with(asked, |sight| sight.loaded.tokens.contains_key(&hash))
            .await?;
        let known = sight.loaded.tokens.get(&hash);
        let known = known.ok_or(NotVerified::Unknown)?;
        let now = now();
        if known.expires_at.is_some_and(|end| end <= now) {
            return Err(NotVerified::Expired);
        }
        self.note(known, now);
        Ok(known.principal.clone())
    }

    /// Whether there is such a namespace.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn has_namespace(&self, name: &Name) -> Result<bool, Unavailable> {
        if *name == Name::default_namespace() {
            return Ok(true);
        }
        let sight = self
            .with(Instant::now(), |sight| {
                sight.loaded.namespaces.contains_key(name)
            })
            .await?;
        Ok(sight.loaded.namespaces.contains_key(name))
    }

    /// The quotas of every namespace: what they are when the catalog was last read, and each time that they change.
    pub fn quotas(&self) -> watch::Receiver<Arc<HashMap<Name, Quotas>>> {
        self.quotas.subscribe()
    }

    /// Keeps the directory as the catalog is, for as long as it is polled.
    pub async fn follow(&self) {
        let mut changes = self.changes.clone();
        let (mut noted, mut forgotten) = (Instant::now(), None::<Instant>);
        loop {
            changes.borrow_and_update();
            if self.read(Instant::now()).await.is_err() {
                tracing::debug!("cannot read namespaces and tokens");
            }
            if noted.elapsed() >= NOTE {
                noted = Instant::now();
                self.store_uses().await;
            }
            if forgotten.is_none_or(|last| last.elapsed() >= FORGET) {
                forgotten = Some(Instant::now());
                self.forget().await;
            }
            if let Ok(Err(_)) = timeout(LOOK, changes.changed()).await {
                return;
            }
        }
    }

    /// Stores when tokens were last used; a host does so now and then, and at its end.
    pub async fn store_uses(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if used.is_empty() {
            return;
        }
        if let Err(error) = self.catalog.note_use(&used).await {
            tracing::debug!(%error, "cannot store when tokens were used");
            // What was used meanwhile is newer.
            let mut newer = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, at) in used {
                newer.entry(id).or_insert(at);
            }
        }
    }

    async fn forget(&self) {
        let oldest = OffsetDateTime::now_utc().checked_sub(
            self.keep_audit
                .try_into()
                .unwrap_or(time::Duration::weeks(52_000)),
        );
        let Some(oldest) = oldest else {
            return;
        };
        if let Err(error) = self.catalog.forget_audit(oldest).await {
            tracing::debug!(%error, "cannot delete old records of the audit log");
        }
    }

    fn note(&self, known: &Known, now: i64) {
        let last = known.last_used_at.load(Ordering::Relaxed);
        if now.saturating_sub(last) < COARSE {
            return;
        }
        known.last_used_at.store(now, Ordering::Relaxed);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(known.principal.id.to_string(), now);
    }

    /// A sight in which something is found, or else one that is newer than the question.
    async fn with(
        &self,
        asked: Instant,
        found: impl Fn(&Sight) -> bool,
    ) -> Result<Arc<Sight>, Unavailable> {
        let sight = self.sight().await?;
        if found(&sight) {
            return Ok(sight);
        }
        let sight = self.read(asked).await?;
        // What was known before may lack what there is by now.
        if sight.seen < asked && !found(&sight) {
            return Err(Unavailable);
        }
        Ok(sight)
    }

    /// What is known, read again if the catalog has changed since.
    async fn sight(&self) -> Result<Arc<Sight>, Unavailable> {
        let heard = *self.changes.borrow();
        match self.known.load_full() {
            Some(sight) if sight.generation >= heard && sight.seen.elapsed() < TRUST => Ok(sight),
            _ => self.read(Instant::now()).await,
        }
    }

    /// Reads the catalog unless somebody has since `asked`; when that fails, what was known before is good for a while.
    async fn read(&self, asked: Instant) -> Result<Arc<Sight>, Unavailable> {
        let mut failed = self.reading.lock().await;
        let known = self.known.load_full();
        if let Some(sight) = &known
            && sight.seen >= asked
        {
            return Ok(sight.clone());
        }
        let before = || {
            let sight = known.clone().ok_or(Unavailable)?;
            let is_good = sight.seen.elapsed() < TRUST;
            is_good.then_some(sight).ok_or(Unavailable)
        };
        if failed.is_some_and(|last| last.elapsed() < RETRY) {
            return before();
        }
        let seen = Instant::now();
        let access = known.as_ref().map(|sight| sight.loaded.access);
        let snapshot = timeout(READ, self.catalog.access(access))
            .await
            .unwrap_or_else(|_| Err(CatalogError::unavailable("it did not answer in time")));
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::debug!(%error, "cannot read namespaces and tokens");
                *failed = Some(Instant::now());
                return before();
            }
        };
        *failed = None;
        let loaded = match (snapshot.entries, &known) {
            (Some(entries), _) => Arc::new(self.load(snapshot.access, entries)),
            (None, Some(sight)) => sight.loaded.clone(),
            (None, None) => return Err(Unavailable),
        };
        let sight = Arc::new(Sight {
            loaded,
            generation: snapshot.generation,
            seen,
        });
        self.known.store(Some(sight.clone()));
        Ok(sight)
    }

    fn load(&self, access: u64, entries: Entries) -> Loaded {
        let namespaces = Arc::new(entries.namespaces);
        self.quotas.send_if_modified(|last| {
            let differs = **last != *namespaces;
            if differs {
                *last = namespaces.clone();
            }
            differs
        });
        let unstored = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let last_used = |token: &Token| {
            let stored = token.last_used_at.map(millis);
            let unstored = unstored.get(&token.id).copied();
            unstored.max(stored).unwrap_or(0)
        };
        let tokens = entries.tokens.into_iter().map(|(hash, token)| {
            let known = Known {
                principal: token.principal(),
                expires_at: token.expires_at.map(millis),
                last_used_at: AtomicI64::new(last_used(&token)),
            };
            (hash, known)
        });
        Loaded {
            access,
            tokens: tokens.collect(),
            namespaces,
        }
    }
}
