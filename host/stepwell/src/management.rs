//! What the management API does: the catalog, the engine and the deployer, in the API's words.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures::StreamExt as _;
use semver::Version;
use stepwell_api::{
    ApiError, Binding, Change, ErrorCode, Expected, Followed, Items, LogLevel, LogLine, LogQuery,
    Management, Model, ModelVersion, Page, Plugin, PluginVersion, PutPipeline, PutPlugin,
    Readiness, Revision, Step, Tensor,
};
use stepwell_catalog::{self as catalog, Catalog, CatalogError, NewPluginVersion, PutVersion};
use stepwell_core::{Digest, Name, RunId};
use stepwell_engine::{Engine, LoadError, Refused};
use stepwell_http_trigger::HttpTrigger;
use stepwell_inference::{DEFAULT_SIGNATURE, ModelStatus, TensorInfo, VersionState};
use stepwell_logging::{Followed as FollowedEntry, Level, LogEntry, LogFilter};
use stepwell_pipeline::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::deployer::{Apply, ApplyError, Deployer};
use crate::guest::GuestState;
use crate::readiness::Health;
use crate::services::Services;

/// Everything that the API is a face of.
pub(crate) struct Host {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) engine: Engine<GuestState>,
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) services: Arc<Services>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) http: Arc<HttpTrigger>,
    pub(crate) health: Health,
    pub(crate) render_metrics: Box<dyn Fn() -> String + Send + Sync>,
    pub(crate) stopping: CancellationToken,
}

