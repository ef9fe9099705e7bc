use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::memory::Share;

/// Instances that are kept for later calls of one step, as the engine sees them.
pub(crate) trait Resting: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// Whether their memory counts here; if there are any.
    fn is_of(&self, share: &Share) -> bool;
    /// Since when the oldest has been waiting.
    fn oldest(&self) -> Option<Instant>;
    /// Ends the oldest, to make room.
    fn evict(&self) -> bool;
    /// Ends those whose time is up, and says when to look again.
    fn sweep(&self, now: Instant) -> Instant;
    /// Whether there has been nothing since the last sweep: then it takes itself for unlisted.
    fn unlist(&self) -> bool;
}

/// Every idle instance of an engine: one thread ends those that have waited long enough, and calls that find no slot end the
/// oldest.
pub(crate) struct Idle(Arc<Shared>);

/// What ends idle instances to make room for the memory of others.
#[derive(Clone)]
pub(crate) struct Evictor(Weak<Shared>);

#[derive(Default)]
struct Shared {
    list: Mutex<List>,
    changed: Condvar,
    /// Calls that wait for a slot.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct List {
    resting: Vec<Weak<dyn Resting>>,
    /// What the thread is to drop, so that nobody has to wait for it.
    retired: Vec<Box<dyn Send>>,
    /// Whether something was listed that the thread has not seen.
    grown: bool,
    stop: bool,
}

/// A call that waits for a slot, until it is dropped.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

/// Time between two sweeps at least.
const PAUSE: Duration = Duration::from_millis(5);

/// An eviction ends one in so many, so that a crowd of calls does not look for the oldest one by one.
const SHARE: usize = 16;

impl Idle {
    pub(crate) fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        thread::Builder::new()
            .name("idle-instances".into())
            .spawn(move || run(&of_thread))?;
        Ok(Self(shared))
    }

    /// Lists what has its first idle instance. `put` puts it there and answers whether it was listed already.
    pub(crate) fn list(&self, resting: Weak<dyn Resting>, put: impl FnOnce() -> bool) {
        let mut list = self.0.lock();
        if !put() {
            list.resting.push(resting);
            list.grown = true;
            self.0.changed.notify_one();
        }
    }

    /// Drops something on the idle instances' thread.
    pub(crate) fn retire(&self, retired: Box<dyn Send>) {
        self.0.lock().retired.push(retired);
        self.0.changed.notify_one();
    }

    /// Announces a call that waits for a slot: from now on no instance becomes idle without [`Idle::is_awaited`] being seen.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        Waiting::new(&self.0.waiting)
    }

    /// Whether calls wait for a slot.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Ends the idle instances that have waited longest, at least so many if there are, and answers how many it were. Only those
    /// whose memory counts there if a share is given.
    pub(crate) fn evict(&self, least: usize, of: Option<&Share>) -> usize {
        self.0.evict(least, of)
    }

    pub(crate) fn evictor(&self) -> Evictor {
        Evictor(Arc::downgrade(&self.0))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.resting().iter().map(|one| one.count()).sum()
    }
}

impl Evictor {
    /// Ends some, only those whose memory counts there if a share is given, and answers how many it were.
    pub(crate) fn evict(&self, of: Option<&Share>) -> usize {
        self.0.upgrade().map_or(0, |idle| idle.evict(1, of))
    }
}

impl fmt::Debug for Evictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Evictor").finish_non_exhaustive()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.changed.notify_one();
    }
}

impl<'a> Waiting<'a> {
    /// One more that waits, as this counts them.
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn evict(&self, least: usize, of: Option<&Share>) -> usize {
        let mut all = self.resting();
        all.retain(|one| of.is_none_or(|share| one.is_of(share)));
        let share = all.iter().map(|one| one.count()).sum::<usize>() / SHARE + 1;
        let wanted = share.max(least);
        let mut by_age: BinaryHeap<_> = all
            .iter()
            .enumerate()
            .filter_map(|(index, one)| Some((Reverse(one.oldest()?), index)))
            .collect();
        let mut ended = 0;
        while ended < wanted
            && let Some((_, index)) = by_age.pop()
            && let Some(one) = all.get(index)
        {
            ended += usize::from(one.evict());
            by_age.extend(one.oldest().map(|oldest| (Reverse(oldest), index)));
        }
        ended
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is listed and alive. It must not be dropped under the lock: it may be the last to hold the engine.
    fn resting(&self) -> Vec<Arc<dyn Resting>> {
        self.lock()
            .resting
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Waits for something to do, and answers what is to be dropped; none: there is no engine any more.
    fn wait_until(&self, next: Option<Instant>) -> Option<Vec<Box<dyn Send>>> {
        let mut list = self.lock();
        loop {
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            if list.stop {
                return None;
            }
            if list.grown || !list.retired.is_empty() || left.is_some_and(|left| left.is_zero()) {
                list.grown = false;
                return Some(std::mem::take(&mut list.retired));
            }
            list = match left {
                None => self
                    .changed
                    .wait(list)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = self.changed.wait_timeout(list, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn unlist(&self) {
        let mut alive = Vec::new();
        self.lock().resting.retain(|one| {
            let Some(one) = one.upgrade() else {
                return false;
            };
            let listed = !one.unlist();
            alive.push(one);
            listed
        });
    }
}

fn run(shared: &Shared) {
    let mut next = None;
    while let Some(retired) = shared.wait_until(next) {
        drop(retired);
        shared.unlist();
        let now = Instant::now();
        let sweeps = shared.resting().iter().map(|one| one.sweep(now)).min();
        next = sweeps.map(|next| next.max(now + PAUSE));
    }
}
