use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use stepwell_core::{Name, share_of};
use tokio::sync::oneshot;

/// The threads that sessions run on, and the queue before them. Both are bounded: what does not fit is refused at once. Namespaces take
/// turns, and one alone has three quarters of the queue: however much it asks for, the next inference of another waits for one of its own.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) threads: usize,
    pub(crate) jobs: usize,
    pub(crate) bytes: usize,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// About when there will be room.
    pub(crate) retry_after: Duration,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    bounds: Bounds,
}

#[derive(Default)]
struct Queue {
    lines: HashMap<Name, Line>,
    /// Whose turn is next. Each namespace that has a line is here once.
    turns: VecDeque<Name>,
    jobs: usize,
    bytes: usize,
    /// Of a job, smoothed over the last few.
    run_time: Duration,
    closed: bool,
}

/// What waits of one namespace.
#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    bytes: usize,
}

struct Job {
    work: Box<dyn FnOnce() -> bool + Send>,
    bytes: usize,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(bounds: Bounds) -> std::io::Result<Self> {
        let pool = Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                wake: Condvar::new(),
                bounds,
            }),
        };
        for at in 0..bounds.threads.max(1) {
            let shared = pool.shared.clone();
            thread::Builder::new()
                .name(format!("inference-{at}"))
                .spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Queues work that holds so many bytes. It is dropped unrun when its deadline has passed, or when nobody waits for
    /// the answer any more; then, and when it panics, the receiver is closed.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        namespace: &Name,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Full> {
        let (answer, receiver) = oneshot::channel();
        let work = move || {
            let wanted = !answer.is_closed() && Instant::now() < deadline;
            if wanted {
                // Nobody waits any more: the answer is dropped.
                let _ = answer.send(work());
            }
            wanted
        };
        let bounds = &self.shared.bounds;
        let mut queue = self.shared.lock();
        // An idle pool takes a job of any size, so that there is none that never fits.
        if queue.jobs > 0 && !queue.has_room(namespace, bytes, bounds) {
            let waiting = u32::try_from(queue.jobs / bounds.threads.max(1)).unwrap_or(u32::MAX);
            let until_half = queue.run_time.saturating_mul(waiting) / 2;
            let retry_after = until_half.clamp(Duration::from_millis(1), Duration::from_secs(5));
            return Err(Full { retry_after });
        }
        queue.push(
            namespace,
            Job {
                work: Box::new(work),
                bytes,
            },
        );
        let waiting = queue.jobs;
        drop(queue);
        self.shared.wake.notify_one();
        if waiting > 1 {
            metrics::gauge!("stepwell_model_queued_requests").set(waiting as f64);
        }
        Ok(receiver)
    }
}

/// What is queued is dropped; what runs finishes, unobserved.
impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let dropped = std::mem::take(&mut queue.lines);
        queue.turns.clear();
        queue.jobs = 0;
        drop(queue);
        self.shared.wake.notify_all();
        drop(dropped);
    }
}

impl Queue {
    fn has_room(&self, namespace: &Name, bytes: usize, bounds: &Bounds) -> bool {
        let (jobs, held) = self
            .lines
            .get(namespace)
            .map_or((0, 0), |line| (line.jobs.len(), line.bytes));
        self.jobs < bounds.jobs
            && jobs < share_of(bounds.jobs)
            && self.bytes.saturating_add(bytes) <= bounds.bytes
            && held.saturating_add(bytes) <= share_of(bounds.bytes)
    }

