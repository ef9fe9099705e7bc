//! Where guests go on that compute for long: a few threads that every other thread of the host comes before.
//!
//! The kernel gives each core to the host's other threads whenever they have anything to do, so a call that has just arrived
//! never queues behind guests that spin, however many do. Those share what is left, a tick at a time, and are interrupted more
//! often than that, since the kernel does not always take a core from a thread that computes when another one wakes up.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake};
use std::thread;

use futures::FutureExt as _;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::memory::Tenant;
use crate::turns::Pace;

/// How far behind the host's other threads these are, as `nice` has it: beside a busy one they get about a quarter of a core.
const NICE: i32 = 5;

/// One engine's lane for guests that compute for long.
pub(crate) struct SlowLane {
    queue: Arc<Queue>,
    taken: Counter,
    active: Gauge,
}

/// A future that goes on in the lane. Dropping it ends the future at its next pause.
pub(crate) struct Moved<T> {
    /// None: somebody else ends it.
    task: Option<Arc<Task>>,
    outcome: oneshot::Receiver<thread::Result<T>>,
    _active: Active,
}

/// The lane was closed before the future had ended.
#[derive(Debug)]
pub(crate) struct Closed;

/// Lowers the priority of the calling thread; on Linux that is all that this is about.
pub(crate) fn give_way() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "what guests make the host do cannot be given a low priority");
    }
}

impl SlowLane {
    /// A lane in which so many guests of one namespace are executed side by side, and as many of all others: an instruction that takes
    /// long keeps a thread, and so do only those of one namespace.
    pub(crate) fn start(each: usize) -> std::io::Result<Self> {
        let each = each.max(1);
        let lane = Self {
            queue: Arc::new(Queue::new(each)),
            taken: counter!("stepwell_slow_lane_calls_total"),
            active: gauge!("stepwell_slow_lane_calls_active"),
        };
        for _ in 0..each * 2 {
            let queue = lane.queue.clone();
            thread::Builder::new()
                .name("guest-slow".into())
                .spawn(move || {
                    give_way();
                    let pace = Pace::new().inspect_err(|error| {
                        tracing::warn!(%error, "guests that compute for long cannot be interrupted");
                    });
                    let pace = pace.ok().inspect(|pace| drop(pace.begin()));
                    while let Some((line, task)) = queue.next(pace.as_ref()) {
                        task.run();
                        queue.ran(line);
                    }
                })?;
        }
        Ok(lane)
    }

    /// Lets a future go on in the lane, at the turns of its namespace. What it spawns, and the timers it makes, stay with the runtime
    /// that this is called on.
    pub(crate) fn take<T: Send + 'static>(
        &self,
        tenant: Option<&Tenant>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Moved<T> {
        let (sender, outcome) = oneshot::channel();
        let future = async move {
            // Nobody may be interested any more.
            let _ = sender.send(AssertUnwindSafe(future).catch_unwind().await);
        };
        let task = Arc::new(Task {
            state: AtomicU8::new(IDLE),
            future: Mutex::new(Some(Box::pin(future))),
            tenant: tenant.cloned(),
            queue: self.queue.clone(),
            runtime: Handle::current(),
        });
        task.clone().wake();
        self.taken.increment(1);
        self.active.increment(1);
        Moved {
            task: Some(task),
            outcome,
            _active: Active(self.active.clone()),
        }
    }

    /// Drops a future in the lane, before anything else is done there: for one that takes long to drop.
    pub(crate) fn discard(&self, future: impl Send + 'static) {
        // Without a runtime nobody else is kept waiting.
        if let Ok(runtime) = Handle::try_current() {
            let task = Task {
                state: AtomicU8::new(CANCELLED),
                future: Mutex::new(Some(Box::pin(async move { drop(future) }))),
                tenant: None,
                queue: self.queue.clone(),
                runtime,
            };
            self.queue.push_first(Arc::new(task));
        }
    }
}

impl<T> Moved<T> {
    /// Ends the future as dropping this does, but never on the calling thread.
    pub(crate) fn discard(mut self) {
        if let Some(task) = self.task.take()
            && task.state.swap(CANCELLED, Ordering::AcqRel) == IDLE
        {
            let queue = task.queue.clone();
            queue.push_first(task);
        }
    }
}

impl Drop for SlowLane {
    fn drop(&mut self) {
        let left = {
            let mut ready = self.queue.lock();
            ready.closed = true;
            ready.take_all()
        };
        self.queue.pushed.notify_all();
        for task in left {
            task.discard();
        }
    }
}

impl<T> Future for Moved<T> {
    type Output = Result<T, Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome)
            .poll(context)
            .map(|outcome| match outcome {
                Ok(Ok(outcome)) => Ok(outcome),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => Err(Closed),
            })
    }
}

impl<T> Drop for Moved<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task
            && task.state.swap(CANCELLED, Ordering::AcqRel) == IDLE
        {
            // Otherwise the thread that runs it, or is about to, does this.
            task.discard();
        }
    }
}

struct Active(Gauge);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// Tasks that want to be polled. Namespaces take turns, and the tasks of each in the order in which they came to want it: however many
/// of one spin, those of another wait for one of them each time.
struct Queue {
    ready: Mutex<Ready>,
    pushed: Condvar,
}

