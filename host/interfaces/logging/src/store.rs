use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell_core::{Name, RunId, StepError};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::call::shortened;
use crate::entry::{Level, LogEntry, LogFilter, Source};

/// Entries of what it follows (a namespace, or all) that a follower may be behind before it loses some.
const FOLLOWER_LAG: usize = 1_024;

/// Answers of a query that sets no limit.
const DEFAULT_LIMIT: usize = 1_000;

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

/// The newest messages of all guests, in memory. Room is made by the oldest of the namespace that holds most: whoever writes
/// much loses its own, and nobody else's.
pub struct LogStore {
    capacity: LogCapacity,
    kept: Mutex<Kept>,
}

/// A ring for each namespace that has entries, and a channel for each that is followed.
#[derive(Default)]
struct Kept {
    rings: HashMap<Name, Ring>,
    /// Every ring by what it costs: the last is the one that makes room.
    ranking: BTreeSet<(usize, Name)>,
    /// Entries of all rings, and what they cost.
    held: usize,
    cost: usize,
    /// Entries that ever came.
    count: u64,
    /// By namespace; none: of all. Those that nobody listens to go with the next entry or follower.
    channels: HashMap<Option<String>, broadcast::Sender<Arc<LogEntry>>>,
}

/// The entries of one namespace; there is at least one.
#[derive(Default)]
struct Ring {
    /// Each with its number among all that came, and its cost.
    entries: VecDeque<(u64, usize, Arc<LogEntry>)>,
    cost: usize,
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
            capacity: LogCapacity {
                // Sums of costs never come near the end of what can be counted.
                bytes: capacity.bytes.min(usize::MAX / 4),
                ..capacity
            },
            kept: Mutex::default(),
        }
    }

    /// The newest entries that the filter lets through, in the order they came.
    pub fn query(&self, filter: &LogFilter) -> Vec<Arc<LogEntry>> {
        self.kept().query(filter)
    }

    /// The entries that come from now on.
    pub fn subscribe(&self, filter: LogFilter) -> LogStream {
        self.kept().subscribe(filter)
    }

    /// The newest entries and then those that come: none is missing between the two, none comes twice.
    pub fn follow(&self, filter: LogFilter) -> (Vec<Arc<LogEntry>>, LogStream) {
        let mut kept = self.kept();
        let past = kept.query(&filter);
        (past, kept.subscribe(filter))
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
            // A guest says of itself why it failed, as long as it likes.
            message: shortened(&error.message),
            fault: error.fault.clone(),
            source: Source::Run,
        });
    }

    pub(crate) fn push(&self, entry: LogEntry) {
        let entry = Arc::new(entry);
        let cost = self.cost(&entry);
        let mut kept = self.kept();
        kept.add(cost, &entry);
        while (kept.held > self.capacity.entries || kept.cost > self.capacity.bytes)
            && kept.make_room()
        {}
        // Sent under the lock, so that `follow` sees each entry on exactly one side; sending never waits.
        kept.send(entry);
    }

    /// What an entry costs of the capacity's bytes. Small ones cost their share by number, so that one measure says who holds
    /// most, be it of many or of large ones.
    fn cost(&self, entry: &LogEntry) -> usize {
        let share = self.capacity.bytes / self.capacity.entries.max(1);
        entry.size().max(share)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, cost: usize, entry: &Arc<LogEntry>) {
        let number = self.count;
        self.count += 1;
        self.held += 1;
        self.cost = self.cost.saturating_add(cost);
        let namespace = &entry.namespace;
        let ring = self.rings.entry(namespace.clone()).or_default();
        ring.entries.push_back((number, cost, entry.clone()));
        let before = ring.cost;
        ring.cost = ring.cost.saturating_add(cost);
        let after = ring.cost;
        self.ranking.remove(&(before, namespace.clone()));
        self.ranking.insert((after, namespace.clone()));
    }

    /// Lets the oldest entry go of the namespace that holds most; false: there is none.
    fn make_room(&mut self) -> bool {
        let Some((_, namespace)) = self.ranking.pop_last() else {
            return false;
        };
        let Some(ring) = self.rings.get_mut(&namespace) else {
            return true;
        };
        if let Some((_, cost, _)) = ring.entries.pop_front() {
            ring.cost = ring.cost.saturating_sub(cost);
            self.held = self.held.saturating_sub(1);
            self.cost = self.cost.saturating_sub(cost);
        }
        if ring.entries.is_empty() {
            self.rings.remove(&namespace);
        } else {
            self.ranking.insert((ring.cost, namespace));
        }
        true
    }

    fn query(&self, filter: &LogFilter) -> Vec<Arc<LogEntry>> {
        let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
        let mut found = Vec::new();
        for (namespace, ring) in &self.rings {
            if filter
                .namespace
                .as_ref()
                .is_some_and(|wanted| wanted != namespace.as_str())
            {
                continue;
            }
            let newest = ring.entries.iter().rev();
            let wanted = newest.filter(|(_, _, entry)| filter.matches(entry));
            found.extend(wanted.take(limit).map(|(n, _, entry)| (*n, entry.clone())));
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        let older = found.len().saturating_sub(limit);
        let newest = found.into_iter().skip(older);
        newest.map(|(_, entry)| entry).collect()
    }

    /// A namespace's followers have a channel of their own: what others write cannot outrun them.
    fn subscribe(&mut self, filter: LogFilter) -> LogStream {
        self.channels
            .retain(|_, followers| followers.receiver_count() > 0);
        let channel = self.channels.entry(filter.namespace.clone());
        let followers = channel.or_insert_with(|| broadcast::Sender::new(FOLLOWER_LAG));
        LogStream {
            entries: followers.subscribe(),
            filter,
        }
    }

    fn send(&mut self, entry: Arc<LogEntry>) {
        if self.channels.is_empty() {
            return;
        }
        self.channels.retain(|namespace, followers| {
            let is_for_them = namespace
                .as_ref()
                .is_none_or(|namespace| namespace == entry.namespace.as_str());
            // Without a receiver it fails.
            !is_for_them || followers.send(entry.clone()).is_ok()
        });
    }
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
    /// This many entries came faster than they were read, and are lost to this follower (of the namespace that it follows;
    /// not all of them need have been let through by the rest of its filter).
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
