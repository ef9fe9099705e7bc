#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! The engine from outside, with guests that mean harm.

mod beside;
mod compiler;
mod crowd;
mod crowded;
mod function;
mod hand_made;
mod hostile;
mod large;
mod load;
mod memory;
mod neighbours;
mod reuse;
mod reuse_http;
mod service;
mod support;
mod uploads;