#[derive(Default)]
struct Ready {
    /// How many tasks of one namespace may run.
    each: usize,
    /// How many do.
    running: HashMap<Line, usize>,
    /// What comes before all others.
    first: VecDeque<Arc<Task>>,
    lines: HashMap<Line, VecDeque<Arc<Task>>>,
    /// Whose turn is next. Each line is here once.
    turns: VecDeque<Line>,
    closed: bool,
}

/// A namespace, as long as one of its tasks is there; none: all that have none.
type Line = Option<usize>;

impl Ready {
    fn push(&mut self, task: Arc<Task>) {
        let line = task.line();
        let tasks = self.lines.entry(line).or_default();
        if tasks.is_empty() {
            self.turns.push_back(line);
        }
        tasks.push_back(task);
    }

    fn pop(&mut self) -> Option<(Option<Line>, Arc<Task>)> {
        if let Some(task) = self.first.pop_front() {
            return Some((None, task));
        }
        let running = |line| self.running.get(line).copied().unwrap_or(0);
        let next = self
            .turns
            .iter()
            .position(|line| running(line) < self.each)?;
        let line = self.turns.remove(next)?;
        let tasks = self.lines.get_mut(&line)?;
        let task = tasks.pop_front()?;
        if tasks.is_empty() {
            self.lines.remove(&line);
        } else {
            self.turns.push_back(line);
        }
        *self.running.entry(line).or_default() += 1;
        Some((Some(line), task))
    }

    fn ran(&mut self, line: Line) {
        if let Some(running) = self.running.get_mut(&line) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&line);
            }
        }
    }

    fn take_all(&mut self) -> Vec<Arc<Task>> {
        self.turns.clear();
        let lines = self.lines.drain().flat_map(|(_, tasks)| tasks);
        self.first.drain(..).chain(lines).collect()
    }
}

impl Queue {
    fn new(each: usize) -> Self {
        let ready = Ready {
            each,
            ..Ready::default()
        };
        Self {
            ready: Mutex::new(ready),
            pushed: Condvar::new(),
        }
    }

    fn push(&self, task: Arc<Task>) {
        self.add(task, Ready::push);
    }

    /// For what holds what others may be waiting for.
    fn push_first(&self, task: Arc<Task>) {
        self.add(task, |ready, task| ready.first.push_back(task));
    }

    fn add(&self, task: Arc<Task>, add: fn(&mut Ready, Arc<Task>)) {
        let mut ready = self.lock();
        if ready.closed {
            drop(ready);
            task.discard();
            return;
        }
        add(&mut ready, task);
        drop(ready);
        self.pushed.notify_one();
    }

    /// The task whose turn it is, and the namespace that it counts as; none: the lane is closed. Who waits for one is not interrupted.
    fn next(&self, pace: Option<&Pace>) -> Option<(Option<Line>, Arc<Task>)> {
        if let Some(next) = self.lock().pop() {
            return Some(next);
        }
        if let Some(pace) = pace {
            let _ = pace.pause();
        }
        let next = self.wait();
        if let Some(pace) = pace {
            let _ = pace.begin();
        }
        next
    }

    fn wait(&self) -> Option<(Option<Line>, Arc<Task>)> {
        let mut ready = self.lock();
        loop {
            if ready.closed {
                return None;
            }
            if let Some(next) = ready.pop() {
                return Some(next);
            }
            ready = self
                .pushed
                .wait(ready)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A task of this namespace has had its turn. Whoever says so looks for the next one, so nobody else need be told.
    fn ran(&self, line: Option<Line>) {
        if let Some(line) = line {
            self.lock().ran(line);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    state: AtomicU8,
    /// Only the thread that runs the task locks this, or the one that discards it.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    /// Whose turns it takes.
    tenant: Option<Tenant>,
    queue: Arc<Queue>,
    runtime: Handle,
}

/// Nobody has woken it.
const IDLE: u8 = 0;
/// It waits for its turn.
const QUEUED: u8 = 1;
/// It is being polled.
const RUNNING: u8 = 2;
/// It was woken while it is being polled.
const WOKEN: u8 = 3;
/// Nobody wants its outcome, or it is there already.
const CANCELLED: u8 = 4;

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let woken =
            self.state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                    IDLE => Some(QUEUED),
                    RUNNING => Some(WOKEN),
                    _ => None,
                });
        if woken == Ok(IDLE) {
            let queue = self.queue.clone();
            queue.push(self);
        }
    }
}

impl Task {
    fn line(&self) -> Line {
        // No other namespace has this address while the task is there.
        let tenant = self.tenant.as_ref();
        tenant.map(|tenant| Arc::as_ptr(&tenant.0) as usize)
    }

    fn run(self: Arc<Self>) {
        if !self.goes(QUEUED, RUNNING) {
            return self.discard();
        }
        let waker = self.clone().into();
        let pending = {
            let _context = self.runtime.enter();
            let mut future = self.future.lock().unwrap_or_else(PoisonError::into_inner);
            let pending = future.as_mut().is_some_and(|future| {
                future
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            });
            if !pending {
                *future = None;
            }
            pending
        };
        if !pending || self.goes(RUNNING, IDLE) {
            return;
        }
        if self.goes(WOKEN, QUEUED) {
            let queue = self.queue.clone();
            queue.push(self);
        } else {
            self.discard();
        }
    }

    fn goes(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn discard(&self) {
        let _context = self.runtime.enter();
        let future = self
            .future
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(future);
    }
}

#[cfg(test)]
mod tests;
