//! The catalog: plugins with their bytes, pipelines with their revisions, in SQLite (embedded) or PostgreSQL (shared).
//!
//! One [`Catalog`] serves both databases with the same statements; what differs between them is in `db.rs`. Every change is
//! one transaction, changes are made one at a time across all hosts, and each ends in a new *generation*, by which hosts
//! notice each other's changes ([`Catalog::changes`]).

mod catalog;
mod db;
mod error;
mod location;
mod model;
mod pipelines;
mod plugins;
mod watch;

pub use catalog::Catalog;
pub use error::CatalogError;
pub use location::{InvalidLocation, Location};
pub use model::{
    Applied, Change, Expected, NewPluginVersion, NewRevision, Page, Paged, PinnedStep,
    PipelineRevision, Plugin, PluginVersion, Precondition, PutVersion, Snapshot,
};
