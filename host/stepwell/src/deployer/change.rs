//! Changes that somebody asks for: applying a document, going back to a revision, removing a pipeline.

use std::time::Duration;

use stepwell_catalog::{
    Applied, CatalogError, Change, Expected, NewRevision, PinnedStep, Precondition,
};
use stepwell_core::{Name, Principal, Problem, show_duration};
use stepwell_pipeline::{Draft, Pin, PipelineSpec, Validated, deploy};
use tracing::info;

use crate::waiting::{Caller, Waited};

use super::{Deployer, pins};

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
            let withheld = self.reach.withheld(namespace, &draft);
            let validated = match draft.validate(namespace, &host) {
                Ok(validated) => validated,
                Err(problems) => {
                    drop(known);
                    if !withheld.is_empty() {
                        let at = (namespace, name);
                        let refusals = &self.refusals;
                        refusals.of_names(by, "pipeline.apply", at, withheld).await;
                    }
                    return Err(ApplyError::Invalid(problems));
                }
            };
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
}

fn pinned(pin: &Pin) -> PinnedStep {
    PinnedStep {
        id: pin.step.clone(),
        plugin: pin.plugin.clone(),
        version: pin.version.clone(),
        digest: pin.digest,
    }
}
