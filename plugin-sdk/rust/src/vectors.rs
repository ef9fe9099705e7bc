//! Stores vectors and finds the nearest ones (`stepwell:vector/index`).
//!
//! ```yaml
//! grants: {vectors: {scans: [query, upsert]}}
//! ```
//! ```
//! # use serde_json::json;
//! # use stepwell_sdk::{Error, vectors::{self, Metric, Query, Vector}};
//! fn similar(embedding: Vec<f32>) -> Result<Vec<String>, Error> {
//!     let scans = vectors::index("scans");
//!     let query = Query::near(embedding).top(3).filter(json!({"set": "train"})).with_metadata();
//!     Ok(scans.query(query)?.into_iter().map(|found| found.id).collect())
//! }
//! # let host = stepwell_sdk::testing::Host::new().vectors("scans", 2, Metric::Cosine);
//! # let found = host.call(|| {
//! #     let scan = Vector::new("a", [1.0, 0.0]).metadata(&json!({"set": "train"}))?;
//! #     vectors::index("scans").upsert(vec![scan])?;
//! #     similar(vec![0.5, 0.1])
//! # });
//! # assert_eq!(found.unwrap(), ["a"]);
//! ```
//!
//! Filters are JSON objects in [Pinecone's language](https://docs.pinecone.io/guides/search/filter-by-metadata): `$eq`, `$ne`, `$gt`,
//! `$gte`, `$lt`, `$lte`, `$in`, `$nin`, `$exists`, `$and`, `$or`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Values at some dimensions only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sparse {
    /// Dimensions, each once.
    pub indices: Vec<u32>,
    /// Their values.
    pub values: Vec<f32>,
}

/// A stored vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vector {
    /// Unique within its namespace.
    pub id: String,
    /// As many as the index has dimensions.
    pub values: Vec<f32>,
    /// Extra sparse values, in dot product indexes only.
    pub sparse: Option<Sparse>,
    /// A JSON object of strings, numbers, booleans and lists of strings.
    pub metadata: Option<Value>,
}

impl Vector {
    /// A vector without metadata.
    pub fn new(id: impl Into<String>, values: impl Into<Vec<f32>>) -> Self {
        Self {
            id: id.into(),
            values: values.into(),
            ..Self::default()
        }
    }

    /// The same vector with metadata, which must be a JSON object.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the value cannot be JSON.
    pub fn metadata<T: Serialize + ?Sized>(mut self, metadata: &T) -> Result<Self, Error> {
        self.metadata = Some(to_value(metadata)?);
        Ok(self)
    }
}

/// A search; start with [`Query::near`] or [`Query::like`].
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub(crate) target: Target,
    pub(crate) top: u32,
    pub(crate) filter: Option<Value>,
    pub(crate) include_values: bool,
    pub(crate) include_metadata: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    Values(Vec<f32>),
    Hybrid(Vec<f32>, Sparse),
    Id(String),
}

impl Query {
    /// The ten nearest to these values.
    pub fn near(values: impl Into<Vec<f32>>) -> Self {
        Self::new(Target::Values(values.into()))
    }

    /// The ten nearest to these values with sparse ones, in dot product indexes only.
    pub fn hybrid(values: impl Into<Vec<f32>>, sparse: Sparse) -> Self {
        Self::new(Target::Hybrid(values.into(), sparse))
    }

    /// The ten nearest to a stored vector, itself among them.
    pub fn like(id: impl Into<String>) -> Self {
        Self::new(Target::Id(id.into()))
    }

    /// How many matches at most.
    #[must_use]
    pub fn top(mut self, count: usize) -> Self {
        self.top = u32::try_from(count).unwrap_or(u32::MAX);
        self
    }

    /// Only among vectors whose metadata satisfies this.
    #[must_use]
    pub fn filter(mut self, filter: Value) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Matches carry their values.
    #[must_use]
    pub fn with_values(mut self) -> Self {
        self.include_values = true;
        self
    }

    /// Matches carry their metadata.
    #[must_use]
    pub fn with_metadata(mut self) -> Self {
        self.include_metadata = true;
        self
    }

    fn new(target: Target) -> Self {
        Self {
            target,
            top: 10,
            filter: None,
            include_values: false,
            include_metadata: false,
        }
    }
}

/// A found vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Its id.
    pub id: String,
    /// How near it is, by the index's metric.
    pub score: f32,
    /// Its values, when asked for.
    pub values: Option<Vec<f32>>,
    /// Its sparse values, when values were asked for and it has any.
    pub sparse: Option<Sparse>,
    /// Its metadata, when asked for and it has any.
    pub metadata: Option<Value>,
}

impl Match {
    /// The metadata as a type of your own.
    ///
    /// # Errors
    /// [`Error::Internal`] if there is none or it does not fit.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let metadata = self.metadata.clone().unwrap_or(Value::Null);
        serde_json::from_value(metadata)
            .map_err(|error| Error::Internal(format!("metadata of vector '{}': {error}", self.id)))
    }
}

