//! The management API of the admin listener: endpoints, their OpenAPI description, authentication and problem+json.
//!
//! [`router`] serves what a [`Management`] does; the crate knows HTTP and JSON, and neither engine nor catalog. A route exists
//! by being described: the router is built from the OpenAPI document, so that the two cannot differ.

mod audit;
mod auth;
mod body;
mod docs;
mod downloads;
mod error;
mod etag;
mod extract;
mod host;
mod json;
mod local;
mod management;
mod model;
mod namespaces;
mod needs;
mod observe;
mod openapi;
mod pipelines;
mod plugins;
mod room;
mod router;
mod tokens;
mod uploads;

pub use audit::{AuditQuery, AuditRecord, Outcome};
pub use auth::{Gate, NotAdmitted};
pub use error::{ApiError, ErrorCode};
pub use management::{
    Expected, Followed, LogQuery, Management, Page, PutPipeline, PutPlugin, Revision,
};
pub use model::{
    Binding, Change, InvalidLogLevel, Items, LogLevel, LogLine, Mistake, Model, ModelVersion, Part,
    Pipeline, Plugin, PluginVersion, ProblemDetails, Readiness, State, Step, Tensor,
};
pub use namespaces::{Namespace, NamespaceQuotas, Usage};
pub use observe::describe_metrics;
pub use openapi::openapi;
pub use router::{ApiOptions, router};
pub use tokens::{NewToken, NewlyMadeToken, Token};
