//! `stepwell:vector/index` for guests: the grant is asked for here, and what guests write is read here; everything after that is
//! the [binding](crate::VectorStore)'s.

use std::sync::Arc;

use stepwell_core::{Action, BindingKind, Call};
use wasmtime::component::{HasData, Linker};

use crate::binding::count_denied;
use crate::client::{self, Metadata, Place, VectorError, VectorStore};
use crate::filter::Filter;
use crate::limits::MAX_METADATA_BYTES;
use crate::vectors::Vectors;

mod generated {
    wasmtime::component::bindgen!({
        path: "../../../wit/vector",
        world: "stepwell:vector/imports",
        imports: { default: async },
    });
}
pub use generated::stepwell::vector::index as wit;

/// What the functions need of one call.
pub struct VectorsView<'a> {
    /// Every index.
    pub vectors: &'a Vectors,
    /// Who calls, what it may do and until when.
    pub call: &'a Call,
}

/// Store data from which a [`VectorsView`] can be made.
pub trait HasVectors: Send {
    /// The view of the current call.
    fn vectors(&mut self) -> VectorsView<'_>;
}

/// Adds the interface to a linker.
///
/// # Errors
/// It is there already.
pub fn add_to_linker<T: HasVectors + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    wit::add_to_linker::<T, Interface>(linker, T::vectors)
}

struct Interface;

impl HasData for Interface {
    type Data<'a> = VectorsView<'a>;
}

impl VectorsView<'_> {
    /// The index that the guest calls `name`, if it may do `action` there.
    fn granted(
        &self,
        name: &str,
        action: Action,
        operation: &'static str,
    ) -> Result<Arc<dyn VectorStore>, wit::Error> {
        let grant = self
            .call
            .grant(BindingKind::Vectors, name, action)
            .map_err(|denied| {
                count_denied(operation);
                wit::Error::NotGranted(denied.to_string())
            })?;
        self.vectors
            .store(&grant.binding)
            .ok_or_else(|| wit::Error::NotFound(format!("there is no vector index '{name}'")))
    }

    fn place<'a>(&'a self, namespace: Option<&'a String>) -> Place<'a> {
        Place {
            namespace: namespace.map(String::as_str),
            deadline: self.call.deadline,
            cpu: Some(&self.call.scope.cpu),
        }
    }
}

impl wit::Host for VectorsView<'_> {
    async fn upsert(
        &mut self,
        index: String,
        namespace: Option<String>,
        vectors: Vec<wit::Vector>,
    ) -> Result<u32, wit::Error> {
        let store = self.granted(&index, Action::Upsert, "upsert")?;
        let at = self.place(namespace.as_ref());
        let call = async {
            let vectors = vectors
                .into_iter()
                .map(read_vector)
                .collect::<Result<_, _>>()?;
            store.upsert(&at, vectors).await
        };
        call.await.map_err(|error| about(&index, error))
    }

    async fn query(
        &mut self,
        index: String,
        namespace: Option<String>,
        search: wit::Search,
    ) -> Result<Vec<wit::Match>, wit::Error> {
        let store = self.granted(&index, Action::Query, "query")?;
        let at = self.place(namespace.as_ref());
        let call = async { store.query(&at, read_search(search)?).await };
        let found = call.await.map_err(|error| about(&index, error))?;
        Ok(found.into_iter().map(wit::Match::from).collect())
    }

    async fn fetch(
        &mut self,
        index: String,
        namespace: Option<String>,
        ids: Vec<String>,
    ) -> Result<Vec<wit::Vector>, wit::Error> {
        let store = self.granted(&index, Action::Fetch, "fetch")?;
        let found = store.fetch(&self.place(namespace.as_ref()), ids).await;
        let found = found.map_err(|error| about(&index, error))?;
        Ok(found.into_iter().map(wit::Vector::from).collect())
    }

    async fn update(
        &mut self,
        index: String,
        namespace: Option<String>,
        change: wit::Change,
    ) -> Result<(), wit::Error> {
        let store = self.granted(&index, Action::Update, "update")?;
        let at = self.place(namespace.as_ref());
        let call = async {
            let change = client::Change {
                id: change.id,
                values: change.values,
                sparse: change.sparse.map(client::SparseValues::from),
                metadata: read_metadata(change.metadata)?,
            };
            store.update(&at, change).await
        };
        call.await.map_err(|error| about(&index, error))
    }

    async fn delete(
        &mut self,
        index: String,
        namespace: Option<String>,
        selection: wit::Selection,
    ) -> Result<(), wit::Error> {
        let store = self.granted(&index, Action::Delete, "delete")?;
        let at = self.place(namespace.as_ref());
        let call = async {
            let selection = match selection {
                wit::Selection::Ids(ids) => client::Selection::Ids(ids),
                wit::Selection::Filter(text) => client::Selection::Filter(Filter::parse(&text)?),
                wit::Selection::All => client::Selection::All,
            };
            store.delete(&at, selection).await
        };
        call.await.map_err(|error| about(&index, error))
    }

    async fn list(
        &mut self,
        index: String,
        namespace: Option<String>,
        prefix: Option<String>,
        limit: Option<u32>,
        token: Option<String>,
    ) -> Result<wit::Page, wit::Error> {
        let store = self.granted(&index, Action::List, "list")?;
        let listing = client::Listing {
            prefix: prefix.unwrap_or_default(),
            limit,
            token,
        };
        let page = store.list(&self.place(namespace.as_ref()), listing).await;
        let client::Page { ids, next } = page.map_err(|error| about(&index, error))?;
        Ok(wit::Page { ids, next })
    }

    async fn describe(&mut self, index: String) -> Result<wit::IndexInfo, wit::Error> {
        let store = self.granted(&index, Action::Query, "describe")?;
        let description = store.describe(self.call.deadline).await;
        let description = description.map_err(|error| about(&index, error))?;
        Ok(wit::IndexInfo {
            dimension: description.dimension,
            metric: match description.metric {
                client::Metric::Cosine => wit::Metric::Cosine,
                client::Metric::Euclidean => wit::Metric::Euclidean,
                client::Metric::Dotproduct => wit::Metric::Dotproduct,
            },
            namespaces: description
                .namespaces
                .into_iter()
                .map(|(name, vectors)| wit::NamespaceInfo { name, vectors })
                .collect(),
        })
    }
}