    fn push(&mut self, namespace: &Name, job: Job) {
        self.jobs += 1;
        self.bytes = self.bytes.saturating_add(job.bytes);
        let line = self.lines.entry(namespace.clone()).or_default();
        if line.jobs.is_empty() {
            self.turns.push_back(namespace.clone());
        }
        line.bytes = line.bytes.saturating_add(job.bytes);
        line.jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<Job> {
        let namespace = self.turns.pop_front()?;
        let line = self.lines.get_mut(&namespace)?;
        let job = line.jobs.pop_front()?;
        line.bytes = line.bytes.saturating_sub(job.bytes);
        if line.jobs.is_empty() {
            self.lines.remove(&namespace);
        } else {
            self.turns.push_back(namespace);
        }
        self.jobs -= 1;
        self.bytes = self.bytes.saturating_sub(job.bytes);
        Some(job)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut queue = self
                .wake
                .wait_while(self.lock(), |queue| queue.jobs == 0 && !queue.closed)
                .unwrap_or_else(PoisonError::into_inner);
            let Some(job) = queue.pop() else {
                return;
            };
            if queue.jobs == 0 {
                metrics::gauge!("stepwell_model_queued_requests").set(0.0);
            }
            drop(queue);
            let started = Instant::now();
            match catch_unwind(AssertUnwindSafe(job.work)) {
                Ok(true) => {
                    let took = started.elapsed();
                    let mut queue = self.lock();
                    queue.run_time = (queue.run_time * 7 + took) / 8;
                }
                Ok(false) => {}
                Err(_) => tracing::error!("an inference panicked"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// A pool of one thread, busy until the sender is dropped or sends.
    fn busy(jobs: usize, bytes: usize) -> (Pool, mpsc::Sender<()>) {
        let pool = Pool::start(Bounds {
            threads: 1,
            jobs,
            bytes,
        })
        .unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        let _ = pool
            .submit(&name("one"), 1, later(), move || {
                started.send(()).unwrap();
                let _ = wait.recv();
            })
            .map(std::mem::forget);
        running.recv_timeout(Duration::from_secs(10)).unwrap();
        (pool, release)
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_at_once() {
        let (pool, release) = busy(2, 100);
        let first = pool.submit(&name("one"), 200, later(), || 1).unwrap(); // an empty queue takes any size
        assert!(pool.submit(&name("one"), 1, later(), || 2).is_err());
        drop(release);
        assert_eq!(first.await, Ok(1));

        let (pool, release) = busy(2, 100);
        let waiting = [
            pool.submit(&name("one"), 50, later(), || 1).unwrap(),
            pool.submit(&name("other"), 50, later(), || 2).unwrap(),
        ];
        let full = pool.submit(&name("one"), 0, later(), || 3).unwrap_err();
        assert!(full.retry_after >= Duration::from_millis(1));
        drop(release);
        for (at, answer) in waiting.into_iter().enumerate() {
            assert_eq!(answer.await, Ok(at + 1));
        }
    }

    #[tokio::test]
    async fn namespaces_take_turns_and_none_has_all_of_the_queue() {
        let (pool, release) = busy(100, 1000);
        let order = Arc::new(Mutex::new(Vec::new()));
        let submit = |namespace: &'static str| {
            let order = order.clone();
            pool.submit(&name(namespace), 1, later(), move || {
                order.lock().unwrap().push(namespace)
            })
        };
        let many: Vec<_> = (0..75).map(|_| submit("one").unwrap()).collect();
        assert!(submit("one").is_err());
        let few: Vec<_> = (0..3).map(|_| submit("other").unwrap()).collect();
        drop(release);
        for answer in many.into_iter().chain(few) {
            answer.await.unwrap();
        }
        let expected = ["one", "other", "one", "other", "one", "other", "one", "one"];
        let order = order.lock().unwrap();
        assert_eq!((order.len(), order.get(..8)), (78, Some(&expected[..])));
        let queue = pool.shared.lock();
        assert_eq!((queue.jobs, queue.bytes), (0, 0));
        assert!(queue.lines.is_empty() && queue.turns.is_empty());
        drop(queue);

        let (pool, release) = busy(100, 100);
        let submit = |namespace, bytes| pool.submit(&name(namespace), bytes, later(), || ());
        let waiting = [submit("one", 60), submit("other", 20), submit("one", 15)];
        assert!(waiting.iter().all(Result::is_ok));
        assert!(submit("one", 1).is_err());
        assert!(submit("other", 5).is_ok());
        drop(release);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_never_run() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let run = || RUNS.fetch_add(1, Ordering::SeqCst);
        let (pool, release) = busy(8, 100);
        let expired = pool.submit(&name("one"), 1, Instant::now(), run).unwrap();
        drop(pool.submit(&name("one"), 1, later(), run).unwrap());
        let last = pool.submit(&name("one"), 1, later(), run).unwrap();
        drop(release);
        assert_eq!(last.await, Ok(0));
        assert!(expired.await.is_err());
        assert_eq!(RUNS.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_costs_only_its_own_answer() {
        let pool = Pool::start(Bounds {
            threads: 1,
            jobs: 8,
            bytes: 100,
        })
        .unwrap();
        let bad = pool
            .submit(&name("one"), 1, later(), || panic!("on purpose"))
            .unwrap();
        let good = pool.submit(&name("one"), 1, later(), || 7).unwrap();
        assert!(bad.await.is_err());
        assert_eq!(good.await, Ok(7));
    }
}
