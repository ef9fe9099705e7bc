//! What the management API does: the catalog, the engine and the deployer, in the API's words.

mod access;
mod components;
mod convert;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures::StreamExt as _;
use semver::Version;
use stepwell_api::{
    ApiError, AuditQuery, AuditRecord, Binding, Change, ErrorCode, Expected, Followed, Items,
    LogLine, LogQuery, Management, Model, Namespace, NewToken, NewlyMadeToken, Page, Plugin,
    PluginVersion, PutPipeline, PutPlugin, Readiness, Revision, Token,
};
use stepwell_catalog::{Catalog, CatalogError, Directory, NewPluginVersion, PutVersion};
use stepwell_core::{BindingKind, Name, Principal, Quotas, RunId};
use stepwell_engine::Engine;
use stepwell_http_trigger::HttpTrigger;
use stepwell_logging::Followed as FollowedEntry;
use stepwell_pipeline::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::access::{audit_record, namespace, to_audit_query, to_new_token, token};
pub(crate) use self::components::Components;
use self::convert::{
    change, cut, expected, filter, from_apply, from_catalog, items, line, missed, model,
    not_loadable, plugin, plugin_version, refused, revision, steps, to_catalog, version_exists,
};
use crate::deployer::{Apply, Deployer, Wanted};
use crate::guest::GuestState;
use crate::readiness::Health;
use crate::runtimes::answered_on;
use crate::services::Services;
use crate::waiting::Caller;

/// Everything that the API is a face of.
pub(crate) struct Host {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) engine: Engine<GuestState>,
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) components: Arc<Components>,
    pub(crate) services: Arc<Services>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) http: Arc<HttpTrigger>,
    pub(crate) health: Health,
    pub(crate) render_metrics: Box<dyn Fn() -> String + Send + Sync>,
    pub(crate) stopping: CancellationToken,
    /// How long a pipeline that is applied may wait for its components.
    pub(crate) patience: Duration,
    /// The runtime that guests are polled on.
    pub(crate) guests: Handle,
}

#[async_trait]
impl Management for Host {
    async fn has_namespace(&self, namespace: &Name) -> Result<bool, ApiError> {
        let found = self.directory.has_namespace(namespace).await;
        found.map_err(|error| ApiError::new(ErrorCode::Unavailable, error.to_string()))
    }

    async fn namespaces(&self, page: &Page) -> Result<Items<Namespace>, ApiError> {
        let paged = self.catalog.namespaces(&to_catalog(page)).await;
        Ok(items(paged.map_err(from_catalog)?, namespace))
    }

    async fn namespace(&self, name: &Name) -> Result<Namespace, ApiError> {
        let stored = self.catalog.namespace(name).await;
        stored.map(namespace).map_err(from_catalog)
    }

    async fn put_namespace(
        &self,
        by: &Principal,
        name: &Name,
        quotas: &Quotas,
    ) -> Result<(bool, Namespace), ApiError> {
        let put = self.catalog.by(by).put_namespace(name, quotas).await;
        let (is_new, stored) = put.map_err(from_catalog)?;
        Ok((is_new, namespace(stored)))
    }

    async fn delete_namespace(&self, by: &Principal, name: &Name) -> Result<(), ApiError> {
        let deleted = self.catalog.by(by).delete_namespace(name).await;
        deleted.map_err(from_catalog)
    }

    async fn create_token(
        &self,
        by: &Principal,
        new: &NewToken,
    ) -> Result<NewlyMadeToken, ApiError> {
        let made = self.catalog.by(by).create_token(&to_new_token(new)).await;
        let (stored, value) = made.map_err(from_catalog)?;
        Ok(NewlyMadeToken {
            token: value.expose().to_owned(),
            made: token(stored),
        })
    }

    async fn tokens(&self, page: &Page) -> Result<Items<Token>, ApiError> {
        self.directory.store_uses().await;
        let paged = self.catalog.tokens(&to_catalog(page)).await;
        Ok(items(paged.map_err(from_catalog)?, token))
    }

    async fn token(&self, id: &str) -> Result<Token, ApiError> {
        self.directory.store_uses().await;
        let stored = self.catalog.token(id).await;
        stored.map(token).map_err(from_catalog)
    }

    async fn revoke_token(&self, by: &Principal, id: &str) -> Result<(), ApiError> {
        let revoked = self.catalog.by(by).revoke_token(id).await;
        revoked.map_err(from_catalog)
    }

    async fn audit(&self, query: &AuditQuery) -> Result<Items<AuditRecord>, ApiError> {
        let paged = self.catalog.audit(&to_audit_query(query)).await;
        Ok(items(paged.map_err(from_catalog)?, audit_record))
    }

