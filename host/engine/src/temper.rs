use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Mean CPU time of a step's calls from which on they begin in the slow lane: many calls that are each over before their slice
/// is would otherwise make a queue as long as a few spinning ones.
const HEAVY: u32 = 300;

/// The same where steps of other namespaces would wait in that queue. Going there costs such a call some 40 µs.
const HEAVY_BESIDE_OTHERS: u32 = 100;

/// What a call counts at most, so that a step which once spun is light again after a few dozen light calls.
const MOST: u32 = 20_000;

/// Calls that the mean remembers, more or less.
const WINDOW: u32 = 32;

/// How much the calls of one step compute: a moving mean, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Temper(AtomicU32);

impl Temper {
    /// Whether the next call had better begin in the slow lane. `alone`: there are no steps of other namespaces.
    pub(crate) fn is_heavy(&self, alone: bool) -> bool {
        let heavy = match alone {
            true => HEAVY,
            false => HEAVY_BESIDE_OTHERS,
        };
        self.0.load(Ordering::Relaxed) >= heavy
    }

    /// Learns from a call. Calls that end at the same time may overwrite each other's lesson, which does no harm.
    ///
    /// `overran`: it kept its thread although it was told to yield. One such call weighs as much as a hundred light ones, since
    /// everybody on that thread waited for it.
    pub(crate) fn note(&self, used: Duration, overran: bool) {
        if overran {
            self.0.store(MOST, Ordering::Relaxed);
            return;
        }
        let used = u32::try_from(used.as_micros()).unwrap_or(MOST).min(MOST);
        let mean = self.0.load(Ordering::Relaxed);
        let next = mean - mean / WINDOW + used / WINDOW;
        if next != mean {
            self.0.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_its_last_calls_were() {
        let temper = Temper::default();
        assert!(!temper.is_heavy(true));
        for _ in 0..1000 {
            temper.note(Duration::from_micros(250), false);
        }
        assert!(!temper.is_heavy(true));
        // One call in hundred that is slow says nothing.
        temper.note(Duration::from_millis(1), false);
        temper.note(Duration::from_micros(50), false);
        assert!(!temper.is_heavy(true));
        temper.note(Duration::from_secs(100), false);
        assert!(temper.is_heavy(true));
        for _ in 0..100 {
            temper.note(Duration::from_micros(50), false);
        }
        assert!(!temper.is_heavy(true));
        for _ in 0..100 {
            temper.note(Duration::from_micros(700), false);
        }
        assert!(temper.is_heavy(true));
    }

    #[test]
    fn less_is_heavy_beside_others() {
        let temper = Temper::default();
        for _ in 0..1000 {
            temper.note(Duration::from_micros(90), false);
        }
        assert!(!temper.is_heavy(false));
        for _ in 0..1000 {
            temper.note(Duration::from_micros(200), false);
        }
        assert!(temper.is_heavy(false));
        assert!(!temper.is_heavy(true));
    }

    #[test]
    fn one_call_that_does_not_yield_is_remembered_for_a_hundred() {
        let temper = Temper::default();
        temper.note(Duration::from_millis(5), true);
        for _ in 0..100 {
            assert!(temper.is_heavy(true));
            temper.note(Duration::from_micros(20), false);
        }
        for _ in 0..100 {
            temper.note(Duration::from_micros(20), false);
        }
        assert!(!temper.is_heavy(true));
    }
}
