//! How the host and everything it depends on are, for `/readyz`, `/api/v1/bindings` and `doctor`.

use std::sync::Arc;
use std::time::Duration;

use stepwell_api::{Binding, Part, Readiness, State};
use stepwell_catalog::Catalog;
use stepwell_inference::{Health as ModelHealth, LibraryStatus};
use stepwell_kafka_trigger::KafkaTriggers;
use stepwell_vector::Health as VectorHealth;
use tokio_util::sync::CancellationToken;

use crate::deployer::Deployer;
use crate::services::Services;
use crate::tls::LiveTls;

/// Longest that one look at everything takes.
const LIMIT: Duration = Duration::from_secs(4);

/// What readiness is asked of.
pub(crate) struct Health {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) services: Arc<Services>,
    pub(crate) kafka: Arc<KafkaTriggers>,
    pub(crate) deployer: Arc<Deployer>,
    /// The certificates of the listeners that have one.
    pub(crate) tls: Vec<Arc<LiveTls>>,
    pub(crate) stopping: CancellationToken,
}

impl Health {
    /// Every part. The host as a whole is `down` only while it stops: what it depends on may be away, and pipelines that do
    /// not need it go on.
    pub(crate) async fn readiness(&self) -> Readiness {
        let mut parts = vec![self.catalog().await];
        parts.extend(self.pipelines());
        parts.extend(self.subscriptions());
        for live in &self.tls {
            let part = live.part();
            // Both listeners may have the same files.
            if !parts.iter().any(|known: &Part| known.name == part.name) {
                parts.push(part);
            }
        }
        for binding in self.bindings().await {
            parts.push(Part {
                name: format!("{}/{}", binding.kind, binding.name),
                status: binding.state,
                reason: binding.reason,
            });
        }
        let stopping = self.stopping.is_cancelled();
        if stopping {
            parts.push(part("host", State::Down, Some("shutting down".into())));
        }
        let all_ok = parts.iter().all(|part| part.status == State::Ok);
        let status = match (stopping, all_ok) {
            (true, _) => State::Down,
            (false, true) => State::Ok,
            (false, false) => State::Degraded,
        };
        Readiness { status, parts }
    }

    async fn catalog(&self) -> Part {
        match self.catalog.ping().await {
            Ok(_) => part("catalog", State::Ok, None),
            Err(error) => part("catalog", State::Down, Some(error.to_string())),
        }
    }

    fn pipelines(&self) -> Vec<Part> {
        let failures = self.deployer.failures();
        if failures.is_empty() {
            return vec![part("pipelines", State::Ok, None)];
        }
        let reasons: Vec<String> = failures
            .iter()
            .map(|(name, reason)| format!("{name}: {reason}"))
            .collect();
        vec![part("pipelines", State::Degraded, Some(reasons.join("; ")))]
    }

    fn subscriptions(&self) -> Vec<Part> {
        self.kafka
            .state()
            .into_iter()
            .map(|subscription| {
                let name = format!("kafka/{}", subscription.group);
                match subscription.error {
                    None => part(&name, State::Ok, None),
                    Some(error) => part(&name, State::Degraded, Some(error)),
                }
            })
            .collect()
    }

    /// Every binding, in the order of kinds and names.
    pub(crate) async fn bindings(&self) -> Vec<Binding> {
        bindings(&self.services).await
    }
}

/// Every binding, in the order of kinds and names.
pub(crate) async fn bindings(services: &Services) -> Vec<Binding> {
    let (vectors, keyvalues, databases) = tokio::join!(
        tokio::time::timeout(LIMIT, services.vectors.probe()),
        tokio::time::timeout(LIMIT, services.keyvalues.state()),
        tokio::time::timeout(LIMIT, services.databases.state()),
    );
    let mut all = Vec::new();
    for model in services.models.bindings() {
        let state = match (&model.served, services.models.health()) {
            (Some(_), _) => State::Ok,
            (None, ModelHealth::Loading) => State::Degraded,
            (None, _) => State::Down,
        };
        // A missing library is the reason of all the others.
        let reason = match services.models.library() {
            LibraryStatus::Missing { reason } if state == State::Down => Some(reason),
            _ => model.reason,
        };
        all.push(binding("models", model.name, "tensorflow", state, reason));
    }
    for vector in vectors.unwrap_or_else(|_| services.vectors.state()) {
        let (state, reason) = match vector.health {
            VectorHealth::Ok => (State::Ok, None),
            VectorHealth::Degraded(reason) => (State::Degraded, Some(reason)),
            VectorHealth::Down(reason) => (State::Down, Some(reason)),
        };
        all.push(binding(
            "vectors",
            vector.name,
            vector.backend,
            state,
            reason,
        ));
    }
    for store in keyvalues.unwrap_or_default() {
        all.push(binding(
            "keyvalue",
            store.name,
            store.backend,
            up_or_down(&store.down),
            store.down,
        ));
    }
    for database in databases.unwrap_or_default() {
        all.push(binding(
            "sql",
            database.name,
            database.backend,
            up_or_down(&database.down),
            database.down,
        ));
    }
    all
}

fn up_or_down(down: &Option<String>) -> State {
    match down {
        None => State::Ok,
        Some(_) => State::Down,
    }
}

fn binding(
    kind: &str,
    name: String,
    backend: &str,
    state: State,
    reason: Option<String>,
) -> Binding {
    Binding {
        kind: kind.to_owned(),
        name,
        backend: backend.to_owned(),
        state,
        reason,
    }
}

fn part(name: &str, status: State, reason: Option<String>) -> Part {
    Part {
        name: name.to_owned(),
        status,
        reason,
    }
}