#[async_trait]
impl Management for Host {
    async fn put_plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
        component: Bytes,
    ) -> Result<PutPlugin, ApiError> {
        let engine = self.engine.clone();
        let (digest, inspected) = {
            let component = component.clone();
            tokio::task::spawn_blocking(move || {
                (Digest::of(&component), engine.inspect(&component))
            })
            .await
            .map_err(ApiError::internal)?
        };
        let inspection = inspected.map_err(refused)?;
        // A version that is there already is answered before anything is compiled.
        match self.catalog.plugin_version(namespace, name, version).await {
            Ok(stored) if stored.digest != digest => return Err(version_exists(&stored)),
            Ok(_) | Err(CatalogError::NotFound(_)) => {}
            Err(error) => return Err(from_catalog(error)),
        }
        let report = self
            .engine
            .compile(digest, component.clone())
            .await
            .map_err(not_loadable)?;
        let new = NewPluginVersion {
            namespace: namespace.clone(),
            name: name.clone(),
            version: version.clone(),
            bytes: component,
            world: inspection.world.to_string(),
            imports: inspection.imports,
            exports: inspection.exports,
            compile_ms: u64::try_from(report.compile_time.as_millis()).unwrap_or(u64::MAX),
        };
        let (created, stored) = match self
            .catalog
            .put_plugin_version(new)
            .await
            .map_err(from_catalog)?
        {
            PutVersion::Created(stored) => (true, stored),
            PutVersion::Same(stored) => (false, stored),
            PutVersion::Conflict(stored) => return Err(version_exists(&stored)),
        };
        if created {
            info!(plugin = %name, %version, digest = %stored.digest, world = stored.world, "plugin uploaded");
        }
        Ok(PutPlugin {
            created,
            version: plugin_version(stored),
        })
    }

    async fn plugins(&self, namespace: &Name, page: &Page) -> Result<Items<Plugin>, ApiError> {
        let paged = self
            .catalog
            .plugins(namespace, &to_catalog(page))
            .await
            .map_err(from_catalog)?;
        Ok(items(paged, plugin))
    }

    async fn plugin(&self, namespace: &Name, name: &Name) -> Result<Plugin, ApiError> {
        self.catalog
            .plugin(namespace, name)
            .await
            .map(plugin)
            .map_err(from_catalog)
    }

    async fn plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<PluginVersion, ApiError> {
        let stored = self.catalog.plugin_version(namespace, name, version).await;
        stored.map(plugin_version).map_err(from_catalog)
    }

    async fn component(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<Bytes, ApiError> {
        let stored = self
            .catalog
            .plugin_version(namespace, name, version)
            .await
            .map_err(from_catalog)?;
        self.catalog
            .component(stored.digest)
            .await
            .map_err(from_catalog)
    }

    async fn delete_plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<(), ApiError> {
        let deleted = self
            .catalog
            .delete_plugin_version(namespace, name, version)
            .await;
        deleted.map_err(from_catalog)?;
        info!(plugin = %name, %version, "plugin version removed");
        Ok(())
    }

    async fn put_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        put: PutPipeline,
    ) -> Result<(Change, Revision), ApiError> {
        let content_type = if put.json {
            "application/json"
        } else {
            "application/yaml"
        };
        let expected = expected(put.expected);
        let (deployer, namespace, name) = (self.deployer.clone(), namespace.clone(), name.clone());
        let source = put.source.clone();
        // A caller that hangs up must not leave a revision stored and not deployed.
        let apply = tokio::spawn(async move {
            deployer
                .apply(
                    &namespace,
                    &name,
                    &source,
                    content_type,
                    expected,
                    put.dry_run,
                )
                .await
        });
        match apply
            .await
            .map_err(ApiError::internal)?
            .map_err(from_apply)?
        {
            Apply::Done(applied) => Ok((change(applied.change), revision(applied.revision))),
            Apply::Valid(validated) => {
                let steps = steps(&validated.document, |id| {
                    let pin = validated.pins.iter().find(|pin| pin.step.as_str() == id)?;
                    Some((pin.plugin.clone(), pin.version.clone(), pin.digest))
                });
                let revision = Revision {
                    name: validated.spec.name,
                    revision: 0,
                    document: validated.document,
                    source: put.source,
                    steps,
                    created_at: None,
                };
                Ok((Change::Validated, revision))
            }
        }
    }

    async fn pipelines(&self, namespace: &Name, page: &Page) -> Result<Items<Revision>, ApiError> {
        let paged = self
            .catalog
            .pipelines(namespace, &to_catalog(page))
            .await
            .map_err(from_catalog)?;
        Ok(items(paged, revision))
    }

    async fn pipeline(&self, namespace: &Name, name: &Name) -> Result<Revision, ApiError> {
        self.catalog
            .pipeline(namespace, name)
            .await
            .map(revision)
            .map_err(from_catalog)
    }

    async fn delete_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        expected_: Expected,
    ) -> Result<(), ApiError> {
        let (deployer, namespace, name) = (self.deployer.clone(), namespace.clone(), name.clone());
        let expected = expected(expected_);
        tokio::spawn(async move { deployer.delete(&namespace, &name, expected).await })
            .await
            .map_err(ApiError::internal)?
            .map_err(from_apply)
    }

    async fn pipeline_revisions(
        &self,
        namespace: &Name,
        name: &Name,
        page: &Page,
    ) -> Result<Items<Revision>, ApiError> {
        let paged = self
            .catalog
            .pipeline_revisions(namespace, name, &to_catalog(page))
            .await;
        Ok(items(paged.map_err(from_catalog)?, revision))
    }

    async fn pipeline_revision(
        &self,
        namespace: &Name,
        name: &Name,
        number: u64,
    ) -> Result<Revision, ApiError> {
        let stored = self
            .catalog
            .pipeline_revision(namespace, name, number)
            .await;
        stored.map(revision).map_err(from_catalog)
    }

    async fn rollback_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected_: Expected,
    ) -> Result<(Change, Revision), ApiError> {
        let (deployer, namespace, name) = (self.deployer.clone(), namespace.clone(), name.clone());
        let expected = expected(expected_);
        let applied =
            tokio::spawn(async move { deployer.rollback(&namespace, &name, to, expected).await })
                .await
                .map_err(ApiError::internal)?
                .map_err(from_apply)?;
        Ok((change(applied.change), revision(applied.revision)))
    }

    async fn invoke(
        &self,
        namespace: &Name,
        pipeline: &Name,
        request: Request<Body>,
    ) -> Response<Body> {
        match self.registry.get(namespace, pipeline) {
            Some(deployment) => self.http.invoke(deployment, request).await.map(Body::new),
            None => {
                let mut response =
                    ApiError::not_found(format!("pipeline {pipeline}")).into_response();
                // Every reply has a run id, even when no run began.
                if let Ok(id) = HeaderValue::try_from(RunId::new().to_string()) {
                    response
                        .headers_mut()
                        .insert(stepwell_http_trigger::RUN_ID, id);
                }
                response
            }
        }
    }

    async fn logs(&self, namespace: &Name, query: &LogQuery) -> Result<Items<LogLine>, ApiError> {
        let entries = self.services.logs.query(&filter(namespace, query));
        Ok(Items {
            items: entries.iter().map(|entry| line(entry)).collect(),
            next_cursor: None,
        })
    }

    async fn follow_logs(&self, namespace: &Name, query: &LogQuery) -> Result<Followed, ApiError> {
        let (past, new) = self.services.logs.follow(filter(namespace, query));
        let past: Vec<LogLine> = past.iter().map(|entry| line(entry)).collect();
        let stopping = self.stopping.clone();
        let new = futures::stream::unfold((new, stopping), |(mut new, stopping)| async move {
            let next = tokio::select! {
                () = stopping.cancelled() => None,
                next = new.next() => next,
            };
            let shown = match next? {
                FollowedEntry::Entry(entry) => line(&entry),
                FollowedEntry::Missed(count) => missed(count),
            };
            Some((shown, (new, stopping)))
        });
        Ok(futures::stream::iter(past).chain(new).boxed())
    }

    async fn models(&self, page: &Page) -> Result<Items<Model>, ApiError> {
        let models = self.services.models.list().into_iter().map(model).collect();
        Ok(cut(models, page, |model: &Model| model.name.clone()))
    }

    async fn model(&self, name: &str) -> Result<Model, ApiError> {
        let found = self.services.models.get(name).map(model);
        found.ok_or_else(|| {
            ApiError::not_found(format!(
                "model {}",
                name.chars().take(128).collect::<String>()
            ))
        })
    }

    async fn bindings(&self, page: &Page) -> Result<Items<Binding>, ApiError> {
        Ok(cut(
            self.health.bindings().await,
            page,
            |binding: &Binding| format!("{}/{}", binding.kind, binding.name),
        ))
    }

    async fn readiness(&self) -> Readiness {
        self.health.readiness().await
    }

    fn metrics(&self) -> String {
        self.engine.record_use();
        (self.render_metrics)()
    }
}

