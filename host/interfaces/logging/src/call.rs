use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use stepwell_core::{ByteSize, Call};
use time::OffsetDateTime;

use crate::entry::{Level, LogEntry, Source, sanitize};
use crate::store::LogStore;

/// Bytes that one call may log, stdout and stderr included.
pub const CALL_BYTES: usize = 64 << 10;

/// Bytes of the longest message; longer ones are cut.
pub const MAX_MESSAGE: usize = 16 << 10;

/// Bytes of the longest context.
const MAX_CONTEXT: usize = 256;

/// What a message costs beside its text: empty ones are not free.
const OVERHEAD: usize = 64;

/// What one call may still log, shared by everything it can log through.
#[derive(Debug)]
pub struct LogBudget {
    total: usize,
    left: AtomicUsize,
    told: AtomicBool,
}

impl LogBudget {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            total: bytes,
            left: AtomicUsize::new(bytes),
            told: AtomicBool::new(false),
        }
    }

    /// Takes the cost of a message, all of it or nothing.
    fn take(&self, bytes: usize) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }

    /// Whether this is the first time that something did not fit.
    fn first_overflow(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

/// Where one call logs to. Clones share the budget.
#[derive(Clone)]
pub struct CallLog {
    store: Arc<LogStore>,
    call: Call,
    budget: Arc<LogBudget>,
}

impl CallLog {
    /// The log of one call, with the usual budget.
    pub fn new(store: Arc<LogStore>, call: Call) -> Self {
        Self::with_budget(store, call, LogBudget::new(CALL_BYTES))
    }

    /// The log of one call, with another budget.
    pub fn with_budget(store: Arc<LogStore>, call: Call, budget: LogBudget) -> Self {
        Self {
            store,
            call,
            budget: Arc::new(budget),
        }
    }

    /// One line that the guest wrote to stdout or stderr, without its line end.
    pub fn line(&self, level: Level, source: Source, text: &str) {
        self.write(level, source, "", text);
    }

    /// One message that the guest logged.
    pub fn log(&self, level: Level, context: &str, message: &str) {
        self.write(level, Source::Log, context, message);
    }

    /// Notes that bytes which never became a message were left out (an endless line, say).
    pub fn dropped(&self, bytes: usize) {
        metrics::counter!("stepwell_guest_log_dropped_bytes_total").increment(bytes as u64);
        if self.budget.first_overflow() {
            metrics::counter!("stepwell_limit_hits_total", "limit" => "log").increment(1);
            let limit = ByteSize(self.budget.total as u64);
            let note = format!(
                "this call logged more than {limit}; the rest is left out; this limit is the host's own and has no setting"
            );
            self.record(Level::Warn, Source::Log, "", note);
        }
    }

    fn write(&self, level: Level, source: Source, context: &str, text: &str) {
        let context = cut(context, MAX_CONTEXT);
        let length = cut(text, MAX_MESSAGE).len();
        if !self.budget.take(OVERHEAD + context.len() + length) {
            self.dropped(text.len());
            return;
        }
        self.record(level, source, context, shortened(text));
    }

    fn record(&self, level: Level, source: Source, context: &str, message: String) {
        metrics::counter!("stepwell_guest_log_messages_total", "level" => level.as_str())
            .increment(1);
        let scope = &self.call.scope;
        let entry = LogEntry {
            time: OffsetDateTime::now_utc(),
            level,
            namespace: scope.namespace.clone(),
            pipeline: scope.pipeline.clone(),
            revision: scope.revision,
            step: Some(scope.step.to_string()),
            plugin: Some(scope.plugin.clone()),
            run_id: self.call.run,
            context: context.to_owned(),
            message,
            fault: None,
            source,
        };
        mirror(&entry);
        self.store.push(entry);
    }
}

/// A message of at most [`MAX_MESSAGE`] bytes, with a note of what was left out.
pub(crate) fn shortened(text: &str) -> String {
    let mut message = cut(text, MAX_MESSAGE).to_owned();
    let omitted = text.len() - message.len();
    if omitted > 0 {
        metrics::counter!("stepwell_guest_log_dropped_bytes_total").increment(omitted as u64);
        message.push_str(&format!(" … ({omitted} more bytes)"));
    }
    message
}

/// The start of a text, at most so many bytes.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

/// Passes an entry on to the host's own log, under a target that operators can filter by.
fn mirror(entry: &LogEntry) {
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(
                target: "stepwell::guest",
                tracing::Level::$level,
                namespace = entry.namespace.as_str(),
                pipeline = entry.pipeline.as_str(),
                revision = entry.revision,
                step = entry.step.as_deref(),
                plugin = entry.plugin.as_deref(),
                run_id = %entry.run_id,
                context = (!entry.context.is_empty()).then(|| tracing::field::display(sanitize(&entry.context))),
                source = entry.source.as_str(),
                "{}",
                sanitize(&entry.message)
            )
        };
    }
    match entry.level {
        Level::Trace => event!(TRACE),
        Level::Debug => event!(DEBUG),
        Level::Info => event!(INFO),
        Level::Warn => event!(WARN),
        Level::Error | Level::Critical => event!(ERROR),
    }
}
