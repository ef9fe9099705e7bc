use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use stepwell_core::{Blame, ErrorKind, StepError};
use tokio::runtime::Handle;

use crate::Body;
use crate::dispatch::{Run, Shared};

/// How often bodies that nobody reads are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// How a run ended whose caller did not take the response: it is no failure of the pipeline.
const UNREAD: &str = "unread";

type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a body is there as a whole, so that nothing is left for its function to do. A body that is still being written must not
/// say how long it will be ([`Function`](crate::Function)).
pub(crate) fn is_whole(body: &Body) -> bool {
    body.is_end_stream() || body.size_hint().exact().is_some()
}

/// A function's response body: the run ends with it.
///
/// A caller that goes away does not stop the function: the rest is read by a task and thrown away. A caller that stays and
/// reads nothing cannot keep the run beyond its deadline, nor the guest beyond its time, which does nothing while nobody reads and so
/// does not hear that it is up: [`sweep`] takes them away.
pub(crate) struct RunBody(Arc<Slot>);

/// The body and its run, until one of the holders ends them.
pub(crate) struct Slot {
    deadline: Instant,
    /// The deadline, or when the guest's time is up if that is sooner.
    until: Instant,
    state: Mutex<State>,
}

enum State {
    /// There is more to read.
    Open(Open),
    /// It was read to its end, or dropped.
    Done,
    /// The sweep took it away.
    Swept,
}

struct Open {
    inner: Body,
    run: Run,
    /// Whether the reader was told to wait for the guest; otherwise it is the reader's turn.
    awaited: bool,
}

impl RunBody {
    pub(crate) fn new(inner: Body, run: Run, deadline: Instant) -> Self {
        let (running, guest) = (run.running.clone(), run.guest_until());
        let state = Mutex::new(State::Open(Open {
            inner,
            run,
            awaited: false,
        }));
        let slot = Arc::new(Slot {
            deadline,
            until: guest.map_or(deadline, |guest| guest.min(deadline)),
            state,
        });
        running.set_body(&slot);
        Self(slot)
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn open(&self) -> Option<&Open> {
        match self {
            Self::Open(open) => Some(open),
            Self::Done | Self::Swept => None,
        }
    }

    fn take(&mut self, left: Self) -> Option<Open> {
        match std::mem::replace(self, left) {
            Self::Open(open) => Some(open),
            // Once over, it stays as it was.
            over => {
                *self = over;
                None
            }
        }
    }
}

impl Open {
    fn broke_off(&mut self, error: &BodyError) {
        const WHAT: &str = "the response's body broke off";
        let error = match error.downcast_ref::<StepError>() {
            Some(of_guest) => StepError {
                message: format!("{WHAT}: {}", of_guest.message),
                ..of_guest.clone()
            },
            None => StepError::new(ErrorKind::Failed, format!("{WHAT}: {error}")),
        };
        self.run.function_failed(error);
    }

    /// What has been sent is all there is, or the caller wanted no more.
    fn finish(mut self) {
        self.run.end("delivered", None);
    }

    /// Reads what is left, at most until the deadline.
    async fn read_on(mut self, deadline: Instant) {
        let reading = async {
            while let Some(frame) = self.inner.frame().await {
                frame?;
            }
            Ok(())
        };
        match tokio::time::timeout_at(deadline.into(), reading).await {
            Ok(Ok(())) => self.finish(),
            Ok(Err(error)) => self.broke_off(&error),
            Err(_) => {
                let error = StepError::new(ErrorKind::Timeout, "the run's time was up");
                self.run.end(error.kind.as_str(), Some(&error));
            }
        }
    }
}

impl http_body::Body for RunBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.state();
        let open = match &mut *state {
            State::Open(open) => open,
            State::Done => return Poll::Ready(None),
            State::Swept => {
                return Poll::Ready(Some(Err("the response was not read in time".into())));
            }
        };
        let frame = Pin::new(&mut open.inner).poll_frame(context);
        open.awaited = frame.is_pending();
        // Nothing comes after trailers, and nobody asks whether something does.
        let last = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(None) => true,
            _ => false,
        };
        match &frame {
            Poll::Ready(Some(Err(error))) => open.broke_off(error),
            _ if last => {
                let open = state.take(State::Done);
                drop(state);
                open.into_iter().for_each(Open::finish);
            }
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &*self.0.state() {
            State::Open(open) => open.inner.is_end_stream(),
            State::Done => true,
            State::Swept => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.state();
        state
            .open()
            .map_or_else(SizeHint::default, |open| open.inner.size_hint())
    }
}

impl Drop for RunBody {
    fn drop(&mut self) {
        let Some(open) = self.0.state().take(State::Done) else {
            return;
        };
        if open.inner.is_end_stream() || open.run.has_ended() {
            return open.finish();
        }
        let deadline = self.0.deadline;
        match Handle::try_current() {
            Ok(runtime) => {
                let tasks = open.run.shared.tasks.clone();
                tasks.spawn_on(open.read_on(deadline), &runtime);
            }
            Err(_) => open.finish(),
        }
    }
}

/// Ends the runs whose time is up and whose responses nobody reads, as long as the dispatcher lives. Whoever waits for the guest
/// hears by itself that its time is up, and is left a moment for it.
pub(crate) async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let now = Instant::now();
        let slots: Vec<Arc<Slot>> = shared
            .running
            .all()
            .iter()
            .filter_map(|running| running.body())
            .filter(|slot| slot.until < now)
            .collect();
        for slot in slots {
            let mut state = match slot.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(state)) => state.into_inner(),
                // It is being read at this moment.
                Err(TryLockError::WouldBlock) => continue,
            };
            let awaited = state.open().is_some_and(|open| open.awaited);
            if awaited && now < slot.until + 2 * SWEEP {
                continue;
            }
            let open = state.take(State::Swept);
            drop(state);
            if let Some(mut open) = open {
                let error = StepError::new(ErrorKind::Timeout, "the response was not read in time");
                open.run.end(UNREAD, Some(&error.blamed(Blame::Caller)));
            }
        }
    }
}
