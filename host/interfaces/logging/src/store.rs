use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell_core::{Name, RunId, StepError};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::entry::{Level, LogEntry, LogFilter, Source};

/// Entries that a follower may be behind before it loses some.
const FOLLOWER_LAG: usize = 1_024;

/// Answers of a query that sets no limit.
const DEFAULT_LIMIT: usize = 1_000;

/// Bytes of a failed run's message: no reason takes more, and one that does must not push out what others have said.
const MESSAGE: usize = 16 << 10;

/// What the store keeps at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCapacity {
    /// Entries.
    pub entries: usize,
    /// Bytes of all entries together.
    pub bytes: usize,
}

impl Default for LogCapacity {
    fn default() -> Self {
        Self {
            entries: 10_000,
            bytes: 16 << 20,
        }
    }
}

/// The newest messages of all guests, in memory. The oldest make room.
pub struct LogStore {
    capacity: LogCapacity,
    ring: Mutex<Ring>,
    followers: broadcast::Sender<Arc<LogEntry>>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<LogEntry>>,
    bytes: usize,
}

impl Default for LogStore {
    fn default() -> Self {
        Self::new(LogCapacity::default())
    }
}

impl LogStore {
    /// An empty store.
    pub fn new(capacity: LogCapacity) -> Self {
        Self {
            capacity,
            ring: Mutex::default(),
            followers: broadcast::Sender::new(FOLLOWER_LAG),
        }
    }

    /// The newest entries that the filter lets through, in the order they came.
    pub fn query(&self, filter: &LogFilter) -> Vec<Arc<LogEntry>> {
        query(&self.ring(), filter)
    }

    /// The entries that come from now on.
    pub fn subscribe(&self, filter: LogFilter) -> LogStream {
        LogStream {
            entries: self.followers.subscribe(),
            filter,
        }
    }

    /// The newest entries and then those that come: none is missing between the two, none comes twice.
    pub fn follow(&self, filter: LogFilter) -> (Vec<Arc<LogEntry>>, LogStream) {
        let ring = self.ring();
        let past = query(&ring, &filter);
        (past, self.subscribe(filter))
    }

    /// Records why a run failed, so that whoever looks for its id finds the reason that callers are not told.
    pub fn run_error(
        &self,
        namespace: &Name,
        pipeline: &Name,
        revision: u64,
        run: RunId,
        error: &StepError,
    ) {
        self.push(LogEntry {
            time: OffsetDateTime::now_utc(),
            level: Level::Error,
            namespace: namespace.clone(),
            pipeline: pipeline.clone(),
            revision,
            step: error.step.clone(),
            plugin: error.plugin.clone(),
            run_id: run,
            context: error.kind.to_string(),
            message: error
                .message
                .get(..error.message.floor_char_boundary(MESSAGE))
                .unwrap_or_default()
                .to_owned(),
            fault: error.fault.clone(),
            source: Source::Run,
        });
    }

    pub(crate) fn push(&self, entry: LogEntry) {
        let entry = Arc::new(entry);
        let size = entry.size();
        let mut ring = self.ring();
        ring.bytes += size;
        ring.entries.push_back(entry.clone());
        while ring.entries.len() > self.capacity.entries || ring.bytes > self.capacity.bytes {
            let Some(oldest) = ring.entries.pop_front() else {
                break;
            };
            ring.bytes = ring.bytes.saturating_sub(oldest.size());
        }
        // Sent under the lock, so that `follow` sees each entry on exactly one side; sending never waits.
        let _ = self.followers.send(entry);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn query(ring: &Ring, filter: &LogFilter) -> Vec<Arc<LogEntry>> {
    let newest = ring.entries.iter().rev();
    let mut found: Vec<_> = newest
        .filter(|entry| filter.matches(entry))
        .take(filter.limit.unwrap_or(DEFAULT_LIMIT))
        .cloned()
        .collect();
    found.reverse();
    found
}

/// The entries that come.
pub struct LogStream {
    entries: broadcast::Receiver<Arc<LogEntry>>,
    filter: LogFilter,
}

/// What a follower gets.
#[derive(Clone, Debug)]
pub enum Followed {
    /// The next entry.
    Entry(Arc<LogEntry>),
    /// This many entries came faster than they were read, and are lost to this follower (not all of them need have been
    /// for it).
    Missed(u64),
}

impl LogStream {
    /// The next entry that the filter lets through; none: the host is ending. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            match self.entries.recv().await {
                Ok(entry) if self.filter.matches(&entry) => return Some(Followed::Entry(entry)),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some(Followed::Missed(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
