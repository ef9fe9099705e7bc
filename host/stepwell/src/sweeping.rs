//! When the places of guests are swept of what calls have left there.

use std::fs;
use std::time::Duration;

use stepwell_engine::Engine;
use tokio_util::sync::CancellationToken;

use crate::guest::GuestState;

/// How often somebody looks: guests can leave gigabytes in a second.
const OFTEN: Duration = Duration::from_millis(500);

/// Growth that is worth it on the smallest machine: less comes and goes all the time.
const GROWTH: u64 = 64 << 20;

/// Looks from a sweep that gave much back to the next that is tried without new growth; and after many that gave little.
const PAUSE: u32 = 2;
const LONGEST: u32 = 128;

/// Sweeps the places of guests whenever the process has grown by an eighth of what guests may hold, until the host stops.
pub(crate) async fn sweeping(
    engine: Engine<GuestState>,
    guest_memory: u64,
    stopping: CancellationToken,
) {
    let mut growth = Growth::new((guest_memory / 8).max(GROWTH));
    let mut ticks = tokio::time::interval(OFTEN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(before) = anonymous() else {
            continue;
        };
        if growth.is_worth_it(before) {
            let engine = engine.clone();
            let _ = tokio::task::spawn_blocking(move || engine.sweep()).await;
            growth.was_swept(before, anonymous().unwrap_or(before));
        }
    }
}

/// How large the process was at its least, and when to try again where a sweep found guests at work: it passes over their places,
/// and what they hold then says nothing about what they leave.
struct Growth {
    enough: u64,
    /// Bytes at the least since the start, and since the last sweep.
    least: u64,
    since: u64,
    /// Looks until the next try without new growth, and how many there were between the last two.
    wait: u32,
    pause: u32,
}

impl Growth {
    fn new(enough: u64) -> Self {
        Self {
            enough,
            least: u64::MAX,
            since: u64::MAX,
            wait: 0,
            pause: PAUSE,
        }
    }

    fn is_worth_it(&mut self, now: u64) -> bool {
        self.least = self.least.min(now);
        self.since = self.since.min(now);
        self.wait = self.wait.saturating_sub(1);
        let has_grown = |from: u64| now >= from.saturating_add(self.enough);
        has_grown(self.since) || (self.wait == 0 && has_grown(self.least))
    }

    fn was_swept(&mut self, before: u64, after: u64) {
        self.since = after;
        self.pause = match before.saturating_sub(after) >= self.enough / 2 {
            true => PAUSE,
            false => self.pause.saturating_mul(2).min(LONGEST),
        };
        self.wait = self.pause;
    }
}

/// Bytes of this process that no file stands behind.
fn anonymous() -> Option<u64> {
    anonymous_of(&fs::read_to_string("/proc/self/statm").ok()?)
}

/// The same, of the process that this `statm` file is about.
fn anonymous_of(text: &str) -> Option<u64> {
    let mut pages = text.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    resident.checked_sub(shared)?.checked_mul(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these looks are worth a sweep.
    fn worth(growth: &mut Growth, looks: &[u64]) -> Vec<bool> {
        looks.iter().map(|now| growth.is_worth_it(*now)).collect()
    }

    #[test]
    fn it_is_worth_it_after_enough_growth() {
        let mut growth = Growth::new(100);
        assert_eq!(
            worth(&mut growth, &[500, 599, 600, 450, 549, 550]),
            [false, false, true, false, false, true]
        );
        growth.was_swept(550, 460);
        assert!(!growth.is_worth_it(559));
        growth.was_swept(559, 460);
        assert!(growth.is_worth_it(560));
    }

    #[test]
    fn what_a_sweep_passed_over_is_tried_again() {
        let mut growth = Growth::new(100);
        assert!(!growth.is_worth_it(10));
        assert!(growth.is_worth_it(300));
        // Guests were at work: what they held then is what they have left since.
        growth.was_swept(300, 240);
        assert_eq!(worth(&mut growth, &[310, 310]), [false, true]);
        growth.was_swept(310, 20);
        assert_eq!(worth(&mut growth, &[109, 109, 109]), [false; 3]);
    }

    #[test]
    fn sweeps_that_give_little_are_tried_less_and_less() {
        let mut growth = Growth::new(100);
        assert!(!growth.is_worth_it(10));
        let mut looks_until_swept = || {
            let looks = (1..1000).find(|_| growth.is_worth_it(200)).unwrap();
            growth.was_swept(200, 200);
            looks
        };
        let seen: Vec<_> = (0..9).map(|_| looks_until_swept()).collect();
        assert_eq!(seen, [1, 4, 8, 16, 32, 64, 128, 128, 128]);
        // New growth is heeded at once all the same.
        assert!(growth.is_worth_it(300));
        growth.was_swept(300, 200);
        assert_eq!(worth(&mut growth, &[200, 200]), [false, true]);
    }

    #[test]
    fn what_this_process_holds_is_known() {
        let page = u64::try_from(rustix::param::page_size()).unwrap();
        assert_eq!(anonymous_of("900 500 200 9 0 9 0\n"), Some(300 * page));
        assert_eq!(anonymous_of("900 500"), None);
        // Other tests of this process hold more and less all the time.
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(anonymous().unwrap() >= 64 << 20);
        drop(held);
    }
}
