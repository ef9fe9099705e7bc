//! The threads on which an index searches: few, of a low priority, and shared by turns. Requests come before whatever searches there are,
//! and a short search before the rest of a long one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};
use stepwell_core::CpuAccount;
use tokio::sync::oneshot;

use crate::client::VectorError;

/// How far behind the host's other threads these are, as `nice` has it: as far as guests that compute for long.
const NICE: i32 = 5;
/// How long a search goes on while others wait.
const TURN: Duration = Duration::from_millis(2);
/// Threads at most, however many cores there are.
const THREADS: usize = 8;

/// One index's lane. Its threads are started when it is first used, and end with it.
#[derive(Default)]
pub(crate) struct Lane {
    queue: OnceLock<Arc<Queue>>,
}

/// Work that is done piece by piece.
pub(crate) trait Work: Send + 'static {
    /// What comes of it.
    type Output: Send + 'static;

    /// Goes on until it is done, or about until then.
    fn go_on(&mut self, until: Instant) -> Option<Self::Output>;
}

/// Takes a turn and says whether there is another one.
type Turns = Box<dyn FnMut(Instant) -> bool + Send>;

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    pushed: Condvar,
}

#[derive(Default)]
struct Waiting {
    turns: VecDeque<Turns>,
    closed: bool,
}

impl Lane {
    /// Does the work, and charges the CPU time that it takes. What nobody waits for any more is given up at its next turn.
    ///
    /// # Errors
    /// [`VectorError::Internal`]: it panicked, or there are no threads.
    pub(crate) async fn run<W: Work>(
        &self,
        cpu: Option<Arc<CpuAccount>>,
        mut work: W,
    ) -> Result<W::Output, VectorError> {
        let (sender, outcome) = oneshot::channel();
        let mut sender = Some(sender);
        let turns = move |until| {
            if sender.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return false;
            }
            let mut turn = || work.go_on(until);
            let output = match &cpu {
                Some(cpu) => cpu.timed(turn),
                None => turn(),
            };
            let Some(output) = output else {
                return true;
            };
            if let Some(sender) = sender.take() {
                let _ = sender.send(output);
            }
            false
        };
        self.queue().push(Box::new(turns));
        outcome
            .await
            .map_err(|_| VectorError::Internal("the search failed".into()))
    }

    fn queue(&self) -> &Arc<Queue> {
        self.queue.get_or_init(|| {
            let queue = Arc::<Queue>::default();
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let started = (0..cores.min(THREADS))
                .filter(|_| Queue::start(&queue))
                .count();
            // What is pushed to a closed queue fails at once.
            queue.lock().closed = started == 0;
            queue
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.get() {
            let mut waiting = queue.lock();
            waiting.closed = true;
            let left = std::mem::take(&mut waiting.turns);
            drop(waiting);
            queue.pushed.notify_all();
            drop(left);
        }
    }
}

impl Queue {
    /// Starts a thread; false: there can be no more of them.
    fn start(this: &Arc<Self>) -> bool {
        let queue = this.clone();
        let started = thread::Builder::new()
            .name("vector-search".into())
            .spawn(move || {
                if let Err(error) = give_way() {
                    tracing::warn!(%error, "searches cannot be given a low priority");
                }
                while let Some(mut turns) = queue.next() {
                    let until = Instant::now() + TURN;
                    // A panic ends the search, which then answers so, and nothing else.
                    let goes_on = catch_unwind(AssertUnwindSafe(|| turns(until)));
                    if let Ok(true) = goes_on {
                        queue.push(turns);
                    }
                }
            });
        if let Err(error) = &started {
            tracing::error!(%error, "no thread for searches can be started");
        }
        started.is_ok()
    }

    fn push(&self, turns: Turns) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.turns.push_back(turns);
            drop(waiting);
            self.pushed.notify_one();
        }
    }

    /// Whose turn it is; none: the lane is closed.
    fn next(&self) -> Option<Turns> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(turns) = waiting.turns.pop_front() {
                return Some(turns);
            }
            waiting = self
                .pushed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lowers the priority of the calling thread; on Linux that is all that this is about.
