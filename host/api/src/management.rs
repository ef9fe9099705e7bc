use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use futures::stream::BoxStream;
use semver::Version;
use stepwell_core::{Name, Principal, Quotas};

use crate::{
    ApiError, AuditQuery, AuditRecord, Binding, Change, Items, LogLevel, LogLine, Model, Namespace,
    NewToken, NewlyMadeToken, Plugin, PluginVersion, Readiness, Step, Token,
};

/// What the management API is a face of. Every method may be called from many tasks at once, and is dropped when its caller
/// hangs up: what must not stop half-way runs in a task of its own.
///
/// Namespaces are those that [`Management::has_namespace`] holds for, and `by`, whose change it is, has the right to it; the API has
/// checked both.
#[async_trait]
pub trait Management: Send + Sync + 'static {
    /// Whether there is such a namespace; `default` always is.
    async fn has_namespace(&self, namespace: &Name) -> Result<bool, ApiError>;

    /// Namespaces in the order of their names.
    async fn namespaces(&self, page: &Page) -> Result<Items<Namespace>, ApiError>;

    /// One namespace.
    async fn namespace(&self, name: &Name) -> Result<Namespace, ApiError>;

    /// Makes a namespace, or gives one other quotas; answers whether it is new.
    async fn put_namespace(
        &self,
        by: &Principal,
        name: &Name,
        quotas: &Quotas,
    ) -> Result<(bool, Namespace), ApiError>;

    /// Deletes a namespace.
    ///
    /// # Errors
    /// `in-use` when it holds anything.
    async fn delete_namespace(&self, by: &Principal, name: &Name) -> Result<(), ApiError>;

    /// Makes a token, whose value is told this once.
    async fn create_token(
        &self,
        by: &Principal,
        new: &NewToken,
    ) -> Result<NewlyMadeToken, ApiError>;

    /// Tokens in the order of their ids.
    async fn tokens(&self, page: &Page) -> Result<Items<Token>, ApiError>;

    /// One token.
    async fn token(&self, id: &str) -> Result<Token, ApiError>;

    /// Revokes a token.
    async fn revoke_token(&self, by: &Principal, id: &str) -> Result<(), ApiError>;

    /// Records of the audit log, the newest first.
    async fn audit(&self, query: &AuditQuery) -> Result<Items<AuditRecord>, ApiError>;

    /// Validates, compiles and stores a component, whose size is within the limit.
    ///
    /// # Errors
    /// `version-exists` when the version has other bytes; `not-wasm`, `unknown-import` and so on when it cannot be accepted.
    async fn put_plugin_version(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        version: &Version,
        component: Bytes,
    ) -> Result<PutPlugin, ApiError>;

    /// Plugins in the order of their names.
    async fn plugins(&self, namespace: &Name, page: &Page) -> Result<Items<Plugin>, ApiError>;

    /// One plugin.
    async fn plugin(&self, namespace: &Name, name: &Name) -> Result<Plugin, ApiError>;

    /// One version of a plugin.
    async fn plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<PluginVersion, ApiError>;

    /// The bytes of a version.
    async fn component(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<Bytes, ApiError>;

    /// Deletes a version.
    ///
    /// # Errors
    /// `in-use` when a pipeline uses it.
    async fn delete_plugin_version(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<(), ApiError>;

    /// Validates a pipeline document and makes it the pipeline's current revision, or only validates it.
    ///
    /// # Errors
    /// `invalid-pipeline` with every mistake; `stale` when the pipeline is not in the state that is expected (also of a dry run).
    async fn put_pipeline(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        put: PutPipeline,
    ) -> Result<(Change, Revision), ApiError>;

    /// The current revisions of pipelines, in the order of their names.
    async fn pipelines(&self, namespace: &Name, page: &Page) -> Result<Items<Revision>, ApiError>;

    /// The current revision of a pipeline.
    async fn pipeline(&self, namespace: &Name, name: &Name) -> Result<Revision, ApiError>;

    /// Deletes a pipeline.
    ///
    /// # Errors
    /// `stale` when it is not in the state that is expected.
    async fn delete_pipeline(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        expected: Expected,
    ) -> Result<(), ApiError>;

    /// The revisions of a pipeline, the newest first.
    async fn pipeline_revisions(
        &self,
        namespace: &Name,
        name: &Name,
        page: &Page,
    ) -> Result<Items<Revision>, ApiError>;

    /// One revision of a pipeline.
    async fn pipeline_revision(
        &self,
        namespace: &Name,
        name: &Name,
        revision: u64,
    ) -> Result<Revision, ApiError>;

    /// Makes a new revision of an old one; none: of the one before the current.
    ///
    /// # Errors
    /// As [`Management::put_pipeline`].
    async fn rollback_pipeline(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected: Expected,
    ) -> Result<(Change, Revision), ApiError>;

    /// Answers a request as the pipeline's HTTP trigger would, errors included. The body is as it came, of any length.
    async fn invoke(
        &self,
        namespace: &Name,
        pipeline: &Name,
        request: Request<Body>,
    ) -> Response<Body>;

    /// The newest log lines that fit the query, the oldest of them first.
    async fn logs(&self, namespace: &Name, query: &LogQuery) -> Result<Items<LogLine>, ApiError>;

    /// The same lines, and then each new one as it is written. The stream ends when the host shuts down.
    async fn follow_logs(&self, namespace: &Name, query: &LogQuery) -> Result<Followed, ApiError>;

    /// Every model.
    async fn models(&self, page: &Page) -> Result<Items<Model>, ApiError>;

    /// One model.
    async fn model(&self, name: &str) -> Result<Model, ApiError>;

    /// Every binding that the pipelines of at least one of the caller's namespaces may use.
    async fn bindings(&self, by: &Principal, page: &Page) -> Result<Items<Binding>, ApiError>;

    /// How the host is, within a few seconds and as it was a few seconds ago at most; with the names of what belongs to namespaces
    /// (pipelines, subscriptions), or else with their numbers alone.
    async fn readiness(&self, with_names: bool) -> Readiness;

    /// Every metric, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Log lines as they are written.
pub type Followed = BoxStream<'static, LogLine>;

/// A stored plugin version.
#[derive(Clone, Debug)]
pub struct PutPlugin {
    /// Whether it was stored now; otherwise it was there with the same bytes.
    pub created: bool,
    /// The version.
    pub version: PluginVersion,
}

/// A pipeline document that was sent.
#[derive(Clone, Debug)]
pub struct PutPipeline {
    /// The document.
    pub source: String,
    /// Whether it is JSON; otherwise it is YAML.
    pub json: bool,
    /// Validate only.
    pub dry_run: bool,
    /// The state that the pipeline must be in.
    pub expected: Expected,
}

/// A pipeline's revision.
#[derive(Clone, Debug)]
pub struct Revision {
    /// The pipeline.
    pub name: Name,
    /// From 1.
    pub revision: u64,
    /// The document as data.
    pub document: serde_json::Value,
    /// The document as it was written.
    pub source: String,
    /// What each step runs.
    pub steps: Vec<Step>,
    /// When it was stored; none of a dry run.
    pub created_at: Option<time::OffsetDateTime>,
}

/// The state that a pipeline must be in for a change to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Any.
    #[default]
    Any,
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// It is at this revision.
    Revision(u64),
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most this many items, 1–500.
    pub limit: u32,
    /// The `next_cursor` of the part before.
    pub cursor: Option<String>,
}

/// Which log lines are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Those of this pipeline.
    pub pipeline: Option<Name>,
    /// Those of this step.
    pub step: Option<Name>,
    /// Those that are at least this serious.
    pub level: Option<LogLevel>,
    /// At most this many of those that are there already, 1–500.
    pub limit: u32,
}
