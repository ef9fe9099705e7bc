//! What the Kafka trigger promises, seen from outside on a real Apache Kafka: hosts are killed, come and go, and records are bad.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod limits;
mod records;
mod recovery;
mod support;
