//! Deploys what the catalog holds, whoever changed it.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use stepwell_catalog::{CatalogError, PipelineRevision};
use stepwell_core::{Digest, Name};
use stepwell_pipeline::{Deployment, Draft, KnownPipeline, deploy};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::ahead::Key;

use super::{Deployer, Known, pins};

impl Deployer {
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

    pub(super) async fn refresh(&self, known: &mut Known) -> Result<(), CatalogError> {
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
}

fn triggers(key: &Key, draft: &Draft) -> KnownPipeline {
    KnownPipeline {
        namespace: key.0.clone(),
        name: key.1.clone(),
        triggers: draft.triggers().cloned().collect(),
    }
}
