//! Which run, and which step of it, a thread is working for, and the spans that say so.
//!
//! A span costs more than the rest of a run's bookkeeping together, and few runs log anything. So unless somebody wants to see
//! every span, each thread only notes what it is working for, and the spans are made by whoever logs: [`current_span`].

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use stepwell_core::StepScope;
use tracing::Span;
use tracing::span::Entered;

use crate::running::Running;

thread_local! {
    static CURRENT: Cell<Option<Place>> = const { Cell::new(None) };
}

/// A run, or a step of it.
pub(crate) struct Place {
    run: Arc<Running>,
    step: Option<Arc<StepScope>>,
}

/// How the polls of a future are marked.
pub(crate) enum Mark {
    /// By a span.
    Span(Span),
    /// By a note of what it is for. It is away while the thread has it.
    Note(Option<Place>),
}

/// The span of what this thread is working for, made now; none: it works for no run, or for one whose spans are there anyway.
pub fn current_span() -> Option<Span> {
    let place = CURRENT.take()?;
    let span = place.span();
    CURRENT.set(Some(place));
    Some(span)
}

/// Makes a span while the thread's note is put away: whoever takes part in that may ask for the [`current_span`], which would wait
/// for itself.
pub(crate) fn aside<T>(make: impl FnOnce() -> T) -> T {
    let place = CURRENT.take();
    let made = make();
    CURRENT.set(place);
    made
}

/// Runs a future whose polls are marked.
pub(crate) async fn marked<F: Future>(mut mark: Mark, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _during = mark.enter();
        future.as_mut().poll(context)
    })
    .await
}

impl Mark {
    /// That of a run; `spans`: somebody wants to see every span.
    pub(crate) fn run(run: &Arc<Running>, spans: bool) -> Self {
        Self::of(run, None, spans)
    }

    /// That of one step of a run.
    pub(crate) fn step(run: &Arc<Running>, step: &Arc<StepScope>, spans: bool) -> Self {
        Self::of(run, Some(step), spans)
    }

    fn of(run: &Arc<Running>, step: Option<&Arc<StepScope>>, spans: bool) -> Self {
        let place = Place {
            run: run.clone(),
            step: step.cloned(),
        };
        match spans {
            true => Self::Span(place.span()),
            false => Self::Note(Some(place)),
        }
    }

    fn enter(&mut self) -> During<'_> {
        match self {
            Self::Span(span) => During::Span {
                _entered: span.enter(),
            },
            Self::Note(place) => During::Note(Swapped::new(place)),
        }
    }
}

impl Place {
    fn span(&self) -> Span {
        let run = self.run.span();
        match &self.step {
            None => run.clone(),
            Some(scope) => {
                tracing::info_span!(parent: run, "step", step = %scope.step, plugin = %scope.plugin)
            }
        }
    }
}

/// One poll.
enum During<'a> {
    Span { _entered: Entered<'a> },
    Note(#[allow(dead_code, reason = "dropping it is its use")] Swapped<'a>),
}

/// The thread's note is this future's during a poll, and the other way round, so that nothing is counted or copied.
struct Swapped<'a>(&'a mut Option<Place>);

impl<'a> Swapped<'a> {
    fn new(place: &'a mut Option<Place>) -> Self {
        swap(place);
        Self(place)
    }
}

impl Drop for Swapped<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

fn swap(place: &mut Option<Place>) {
    *place = CURRENT.replace(place.take());
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use stepwell_core::{Name, RunId};

    use super::*;
    use crate::deployment::{Deployed, Deployment};

    fn run() -> Arc<Running> {
        let deployment = Deployment {
            namespace: Name::default_namespace(),
            name: "p".parse().unwrap(),
            revision: 1,
            triggers: Vec::new(),
            body: Deployed::Steps(Vec::new()),
        };
        Arc::new(Running::new(RunId::new(), Arc::new(deployment), "test"))
    }

    fn current() -> Option<RunId> {
        let place = CURRENT.take();
        let id = place.as_ref().map(|place| place.run.id);
        CURRENT.set(place);
        id
    }

    #[test]
    fn a_thread_notes_what_it_works_for_only_while_it_does() {
        let (outer, inner) = (run(), run());
        let mut polls = 0;
        let work = marked(Mark::run(&outer, false), async {
            assert_eq!(current(), Some(outer.id));
            marked(
                Mark::run(&inner, false),
                poll_fn(|_| {
                    assert_eq!(current(), Some(inner.id));
                    polls += 1;
                    if polls == 2 {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                }),
            )
            .await;
            assert_eq!(current(), Some(outer.id));
        });
        let mut work = pin!(work);
        let mut context = Context::from_waker(Waker::noop());
        assert!(work.as_mut().poll(&mut context).is_pending());
        assert_eq!(current(), None);
        assert!(work.as_mut().poll(&mut context).is_ready());
        assert_eq!(current(), None);
    }

    #[test]
    fn who_makes_a_runs_span_is_not_asked_for_it_again() {
        let run = run();
        let work = marked(Mark::run(&run, false), async {
            aside(|| assert!(current_span().is_none()));
            assert_eq!(current(), Some(run.id));
            assert!(current_span().is_some());
            assert_eq!(current(), Some(run.id));
        });
        let mut context = Context::from_waker(Waker::noop());
        assert!(pin!(work).poll(&mut context).is_ready());
    }

    #[test]
    fn a_panic_leaves_no_note() {
        let run = run();
        let panics = std::panic::AssertUnwindSafe(|| {
            let work = marked(Mark::run(&run, false), async { panic!("a bug") });
            let _ = pin!(work).poll(&mut Context::from_waker(Waker::noop()));
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(current(), None);
    }
}
