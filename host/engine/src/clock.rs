use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use stepwell_core::CpuAccount;
use wasmtime::UpdateDeadline;

/// CPU time that a call has used: what its thread has executed while the call was being polled. Waiting for a host function, or
/// for a turn among other tasks, costs nothing.
///
/// Asking for a thread's CPU time is a system call, which short calls would feel. So a call's first millisecond is taken from
/// the monotonic clock: a guest yields within two ticks, so a shorter poll counts as long as it took. In a longer one the
/// thread was kept from running, or one of the guest's instructions took long (it fills or copies memory): what the thread has
/// executed since its CPU time was last asked for tells which.
pub(crate) struct CpuClock {
    /// Nanoseconds of the polls that are over.
    used: AtomicU64,
    /// What the clock of the current poll showed when it began. Only the polling thread reads it, since guests run inside polls.
    began: AtomicU64,
    exact: AtomicBool,
    /// Whether a tick does not bound a poll: one instruction may take as long as it takes to write all of the guest's memory.
    large: AtomicBool,
    /// Whether a poll went on although the guest should have yielded.
    overran: AtomicBool,
    /// Who is charged for each poll.
    account: Option<Arc<CpuAccount>>,
}

/// Time from which on a call is timed exactly.
const ROUGH: u64 = 1_000_000;

/// What the monotonic clock is counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Budgets below this are timed exactly from the start.
const SMALL: Duration = Duration::from_millis(20);

/// Time that a poll may take before the guest is told to yield at a tick. Of calls that take 20 µs every fiftieth meets a tick, and
/// one that yields goes to the end of the line.
const TURN: u64 = 500_000;

/// How long a poll may take to count as that while time is taken roughly.
const TWO_TICKS: u64 = 2_000_000;

/// CPU time of one poll, in nanoseconds, from which on the guest did not yield when it was told to.
pub(crate) const OVERRUN: u64 = 4_000_000;

/// How old a thread's sample may be when a rough poll begins: a long one counts so much too little at most.
const STALE: u64 = 1_000_000;

/// What a thread's CPU time was at some point of the monotonic clock, in nanoseconds.
#[derive(Clone, Copy)]
struct Sample {
    at: u64,
    cpu: u64,
}

thread_local! {
    static SAMPLE: Cell<Option<Sample>> = const { Cell::new(None) };
}

impl CpuClock {
    pub(crate) fn new(budget: Duration, account: Option<Arc<CpuAccount>>) -> Self {
        Self {
            used: AtomicU64::new(0),
            began: AtomicU64::new(0),
            exact: AtomicBool::new(budget < SMALL),
            large: AtomicBool::new(false),
            overran: AtomicBool::new(false),
            account,
        }
    }

    /// One for the next call of the same instance. A call's instance is with the next one before its own last poll is over, so no
    /// two of them may share a clock.
    pub(crate) fn next(&self, budget: Duration) -> Self {
        let next = Self::new(budget, self.account.clone());
        next.large.store(self.is_large(), Ordering::Relaxed);
        next
    }

    /// CPU time up to now; call it from inside a poll.
    pub(crate) fn used(&self) -> Duration {
        let used = self.used.load(Ordering::Relaxed);
        Duration::from_nanos(used.saturating_add(self.spent(self.now())))
    }

    /// The same, for whoever has just asked what time it is.
    pub(crate) fn used_at(&self, now: Instant) -> Duration {
        let now = match self.exact.load(Ordering::Relaxed) {
            true => thread_time(),
            false => nanos(now.saturating_duration_since(*START)),
        };
        let used = self.used.load(Ordering::Relaxed);
        Duration::from_nanos(used.saturating_add(self.spent(now)))
    }