/// A page of a list that is whole in memory; the cursor is the last item's key.
fn cut<T>(all: Vec<T>, page: &Page, key: impl Fn(&T) -> String) -> Items<T> {
    let start = page.cursor.as_ref().map_or(0, |cursor| {
        all.iter()
            .position(|item| key(item) == *cursor)
            .map_or(all.len(), |index| index + 1)
    });
    let limit = page.limit as usize;
    let more = all.len().saturating_sub(start) > limit;
    let items: Vec<T> = all.into_iter().skip(start).take(limit).collect();
    let next_cursor = items.last().filter(|_| more).map(key);
    Items { items, next_cursor }
}

fn to_catalog(page: &Page) -> catalog::Page {
    catalog::Page {
        limit: page.limit,
        cursor: page.cursor.clone(),
    }
}

fn items<A, B>(paged: catalog::Paged<A>, convert: impl Fn(A) -> B) -> Items<B> {
    Items {
        items: paged.items.into_iter().map(convert).collect(),
        next_cursor: paged.next,
    }
}

fn plugin(plugin: catalog::Plugin) -> Plugin {
    let latest = plugin
        .versions
        .iter()
        .map(|version| &version.version)
        .filter(|version| version.pre.is_empty())
        .max();
    Plugin {
        name: plugin.name,
        latest: latest.cloned(),
        versions: plugin.versions.into_iter().map(plugin_version).collect(),
    }
}

