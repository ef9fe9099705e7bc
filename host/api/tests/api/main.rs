//! The router, driven in process over a management that keeps everything in memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod access;
mod client;
mod fake;
mod host;
mod observed;
mod pipelines;
mod plugins;
mod served;
mod sockets;
