//! Pipeline documents: the example of the contract, and every mistake with its exact place.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod grants;
mod hostile;
mod mistakes;
mod read;
mod support;
mod triggers;
