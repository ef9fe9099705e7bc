//! Guests' timers. They end on a thread of their own: however many end at the same moment, those who read requests meanwhile go on.

use std::io;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, Sleep};
use wasmtime::Result;
use wasmtime::component::{Accessor, HasData, Resource};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::clocks::WasiClocksCtxView;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock as clock_02;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::clocks::{monotonic_clock as clock_03, types};

use crate::lane;

/// `wasi:clocks/monotonic-clock` of both releases, as wasmtime has it but for where its timers end.
pub(crate) struct Timers<'a>(pub(crate) WasiClocksCtxView<'a>);

/// Tells the linker that functions take [`Timers`].
pub(crate) struct HasTimers;

impl HasData for HasTimers {
    type Data<'a> = Timers<'a>;
}

impl clock_02::Host for Timers<'_> {
    fn now(&mut self) -> Result<clock_02::Instant> {
        clock_02::Host::now(&mut self.0)
    }

    fn resolution(&mut self) -> Result<clock_02::Duration> {
        clock_02::Host::resolution(&mut self.0)
    }

    fn subscribe_instant(&mut self, when: clock_02::Instant) -> Result<Resource<DynPollable>> {
        let now = clock_02::Host::now(&mut self.0)?;
        self.subscribe_duration(when.saturating_sub(now))
    }

    fn subscribe_duration(&mut self, time: clock_02::Duration) -> Result<Resource<DynPollable>> {
        match end(time) {
            Some(end) => {
                let timer = self.0.table.push(Timer(end))?;
                subscribe(self.0.table, timer)
            }
            // What has ended already lets others go first, which wasmtime knows how to.
            None => clock_02::Host::subscribe_duration(&mut self.0, 0),
        }
    }
}

impl<T: 'static> clock_03::HostWithStore<T> for HasTimers {
    async fn wait_until(store: &Accessor<T, Self>, when: clock_03::Mark) -> Result<()> {
        let now = store.with(|mut view| clock_03::Host::now(&mut view.get().0))?;
        Self::wait_for(store, when.saturating_sub(now)).await
    }

    async fn wait_for(_: &Accessor<T, Self>, time: types::Duration) -> Result<()> {
        if let Some(end) = end(time) {
            sleep_until(end).await;
        }
        Ok(())
    }
}

impl clock_03::Host for Timers<'_> {
    fn now(&mut self) -> Result<clock_03::Mark> {
        clock_03::Host::now(&mut self.0)
    }

    fn get_resolution(&mut self) -> Result<types::Duration> {
        clock_03::Host::get_resolution(&mut self.0)
    }
}

/// What a guest waits for: a moment.
struct Timer(Instant);

#[async_trait]
impl Pollable for Timer {
    async fn ready(&mut self) {
        sleep_until(self.0).await;
    }
}

/// When so many nanoseconds will have passed; none: they have.
fn end(time: u64) -> Option<Instant> {
    (time > 0).then(|| {
        let now = Instant::now();
        let time = Duration::from_nanos(time);
        now.checked_add(time).unwrap_or(now + EVER)
    })
}

/// Longer than any call.
const EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Ends at that moment, wherever it is awaited; on the timers' thread, or on the caller's runtime where there is none.
fn sleep_until(end: Instant) -> Sleep {
    static THREAD: LazyLock<Option<Handle>> = LazyLock::new(|| {
        start()
            .inspect_err(
                |error| tracing::warn!(%error, "guests' timers have no thread of their own"),
            )
            .ok()
    });
    let _entered = THREAD.as_ref().map(Handle::enter);
    tokio::time::sleep_until(end)
}

/// Starts the thread. It lives as long as the process, as calls may that wait for something.
fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("guest-timers".into())
        .spawn(move || {
            lane::give_way();
            runtime.block_on(std::future::pending::<()>());
        })?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// Wakes somebody, and keeps the name of the thread that it does so on.
    struct Notes {
        of: Waker,
        woken_on: Arc<Mutex<Option<String>>>,
    }

    impl Wake for Notes {
        fn wake(self: Arc<Self>) {
            *self.woken_on.lock().unwrap() = thread::current().name().map(str::to_owned);
            self.of.wake_by_ref();
        }
    }

    #[tokio::test]
    async fn timers_end_in_time_on_a_thread_that_is_not_the_callers() {
        let began = Instant::now();
        let woken_on = Arc::new(Mutex::new(None));
        let mut timer = std::pin::pin!(sleep_until(end(20_000_000).unwrap()));
        std::future::poll_fn(|context| {
            let waker = Waker::from(Arc::new(Notes {
                of: context.waker().clone(),
                woken_on: woken_on.clone(),
            }));
            timer.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await;
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert_eq!(woken_on.lock().unwrap().as_deref(), Some("guest-timers"));
    }

    #[test]
    fn moments_that_are_past_and_those_that_never_come_are_known() {
        assert!(end(0).is_none());
        assert!(end(1).is_some_and(|end| end > Instant::now() - Duration::from_secs(1)));
        assert!(end(u64::MAX).is_some_and(|end| end > Instant::now() + EVER / 2));
    }
}
