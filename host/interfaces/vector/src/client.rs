use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use stepwell_core::CpuAccount;

use crate::filter::Filter;

/// The namespace that is meant where none is named.
pub const DEFAULT_NAMESPACE: &str = "__default__";

/// A vector's metadata: strings, numbers, booleans and lists of strings by field.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// One index of vectors. Implementations are backends; every one of them is only ever called through a
/// wrapper of [`Vectors`](crate::Vectors), which has checked sizes, dimension and numbers before, and which drops the call when its
/// deadline passes.
///
/// All writes are idempotent. One that returned `Ok` is durable; one that returned an error or was dropped may still
/// happen, whole. Reads may lag behind writes where the backend says so. Calls come from many tasks at once, and none may
/// block its thread for long.
#[async_trait]
pub trait VectorStore: Send + Sync {
    /// Stores vectors, replacing those with the same ids; of several with one id the last stays. Answers how many were given.
    async fn upsert(&self, at: &Place<'_>, vectors: Vec<Vector>) -> Result<u32, VectorError>;

    /// The nearest vectors, nearest first.
    async fn query(&self, at: &Place<'_>, search: Search) -> Result<Vec<Match>, VectorError>;

    /// The vectors with these ids, in this order; those that do not exist are left out.
    async fn fetch(&self, at: &Place<'_>, ids: Vec<String>) -> Result<Vec<Vector>, VectorError>;

    /// Changes parts of one vector; one that does not exist is left so.
    async fn update(&self, at: &Place<'_>, change: Change) -> Result<(), VectorError>;

    /// Deletes vectors; those that do not exist are no error.
    async fn delete(&self, at: &Place<'_>, selection: Selection) -> Result<(), VectorError>;

    /// One page of ids in the order of their bytes.
    async fn list(&self, at: &Place<'_>, listing: Listing) -> Result<Page, VectorError>;

    /// Dimension, metric and namespaces with their sizes.
    async fn describe(&self, deadline: Instant) -> Result<Description, VectorError>;

    /// Whether the index can be used now, found out by trying; called when readiness is asked for.
    async fn probe(&self, deadline: Instant) -> Health;

    /// Finishes what was accepted and lets go of files and connections; called once, when the host stops. Later calls
    /// answer [`VectorError::Unavailable`].
    async fn close(&self);
}

/// Where in an index a call works, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The namespace; `None`, `""` and `__default__` are the same.
    pub namespace: Option<&'a str>,
    /// When the call's time is up.
    pub deadline: Instant,
    /// Who is charged for what the host computes for the call, if anybody is.
    pub cpu: Option<&'a Arc<CpuAccount>>,
}

impl<'a> Place<'a> {
    /// The default namespace.
    pub fn default_until(deadline: Instant) -> Self {
        Self {
            namespace: None,
            deadline,
            cpu: None,
        }
    }

    /// The namespace's one name, whichever way it was given.
    pub fn name(&self) -> &'a str {
        match self.namespace {
            None | Some("") => DEFAULT_NAMESPACE,
            Some(name) => name,
        }
    }
}

/// Values at some of very many dimensions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SparseValues {
    /// Dimensions, each at most once.
    pub indices: Vec<u32>,
    /// Their values.
    pub values: Vec<f32>,
}

/// A stored vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Unique within its namespace.
    pub id: String,
    /// One value for each dimension.
    pub values: Vec<f32>,
    /// Extra sparse values.
    pub sparse: Option<SparseValues>,
    /// Fields to filter by and to return.
    pub metadata: Option<Metadata>,
}

/// What to search near.
#[derive(Clone, Debug)]
pub enum Target {
    /// These values.
    Values {
        /// One value for each dimension.
        dense: Vec<f32>,
        /// Extra sparse values.
        sparse: Option<SparseValues>,
    },
    /// The stored vector with this id.
    Id(String),
}

/// A search for the nearest vectors.
#[derive(Clone, Debug)]
pub struct Search {
    /// What to search near.
    pub target: Target,
    /// How many matches at most.
    pub top_k: u32,
    /// Only among the vectors for which it holds.
    pub filter: Option<Filter>,
    /// Whether matches carry values.
    pub include_values: bool,
    /// Whether matches carry metadata.
    pub include_metadata: bool,
}

/// A found vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Its id.
    pub id: String,
    /// How near it is, by the index's metric.
    pub score: f32,
    /// Its values, if asked for.
    pub values: Option<Vec<f32>>,
    /// Its sparse values, if values were asked for and there are any.
    pub sparse: Option<SparseValues>,
    /// Its metadata, if asked for and there is any.
    pub metadata: Option<Metadata>,
}

/// A change of one vector; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Which one.
    pub id: String,
    /// New values.
    pub values: Option<Vec<f32>>,
    /// New sparse values.
    pub sparse: Option<SparseValues>,
    /// Fields to set; other fields stay.
    pub metadata: Option<Metadata>,
}

/// Which vectors to delete.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Those with these ids.
    Ids(Vec<String>),
    /// Those for which the filter holds.
    Filter(Filter),
    /// All of the namespace.
    All,
}

/// Which ids to list.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Only ids that start with it.
    pub prefix: String,
    /// How many at most; none: as many as a page may have.
    pub limit: Option<u32>,
    /// The `next` of the page before.
    pub token: Option<String>,
}

/// One page of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of their bytes.
    pub ids: Vec<String>,
    /// Where the next page starts, unless this is the last one.
    pub next: Option<String>,
}

/// What an index is and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// How many values each vector has.
    pub dimension: u32,
    /// How vectors are compared.
    pub metric: Metric,
    /// Sizes of the namespaces that hold anything.
    pub namespaces: BTreeMap<String, u64>,
}

/// How vectors are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The cosine of the angle between them; greatest first.
    Cosine,
    /// The square of their distance; smallest first.
    Euclidean,
    /// Their dot product; greatest first.
    Dotproduct,
}

impl Metric {
    /// The word in configuration and protocols.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Euclidean => "euclidean",
            Self::Dotproduct => "dotproduct",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an index can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Fully.
    Ok,
    /// In part, or with trouble; the text says which, without address or credential.
    Degraded(String),
    /// Not at all; the text says why, without address or credential.
    Down(String),
}

/// Why a call on an index failed. Texts name neither the binding nor an address nor a credential: whoever shows them
/// knows which index was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    /// The namespace is not one that the binding may use.
    #[error("{0}")]
    NotGranted(String),
    /// The index is gone.
    #[error("{0}")]
    NotFound(String),
    /// The call is at fault.
    #[error("{0}")]
    InvalidInput(String),
    /// The call, its answer or the index is over a limit.
    #[error("{0}")]
    TooLarge(String),
    /// The backend cannot do it now.
    #[error("{0}")]
    Unavailable(String),
    /// The backend has no capacity now.
    #[error("the index has no capacity for this call now")]
    Overloaded {
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The call's time was up.
    #[error("the call's time was up")]
    DeadlineExceeded,
    /// The host or the backend misbehaved.
    #[error("{0}")]
    Internal(String),
}

impl VectorError {
    /// The word for metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotGranted(_) => "not-granted",
            Self::NotFound(_) => "not-found",
            Self::InvalidInput(_) => "invalid-input",
            Self::TooLarge(_) => "too-large",
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded { .. } => "overloaded",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Internal(_) => "internal",
        }
    }
}
