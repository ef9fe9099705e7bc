use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::ClockId;

/// CPU time that a call has used: what its thread has executed while the call was being polled. Waiting for a host function, or
/// for a turn among other tasks, costs nothing.
#[derive(Default)]
pub(crate) struct CpuClock {
    /// Nanoseconds of the polls that are over.
    used: AtomicU64,
    /// The thread's CPU time when the current poll began. Only the polling thread reads it, since guests run inside polls.
    poll_began: AtomicU64,
}

impl CpuClock {
    /// CPU time up to now; call it from inside a poll.
    pub(crate) fn used(&self) -> Duration {
        let current = thread_cpu().saturating_sub(self.poll_began.load(Ordering::Relaxed));
        Duration::from_nanos(self.used.load(Ordering::Relaxed).saturating_add(current))
    }
}

fn thread_cpu() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Runs a future whose polls the clock times.
pub(crate) async fn timed<F: Future>(clock: &CpuClock, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let began = thread_cpu();
        clock.poll_began.store(began, Ordering::Relaxed);
        let outcome = future.as_mut().poll(cx);
        clock
            .used
            .fetch_add(thread_cpu().saturating_sub(began), Ordering::Relaxed);
        outcome
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_is_free_and_working_is_not() {
        let clock = CpuClock::default();
        timed(&clock, tokio::time::sleep(Duration::from_millis(300))).await;
        let waited = Duration::from_nanos(clock.used.load(Ordering::Relaxed));
        assert!(waited < Duration::from_millis(100), "{waited:?}");

        timed(&clock, async {
            let target = clock.used() + Duration::from_millis(50);
            while clock.used() < target {
                std::hint::spin_loop();
            }
        })
        .await;
        let worked = Duration::from_nanos(clock.used.load(Ordering::Relaxed));
        assert!(worked >= Duration::from_millis(50), "{worked:?}");
    }
}