fn give_way() -> rustix::io::Result<()> {
    if getpriority_process(None)? < NICE {
        setpriority_process(None, NICE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes so many turns.
    struct Turned(usize);

    impl Work for Turned {
        type Output = (Option<String>, i32);

        fn go_on(&mut self, until: Instant) -> Option<Self::Output> {
            while self.0 > 0 && Instant::now() < until {
                thread::sleep(Duration::from_micros(100));
            }
            if self.0 > 0 {
                self.0 -= 1;
                return None;
            }
            let name = thread::current().name().map(str::to_owned);
            Some((name, getpriority_process(None).unwrap()))
        }
    }

    #[tokio::test]
    async fn work_gives_way_to_requests() {
        let lane = Lane::default();
        let own = getpriority_process(None).unwrap();
        let (name, nice) = lane.run(None, Turned(3)).await.unwrap();
        assert_eq!(name.as_deref(), Some("vector-search"));
        assert_eq!(nice, own.max(NICE));
        assert_eq!(getpriority_process(None).unwrap(), own);
    }

    #[tokio::test]
    async fn short_work_does_not_wait_for_long_work() {
        let lane = Lane::default();
        let long: Vec<_> = (0..40).map(|_| lane.run(None, Turned(1_000_000))).collect();
        let long = futures::future::join_all(long);
        let short = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::time::timeout(Duration::from_secs(10), lane.run(None, Turned(0))).await
        };
        tokio::select! {
            _ = long => panic!("the long work is short"),
            outcome = short => assert!(outcome.unwrap().is_ok()),
        }
    }

    /// Computes until its time is up, so many times.
    struct Computed(usize);

    impl Work for Computed {
        type Output = ();

        fn go_on(&mut self, until: Instant) -> Option<()> {
            while Instant::now() < until {}
            self.0 -= 1;
            (self.0 == 0).then_some(())
        }
    }

    #[tokio::test]
    async fn what_is_computed_is_charged_and_what_waits_is_not() {
        let lane = Lane::default();
        let (busy, idle) = (Arc::<CpuAccount>::default(), Arc::<CpuAccount>::default());
        let (one, other) = tokio::join!(
            lane.run(Some(busy.clone()), Computed(50)),
            lane.run(Some(idle.clone()), Turned(50)),
        );
        assert!(one.is_ok() && other.is_ok());
        // Fifty turns of 2 ms, of which other threads may have had some.
        assert!(busy.used() > Duration::from_millis(10), "{:?}", busy.used());
        assert!(
            busy.used() < Duration::from_millis(150),
            "{:?}",
            busy.used()
        );
        assert!(idle.used() < busy.used(), "{:?}", idle.used());
    }

    /// Counts its turns, and never ends.
    struct Counted(Arc<AtomicUsize>);

    impl Work for Counted {
        type Output = ();

        fn go_on(&mut self, _: Instant) -> Option<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            None
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up() {
        let lane = Lane::default();
        let turns = Arc::new(AtomicUsize::new(0));
        let work = lane.run(None, Counted(turns.clone()));
        let given_up = tokio::time::timeout(Duration::from_millis(50), work).await;
        assert!(given_up.is_err());
        lane.run(None, Turned(2)).await.unwrap();
        let so_far = turns.load(Ordering::SeqCst);
        assert!(so_far > 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(turns.load(Ordering::SeqCst), so_far);
        // Its turns are gone with what they held.
        assert_eq!(Arc::strong_count(&turns), 1);
    }

    struct Panics;

    impl Work for Panics {
        type Output = ();

        fn go_on(&mut self, _: Instant) -> Option<()> {
            panic!("at the disco")
        }
    }

    #[tokio::test]
    async fn a_panic_ends_one_search() {
        let lane = Lane::default();
        for _ in 0..20 {
            let outcome = lane.run(None, Panics).await;
            assert!(matches!(outcome, Err(VectorError::Internal(_))));
        }
        assert!(lane.run(None, Turned(0)).await.is_ok());
    }
}
