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
        if growth.is_worth_it(anonymous()) {
            let engine = engine.clone();
            let _ = tokio::task::spawn_blocking(move || engine.sweep()).await;
            growth.was_swept(anonymous());
        }
    }
}

/// How large the process was at its least since it was swept.
struct Growth {
    least: Option<u64>,
    enough: u64,
}

impl Growth {
    fn new(enough: u64) -> Self {
        Self {
            least: None,
            enough,
        }
    }

    fn is_worth_it(&mut self, now: Option<u64>) -> bool {
        let Some(now) = now else {
            return false;
        };
        let least = self.least.map_or(now, |least| least.min(now));
        self.least = Some(least);
        now >= least.saturating_add(self.enough)
    }

    fn was_swept(&mut self, now: Option<u64>) {
        self.least = now;
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

    #[test]
    fn it_is_worth_it_after_enough_growth() {
        let mut growth = Growth::new(100);
        for (now, expected) in [
            (500, false),
            (599, false),
            (600, true),
            (450, false),
            (549, false),
            (550, true),
        ] {
            assert_eq!(growth.is_worth_it(Some(now)), expected, "{now}");
        }
        growth.was_swept(Some(540));
        assert!(!growth.is_worth_it(Some(639)));
        assert!(growth.is_worth_it(Some(640)));
        assert!(!growth.is_worth_it(None));
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