    async fn put_plugin_version(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        version: &Version,
        component: Bytes,
    ) -> Result<PutPlugin, ApiError> {
        let received = self.engine.receive(component.clone()).await;
        let digest = received.map_err(refused)?;
        // A version that is there already is answered before anything is compiled.
        match self.catalog.plugin_version(namespace, name, version).await {
            Ok(stored) if stored.digest != digest => return Err(version_exists(&stored)),
            Ok(_) => {}
            // Nor is anything compiled that there is no room for. Whether there is any when it is stored is decided then.
            Err(CatalogError::NotFound(_)) => {
                let size = component.len() as u64;
                let admitted = self.catalog.admits_plugin_version(namespace, size).await;
                admitted.map_err(from_catalog)?;
            }
            Err(error) => return Err(from_catalog(error)),
        }
        let (namespace_, name_, version_) = (namespace.clone(), name.clone(), version.clone());
        let (components, engine) = (self.components.clone(), self.engine.clone());
        let catalog = self.catalog.by(by);
        let gone = CancellationToken::new();
        let _here = gone.clone().drop_guard();
        // A caller that hangs up while it is compiled must not leave the code behind.
        let put = tokio::spawn(async move {
            let upload = components.upload(digest);
            let compiled = engine.compile(namespace_.as_str(), digest, component.clone());
            let put = match compiled.await {
                Ok(_) if gone.is_cancelled() => {
                    let reason = "the caller is gone";
                    Err(ApiError::new(ErrorCode::Unavailable, reason))
                }
                Ok(report) => {
                    let new = NewPluginVersion {
                        namespace: namespace_,
                        name: name_,
                        version: version_,
                        bytes: component,
                        world: report.inspection.world.to_string(),
                        imports: report.inspection.imports,
                        exports: report.inspection.exports,
                        compile_ms: u64::try_from(report.compile_time.as_millis())
                            .unwrap_or(u64::MAX),
                    };
                    let put = catalog.put_plugin_version(new).await;
                    put.map_err(from_catalog)
                }
                Err(error) => Err(not_loadable(error)),
            };
            drop(upload);
            if !matches!(put, Ok(PutVersion::Created(_))) {
                components.release(digest).await;
            }
            put
        });
        let (created, stored) = match put.await.map_err(ApiError::internal)?? {
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
        by: &Principal,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<(), ApiError> {
        let stored = self.catalog.plugin_version(namespace, name, version).await;
        let digest = stored.map_err(from_catalog)?.digest;
        let (namespace_, name_, version_) = (namespace.clone(), name.clone(), version.clone());
        let (catalog, components) = (self.catalog.by(by), self.components.clone());
        let delete = tokio::spawn(async move {
            let deleted = catalog.delete_plugin_version(&namespace_, &name_, &version_);
            deleted.await.map_err(from_catalog)?;
            components.release(digest).await;
            Ok(())
        });
        delete.await.map_err(ApiError::internal)??;
        info!(plugin = %name, %version, "plugin version removed");
        Ok(())
    }

    async fn put_pipeline(
        &self,
        by: &Principal,
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
        let (deployer, by) = (self.deployer.clone(), by.clone());
        let (namespace, name) = (namespace.clone(), name.clone());
        let wanted = Wanted {
            source: put.source.clone(),
            content_type,
            expected,
            dry_run: put.dry_run,
        };
        // A caller that hangs up must not leave a revision stored and not deployed; nor one that nobody waits for, much later.
        let (caller, _here) = Caller::waiting(self.patience);
        let apply = tokio::spawn(async move {
            deployer
                .apply(&by, &namespace, &name, &wanted, &caller)
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
        by: &Principal,
        namespace: &Name,
        name: &Name,
        expected_: Expected,
    ) -> Result<(), ApiError> {
        let (deployer, by) = (self.deployer.clone(), by.clone());
        let (namespace, name) = (namespace.clone(), name.clone());
        let expected = expected(expected_);
        tokio::spawn(async move { deployer.delete(&by, &namespace, &name, expected).await })
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
        by: &Principal,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected_: Expected,
    ) -> Result<(Change, Revision), ApiError> {
        let (deployer, by) = (self.deployer.clone(), by.clone());
        let (namespace, name) = (namespace.clone(), name.clone());
        let expected = expected(expected_);
        let (caller, _here) = Caller::waiting(self.patience);
        let applied = tokio::spawn(async move {
            deployer
                .rollback(&by, &namespace, &name, to, expected, &caller)
                .await
        })
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
            Some(deployment) => {
                let http = self.http.clone();
                let answer = async move { http.invoke(deployment, request).await };
                let answered = answered_on(&self.guests, answer).await;
                answered.unwrap_or_else(|| {
                    ApiError::internal("the host stopped before the run had ended").into_response()
                })
            }
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

    async fn bindings(&self, by: &Principal, page: &Page) -> Result<Items<Binding>, ApiError> {
        let mut bindings = self.health.bindings().await;
        if let Some(namespace) = &by.namespace {
            bindings.retain(|binding| {
                BindingKind::parse(&binding.kind).is_some_and(|kind| {
                    self.deployer
                        .reach()
                        .includes(namespace, kind, &binding.name)
                })
            });
        }
        Ok(cut(bindings, page, |binding: &Binding| {
            format!("{}/{}", binding.kind, binding.name)
        }))
    }

    async fn readiness(&self, with_names: bool) -> Readiness {
        self.health.readiness(with_names).await
    }

    fn metrics(&self) -> String {
        self.engine.record_use();
        (self.render_metrics)()
    }
}
