//! Keeps what is deployed the same as what the catalog says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use stepwell_catalog::{
    Applied, Catalog, CatalogError, Change, Expected, NewRevision, Page, PinnedStep,
    PipelineRevision, Precondition,
};
use stepwell_core::{BindingKind, Digest, Name, Principal, Problem, show_duration};
use stepwell_pipeline::{
    Deployment, Draft, HostState, JwtHost, KnownPipeline, KnownPlugin, Pin, PipelineSpec, Registry,
    Subscriptions, Validated, deploy,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::ahead::{Ahead, Key};
use crate::config::Bindings;
use crate::factory::Factory;
use crate::reach::Reach;
use crate::taken::{Taken, subscriptions};
use crate::waiting::{Caller, Waited};

/// Told of every deployment whenever one has changed.
pub(crate) type OnChange = Box<dyn Fn(&[Arc<Deployment>]) + Send + Sync>;

/// Validates and applies pipelines, and deploys whatever the catalog holds, whoever changed it.
pub(crate) struct Deployer {
    catalog: Arc<Catalog>,
    factory: Factory,
    registry: Arc<Registry>,
    bindings: Vec<(BindingKind, String)>,
    /// Who may use them, and which names of Kafka.
    reach: Reach,
    jwt: JwtHost,
    /// How many Kafka triggers there may be.
    subscriptions: usize,
    /// Told of all deployments after every change: the triggers.
    on_change: OnChange,
    ahead: Ahead,
    /// One change at a time: each works on what the one before left.
    known: tokio::sync::Mutex<Known>,
    /// What is deployed is made of.
    components: Mutex<BTreeMap<Key, Vec<Digest>>>,
    /// Revisions that could not be deployed, and why.
    failures: Mutex<BTreeMap<Key, (u64, String)>>,
    /// Why what is deployed may not be what the catalog says.
    behind: Mutex<Option<String>>,
}

/// What the catalog said last: each look at it asks for what is new since then.
#[derive(Default)]
struct Known {
    generation: Option<u64>,
    /// What every current revision is started by, deployed or not.
    taken: Taken,
    /// Current revisions that could not be deployed: they are tried again.
    undeployed: BTreeMap<Key, PipelineRevision>,
    /// Whether the triggers know of everything that is deployed.
    told: bool,
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
    /// Somebody else changed the pipeline while this change waited.
    #[error(
        "the pipeline was changed while the components of this change were made ready ({}): look at what it is now, and apply again",
        .0.map_or_else(|| "it was deleted".to_owned(), |revision| format!("it is at revision {revision}"))
    )]
    Overtaken(Option<u64>),
    /// The components, or the changes before this one, took too long.
    #[error(
        "the pipeline could not be deployed within {}, five times limits.compile: its components are not ready yet, apply again later",
        show_duration(*.0)
    )]
    TooSlow(Duration),
    /// Nobody waits for it any more.
    #[error("the caller is gone")]
    Abandoned,
}

