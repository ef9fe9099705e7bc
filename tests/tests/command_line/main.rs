//! The command line as scripts and people use it: exit codes, JSON, tables, and every command of this version.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod commands;
mod configuration;
mod support;
mod wording;
