use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::rest::Activity;

/// Time between two ticks. A guest is looked at after one to two of them, so this is how exactly a CPU budget is kept and how
/// long a spinning guest keeps a thread from its neighbours. At 1 ms the yields cost a guest less than 0.1 %, and the smallest
/// sensible budget (a few milliseconds) is still kept well.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a call after which the thread goes to sleep: an idle host does not wake a thousand times a second.
const LINGER: u32 = 100;

/// One engine's clock: a thread that increments the epoch while calls are under way.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    calls: AtomicUsize,
    /// Guests that are being executed beside those of calls.
    polls: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

/// A call that needs the clock, until it is dropped.
pub(crate) struct Ticking(Arc<Shared>);

/// A guest that is being executed, whether or not a call is under way, until this is dropped.
pub(crate) struct Executing<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start(engine: &wasmtime::Engine, activity: &Activity) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            calls: AtomicUsize::new(0),
            polls: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let engine = engine.weak();
        let (of_thread, activity) = (shared.clone(), activity.clone());
        let handle = thread::Builder::new()
            .name("epoch".into())
            .spawn(move || tick(&engine, &of_thread, &activity))?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
        })
    }

    pub(crate) fn ticking(&self) -> Ticking {
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        self.wake();
        Ticking(self.shared.clone())
    }

    pub(crate) fn executing(&self) -> Executing<'_> {
        self.shared.polls.fetch_add(1, Ordering::SeqCst);
        self.wake();
        Executing(&self.shared)
    }

    fn wake(&self) {
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Executing<'_> {
    fn drop(&mut self) {
        self.0.polls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn is_needed(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > 0 || self.polls.load(Ordering::SeqCst) > 0
    }
}

fn tick(engine: &wasmtime::EngineWeak, shared: &Shared, activity: &Activity) {
    let mut idle = 0;
    let mut ticks = activity.ticks();
    while !shared.stop.load(Ordering::SeqCst) {
        if idle >= LINGER {
            shared.asleep.store(true, Ordering::SeqCst);
            // A call that began before the store above is seen here; one that begins after it unparks.
            if !shared.is_needed() && !shared.stop.load(Ordering::SeqCst) {
                drop(ticks);
                thread::park();
                ticks = activity.ticks();
            }
            shared.asleep.store(false, Ordering::SeqCst);
            idle = 0;
        }
        thread::sleep(TICK);
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.increment_epoch();
        idle = match shared.is_needed() {
            false => idle + 1,
            true => 0,
        };
    }
}