/// A document to apply.
pub(crate) struct Wanted {
    pub(crate) source: String,
    /// `application/yaml` or `application/json`.
    pub(crate) content_type: &'static str,
    /// The state that its pipeline must be in.
    pub(crate) expected: Expected,
    /// Validate only.
    pub(crate) dry_run: bool,
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
        ahead: Ahead,
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
            reach: Reach::default(),
            jwt,
            subscriptions: usize::MAX,
            on_change,
            ahead,
            known: tokio::sync::Mutex::default(),
            components: Mutex::default(),
            failures: Mutex::default(),
            behind: Mutex::default(),
        }
    }

    /// The same with at most this many Kafka triggers in all pipelines.
    pub(crate) fn with_subscriptions(self, subscriptions: usize) -> Self {
        Self {
            subscriptions,
            ..self
        }
    }

    /// The same for namespaces that may not use everything.
    pub(crate) fn with_reach(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// Who may use what all share.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Validates a document and, unless this is a dry run, stores and deploys it. When this returns, requests see it.
    pub(crate) async fn apply(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        wanted: &Wanted,
        caller: &Caller,
    ) -> Result<Apply, ApplyError> {
        let mut waited = Waited::default();
        loop {
            // Read before anybody has to wait for it.
            let mut draft = Draft::parse(&wanted.source);
            let mut known = caller.wait(self.known.lock()).await?;
            self.refresh(&mut known).await?;
            let host = self.host_state(namespace, name, &known, &draft).await?;
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
            if wanted.dry_run {
                return Ok(Apply::Valid(Box::new(validated)));
            }
            // Everything that can fail is done before anything is stored; what takes long, while others may change the catalog.
            if !self.are_ready(&validated.pins, &waited) {
                waited.begin(self.current(namespace, name).await?);
                drop(known);
                let pins = &validated.pins;
                let made = self.make_ready(pins, caller, &mut waited).await;
                self.unless_gone(namespace, pins, made).await?;
                continue;
            }
            let (spec, pins) = (&validated.spec, &validated.pins);
            if let Err(error) = self.try_deploy(namespace, spec, pins).await {
                self.unless_gone(namespace, pins, Err(error)).await?;
                continue;
            }
            let new = NewRevision {
                source: wanted.source.clone(),
                content_type: wanted.content_type.to_owned(),
                document: validated.document,
                steps: validated.pins.iter().map(pinned).collect(),
            };
            let precondition = Precondition {
                expected: waited.expected(wanted.expected),
                generation: known.generation,
            };
            caller.still_waits()?;
            match self
                .catalog
                .by(by)
                .put_pipeline(namespace, name, &new, &precondition)
                .await
            {
                // Somebody changed the catalog meanwhile: what was checked may not hold any more.
                Err(CatalogError::Moved) => continue,
                Err(error) => return Err(waited.error(wanted.expected, error)),
                Ok(applied) => {
                    if applied.change != Change::Unchanged {
                        let revision = applied.revision.revision;
                        info!(%namespace, pipeline = %name, revision, "pipeline applied");
                    }
                    self.refresh(&mut known).await?;
                    return Ok(Apply::Done(Box::new(applied)));
                }
            }
        }
    }

    /// Makes a new revision of an old one, checked as if it were applied now.
    pub(crate) async fn rollback(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected: Expected,
        caller: &Caller,
    ) -> Result<Applied, ApplyError> {
        let mut waited = Waited::default();
        loop {
            let mut known = caller.wait(self.known.lock()).await?;
            self.refresh(&mut known).await?;
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
            let draft = Draft::from_json(&old.document);
            let mut host = self.host_state(namespace, name, &known, &draft).await?;
            let is_there = |step: &PinnedStep| {
                host.plugins.iter().any(|known| {
                    (&known.name, &known.version, known.digest)
                        == (&step.plugin, &step.version, step.digest)
                })
            };
            let gone: Vec<PinnedStep> = old
                .steps
                .iter()
                .filter(|step| !is_there(step))
                .cloned()
                .collect();
            if !gone.is_empty() {
                return Err(CatalogError::PluginsGone(gone).into());
            }
            host.plugins.retain(|known| {
                let mut pins = old
                    .steps
                    .iter()
                    .filter(|step| step.plugin == known.name)
                    .peekable();
                pins.peek().is_none() || pins.any(|step| step.version == known.version)
            });
            let checked = draft
                .validate(namespace, &host)
                .map_err(ApplyError::Invalid)?;
            if !self.are_ready(&pins(&old), &waited) {
                waited.begin(Some(current.revision));
                drop(known);
                let made = self.make_ready(&pins(&old), caller, &mut waited).await;
                self.unless_gone(namespace, &pins(&old), made).await?;
                continue;
            }
            let deployed = self.try_deploy(namespace, &checked.spec, &pins(&old)).await;
            if deployed.is_err() {
                self.unless_gone(namespace, &pins(&old), deployed).await?;
                continue;
            }
            let precondition = Precondition {
                expected: waited.expected(expected),
                generation: known.generation,
            };
            caller.still_waits()?;
            match self
                .catalog
                .by(by)
                .rollback_pipeline(namespace, name, Some(number), &precondition)
                .await
            {
                Err(CatalogError::Moved) => continue,
                Err(error) => return Err(waited.error(expected, error)),
                Ok(applied) => {
                    self.refresh(&mut known).await?;
                    return Ok(applied);
                }
            }
        }
    }

    /// Removes a pipeline; runs that have started go on.
    pub(crate) async fn delete(
        &self,
        by: &Principal,
        namespace: &Name,
        name: &Name,
        expected: Expected,
    ) -> Result<(), ApplyError> {
        let precondition = Precondition {
            expected,
            generation: None,
        };
        self.catalog
            .by(by)
            .delete_pipeline(namespace, name, &precondition)
            .await?;
        info!(%namespace, pipeline = %name, "pipeline removed");
        self.reconcile().await?;
        Ok(())
    }

    /// Deploys what is new or changed in the catalog, drops what is gone, and tells the triggers. A revision that cannot be
    /// deployed is reported, and the one before it stays.
    pub(crate) async fn reconcile(&self) -> Result<(), CatalogError> {
        let mut known = self.known.lock().await;
        let result = self.refresh(&mut known).await;
        let behind = result.as_ref().err().map(ToString::to_string);
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner) = behind;
        result
    }

    /// Why what is deployed may not be what the catalog says; none: it is.
    pub(crate) fn behind(&self) -> Option<String> {
        let behind = self.behind.lock();
        behind.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(&self, known: &mut Known) -> Result<(), CatalogError> {
        let snapshot = self.catalog.snapshot(known.generation).await?;
        let gone: Vec<Key> = if snapshot.complete {
            let there: BTreeSet<(&Name, &Name)> = snapshot
                .pipelines
                .iter()
                .map(|revision| (&revision.namespace, &revision.name))
                .chain(
                    snapshot
                        .unreadable
                        .iter()
                        .map(|one| (&one.namespace, &one.name)),
                )
                .collect();
            let missing = |key: &&Key| !there.contains(&(&key.0, &key.1));
            known.taken.keys().filter(missing).cloned().collect()
        } else {
            snapshot.deleted
        };
        for key in gone {
            known.taken.remove(&key);
            known.undeployed.remove(&key);
            self.ahead.remove(&key);
            self.failed().remove(&key);
            // What fails below is tried again, and then this one is gone already.
            self.components().remove(&key);
            known.told &= !self.registry.remove(&key.0, &key.1);
        }
        for one in snapshot.unreadable {
            let (number, reason) = (one.revision, one.reason);
            error!(namespace = %one.namespace, pipeline = %one.name, revision = number, reason, "revision not deployed");
            let key = (one.namespace, one.name);
            known.undeployed.remove(&key);
            self.failed().insert(key, (number, reason));
        }
        let mut wanted = std::mem::take(&mut known.undeployed);
        for revision in snapshot.pipelines {
            let key = (revision.namespace.clone(), revision.name.clone());
            wanted.insert(key, revision);
        }
        let digests: Vec<Digest> = wanted
            .values()
            .flat_map(|revision| revision.steps.iter().map(|step| step.digest))
            .collect();
        if let Err(error) = self.factory.learn_all(&digests).await {
            known.undeployed = wanted;
            return Err(error);
        }
        for (key, revision) in wanted {
            let draft = Draft::from_json(&revision.document);
            known.taken.insert(key.clone(), triggers(&key, &draft));
            let deployed = self.registry.get(&key.0, &key.1);
            if deployed.is_some_and(|deployed| deployed.revision == revision.revision) {
                continue;
            }
            match self.prepare(&revision, draft).await {
                Ok(deployment) => {
                    self.registry.put(Arc::new(deployment));
                    known.told = false;
                    self.failed().remove(&key);
                    let components: Vec<Digest> =
                        revision.steps.iter().map(|step| step.digest).collect();
                    self.components().insert(key.clone(), components.clone());
                    self.ahead.add(key, revision.revision, components);
                }
                Err(reason) => {
                    let number = revision.revision;
                    error!(pipeline = %key.1, revision = number, reason, "revision not deployed");
                    self.failed().insert(key.clone(), (number, reason));
                    known.undeployed.insert(key, revision);
                }
            }
        }
        known.generation = Some(snapshot.generation);
        if !known.told {
            (self.on_change)(&self.registry.all());
            known.told = true;
        }
        Ok(())
    }

    async fn prepare(
        &self,
        revision: &PipelineRevision,
        draft: Draft,
    ) -> Result<Deployment, String> {
        let spec = draft.finish().map_err(|problems| {
            let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!(
                "this program does not accept its document: {}",
                shown.join("; ")
            )
        })?;
        self.reach.check(&revision.namespace, &spec)?;
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

    fn are_ready(&self, pins: &[Pin], waited: &Waited) -> bool {
        pins.iter()
            .all(|pin| waited.has_made(&pin.digest) || self.factory.is_ready(&pin.digest))
    }

    /// Makes components ready, as long as somebody waits for them.
    async fn make_ready(
        &self,
        pins: &[Pin],
        caller: &Caller,
        waited: &mut Waited,
    ) -> Result<(), ApplyError> {
        for pin in pins {
            let ready = caller.wait(self.factory.prepare(pin.digest)).await?;
            ready.map_err(|error| {
                ApplyError::NotDeployable(format!(
                    "step '{}' cannot be prepared: {error}",
                    pin.step
                ))
            })?;
        }
        waited.made(pins.iter().map(|pin| pin.digest));
        Ok(())
    }

    /// Whether it could be deployed.
    async fn try_deploy(
        &self,
        namespace: &Name,
        spec: &PipelineSpec,
        pins: &[Pin],
    ) -> Result<(), ApplyError> {
        let deployed = deploy(namespace, 0, spec, pins, &self.factory).await;
        deployed
            .map(drop)
            .map_err(|error| ApplyError::NotDeployable(error.to_string()))
    }

    /// Nothing, where a change could not be deployed because a plugin version that it was pinned to was deleted meanwhile: it is
    /// checked once more then, and is told what it lacks.
    async fn unless_gone(
        &self,
        namespace: &Name,
        pins: &[Pin],
        deployed: Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        if !matches!(deployed, Err(ApplyError::NotDeployable(_))) {
            return deployed;
        }
        for pin in pins {
            let (plugin, version) = (&pin.plugin, &pin.version);
            match self
                .catalog
                .plugin_version(namespace, plugin, version)
                .await
            {
                Ok(stored) if stored.digest == pin.digest => {}
                Ok(_) | Err(CatalogError::NotFound(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        deployed
    }

    /// The pipeline's current revision; none: it does not exist.
    async fn current(&self, namespace: &Name, name: &Name) -> Result<Option<u64>, CatalogError> {
        match self.catalog.pipeline(namespace, name).await {
            Ok(current) => Ok(Some(current.revision)),
            Err(CatalogError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Follows the catalog until `stop`: other hosts change it too, and it may be away for a while.
    pub(crate) async fn follow(&self, stop: CancellationToken) {
        tokio::select! {
            () = self.follow_changes(stop) => {}
            () = self.ahead.work() => {}
        }
    }

    async fn follow_changes(&self, stop: CancellationToken) {
        let mut changes = self.catalog.changes();
        let mut retry = Duration::from_millis(200);
        loop {
            match self.reconcile().await {
                Ok(()) => {
                    retry = Duration::from_millis(200);
                    self.ahead.retry();
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

    /// Revisions that could not be deployed, or cannot be called, and why.
    pub(crate) fn failures(&self) -> BTreeMap<String, String> {
        let mut failures = self.ahead.failures();
        failures.extend(self.failed().clone());
        failures
            .into_iter()
            .map(|((namespace, name), (revision, reason))| {
                (format!("{namespace}/{name} revision {revision}"), reason)
            })
            .collect()
    }

    /// Whether something that is deployed here is made of this component.
    pub(crate) fn uses(&self, digest: &Digest) -> bool {
        let components = self.components();
        components.values().any(|digests| digests.contains(digest))
    }

    /// Forgets a component that nobody has any more.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.factory.forget(digest);
    }

    fn components(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<Digest>>> {
        self.components
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<Key, (u64, String)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the host's subscriptions; none: the document has no more of them than its pipeline has already.
    async fn room(
        &self,
        own: &Key,
        known: &Known,
        draft: &Draft,
    ) -> Result<Option<Subscriptions>, CatalogError> {
        let wanted = draft.kafka_triggers();
        let before = known.taken.get(own);
        if wanted <= before.map_or(0, |before| subscriptions(before)) {
            return Ok(None);
        }
        let (taken, by_namespace) = known.taken.subscriptions_beside(own);
        let most = self.subscriptions;
        let mut free = most.saturating_sub(taken);
        let share = Subscriptions::share(most).saturating_sub(by_namespace);
        if wanted > share {
            let two = Page {
                limit: 2,
                cursor: None,
            };
            if self.catalog.namespaces(&two).await?.items.len() > 1 {
                free = free.min(share);
            }
        }
        if wanted > free {
            counter!("stepwell_limit_hits_total", "limit" => "subscriptions").increment(1);
        }
        Ok(Some(Subscriptions { free, most }))
    }

    /// The bindings that a namespace may use: of others it learns nothing.
    fn bindings_of(&self, namespace: &Name) -> Vec<(BindingKind, String)> {
        let all = self.bindings.iter();
        all.filter(|(kind, name)| self.reach.includes(namespace, *kind, name))
            .cloned()
            .collect()
    }

    /// What a document is checked against: the plugins that it names, and the other pipelines that may be in its way.
    async fn host_state(
        &self,
        namespace: &Name,
        name: &Name,
        known: &Known,
        draft: &Draft,
    ) -> Result<HostState, CatalogError> {
        let mut plugins = Vec::new();
        for plugin in draft.plugins() {
            match self.catalog.plugin(namespace, &plugin).await {
                Ok(plugin) => plugins.extend(plugin.versions),
                // All of them, for a hint at the one that was meant.
                Err(CatalogError::NotFound(_)) => {
                    plugins = self.catalog.plugin_versions(namespace).await?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        for plugin in &plugins {
            self.factory.learn(plugin.digest, &plugin.world);
        }
        let own = (namespace.clone(), name.clone());
        let subscriptions = self.room(&own, known, draft).await?;
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
            bindings: self.bindings_of(namespace),
            kafka: self.reach.kafka.clone(),
            jwt: self.jwt.clone(),
            subscriptions,
            pipelines: known.taken.beside(&own, draft.triggers()),
        })
    }
}

fn triggers(key: &Key, draft: &Draft) -> KnownPipeline {
    KnownPipeline {
        namespace: key.0.clone(),
        name: key.1.clone(),
        triggers: draft.triggers().cloned().collect(),
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