fn plugin_version(stored: catalog::PluginVersion) -> PluginVersion {
    PluginVersion {
        name: stored.name,
        version: stored.version,
        digest: stored.digest,
        world: stored.world,
        imports: stored.imports,
        exports: stored.exports,
        size: stored.size,
        compile_ms: stored.compile_ms,
        created_at: stored.created_at,
    }
}

fn revision(stored: catalog::PipelineRevision) -> Revision {
    let steps = steps(&stored.document, |id| {
        let pinned = stored.steps.iter().find(|step| step.id.as_str() == id)?;
        Some((pinned.plugin.clone(), pinned.version.clone(), pinned.digest))
    });
    Revision {
        name: stored.name,
        revision: stored.revision,
        document: stored.document,
        source: stored.source,
        steps,
        created_at: Some(stored.created_at),
    }
}

/// The steps of a document, in its order, with what they are pinned to.
fn steps(
    document: &serde_json::Value,
    pin: impl Fn(&str) -> Option<(Name, Version, Digest)>,
) -> Vec<Step> {
    let nodes = document
        .get("steps")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten();
    nodes
        .filter_map(|node| {
            let text = |key: &str| node.get(key).and_then(serde_json::Value::as_str);
            let id = text("id")?;
            let (plugin, version, digest) = match pin(id) {
                Some((plugin, version, digest)) => (Some(plugin), Some(version), Some(digest)),
                None => (None, None, None),
            };
            Some(Step {
                id: id.parse().ok()?,
                plugin,
                version,
                digest,
                model: text("model").map(str::to_owned),
            })
        })
        .collect()
}

fn model(status: ModelStatus) -> Model {
    let tensor = |info: &TensorInfo| Tensor {
        name: info.name.clone(),
        datatype: info.datatype.to_string(),
        shape: info.shape.clone().unwrap_or_default(),
    };
    Model {
        name: status.name,
        versions: status
            .versions
            .into_iter()
            .map(|version| {
                let signature = version
                    .signatures
                    .get(DEFAULT_SIGNATURE)
                    .or_else(|| version.signatures.values().next());
                ModelVersion {
                    version: version.version.clone(),
                    state: match version.state {
                        VersionState::Loading => "loading",
                        VersionState::Available => "available",
                        VersionState::End => "end",
                    }
                    .to_owned(),
                    reason: version.reason.clone(),
                    platform: version
                        .platform
                        .clone()
                        .unwrap_or_else(|| "tensorflow_savedmodel".to_owned()),
                    inputs: signature
                        .map(|signature| signature.inputs.iter().map(tensor).collect())
                        .unwrap_or_default(),
                    outputs: signature
                        .map(|signature| signature.outputs.iter().map(tensor).collect())
                        .unwrap_or_default(),
                }
            })
            .collect(),
    }
}

fn filter(namespace: &Name, query: &LogQuery) -> LogFilter {
    LogFilter {
        namespace: Some(namespace.to_string()),
        pipeline: query.pipeline.as_ref().map(ToString::to_string),
        step: query.step.as_ref().map(ToString::to_string),
        level: query.level.map(|level| match level {
            LogLevel::Trace => Level::Trace,
            LogLevel::Debug => Level::Debug,
            LogLevel::Info => Level::Info,
            LogLevel::Warn => Level::Warn,
            LogLevel::Error => Level::Error,
        }),
        run: None,
        limit: Some(query.limit as usize),
    }
}

fn line(entry: &LogEntry) -> LogLine {
    let mut fields = serde_json::Map::new();
    fields.insert(
        "source".into(),
        serde_json::to_value(entry.source).unwrap_or_default(),
    );
    fields.insert("revision".into(), entry.revision.into());
    if let Some(plugin) = &entry.plugin {
        fields.insert("plugin".into(), plugin.as_str().into());
    }
    if !entry.context.is_empty() {
        fields.insert("context".into(), entry.context.as_str().into());
    }
    LogLine {
        time: entry.time,
        level: match entry.level {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error | Level::Critical => LogLevel::Error,
        },
        pipeline: Some(entry.pipeline.to_string()),
        step: entry.step.clone(),
        run_id: Some(entry.run_id.to_string()),
        message: entry.message.clone(),
        fields,
    }
}