    /// CPU time of the polls that are over.
    pub(crate) fn charged(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Times the polls that follow exactly: whoever polls on a thread that others come before is kept waiting in most of them.
    pub(crate) fn be_exact(&self) {
        self.exact.store(true, Ordering::Relaxed);
    }

    /// The guest's memory is large from now on, and as long as its instance lives.
    pub(crate) fn be_large(&self) {
        self.large.store(true, Ordering::Relaxed);
    }

    /// Whether a tick does not bound the guest's polls.
    pub(crate) fn is_large(&self) -> bool {
        self.large.load(Ordering::Relaxed)
    }

    /// Whether a poll went on although the guest should have yielded, since this was last asked.
    pub(crate) fn overran(&self) -> bool {
        self.overran.load(Ordering::Relaxed) && self.overran.swap(false, Ordering::Relaxed)
    }

    /// What a guest is told at a tick: neighbours and timers get their turn, unless its own has only just begun.
    pub(crate) fn turn(&self) -> UpdateDeadline {
        // One that has become large leaves the thread before it touches what it was given.
        match self.spent(self.now()) < TURN && !self.is_large() {
            true => UpdateDeadline::Continue(1),
            false => UpdateDeadline::Yield(1),
        }
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
        let now = self.now();
        if !self.exact.load(Ordering::Relaxed) {
            let sample = SAMPLE.get();
            if sample.is_none_or(|sample| now.saturating_sub(sample.at) > STALE) {
                SAMPLE.set(Some(Sample {
                    at: now,
                    cpu: thread_time(),
                }));
            }
        }
        self.began.store(now, Ordering::Relaxed);
    }

    fn end(&self) {
        let spent = self.spent(self.now());
        if spent > OVERRUN {
            self.overran.store(true, Ordering::Relaxed);
        }
        self.used.fetch_add(spent, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.charge(Duration::from_nanos(spent));
        }
    }

    /// Time of the current poll, up to what its clock shows now.
    fn spent(&self, now: u64) -> u64 {
        let began = self.began.load(Ordering::Relaxed);
        let spent = now.saturating_sub(began);
        if self.exact.load(Ordering::Relaxed) || spent <= TWO_TICKS {
            return spent;
        }
        let executed = SAMPLE.get().map_or(0, |sample| {
            let since = thread_time().saturating_sub(sample.cpu);
            // Others may have used all of the time before the poll.
            since.saturating_sub(began.saturating_sub(sample.at))
        });
        executed.clamp(TWO_TICKS, spent)
    }

    fn now(&self) -> u64 {
        if !self.exact.load(Ordering::Relaxed) {
            return nanos(START.elapsed());
        }
        thread_time()
    }
}

/// CPU time of the calling thread, in nanoseconds.
fn thread_time() -> u64 {
    nanos(stepwell_core::thread_time())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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
                    compute(Duration::from_millis(1));
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
        Duration::from_nanos(super::thread_time())
    }

    fn compute(time: Duration) {
        let began = thread_time();
        while thread_time() - began < time {}
    }

    #[test]
    fn a_poll_without_a_yield_is_charged_in_full() {
        let account = Arc::new(CpuAccount::default());
        let clock = CpuClock::new(Duration::from_secs(1), Some(account.clone()));
        // What the thread has done before is not the guest's.
        compute(Duration::from_millis(200));
        clock.timed(|| compute(Duration::from_micros(50)));
        assert!(!clock.overran());
        compute(Duration::from_millis(200));
        clock.timed(|| {
            compute(Duration::from_millis(300));
            // As the callback sees it.
            assert!(clock.used() >= Duration::from_millis(298));
            assert!(clock.used_at(Instant::now()) >= Duration::from_millis(298));
        });
        let charged = used(&clock);
        assert!(charged >= Duration::from_millis(298), "{charged:?}");
        assert!(charged < Duration::from_millis(400), "{charged:?}");
        assert_eq!(account.used(), charged);
        assert!(clock.overran());
        assert!(!clock.overran());
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

    #[test]
    fn a_guest_that_has_just_begun_goes_on_at_a_tick() {
        let goes_on = |clock: &CpuClock| matches!(clock.turn(), UpdateDeadline::Continue(1));
        let yields = |clock: &CpuClock| matches!(clock.turn(), UpdateDeadline::Yield(1));
        for budget in [Duration::from_millis(1), Duration::from_secs(1)] {
            let clock = CpuClock::new(budget, None);
            let just_begun = || clock.timed(|| goes_on(&clock));
            // The machine may keep the thread from running in between.
            assert!((0..100).any(|_| just_begun()));
            clock.timed(|| {
                compute(Duration::from_millis(3));
                assert!(yields(&clock));
            });
            assert!((0..100).any(|_| just_begun()), "in its next turn");
            clock.be_large();
            clock.timed(|| assert!(yields(&clock)));
        }
    }

    #[test]
    fn a_call_and_the_next_one_of_its_instance_are_charged_apart() {
        let account = Arc::new(CpuAccount::default());
        let ms = Duration::from_millis;
        let clock = CpuClock::new(ms(10), Some(account.clone()));
        let mut next = None;
        clock.timed(|| {
            compute(ms(300));
            // The instance is given on before the poll is over.
            let of_next = clock.next(Duration::from_secs(1));
            of_next.timed(|| compute(ms(1)));
            compute(ms(300));
            next = Some(of_next);
        });
        let (first, second) = (used(&clock), used(&next.unwrap()));
        assert!(first >= ms(600), "{first:?}");
        assert!(second < ms(100), "{second:?}");
        assert_eq!(account.used(), first + second);
    }

    #[test]
    fn an_instance_that_is_large_stays_so() {
        let clock = CpuClock::new(Duration::from_secs(1), None);
        assert!(!clock.next(Duration::from_secs(1)).is_large());
        clock.be_large();
        assert!(clock.next(Duration::from_secs(1)).is_large());
    }
}
