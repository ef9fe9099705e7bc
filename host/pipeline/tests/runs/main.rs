//! What a run promises, with steps that are plain functions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod functions;
mod memory;
mod permits;
mod steps;
mod support;
