//! What callers of the data listener see: statuses, headers, CloudEvents in and out, functions that answer themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod busy;
mod events;
mod functions;
mod outcomes;
mod support;
