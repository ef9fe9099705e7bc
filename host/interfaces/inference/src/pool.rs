use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// The threads that sessions run on, and the queue before them. Both are bounded: what does not fit is refused at once.
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
    jobs: VecDeque<Job>,
    bytes: usize,
    /// Of a job, smoothed over the last few.
    run_time: Duration,
    closed: bool,
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
        let too_many_bytes =
            !queue.jobs.is_empty() && queue.bytes.saturating_add(bytes) > bounds.bytes;
        if queue.jobs.len() >= bounds.jobs || too_many_bytes {
            let waiting =
                u32::try_from(queue.jobs.len() / bounds.threads.max(1)).unwrap_or(u32::MAX);
            let until_half = queue.run_time.saturating_mul(waiting) / 2;
            let retry_after = until_half.clamp(Duration::from_millis(1), Duration::from_secs(5));
            return Err(Full { retry_after });
        }
        queue.bytes = queue.bytes.saturating_add(bytes);
        queue.jobs.push_back(Job {
            work: Box::new(work),
            bytes,
        });
        let waiting = queue.jobs.len();
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
        let dropped = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.wake.notify_all();
        drop(dropped);
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
                .wait_while(self.lock(), |queue| queue.jobs.is_empty() && !queue.closed)
                .unwrap_or_else(PoisonError::into_inner);
            let Some(job) = queue.jobs.pop_front() else {
                return;
            };
            queue.bytes = queue.bytes.saturating_sub(job.bytes);
            if queue.jobs.is_empty() {
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
            .submit(1, later(), move || {
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
        let first = pool.submit(200, later(), || 1).unwrap(); // an empty queue takes any size
        assert!(pool.submit(1, later(), || 2).is_err());
        drop(release);
        assert_eq!(first.await, Ok(1));

        let (pool, release) = busy(2, 100);
        let waiting = [
            pool.submit(50, later(), || 1).unwrap(),
            pool.submit(50, later(), || 2).unwrap(),
        ];
        let full = pool.submit(0, later(), || 3).unwrap_err();
        assert!(full.retry_after >= Duration::from_millis(1));
        drop(release);
        for (at, answer) in waiting.into_iter().enumerate() {
            assert_eq!(answer.await, Ok(at + 1));
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_never_run() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let run = || RUNS.fetch_add(1, Ordering::SeqCst);
        let (pool, release) = busy(8, 100);
        let expired = pool.submit(1, Instant::now(), run).unwrap();
        drop(pool.submit(1, later(), run).unwrap());
        let last = pool.submit(1, later(), run).unwrap();
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
        let bad = pool.submit(1, later(), || panic!("on purpose")).unwrap();
        let good = pool.submit(1, later(), || 7).unwrap();
        assert!(bad.await.is_err());
        assert_eq!(good.await, Ok(7));
    }
}
