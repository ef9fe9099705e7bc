//! Places among the instances that live at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit};

use crate::config::Flavor;
use crate::idle::Waiting;
use crate::memory::Share;

/// What an instance takes up of them. The fields are dropped in this order.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _place: Option<Place>,
}

/// How many of one engine's slots a namespace has taken. While there are others it may have three quarters, and its calls that
/// find no more wait here, in no other namespace's way.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: AtomicU32,
    waiting: AtomicUsize,
    /// Whose turn it is among those that wait.
    turn: Mutex<()>,
    freed: Notify,
}

/// Some of a namespace's slots, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    share: Arc<Share>,
    flavor: Flavor,
    slots: u32,
}

impl Slot {
    pub(crate) fn new(permit: OwnedSemaphorePermit, place: Option<Place>) -> Self {
        Self {
            _permit: permit,
            _place: place,
        }
    }
}

impl Place {
    /// So many of all slots of that engine; none: the namespace has as many as it may, or others of its calls wait.
    pub(crate) fn take(share: &Arc<Share>, flavor: Flavor, slots: u32, all: u32) -> Option<Self> {
        let places = share.places(flavor);
        let most = share.most_slots(all);
        if most.is_some() && places.is_awaited() {
            return None;
        }
        places.take(slots, most).then(|| Self {
            share: share.clone(),
            flavor,
            slots,
        })
    }

    /// The same, in its turn among the calls of its namespace.
    pub(crate) async fn wait(share: &Arc<Share>, flavor: Flavor, slots: u32, all: u32) -> Self {
        let places = share.places(flavor);
        let _turn = places.turn.lock().await;
        while !places.take(slots, share.most_slots(all)) {
            places.freed.notified().await;
        }
        Self {
            share: share.clone(),
            flavor,
            slots,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = self.share.places(self.flavor);
        places.taken.fetch_sub(self.slots, Ordering::SeqCst);
        if places.is_awaited() {
            places.freed.notify_one();
        }
    }
}

impl Places {
    /// Announces a call that waits.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        Waiting::new(&self.waiting)
    }

    /// Whether calls of the namespace wait for its own instances to end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// What is more than the namespace may have is given to it when it has nothing else.
    fn take(&self, slots: u32, most: Option<u32>) -> bool {
        let fits = |taken: u32| {
            let next = taken.saturating_add(slots);
            (taken == 0 || most.is_none_or(|most| next <= most)).then_some(next)
        };
        self.taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::memory::GuestMemory;

    const LEAN: Flavor = Flavor::Lean;

    #[tokio::test]
    async fn a_namespace_has_three_quarters_while_there_are_others() {
        let memory = Arc::new(GuestMemory::new(1));
        let one = memory.tenant("one").0;
        let all = Place::take(&one, LEAN, 20, 20).unwrap();
        let other = memory.tenant("other");
        assert!(Place::take(&one, LEAN, 1, 20).is_none());
        assert!(Place::take(&one, Flavor::Concurrent, 15, 20).is_some());
        drop(all);
        let most = Place::take(&one, LEAN, 15, 20).unwrap();
        assert!(Place::take(&one, LEAN, 1, 20).is_none());
        assert!(Place::take(&other.0, LEAN, 15, 20).is_some());
        drop(other);
        assert!(Place::take(&one, LEAN, 5, 20).is_some());
        drop(most);

        let _other = memory.tenant("other");
        let large = Place::take(&one, LEAN, 16, 20).unwrap();
        assert!(Place::take(&one, LEAN, 1, 20).is_none());
        drop(large);
        let of_nobody = memory.nobodys();
        assert!(Place::take(&of_nobody, LEAN, 20, 20).is_some());
    }

    #[tokio::test]
    async fn calls_of_a_namespace_wait_in_turn() {
        let memory = Arc::new(GuestMemory::new(1));
        let (one, _other) = (memory.tenant("one").0, memory.tenant("other"));
        let mut held: Vec<_> = (0..15)
            .map(|_| Place::take(&one, LEAN, 1, 20).unwrap())
            .collect();
        let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
        for slots in [10, 1, 2] {
            let (one, sender) = (one.clone(), sender.clone());
            tokio::spawn(async move {
                let _waiting = one.places(LEAN).wait();
                let place = Place::wait(&one, LEAN, slots, 20).await;
                sender.send((slots, place)).unwrap();
            });
            tokio::task::yield_now().await;
        }
        held.truncate(14);
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Who came first wants more, and nobody overtakes him.
        assert!(served.try_recv().is_err());
        assert!(Place::take(&one, LEAN, 1, 20).is_none());
        held.truncate(5);
        let (slots, place) = served.recv().await.unwrap();
        assert_eq!(slots, 10);
        drop(place);
        let (first, _first) = served.recv().await.unwrap();
        let (second, _second) = served.recv().await.unwrap();
        assert_eq!((first, second), (1, 2));
        tokio::task::yield_now().await;
        assert!(Place::take(&one, LEAN, 1, 20).is_some());
    }
}
