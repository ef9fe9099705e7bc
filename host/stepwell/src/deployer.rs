//! Keeps what is deployed the same as what the catalog says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use stepwell_catalog::{
    Applied, Catalog, CatalogError, Change, Expected, NewRevision, PinnedStep, PipelineRevision,
    Precondition, Snapshot,
};
use stepwell_core::{Name, Problem};
use stepwell_pipeline::{
    Deployment, Draft, HostState, JwtHost, KnownPipeline, KnownPlugin, Pin, Registry, Validated,
    deploy,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Bindings;
use crate::factory::Factory;

/// Deployments that are prepared side by side at the start.
const CONCURRENCY: usize = 8;

/// Told of every deployment whenever one has changed.
pub(crate) type OnChange = Box<dyn Fn(&[Arc<Deployment>]) + Send + Sync>;

/// Validates and applies pipelines, and deploys whatever the catalog holds, whoever changed it.
pub(crate) struct Deployer {
    catalog: Arc<Catalog>,
    factory: Factory,
    registry: Arc<Registry>,
    bindings: Vec<(stepwell_core::BindingKind, String)>,
    jwt: JwtHost,
    /// Told of all deployments after every change: the triggers.
    on_change: OnChange,
    /// One reconciliation at a time: each works on what the one before left.
    reconciling: tokio::sync::Mutex<()>,
    /// Revisions that could not be deployed, and why.
    failures: Mutex<BTreeMap<String, String>>,
}

/// A document was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The document is at fault.
    #[error("the pipeline document has {} mistake(s)", .0.len())]
    Invalid(Vec<Problem>),
    /// The catalog refused or could not be reached.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It is right, and still cannot be deployed.
    #[error("the pipeline cannot be deployed: {0}")]
    NotDeployable(String),
}

/// What came of an apply.
pub(crate) enum Apply {
    /// It would be accepted; nothing was stored.
    Valid(Box<Validated>),
    /// It is the current revision now.
    Done(Box<Applied>),
}

