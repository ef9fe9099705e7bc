//! The catalog: plugins with their bytes, pipelines with their revisions, namespaces, tokens and the audit log, in SQLite (embedded) or PostgreSQL (shared).
//!
//! One [`Catalog`] serves both databases with the same statements; what differs between them is in `db.rs`. Every change is
//! one transaction, changes are made one at a time across all hosts, and each ends in a new *generation*, by which hosts
//! notice each other's changes ([`Catalog::changes`]).

mod audit;
mod catalog;
mod db;
mod directory;
mod error;
mod location;
mod model;
mod namespaces;
mod pipelines;
mod place;
mod plugins;
mod tokens;
mod watch;

pub use audit::{AuditQuery, Audited, Outcome};
pub use catalog::{Catalog, CatalogLimits};
pub use directory::{Directory, NotVerified, Unavailable};
pub use error::CatalogError;
pub use location::{InvalidLocation, Location};
pub use model::{
    Applied, Change, Expected, NewPluginVersion, NewRevision, Page, Paged, PinnedStep,
    PipelineRevision, Plugin, PluginVersion, Precondition, PutVersion, Snapshot, Unreadable,
};
pub use namespaces::{Namespace, Usage};
pub use tokens::{NewToken, Token};