/// An error as the guest sees it: with its own name for the index, never the operator's.
fn about(index: &str, error: VectorError) -> wit::Error {
    let text = |message: String| format!("vector index '{index}': {message}");
    match error {
        VectorError::NotGranted(message) => wit::Error::NotGranted(text(message)),
        VectorError::NotFound(message) => wit::Error::NotFound(text(message)),
        VectorError::InvalidInput(message) => wit::Error::InvalidInput(text(message)),
        VectorError::TooLarge(message) => wit::Error::TooLarge(text(message)),
        VectorError::Unavailable(message) => wit::Error::Unavailable(text(message)),
        VectorError::Overloaded { retry_after } => wit::Error::Overloaded(
            retry_after.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)),
        ),
        VectorError::DeadlineExceeded => wit::Error::DeadlineExceeded,
        VectorError::Internal(message) => wit::Error::Internal(text(message)),
    }
}

fn read_vector(vector: wit::Vector) -> Result<client::Vector, VectorError> {
    Ok(client::Vector {
        id: vector.id,
        values: vector.values,
        sparse: vector.sparse.map(client::SparseValues::from),
        metadata: read_metadata(vector.metadata)?,
    })
}

fn read_search(search: wit::Search) -> Result<client::Search, VectorError> {
    let target = match search.target {
        wit::Target::Values(dense) => client::Target::Values {
            dense,
            sparse: None,
        },
        wit::Target::Hybrid((dense, sparse)) => client::Target::Values {
            dense,
            sparse: Some(sparse.into()),
        },
        wit::Target::Id(id) => client::Target::Id(id),
    };
    Ok(client::Search {
        target,
        top_k: search.top_k,
        filter: search.filter.as_deref().map(Filter::parse).transpose()?,
        include_values: search.include_values,
        include_metadata: search.include_metadata,
    })
}

fn read_metadata(text: Option<String>) -> Result<Option<Metadata>, VectorError> {
    let Some(text) = text else { return Ok(None) };
    // What is legal in the end is counted later; this keeps rubbish from being parsed at all.
    if text.len() > MAX_METADATA_BYTES * 2 {
        return Err(VectorError::TooLarge(format!(
            "{} bytes of metadata in one vector, at most {MAX_METADATA_BYTES} are allowed",
            text.len()
        )));
    }
    serde_json::from_str(&text).map(Some).map_err(|error| {
        VectorError::InvalidInput(format!("metadata is not a JSON object: {error}"))
    })
}

fn write_metadata(metadata: Option<Metadata>) -> Option<String> {
    metadata.map(|metadata| serde_json::Value::Object(metadata).to_string())
}

impl From<client::Match> for wit::Match {
    fn from(found: client::Match) -> Self {
        Self {
            id: found.id,
            score: found.score,
            values: found.values,
            sparse: found.sparse.map(wit::SparseValues::from),
            metadata: write_metadata(found.metadata),
        }
    }
}

impl From<client::Vector> for wit::Vector {
    fn from(vector: client::Vector) -> Self {
        Self {
            id: vector.id,
            values: vector.values,
            sparse: vector.sparse.map(wit::SparseValues::from),
            metadata: write_metadata(vector.metadata),
        }
    }
}

impl From<client::SparseValues> for wit::SparseValues {
    fn from(sparse: client::SparseValues) -> Self {
        Self {
            indices: sparse.indices,
            values: sparse.values,
        }
    }
}

impl From<wit::SparseValues> for client::SparseValues {
    fn from(sparse: wit::SparseValues) -> Self {
        Self {
            indices: sparse.indices,
            values: sparse.values,
        }
    }
}
