use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use metrics::counter;
use stepwell_core::Digest;

use crate::plugin::Plugin;
use crate::store::StoreState;

/// The components that stay loaded between calls: a bounded number, and of those that are deployed the ones used last.
///
/// What is evicted is only unmapped: its compiled code stays on disk, and calls under way keep what they use.
pub(crate) struct Residents<S: StoreState> {
    inner: Mutex<Inner<S>>,
    /// Counts loads, by twos: a component's age is how many others were loaded since it was used. The odd moments in between
    /// are those of uses.
    clock: AtomicU64,
    most: usize,
    most_bytes: u64,
}

/// A deployed component's place, shared by all steps that are made of it.
pub(crate) struct Seat<S: StoreState> {
    plugin: ArcSwapOption<Plugin<S>>,
    used: AtomicU64,
}

struct Inner<S: StoreState> {
    /// Of everything deployed, loaded or not.
    seats: HashMap<Digest, Weak<Seat<S>>>,
    /// Those that are loaded.
    taken: Vec<(Weak<Seat<S>>, u64)>,
    /// Size of `seats` at which those that nobody deploys any more are looked for.
    sweep_at: usize,
}

impl<S: StoreState> Residents<S> {
    pub(crate) fn new(most: usize, most_bytes: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                seats: HashMap::new(),
                taken: Vec::new(),
                sweep_at: 64,
            }),
            clock: AtomicU64::new(0),
            most: most.max(1),
            most_bytes,
        }
    }

    /// The component's place; it goes with the last one who holds it, and the component with it.
    pub(crate) fn seat(&self, digest: Digest) -> Arc<Seat<S>> {
        let mut inner = self.lock();
        if let Some(seat) = inner.seats.get(&digest).and_then(Weak::upgrade) {
            return seat;
        }
        if inner.seats.len() >= inner.sweep_at {
            inner.seats.retain(|_, seat| seat.strong_count() > 0);
            inner.sweep_at = (inner.seats.len() * 2).max(64);
        }
        let seat = Arc::new(Seat {
            plugin: ArcSwapOption::empty(),
            used: AtomicU64::new(0),
        });
        inner.seats.insert(digest, Arc::downgrade(&seat));
        seat
    }

    /// The component, if it is loaded.
    pub(crate) fn get(&self, seat: &Seat<S>) -> Option<Arc<Plugin<S>>> {
        let plugin = seat.plugin.load_full()?;
        let now = self.clock.load(Ordering::Relaxed) + 1;
        // Only written when it changes, so that cores do not fight over a busy component's line.
        if seat.used.load(Ordering::Relaxed) != now {
            seat.used.store(now, Ordering::Relaxed);
        }
        Some(plugin)
    }

    /// Keeps a component that was loaded, and lets go of the ones that were used least lately.
    pub(crate) fn admit(&self, seat: &Arc<Seat<S>>, plugin: &Arc<Plugin<S>>) {
        let mut evicted = Vec::new();
        {
            let mut inner = self.lock();
            let now = self.clock.fetch_add(2, Ordering::Relaxed) + 2;
            seat.used.store(now, Ordering::Relaxed);
            if seat.plugin.swap(Some(plugin.clone())).is_none() {
                inner.taken.push((Arc::downgrade(seat), plugin.code_bytes));
            }
            inner.taken.retain(|(seat, _)| {
                seat.upgrade()
                    .is_some_and(|seat| seat.plugin.load().is_some())
            });
            let mut bytes: u64 = inner.taken.iter().map(|(_, bytes)| bytes).sum();
            while inner.taken.len() > self.most
                || (bytes > self.most_bytes && inner.taken.len() > 1)
            {
                let age = |(seat, _): &(Weak<Seat<S>>, u64)| {
                    seat.upgrade()
                        .map_or(0, |seat| seat.used.load(Ordering::Relaxed))
                };
                let oldest = inner
                    .taken
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, entry)| age(entry));
                let Some(index) = oldest.map(|(index, _)| index) else {
                    break;
                };
                let (seat, size) = inner.taken.swap_remove(index);
                bytes = bytes.saturating_sub(size);
                if let Some(seat) = seat.upgrade() {
                    evicted.extend(seat.plugin.swap(None));
                    counter!("stepwell_components_evicted_total").increment(1);
                }
            }
        }
        // Unmapped here, outside the lock.
        drop(evicted);
    }

    /// Components that are loaded, and the bytes of their code.
    pub(crate) fn loaded(&self) -> (usize, u64) {
        let inner = self.lock();
        let live = inner
            .taken
            .iter()
            .filter(|(seat, _)| seat.strong_count() > 0);
        live.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
