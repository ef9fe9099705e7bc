use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

/// A store of one binding. Keys come with the grant's prefix on them, checked and counted; values are within their limit.
///
/// Methods are called from many tasks at once, and each is dropped when the guest's time is up: an operation that was
/// dropped may or may not have happened, but never by half. An implementation connects by itself, when it is first used
/// and again whenever the connection is gone. It repeats what can be repeated without harm, and nothing else.
#[async_trait]
pub trait KeyValueClient: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, ClientError>;

    /// Sets a key; when this returns, the write is as durable as the backend can make it.
    async fn set(&self, key: &str, value: Bytes) -> Result<(), ClientError>;

    /// Removes a key, if it is there.
    async fn delete(&self, key: &str) -> Result<(), ClientError>;

    /// Whether a key is there.
    async fn exists(&self, key: &str) -> Result<bool, ClientError>;

    /// Keys that start with `prefix` as it stands, from where an earlier page's `next` points (0: the start). Any number
    /// is a valid cursor. A page holds at least one key unless it is the last.
    async fn list(&self, prefix: &str, cursor: u64) -> Result<Page, ClientError>;

    /// Adds to a decimal number, which is 0 when the key is not there.
    async fn increment(&self, key: &str, delta: i64) -> Result<i64, ClientError>;

    /// Sets a key if it holds `expected` (none: if it is not there); answers whether it did.
    async fn swap(
        &self,
        key: &str,
        expected: Option<Bytes>,
        value: Bytes,
    ) -> Result<bool, ClientError>;

    /// The values of a few keys, in their order.
    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, ClientError>;

    /// Sets all of them or none.
    async fn set_many(&self, entries: &[(String, Bytes)]) -> Result<(), ClientError>;

    /// Removes those that are there.
    async fn delete_many(&self, keys: &[String]) -> Result<(), ClientError>;

    /// Whether the store answers now.
    async fn probe(&self) -> Result<(), ClientError>;
}

/// Some keys of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// With their prefix.
    pub keys: Vec<String>,
    /// Where the next page starts, if there is one.
    pub next: Option<u64>,
}

/// Why a store did not do what it was asked to. The texts are fit for guests: no address, no credential, no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The store cannot be used now.
    #[error("the store is not available: {reason}")]
    Unavailable {
        /// In words for everybody.
        reason: Reason,
        /// In words for the operator's log.
        detail: String,
    },
    /// Its file has the size that the operator allows.
    #[error("{0}")]
    Full(String),
    /// A number was to be added to something else.
    #[error("the value is not a whole number of 64 bits in decimal digits")]
    NotANumber,
    /// The sum is too large.
    #[error("the sum does not fit 64 bits")]
    Overflow,
    /// Other software keeps something else than a plain value under this key.
    #[error("the key holds something else than a plain value")]
    WrongType,
    /// The store answered something that it should not have.
    #[error("the store refused the operation")]
    Refused {
        /// In words for the operator's log.
        detail: String,
    },
}

impl ClientError {
    /// An error of a store that cannot be used now.
    pub fn unavailable(reason: Reason, detail: impl fmt::Display) -> Self {
        Self::Unavailable {
            reason,
            detail: detail.to_string(),
        }
    }
}

/// Why a store cannot be used; closed, so that nothing else can leak into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody answers at its address.
    Unreachable,
    /// It was there and is gone, or does not answer in time.
    Interrupted,
    /// It did not answer in time.
    TimedOut,
    /// It does not accept the operator's credentials.
    AccessRefused,
    /// It answers, but not yet, or not for writes.
    NotReady,
    /// The operator's configuration for it cannot be used.
    Misconfigured,
    /// The host's file for it cannot be used.
    Storage,
    /// The disk has no room for what was to be written.
    NoSpace,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "it cannot be reached",
            Self::Interrupted => "the connection to it broke",
            Self::TimedOut => "it did not answer in time",
            Self::AccessRefused => "it refuses the host's credentials",
            Self::NotReady => "it is not ready to serve",
            Self::Misconfigured => "its configuration cannot be used",
            Self::Storage | Self::NoSpace => "its file cannot be read or written",
        })
    }
}
