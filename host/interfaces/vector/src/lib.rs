//! Vector indexes for guests: the `stepwell:vector/index` interface, an embedded exact index and Pinecone behind it.
//!
//! A [`VectorStore`] is one index, whatever holds it. [`Vectors`] are all that the operator configured; each is wrapped so that
//! limits, permits, deadlines and metrics are the same for every backend. Guests come in through [`add_to_linker`], which
//! asks for their grants; the host's own code through [`Vectors::store`].

mod binding;
mod client;
mod config;
mod filter;
mod host;
pub mod limits;
mod local;
mod pinecone;
mod score;
mod unusable;
mod vectors;

pub use binding::describe_metrics;
pub use client::{
    Change, DEFAULT_NAMESPACE, Description, Health, Listing, Match, Metadata, Metric, Page, Place,
    Search, Selection, SparseValues, Target, Vector, VectorError, VectorStore,
};
pub use config::{VectorBackend, VectorBindingConfig};
pub use filter::Filter;
pub use host::{HasVectors, VectorsView, add_to_linker, wit};
pub use vectors::{BindingState, Vectors};
