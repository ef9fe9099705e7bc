//! Whether a host is at rest. Then nobody minds a compiler that keeps a core; else it gives way, which costs it a part of its time.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long nobody has called a guest. A call that comes by surprise may wait for some milliseconds, until Linux next looks who has
/// the core: so those do that come less than once in this time.
const REST: Duration = Duration::from_secs(1);

/// What goes on in a host, told by the clocks of its engines and by its compiler.
#[derive(Clone, Debug)]
pub(crate) struct Activity(watch::Sender<State>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// Clocks that tick, as they do while guests are called.
    clocks: usize,
    /// Components that are compiled, or wait for it: a second one is a storm, and no storm may be felt.
    components: usize,
    /// When a clock last stopped.
    since: Instant,
}

/// A clock that ticks, until this is dropped.
pub(crate) struct Ticks<'a>(&'a Activity);

/// A component that is compiled or waits for it, until this is dropped.
pub(crate) struct Compiles<'a>(&'a Activity);

/// Follows whether the host is at rest.
#[derive(Clone)]
pub(crate) struct Follower(watch::Receiver<State>);

impl Activity {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State {
            clocks: 0,
            components: 0,
            since: Instant::now(),
        }))
    }

    pub(crate) fn ticks(&self) -> Ticks<'_> {
        self.0.send_modify(|state| state.clocks += 1);
        Ticks(self)
    }

    pub(crate) fn compiles(&self) -> Compiles<'_> {
        self.0.send_modify(|state| state.components += 1);
        Compiles(self)
    }

    pub(crate) fn follow(&self) -> Follower {
        Follower(self.0.subscribe())
    }
}

impl Drop for Ticks<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| {
            state.clocks = state.clocks.saturating_sub(1);
            state.since = Instant::now();
        });
    }
}

impl Drop for Compiles<'_> {
    fn drop(&mut self) {
        self.0
            .0
            .send_modify(|state| state.components = state.components.saturating_sub(1));
    }
}

impl Follower {
    pub(crate) fn is_at_rest(&mut self) -> bool {
        let now = Instant::now();
        let rests_from = self.0.borrow_and_update().rests_from();
        rests_from.is_some_and(|from| from <= now)
    }

    /// Waits until it may be otherwise than when it was last asked.
    pub(crate) async fn changed(&mut self) {
        let rests_from = self.0.borrow().rests_from();
        let will_rest = async {
            match rests_from.filter(|from| *from > Instant::now()) {
                Some(from) => tokio::time::sleep_until(from.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = will_rest => {}
            Ok(()) = self.0.changed() => {}
        }
    }
}

impl State {
    /// None: something has to happen first.
    fn rests_from(&self) -> Option<Instant> {
        let is_calm = self.clocks == 0 && self.components <= 1;
        is_calm.then(|| self.since + REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An activity that began long ago.
    fn activity() -> Activity {
        let activity = Activity::new();
        let long_ago = Instant::now().checked_sub(REST * 2).unwrap();
        activity.0.send_modify(|state| state.since = long_ago);
        activity
    }

    #[test]
    fn who_compiles_alone_is_at_rest() {
        let activity = activity();
        let mut follower = activity.follow();
        assert!(follower.is_at_rest());
        let one = activity.compiles();
        assert!(follower.is_at_rest());
        let another = activity.compiles();
        assert!(!follower.is_at_rest());
        drop(one);
        assert!(follower.is_at_rest());
        drop(another);
        assert!(follower.is_at_rest());
    }

    #[test]
    fn a_host_that_has_just_started_is_not_at_rest() {
        let before = Instant::now();
        let rests_from = Activity::new().0.borrow().rests_from();
        assert!(rests_from >= Some(before + REST));
    }

    #[tokio::test]
    async fn rest_comes_some_time_after_the_last_clock_has_stopped() {
        let activity = activity();
        let mut follower = activity.follow();
        let (one, another) = (activity.ticks(), activity.ticks());
        follower.changed().await;
        assert!(!follower.is_at_rest());
        drop(one);
        follower.changed().await;
        assert!(!follower.is_at_rest());
        let before = Instant::now();
        drop(another);
        while !follower.is_at_rest() {
            follower.changed().await;
        }
        assert!(before.elapsed() >= REST);
        let _again = activity.ticks();
        follower.changed().await;
        assert!(!follower.is_at_rest());
    }
}
