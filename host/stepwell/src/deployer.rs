//! Keeps what is deployed the same as what the catalog says.

mod change;
mod checks;
mod follow;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell_catalog::{Catalog, PipelineRevision};
use stepwell_core::{BindingKind, Digest};
use stepwell_pipeline::{Deployment, JwtHost, Pin, Registry};

use crate::ahead::{Ahead, Key};
use crate::config::Bindings;
use crate::factory::Factory;
use crate::reach::Reach;
use crate::refusals::Refusals;
use crate::taken::Taken;

pub(crate) use self::change::{Apply, ApplyError, Wanted};

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
    /// Documents that want what is not for their namespace.
    refusals: Refusals,
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
        let refusals = Refusals::new(catalog.clone());
        Self {
            catalog,
            factory,
            registry,
            bindings: bindings.names(),
            reach: Reach::default(),
            refusals,
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
}

/// What a revision's steps are pinned to.
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