/// A change of one vector; what is not set stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Which one; one that does not exist is left so.
    pub id: String,
    /// New values, all of them.
    pub values: Option<Vec<f32>>,
    /// New sparse values, all of them.
    pub sparse: Option<Sparse>,
    /// Metadata to merge: its fields replace those of the same name.
    pub metadata: Option<Value>,
}

/// Which vectors to delete.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Those with these ids.
    Ids(Vec<String>),
    /// Those that satisfy this filter.
    Filter(Value),
    /// All of the namespace.
    All,
}

/// One page of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Ids, sorted.
    pub ids: Vec<String>,
    /// What to ask for the next page with; none: this was the last one.
    pub next: Option<String>,
}

/// How two vectors are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of the angle: greatest first.
    Cosine,
    /// The squared distance: smallest first.
    Euclidean,
    /// The dot product: greatest first.
    Dotproduct,
}

/// What an index is and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexInfo {
    /// How many values each vector has.
    pub dimension: u32,
    /// How vectors are compared.
    pub metric: Metric,
    /// Each namespace and how many vectors it holds; the default one is `__default__`.
    pub namespaces: Vec<(String, u64)>,
}

/// Why an index did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The pipeline does not grant this to the step.
    NotGranted(String),
    /// The index does not exist.
    NotFound(String),
    /// A vector, number or filter is refused.
    InvalidInput(String),
    /// Too much at once, or too much is asked for.
    TooLarge(String),
    /// The index cannot be reached; later may help. Writes may be repeated.
    Unavailable(String),
    /// The index has no capacity now; try again after this time, if one is known.
    Overloaded(Option<Duration>),
    /// The time was up. Writes may be repeated.
    DeadlineExceeded,
    /// The index misbehaved.
    Internal(String),
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Overloaded(_) | Self::DeadlineExceeded
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(what) => write!(f, "vector index not granted: {what}"),
            Self::NotFound(what) => write!(f, "vector index not found: {what}"),
            Self::InvalidInput(what) => write!(f, "invalid vector input: {what}"),
            Self::TooLarge(what) => write!(f, "too large for the vector index: {what}"),
            Self::Unavailable(what) => write!(f, "vector index not available: {what}"),
            Self::Overloaded(Some(after)) => {
                write!(f, "vector index overloaded, retry after {after:?}")
            }
            Self::Overloaded(None) => f.write_str("vector index overloaded"),
            Self::DeadlineExceeded => f.write_str("the vector index did not answer in time"),
            Self::Internal(what) => write!(f, "vector index failed: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// A granted index, or one namespace of it. Making one asks the host nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    name: String,
    namespace: Option<String>,
}

/// The index that the step's grants call `name`, in its default namespace.
pub fn index(name: impl Into<String>) -> Index {
    Index {
        name: name.into(),
        namespace: None,
    }
}

impl Index {
    /// Another namespace of the same index.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Stores vectors, replacing those with the same ids, and gives how many were sent: at most 1,000 and 2 MiB at once.
    ///
    /// # Errors
    /// [`Error`]; nothing is stored if one vector is refused.
    pub fn upsert(&self, vectors: Vec<Vector>) -> Result<u32, Error> {
        crate::host::vectors::upsert(&self.name, self.namespace.as_deref(), vectors)
    }

    /// The nearest vectors, nearest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn query(&self, query: Query) -> Result<Vec<Match>, Error> {
        crate::host::vectors::query(&self.name, self.namespace.as_deref(), query)
    }

    /// The vectors with these ids, in this order; those that do not exist are left out.
    ///
    /// # Errors
    /// [`Error`].
    pub fn fetch(&self, ids: &[&str]) -> Result<Vec<Vector>, Error> {
        crate::host::vectors::fetch(&self.name, self.namespace.as_deref(), ids)
    }

    /// Changes parts of one vector.
    ///
    /// # Errors
    /// [`Error`].
    pub fn update(&self, change: Change) -> Result<(), Error> {
        crate::host::vectors::update(&self.name, self.namespace.as_deref(), change)
    }

    /// Deletes vectors.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete(&self, selection: Selection) -> Result<(), Error> {
        crate::host::vectors::delete(&self.name, self.namespace.as_deref(), selection)
    }

    /// A page of at most 100 ids: the first without a token, the next with the page's before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list(&self, prefix: Option<&str>, token: Option<&str>) -> Result<Page, Error> {
        crate::host::vectors::list(&self.name, self.namespace.as_deref(), prefix, token)
    }

    /// What the index is and holds.
    ///
    /// # Errors
    /// [`Error`].
    pub fn describe(&self) -> Result<IndexInfo, Error> {
        crate::host::vectors::describe(&self.name)
    }
}

fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, Error> {
    serde_json::to_value(value)
        .map_err(|error| Error::InvalidInput(format!("metadata cannot be JSON: {error}")))
}
