//! The embedded index: exact search in memory, every write in a SQLite file before it is acknowledged.

mod file;
mod lane;
mod memory;
mod scan;
mod writer;

use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{OnceCell, mpsc, oneshot};

use self::file::{Changes, File};
use self::lane::{Lane, Work as _};
use self::memory::Space;
use self::scan::{Rows, Scan};
use self::writer::{Job, Write};
use crate::binding::closed;
use crate::client::{
    Change, Description, Health, Listing, Match, Page, Place, Search, Selection, Target, Vector,
    VectorError, VectorStore,
};
use crate::limits::{MAX_PAGE, ResultSize, Shape};
use crate::score::Scorer;

/// Memory that one index may take.
const MAX_BYTES: usize = 2 << 30;
/// A search of more work than this is done on threads that give way to requests.
const INLINE_COST: usize = 64 << 10;
/// A file that could not be opened is tried again no sooner than this.
const REOPEN_PAUSE: Duration = Duration::from_secs(2);

/// One embedded index.
pub(crate) struct LocalStore(Arc<Index>);

struct Index {
    name: Arc<str>,
    path: PathBuf,
    shape: Shape,
    max_bytes: usize,
    opened: OnceCell<Opened>,
    refused: Mutex<Option<(Instant, String)>>,
}

struct Opened {
    memory: Arc<Memory>,
    jobs: mpsc::Sender<Job>,
}

/// What is in memory. Searches take what they need and let go of the lock; only the writer changes it.
struct Memory {
    name: Arc<str>,
    dimension: usize,
    max_bytes: usize,
    spaces: RwLock<BTreeMap<String, Space>>,
    writes_fail: AtomicBool,
    /// Where rows are looked at.
    lane: Lane,
}

impl LocalStore {
    pub(crate) fn new(name: Arc<str>, path: PathBuf, shape: Shape) -> Self {
        Self::bounded(name, path, shape, MAX_BYTES)
    }

    fn bounded(name: Arc<str>, path: PathBuf, shape: Shape, max_bytes: usize) -> Self {
        Self(Arc::new(Index {
            name,
            path,
            shape,
            max_bytes,
            opened: OnceCell::new(),
            refused: Mutex::new(None),
        }))
    }

    /// The open index; one that could not be opened before is tried again. Opening is a task of its own, so that a caller who
    /// cannot wait for a large file does not stop it.
    async fn opened(&self) -> Result<&Opened, VectorError> {
        if self.0.opened.get().is_none() {
            let index = Arc::clone(&self.0);
            let _ = tokio::spawn(async move { index.ensure_open().await }).await;
        }
        self.0
            .opened
            .get()
            .ok_or_else(|| VectorError::Unavailable("the index cannot be opened".into()))
    }

    async fn write(&self, at: &Place<'_>, write: Write) -> Result<(), VectorError> {
        let opened = self.opened().await?;
        let (done, result) = oneshot::channel();
        let job = Job::Write {
            space: at.name().to_owned(),
            deadline: at.deadline,
            cpu: at.cpu.cloned(),
            write: Box::new(write),
            done,
        };
        opened.jobs.send(job).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }
}

impl Index {
    async fn ensure_open(&self) {
        let recent = |refused: &Option<(Instant, String)>| {
            refused
                .as_ref()
                .is_some_and(|(when, _)| when.elapsed() < REOPEN_PAUSE)
        };
        // The reason of a failure stays in `refused`.
        let _ = self
            .opened
            .get_or_try_init(|| async {
                if recent(&self.refused.lock().unwrap_or_else(PoisonError::into_inner)) {
                    return Err(());
                }
                let result = self.open().await;
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(opened) => {
                        *refused = None;
                        Ok(opened)
                    }
                    Err(error) => {
                        let reason = format!("vector index '{}': {error}", self.name);
                        tracing::error!(binding = %self.name, path = %self.path.display(), %error, "vector index cannot be opened");
                        *refused = Some((Instant::now(), reason));
                        Err(())
                    }
                }
            })
            .await;
    }

    async fn open(&self) -> Result<Opened, file::OpenError> {
        let start = Instant::now();
        let (file, spaces) = File::open(&self.path, self.shape.dimension, self.max_bytes).await?;
        let vectors: usize = spaces.values().map(Space::len).sum();
        tracing::info!(binding = %self.name, vectors, took = ?start.elapsed(), "vector index is open");
        let memory = Arc::new(Memory {
            name: Arc::clone(&self.name),
            dimension: self.shape.dimension as usize,
            max_bytes: self.max_bytes,
            spaces: RwLock::new(spaces),
            writes_fail: AtomicBool::new(false),
            lane: Lane::default(),
        });
        let (jobs, queue) = mpsc::channel(64);
        tokio::spawn(writer::run(file, Arc::clone(&memory), queue));
        Ok(Opened { memory, jobs })
    }
}

