use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Hands a few slots to many who wait, each lane in its turn: whoever asks for much waits behind himself, not others behind him.
pub(crate) struct Queue {
    state: Mutex<State>,
    most_waiting: usize,
}

/// Who waits. Those of one lane are served in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Requests of callers.
    Calls,
    /// What the host does ahead.
    Ahead,
    /// A tenant's uploads.
    Tenant(String),
}

/// A slot; dropping it hands it to the next.
pub(crate) struct Slot {
    queue: Arc<Queue>,
    lane: Lane,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

struct State {
    free: usize,
    /// What a tenant may have of the slots: all but one, since whoever comes meanwhile would wait for as long as one
    /// compilation may take.
    most: usize,
    /// The lanes of the slots that are taken.
    taken: Vec<Lane>,
    waiting: usize,
    /// Those that have anybody waiting, the next one first.
    lanes: VecDeque<(Lane, VecDeque<oneshot::Sender<Slot>>)>,
}

impl Queue {
    /// A queue for this many slots, at least one.
    pub(crate) fn new(slots: usize, most_waiting: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: slots.max(1),
                most: slots.saturating_sub(1).max(1),
                taken: Vec::new(),
                waiting: 0,
                lanes: VecDeque::new(),
            }),
            most_waiting,
        })
    }

    /// A slot, after those that came before in the same lane. Whoever stops waiting gives up its place.
    pub(crate) async fn slot(self: &Arc<Self>, lane: Lane) -> Result<Slot, Full> {
        let waiting = {
            let mut state = self.lock();
            if state.free > 0 && state.may_take(&lane) {
                state.free -= 1;
                state.taken.push(lane.clone());
                drop(state);
                return Ok(self.taken(lane));
            }
            state.forget_gone();
            let known = state.lanes.iter().position(|(other, _)| *other == lane);
            // A full queue still has room for the first of a lane: one tenant cannot lock out the others.
            let most = match known {
                Some(_) => self.most_waiting,
                None => self.most_waiting.saturating_mul(2),
            };
            if state.waiting >= most {
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            match known.and_then(|index| state.lanes.get_mut(index)) {
                Some((_, waiters)) => waiters.push_back(sender),
                None => state.lanes.push_back((lane, VecDeque::from([sender]))),
            }
            state.waiting += 1;
            receiver
        };
        // The sender lives in the queue, and the queue in `self`.
        waiting.await.map_err(|_| Full)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn taken(self: &Arc<Self>, lane: Lane) -> Slot {
        Slot {
            queue: self.clone(),
            lane,
        }
    }

    /// Somebody to hand a slot of this lane's to; nobody: the slot is free.
    fn next(&self, left: &Lane) -> Option<(Lane, oneshot::Sender<Slot>)> {
        let mut state = self.lock();
        if let Some(index) = state.taken.iter().position(|lane| lane == left) {
            state.taken.swap_remove(index);
        }
        while let Some((lane, mut waiters)) = state.next_lane() {
            let next = waiters.pop_front();
            if !waiters.is_empty() {
                state.lanes.push_back((lane.clone(), waiters));
            }
            if let Some(next) = next {
                state.waiting = state.waiting.saturating_sub(1);
                if !next.is_closed() {
                    state.taken.push(lane.clone());
                    return Some((lane, next));
                }
            }
        }
        state.free += 1;
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_take(&self, lane: &Lane) -> bool {
        let own = self.taken.iter().filter(|taken| *taken == lane).count();
        !matches!(lane, Lane::Tenant(_)) || own < self.most
    }

    /// The next of those lanes that may have one more slot.
    fn next_lane(&mut self) -> Option<(Lane, VecDeque<oneshot::Sender<Slot>>)> {
        let index = self
            .lanes
            .iter()
            .position(|(lane, _)| self.may_take(lane))?;
        self.lanes.remove(index)
    }

    /// Whoever has stopped waiting takes up no room.
    fn forget_gone(&mut self) {
        for (_, waiters) in &mut self.lanes {
            waiters.retain(|waiter| !waiter.is_closed());
        }
        self.lanes.retain(|(_, waiters)| !waiters.is_empty());
        self.waiting = self.lanes.iter().map(|(_, waiters)| waiters.len()).sum();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((lane, next)) = self.queue.next(&self.lane) {
            // Whoever went away in between drops the slot, and so hands it on.
            let _ = next.send(self.queue.taken(lane));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenant(name: &str) -> Lane {
        Lane::Tenant(name.to_owned())
    }

    /// Waits in a task of its own, and writes its name down when its turn has come.
    fn wait(queue: &Arc<Queue>, lane: Lane, served: &Arc<Mutex<Vec<Lane>>>) {
        let (queue, served) = (queue.clone(), served.clone());
        tokio::spawn(async move {
            let slot = queue.slot(lane.clone()).await.unwrap();
            served.lock().unwrap().push(lane);
            tokio::task::yield_now().await;
            drop(slot);
        });
    }

    #[tokio::test]
    async fn each_lane_has_its_turn() {
        let queue = Queue::new(1, 100);
        let first = queue.slot(Lane::Ahead).await.unwrap();
        let served = Arc::default();
        for _ in 0..3 {
            wait(&queue, tenant("greedy"), &served);
        }
        tokio::task::yield_now().await;
        wait(&queue, tenant("modest"), &served);
        wait(&queue, Lane::Calls, &served);
        tokio::task::yield_now().await;
        assert_eq!(queue.waiting(), 5);
        drop(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let greedy = || tenant("greedy");
        assert_eq!(
            *served.lock().unwrap(),
            [greedy(), tenant("modest"), Lane::Calls, greedy(), greedy()]
        );
        assert_eq!(queue.waiting(), 0);
        assert!(queue.slot(Lane::Calls).await.is_ok(), "the slot is free");
    }

    #[tokio::test]
    async fn a_tenant_leaves_one_slot_to_the_others() {
        let queue = Queue::new(3, 100);
        let greedy = || tenant("greedy");
        let first = queue.slot(greedy()).await.unwrap();
        let _second = queue.slot(greedy()).await.unwrap();
        let served = Arc::default();
        for _ in 0..3 {
            wait(&queue, greedy(), &served);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*served.lock().unwrap(), []);
        let held = queue.slot(tenant("modest")).await.unwrap();
        wait(&queue, Lane::Calls, &served);
        tokio::task::yield_now().await;
        drop(held);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*served.lock().unwrap(), [Lane::Calls]);
        drop(first);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            *served.lock().unwrap(),
            [Lane::Calls, greedy(), greedy(), greedy()]
        );
        assert_eq!(queue.waiting(), 0);
        // What the host does for itself may have all.
        let _all = [
            queue.slot(Lane::Ahead).await.unwrap(),
            queue.slot(Lane::Ahead).await.unwrap(),
        ];
    }

    #[tokio::test]
    async fn a_full_queue_refuses_all_but_the_first_of_a_lane() {
        let queue = Queue::new(1, 2);
        let held = queue.slot(Lane::Ahead).await.unwrap();
        let served = Arc::default();
        wait(&queue, tenant("a"), &served);
        wait(&queue, tenant("a"), &served);
        tokio::task::yield_now().await;
        assert_eq!(queue.slot(tenant("a")).await.err(), Some(Full));
        wait(&queue, tenant("b"), &served);
        tokio::task::yield_now().await;
        assert_eq!(queue.waiting(), 3);
        assert_eq!(queue.slot(tenant("b")).await.err(), Some(Full));
        drop(held);
    }

    #[tokio::test]
    async fn whoever_gives_up_takes_no_place_and_no_slot() {
        let queue = Queue::new(1, 1);
        let held = queue.slot(Lane::Calls).await.unwrap();
        let impatient = queue.slot(Lane::Calls);
        assert!(
            tokio::time::timeout(Duration::from_millis(5), impatient)
                .await
                .is_err()
        );
        let patient = tokio::spawn({
            let queue = queue.clone();
            async move { queue.slot(Lane::Calls).await.is_ok() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(patient.await.unwrap());
    }
}
