use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a namespace's calls kept threads for that other calls wait for: polls in which the guest did not yield when it was told to,
/// since a host function or one of its instructions took so long. What a step's calls teach (see `Temper`) comes too late for the
/// first of them, and steps are made by the thousand: so this much is allowed for all of a namespace's together.
#[derive(Debug, Default)]
pub(crate) struct KeptThreads {
    /// When all of it has been allowed for, in nanoseconds since [`START`]; 0: nothing was ever kept.
    even: AtomicU64,
}

/// A two-hundredth of the time may be kept.
const SHARE: u64 = 200;

/// And so much of it at once.
const AT_ONCE: Duration = Duration::from_millis(50);

/// However long it was, it is forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(120);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl KeptThreads {
    /// A thread was kept for so long.
    pub(crate) fn note(&self, kept: Duration) {
        self.note_at(kept, START.elapsed());
    }

    /// Whether it was too much, so that the namespace's calls had better begin in the slow lane.
    pub(crate) fn is_much(&self) -> bool {
        self.even.load(Ordering::Relaxed) != 0 && self.is_much_at(START.elapsed())
    }

    fn note_at(&self, kept: Duration, now: Duration) {
        let now = nanos(now).max(1);
        let more = nanos(kept).saturating_mul(SHARE);
        // Calls that end at the same time may overwrite each other's, which does no harm.
        let even = self.even.load(Ordering::Relaxed).max(now);
        let next = even.saturating_add(more).min(now + nanos(FORGOTTEN));
        self.even.store(next, Ordering::Relaxed);
    }

    fn is_much_at(&self, now: Duration) -> bool {
        let ahead = self.even.load(Ordering::Relaxed).saturating_sub(nanos(now));
        ahead > nanos(AT_ONCE) * SHARE
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_little_now_and_then_is_not_much() {
        let kept = KeptThreads::default();
        assert!(!kept.is_much());
        let mut now = SECOND;
        for _ in 0..1000 {
            kept.note_at(Duration::from_millis(10), now);
            assert!(!kept.is_much_at(now));
            now += 2 * SECOND;
        }
    }

    #[test]
    fn a_little_by_many_steps_is_much() {
        let kept = KeptThreads::default();
        for _ in 0..5 {
            assert!(!kept.is_much_at(SECOND));
            kept.note_at(Duration::from_millis(10), SECOND);
        }
        kept.note_at(Duration::from_millis(10), SECOND);
        assert!(kept.is_much_at(SECOND));
        assert!(!kept.is_much_at(4 * SECOND));
    }

    #[test]
    fn what_is_long_ago_is_forgotten_however_much_it_was() {
        let kept = KeptThreads::default();
        kept.note_at(Duration::from_secs(3600), SECOND);
        assert!(kept.is_much_at(100 * SECOND));
        assert!(!kept.is_much_at(112 * SECOND));
    }
}