impl Deployer {
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        factory: Factory,
        registry: Arc<Registry>,
        bindings: &Bindings,
        jwt: JwtHost,
        on_change: OnChange,
    ) -> Self {
        Self {
            catalog,
            factory,
            registry,
            bindings: bindings.names(),
            jwt,
            on_change,
            reconciling: tokio::sync::Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Validates a document and, unless this is a dry run, stores and deploys it. When this returns, requests see it.
    pub(crate) async fn apply(
        &self,
        namespace: &Name,
        name: &Name,
        source: &str,
        content_type: &str,
        expected: Expected,
        dry_run: bool,
    ) -> Result<Apply, ApplyError> {
        loop {
            let snapshot = self.catalog.snapshot().await?;
            let host = self.host_state(namespace, name, &snapshot).await?;
            let mut draft = Draft::parse(source);
            if let Some(own) = draft.name().filter(|own| *own != name).cloned() {
                let hint = format!("apply it to pipelines/{own}, or write name: {name}");
                draft.problem(
                    "/name",
                    format!("the document's name is '{own}', the request's '{name}'"),
                    Some(hint),
                );
            }
            let validated = draft
                .validate(namespace, &host)
                .map_err(ApplyError::Invalid)?;
            if dry_run {
                return Ok(Apply::Valid(Box::new(validated)));
            }
            // Everything that can fail is done before anything is stored.
            deploy(
                namespace,
                0,
                &validated.spec,
                &validated.pins,
                &self.factory,
            )
            .await
            .map_err(|error| ApplyError::NotDeployable(error.to_string()))?;
            let new = NewRevision {
                source: source.to_owned(),
                content_type: content_type.to_owned(),
                document: validated.document,
                steps: validated.pins.iter().map(pinned).collect(),
            };
            let precondition = Precondition {
                expected,
                generation: Some(snapshot.generation),
            };
            match self
                .catalog
                .put_pipeline(namespace, name, &new, &precondition)
                .await
            {
                // Somebody changed the catalog meanwhile: what was checked may not hold any more.
                Err(CatalogError::Moved) => continue,
                Err(error) => return Err(error.into()),
                Ok(applied) => {
                    if applied.change != Change::Unchanged {
                        let revision = applied.revision.revision;
                        info!(%namespace, pipeline = %name, revision, "pipeline applied");
                    }
                    self.reconcile().await?;
                    return Ok(Apply::Done(Box::new(applied)));
                }
            }
        }
    }

    /// Makes a new revision of an old one, checked as if it were applied now.
    pub(crate) async fn rollback(
        &self,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected: Expected,
    ) -> Result<Applied, ApplyError> {
        loop {
            let snapshot = self.catalog.snapshot().await?;
            let current = self.catalog.pipeline(namespace, name).await?;
            let number = match to {
                Some(number) => number,
                None => current
                    .revision
                    .checked_sub(1)
                    .filter(|number| *number > 0)
                    .ok_or_else(|| {
                        CatalogError::NotFound(format!(
                            "revision of pipeline {name} before the first"
                        ))
                    })?,
            };
            let old = self
                .catalog
                .pipeline_revision(namespace, name, number)
                .await?;
            // Its route may be taken by now, or a binding gone. What its steps were pinned to stays, so that is what is checked.
            let mut host = self.host_state(namespace, name, &snapshot).await?;
            host.plugins.retain(|known| {
                let mut pins = old
                    .steps
                    .iter()
                    .filter(|step| step.plugin == known.name)
                    .peekable();
                pins.peek().is_none() || pins.any(|step| step.version == known.version)
            });
            let checked = Draft::from_json(&old.document)
                .validate(namespace, &host)
                .map_err(ApplyError::Invalid)?;
            deploy(namespace, 0, &checked.spec, &pins(&old), &self.factory)
                .await
                .map_err(|error| ApplyError::NotDeployable(error.to_string()))?;
            let precondition = Precondition {
                expected,
                generation: Some(snapshot.generation),
            };
            match self
                .catalog
                .rollback_pipeline(namespace, name, Some(number), &precondition)
                .await
            {
                Err(CatalogError::Moved) => continue,
                Err(error) => return Err(error.into()),
                Ok(applied) => {
                    self.reconcile().await?;
                    return Ok(applied);
                }
            }
        }
    }

    /// Removes a pipeline; runs that have started go on.
    pub(crate) async fn delete(
        &self,
        namespace: &Name,
        name: &Name,
        expected: Expected,
    ) -> Result<(), ApplyError> {
        let precondition = Precondition {
            expected,
            generation: None,
        };
        self.catalog
            .delete_pipeline(namespace, name, &precondition)
            .await?;
        info!(%namespace, pipeline = %name, "pipeline removed");
        self.reconcile().await?;
        Ok(())
    }

    /// Deploys what is new or changed in the catalog, drops what is gone, and tells the triggers. A revision that cannot be
    /// deployed is reported, and the one before it stays.
    pub(crate) async fn reconcile(&self) -> Result<(), CatalogError> {
        let _one_at_a_time = self.reconciling.lock().await;
        let snapshot = self.catalog.snapshot().await?;
        let mut changed = false;
        for old in self.registry.all() {
            let stays = snapshot
                .pipelines
                .iter()
                .any(|revision| revision.namespace == old.namespace && revision.name == old.name);
            if !stays {
                self.registry.remove(&old.namespace, &old.name);
                changed = true;
            }
        }
        let wanted: Vec<PipelineRevision> = snapshot
            .pipelines
            .into_iter()
            .filter(|revision| {
                self.registry
                    .get(&revision.namespace, &revision.name)
                    .is_none_or(|deployed| deployed.revision != revision.revision)
            })
            .collect();
        let mut failures = BTreeMap::new();
        let mut results = futures::stream::iter(wanted)
            .map(|revision| async move {
                let prepared = self.prepare(&revision).await;
                (revision, prepared)
            })
            .buffer_unordered(CONCURRENCY);
        while let Some((revision, result)) = results.next().await {
            match result {
                Ok(deployment) => {
                    self.registry.put(Arc::new(deployment));
                    changed = true;
                }
                Err(reason) => {
                    let (name, number) = (&revision.name, revision.revision);
                    error!(pipeline = %name, revision = number, reason, "revision not deployed");
                    failures.insert(
                        format!("{}/{name} revision {number}", revision.namespace),
                        reason,
                    );
                }
            }
        }
        drop(results);
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = failures;
        if changed {
            (self.on_change)(&self.registry.all());
        }
        Ok(())
    }

    async fn prepare(&self, revision: &PipelineRevision) -> Result<Deployment, String> {
        let spec = Draft::from_json(&revision.document)
            .finish()
            .map_err(|problems| {
                let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
                format!(
                    "this program does not accept its document: {}",
                    shown.join("; ")
                )
            })?;
        deploy(
            &revision.namespace,
            revision.revision,
            &spec,
            &pins(revision),
            &self.factory,
        )
        .await
        .map_err(|error| error.to_string())
    }

    /// Follows the catalog until `stop`: other hosts change it too, and it may be away for a while.
    pub(crate) async fn follow(&self, stop: CancellationToken) {
        let mut changes = self.catalog.changes();
        let mut retry = Duration::from_millis(200);
        loop {
            match self.reconcile().await {
                Ok(()) => {
                    retry = Duration::from_millis(200);
                    let retry_failures = async {
                        if self.failures().is_empty() {
                            std::future::pending::<()>().await;
                        }
                        // What a revision lacks may come back: bytes, a database, room in memory.
                        tokio::time::sleep(Duration::from_secs(15)).await;
                    };
                    tokio::select! {
                        () = stop.cancelled() => return,
                        changed = changes.changed() => if changed.is_err() { return },
                        () = retry_failures => {}
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot read the catalog; what is deployed goes on");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(retry) => {}
                    }
                    retry = (retry * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// Revisions that could not be deployed, and why.
    pub(crate) fn failures(&self) -> BTreeMap<String, String> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn host_state(
        &self,
        namespace: &Name,
        name: &Name,
        snapshot: &Snapshot,
    ) -> Result<HostState, CatalogError> {
        let plugins = self.catalog.plugin_versions(namespace).await?;
        Ok(HostState {
            plugins: plugins
                .into_iter()
                .map(|plugin| KnownPlugin {
                    name: plugin.name,
                    version: plugin.version,
                    digest: plugin.digest,
                    world: plugin.world,
                    imports: plugin.imports,
                })
                .collect(),
            bindings: self.bindings.clone(),
            jwt: self.jwt.clone(),
            pipelines: snapshot
                .pipelines
                .iter()
                .filter(|other| (&other.namespace, &other.name) != (namespace, name))
                .map(|other| KnownPipeline {
                    namespace: other.namespace.clone(),
                    name: other.name.clone(),
                    triggers: Draft::from_json(&other.document)
                        .triggers()
                        .cloned()
                        .collect(),
                })
                .collect(),
        })
    }
}

fn pinned(pin: &Pin) -> PinnedStep {
    PinnedStep {
        id: pin.step.clone(),
        plugin: pin.plugin.clone(),
        version: pin.version.clone(),
        digest: pin.digest,
    }
}

fn pins(revision: &PipelineRevision) -> Vec<Pin> {
    revision
        .steps
        .iter()
        .map(|step| Pin {
            step: step.id.clone(),
            plugin: step.plugin.clone(),
            version: step.version.clone(),
            digest: step.digest,
        })
        .collect()
}
