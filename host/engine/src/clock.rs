use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::time::ClockId;
use stepwell_core::CpuAccount;

/// CPU time that a call has used: what its thread has executed while the call was being polled. Waiting for a host function, or
/// for a turn among other tasks, costs nothing.
///
/// Asking for a thread's CPU time is a system call, which short calls would feel. So a call's first millisecond is taken from
/// the monotonic clock, and a poll in it counts two ticks at most, since a guest yields by then: whatever else such a poll
/// took, the guest was not being executed.
pub(crate) struct CpuClock {
    /// Nanoseconds of the polls that are over.
    used: AtomicU64,
    /// What the clock of the current poll showed when it began. Only the polling thread reads it, since guests run inside polls.
    began: AtomicU64,
    exact: AtomicBool,
    /// Who is charged for each poll.
    account: Option<Arc<CpuAccount>>,
}

/// Time from which on a call is timed exactly.
const ROUGH: u64 = 1_000_000;

/// What the monotonic clock is counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Budgets below this are timed exactly from the start.
const SMALL: Duration = Duration::from_millis(20);

/// What a poll counts at most while time is taken roughly.
const TWO_TICKS: u64 = 2_000_000;

impl CpuClock {
    pub(crate) fn new(budget: Duration, account: Option<Arc<CpuAccount>>) -> Self {
        Self {
            used: AtomicU64::new(0),
            began: AtomicU64::new(0),
            exact: AtomicBool::new(budget < SMALL),
            account,
        }
    }

    /// Counts from nothing again, for the next call of the same store; call it while nothing is polled.
    pub(crate) fn restart(&self, budget: Duration) {
        self.used.store(0, Ordering::Relaxed);
        self.exact.store(budget < SMALL, Ordering::Relaxed);
    }

    /// CPU time up to now; call it from inside a poll.
    pub(crate) fn used(&self) -> Duration {
        let used = self.used.load(Ordering::Relaxed);
        Duration::from_nanos(used.saturating_add(self.spent()))
    }

    /// CPU time of the polls that are over.
    pub(crate) fn charged(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Times the polls that follow exactly: whoever polls on a thread that others come before is kept waiting in most of them.
    pub(crate) fn be_exact(&self) {
        self.exact.store(true, Ordering::Relaxed);
    }

    /// Times one poll.
    pub(crate) fn timed<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.begin();
        let outcome = poll();
        self.end();
        outcome
    }

    fn begin(&self) {
        if self.used.load(Ordering::Relaxed) >= ROUGH {
            self.exact.store(true, Ordering::Relaxed);
        }
        self.began.store(self.now(), Ordering::Relaxed);
    }

    fn end(&self) {
        let spent = self.spent();
        self.used.fetch_add(spent, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.charge(Duration::from_nanos(spent));
        }
    }

    /// Time of the current poll.
    fn spent(&self) -> u64 {
        let spent = self
            .now()
            .saturating_sub(self.began.load(Ordering::Relaxed));
        match self.exact.load(Ordering::Relaxed) {
            true => spent,
            false => spent.min(TWO_TICKS),
        }
    }

    fn now(&self) -> u64 {
        if !self.exact.load(Ordering::Relaxed) {
            return u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX);
        }
        let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    }
}

/// Runs a future whose polls the clock times.
pub(crate) async fn timed<F: Future>(clock: &CpuClock, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| clock.timed(|| future.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(clock: &CpuClock) -> Duration {
        clock.charged()
    }

    #[tokio::test]
    async fn waiting_is_free_and_working_is_not() {
        for budget in [Duration::from_millis(1), Duration::from_secs(1)] {
            let account = Arc::new(CpuAccount::default());
            let clock = CpuClock::new(budget, Some(account.clone()));
            timed(&clock, tokio::time::sleep(Duration::from_millis(300))).await;
            assert!(
                used(&clock) < Duration::from_millis(100),
                "{:?}",
                used(&clock)
            );

            timed(&clock, async {
                for _ in 0..50 {
                    let began = thread_time();
                    while thread_time() - began < Duration::from_millis(1) {}
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert!(
                used(&clock) >= Duration::from_millis(40),
                "{:?}",
                used(&clock)
            );
            assert_eq!(account.used(), used(&clock));
        }
    }

    fn thread_time() -> Duration {
        let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap()
    }

    #[tokio::test]
    async fn a_thread_that_is_kept_from_running_is_not_charged() {
        let clock = CpuClock::new(Duration::from_secs(1), None);
        for _ in 0..2 {
            timed(&clock, async {
                std::thread::sleep(Duration::from_millis(300))
            })
            .await;
        }
        assert!(
            used(&clock) < Duration::from_millis(100),
            "{:?}",
            used(&clock)
        );
    }
}
