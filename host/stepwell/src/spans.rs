//! The spans of runs, for the log.

use stepwell_pipeline::current_span;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Span, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::registry::LookupSpan;

/// Puts what is logged inside a run into the spans of that run, which are made only now.
pub(crate) struct SpansWhenLogged<S>(pub(crate) S);

impl<S> SpansWhenLogged<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    /// The span of what this thread works for, unless the thread is inside it already.
    fn missing(&self) -> Option<Span> {
        let wanted = current_span()?;
        let innermost = self.0.current_span();
        let innermost = innermost.id().and_then(|id| self.0.span(id));
        let inside = innermost.is_some_and(|innermost| {
            let mut around = innermost.scope();
            around.any(|span| Some(span.id()) == wanted.id())
        });
        (!inside).then_some(wanted)
    }
}

impl<S> Subscriber for SpansWhenLogged<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        match self.missing().filter(|_| attributes.is_contextual()) {
            Some(span) => span.in_scope(|| self.0.new_span(attributes)),
            None => self.0.new_span(attributes),
        }
    }

    fn event(&self, event: &Event<'_>) {
        match self.missing().filter(|_| event.is_contextual()) {
            Some(span) => span.in_scope(|| self.0.event(event)),
            None => self.0.event(event),
        }
    }

    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        self.0.on_register_dispatch(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.0.register_callsite(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.max_level_hint()
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.0.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.0.record_follows_from(span, follows);
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        self.0.event_enabled(event)
    }

    fn enter(&self, span: &Id) {
        self.0.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.0.exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.0.clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.0.try_close(id)
    }

    fn current_span(&self) -> Current {
        self.0.current_span()
    }
}
