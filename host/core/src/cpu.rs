use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::ClockId;

/// CPU time that guests have used, and the host for them, on somebody's account. It only grows.
#[derive(Debug, Default)]
pub struct CpuAccount {
    nanos: AtomicU64,
    /// Whose part it is.
    of: Option<Arc<CpuAccount>>,
}

impl CpuAccount {
    /// An account that is part of another: what is charged to it is charged to that too.
    pub fn within(of: &Arc<Self>) -> Self {
        Self {
            nanos: AtomicU64::new(0),
            of: Some(of.clone()),
        }
    }

    /// Adds what a guest has just used. Called for each turn of a guest, so it takes no lock.
    pub fn charge(&self, used: Duration) {
        let nanos = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
        let mut account = Some(self);
        while let Some(charged) = account {
            charged.nanos.fetch_add(nanos, Ordering::Relaxed);
            account = charged.of.as_deref();
        }
    }

    /// Does this and charges the CPU time that the calling thread takes for it. Not for what happens while a guest is polled: that
    /// is charged already.
    pub fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = thread_time();
        let outcome = work();
        self.charge(thread_time().saturating_sub(began));
        outcome
    }

    /// Everything that was charged so far.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// CPU time of the calling thread.
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_does_is_charged_and_what_it_waits_for_is_not() {
        let account = CpuAccount::default();
        let began = thread_time();
        let done = account.timed(|| {
            std::thread::sleep(Duration::from_millis(200));
            while thread_time() - began < Duration::from_millis(50) {}
            "done"
        });
        assert_eq!(done, "done");
        assert!(account.used() >= Duration::from_millis(49));
        assert!(account.used() < Duration::from_millis(150));
    }

    #[test]
    fn a_part_is_charged_to_the_whole() {
        let whole = Arc::new(CpuAccount::default());
        let (one, other) = (CpuAccount::within(&whole), CpuAccount::within(&whole));
        one.charge(Duration::from_millis(3));
        other.charge(Duration::from_millis(4));
        one.charge(Duration::from_millis(5));
        assert_eq!(one.used(), Duration::from_millis(8));
        assert_eq!(other.used(), Duration::from_millis(4));
        assert_eq!(whole.used(), Duration::from_millis(12));
    }
}