impl Memory {
    /// Looks at a namespace, if it holds anything.
    fn read<T>(&self, space: &str, look: impl FnOnce(&Space) -> T) -> Option<T> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        spaces.get(space).map(look)
    }

    fn bytes(&self) -> usize {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        spaces.values().map(Space::bytes).sum()
    }

    /// Makes a call's changes visible, all at once.
    fn apply(&self, name: String, changes: Changes) {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        match changes {
            Changes::Clear => {
                spaces.remove(&name);
            }
            Changes::Put(vectors) => {
                let space = spaces
                    .entry(name)
                    .or_insert_with(|| Space::new(self.dimension));
                for vector in vectors {
                    space.put(vector);
                }
            }
            Changes::Remove(ids) => {
                let Some(space) = spaces.get_mut(&name) else {
                    return;
                };
                for id in ids {
                    space.remove(&id);
                }
                if space.len() == 0 {
                    spaces.remove(&name);
                }
            }
        }
    }
}

#[async_trait]
impl VectorStore for LocalStore {
    async fn upsert(&self, at: &Place<'_>, vectors: Vec<Vector>) -> Result<u32, VectorError> {
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        self.write(at, Write::Upsert(vectors)).await?;
        Ok(count)
    }

    async fn query(&self, at: &Place<'_>, search: Search) -> Result<Vec<Match>, VectorError> {
        let memory = &self.opened().await?.memory;
        let taken = memory.read(at.name(), |space| {
            let (dense, sparse) = match search.target {
                Target::Values { dense, sparse } => (dense, sparse),
                Target::Id(id) => {
                    let vector = space.get(&id)?;
                    (vector.values, vector.sparse)
                }
            };
            Some((space.segments(), space.bytes(), dense, sparse))
        });
        let Some((segments, bytes, dense, sparse)) = taken.flatten() else {
            return Ok(Vec::new());
        };
        let mut scan = Scan {
            rows: Rows::new(memory.dimension, segments, at.deadline),
            scorer: Scorer::new(self.0.shape.metric, dense, sparse),
            top_k: search.top_k as usize,
            filter: search.filter,
            include_values: search.include_values,
            include_metadata: search.include_metadata,
            nearest: BinaryHeap::new(),
        };
        if scan.cost(bytes) <= INLINE_COST
            && let Some(found) = scan.go_on(at.deadline)
        {
            return found;
        }
        memory.lane.run(at.cpu.cloned(), scan).await?
    }

    async fn fetch(&self, at: &Place<'_>, ids: Vec<String>) -> Result<Vec<Vector>, VectorError> {
        let memory = &self.opened().await?.memory;
        let mut size = ResultSize::default();
        memory
            .read(at.name(), |space| {
                ids.iter()
                    .filter_map(|id| space.get(id))
                    .map(|vector| size.add_vector(&vector).map(|()| vector))
                    .collect()
            })
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn update(&self, at: &Place<'_>, change: Change) -> Result<(), VectorError> {
        self.write(at, Write::Update(change)).await
    }

    async fn delete(&self, at: &Place<'_>, selection: Selection) -> Result<(), VectorError> {
        self.write(at, Write::Delete(selection)).await
    }

    /// A page's token is its last id: the next page starts after it, whatever was written or deleted meanwhile.
    async fn list(&self, at: &Place<'_>, listing: Listing) -> Result<Page, VectorError> {
        let memory = &self.opened().await?.memory;
        let limit = listing.limit.unwrap_or(MAX_PAGE) as usize;
        let page = memory.read(at.name(), |space| {
            space.page(&listing.prefix, listing.token.as_deref(), limit)
        });
        let (ids, more) = page.unwrap_or_default();
        let next = more.then(|| ids.last().cloned()).flatten();
        Ok(Page { ids, next })
    }

    async fn describe(&self, _: Instant) -> Result<Description, VectorError> {
        let memory = &self.opened().await?.memory;
        let spaces = memory.spaces.read().unwrap_or_else(PoisonError::into_inner);
        let mut size = ResultSize::default();
        let namespaces = spaces
            .iter()
            .map(|(name, space)| {
                size.add(name.len() + 8)?;
                Ok((name.clone(), space.len() as u64))
            })
            .collect::<Result<_, VectorError>>()?;
        Ok(Description {
            dimension: self.0.shape.dimension,
            metric: self.0.shape.metric,
            namespaces,
        })
    }

    async fn probe(&self, _: Instant) -> Health {
        let Ok(opened) = self.opened().await else {
            let refused = self
                .0
                .refused
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            return Health::Down(refused.as_ref().map_or_else(
                || "it cannot be opened".to_owned(),
                |(_, reason)| reason.clone(),
            ));
        };
        let (done, answer) = oneshot::channel();
        if opened.jobs.send(Job::Ping(done)).await.is_err() {
            return Health::Down("it is closed".into());
        }
        match answer.await {
            Err(_) => Health::Down("it is closed".into()),
            Ok(Err(error)) => Health::Degraded(format!("its file cannot be read: {error}")),
            Ok(Ok(())) if opened.memory.writes_fail.load(Ordering::Relaxed) => {
                Health::Degraded("the last write could not be stored".into())
            }
            Ok(Ok(())) => Health::Ok,
        }
    }

    async fn close(&self) {
        if let Some(opened) = self.0.opened.get() {
            let (done, closed) = oneshot::channel();
            if opened.jobs.send(Job::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