fn missed(count: u64) -> LogLine {
    LogLine {
        time: time::OffsetDateTime::now_utc(),
        level: LogLevel::Warn,
        pipeline: None,
        step: None,
        run_id: None,
        message: format!("{count} lines came faster than they were read, and are not shown"),
        fields: serde_json::Map::new(),
    }
}

fn expected(expected: Expected) -> catalog::Expected {
    match expected {
        Expected::Any => catalog::Expected::Any,
        Expected::Exists => catalog::Expected::Exists,
        Expected::Absent => catalog::Expected::Absent,
        Expected::Revision(revision) => catalog::Expected::Revision(revision),
    }
}

fn change(change: catalog::Change) -> Change {
    match change {
        catalog::Change::Created => Change::Created,
        catalog::Change::Changed => Change::Changed,
        catalog::Change::Unchanged => Change::Unchanged,
    }
}

fn version_exists(stored: &catalog::PluginVersion) -> ApiError {
    let (name, version) = (&stored.name, &stored.version);
    ApiError::new(
        ErrorCode::VersionExists,
        format!(
            "{name}@{version} exists with other bytes ({})",
            stored.digest
        ),
    )
    .with_hint("", "versions never change: push it under a higher version")
}

fn refused(refused: Refused) -> ApiError {
    let code = match refused.code {
        "not-wasm" => ErrorCode::NotWasm,
        "core-module" => ErrorCode::CoreModule,
        "truncated" => ErrorCode::Truncated,
        "unknown-import" => ErrorCode::UnknownImport,
        "unknown-world" => ErrorCode::UnknownWorld,
        "too-large" => ErrorCode::TooLarge,
        _ => ErrorCode::InvalidComponent,
    };
    let error = ApiError::new(code, refused.message);
    match refused.hint {
        Some(hint) => error.with_hint("", hint),
        None => error,
    }
}

fn not_loadable(error: LoadError) -> ApiError {
    match error {
        LoadError::Refused(why) => refused(why),
        LoadError::TooSlow { .. } => ApiError::new(ErrorCode::CompileTimeout, error.to_string()),
        LoadError::Unreadable { .. } => ApiError::new(ErrorCode::Unavailable, error.to_string()),
        LoadError::Damaged { .. } => ApiError::new(ErrorCode::Corrupt, error.to_string()),
        LoadError::Host { .. } => ApiError::internal(error),
    }
}

fn from_apply(error: ApplyError) -> ApiError {
    match error {
        ApplyError::Catalog(error) => from_catalog(error),
        ApplyError::NotDeployable(_) => ApiError::new(ErrorCode::Unavailable, error.to_string()),
        ApplyError::Invalid(problems) => {
            let count = problems.len();
            let noun = if count == 1 { "mistake" } else { "mistakes" };
            ApiError::new(
                ErrorCode::InvalidPipeline,
                format!("the pipeline document has {count} {noun}"),
            )
            .with_errors(problems)
        }
    }
}

fn from_catalog(error: CatalogError) -> ApiError {
    let code = match &error {
        CatalogError::NotFound(_) => ErrorCode::NotFound,
        CatalogError::InUse { .. } => ErrorCode::InUse,
        CatalogError::Stale { .. } => ErrorCode::Stale,
        CatalogError::Moved => ErrorCode::Conflict,
        CatalogError::PluginsGone(_) => ErrorCode::PluginGone,
        CatalogError::CorruptBlob(_) | CatalogError::Corrupt(_) => ErrorCode::Corrupt,
        CatalogError::TooNew { .. } | CatalogError::Unavailable { .. } => ErrorCode::Unavailable,
        CatalogError::Refused(..) => ErrorCode::Internal,
    };
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let error = ApiError::new(code, error.to_string());
    match cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}
