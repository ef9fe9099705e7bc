//! What guests have to say: `wasi:logging`, stdout and stderr, kept in memory for `stepwell logs` and mirrored to the host's
//! own log.
//!
//! The [`LogStore`] lives as long as the process and is bounded in entries and bytes; a [`CallLog`] lives as long as one
//! call and is bounded too. Nothing here fails or waits: what does not fit is left out, and a note says so.

mod call;
mod entry;
mod host;
mod store;

pub use call::{CALL_BYTES, CallLog, LogBudget, MAX_MESSAGE};
pub use entry::{Level, LogEntry, LogFilter, Source, sanitize};
pub use host::{HasLogging, LoggingView, add_to_linker};
pub use store::{Followed, LogCapacity, LogStore, LogStream};

/// Describes this crate's metrics; call it once, when the recorder is installed.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "stepwell_guest_log_messages_total",
        "messages that guests logged, by level"
    );
    metrics::describe_counter!(
        "stepwell_guest_log_dropped_bytes_total",
        metrics::Unit::Bytes,
        "bytes of messages that were left out because a call logged too much, or one message was too long"
    );
}
