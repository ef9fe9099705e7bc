//! A host that is killed at any moment, or whose files are damaged, comes back with everything that it has acknowledged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod damage;
mod kills;
mod support;
