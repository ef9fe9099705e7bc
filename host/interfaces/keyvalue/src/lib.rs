//! Key-value stores for guests: `wasi:keyvalue` in both of its drafts, kept in SQLite files of the host or in Redis.
//!
//! [`KeyValues`] holds every binding and lives as long as the process; a [`KeyValueCtx`] lives as long as one call. Grant,
//! permit, size and deadline are applied in `host.rs`, so a backend is nothing but a [`KeyValueClient`].

mod client;
mod host;
mod keyvalues;
mod redis;
mod sqlite;

#[cfg(test)]
mod tests;

pub use self::redis::RedisStore;
pub use client::{ClientError, KeyValueClient, Page, Reason};
pub use host::{
    HasKeyValue, KeyValueCtx, KeyValueView, MAX_BATCH, MAX_BATCH_BYTES, MAX_KEY, MAX_VALUE,
    add_to_linker,
};
pub use keyvalues::{BindingState, KeyValueBindingConfig, KeyValues, describe_metrics};
pub use sqlite::SqliteStore;
