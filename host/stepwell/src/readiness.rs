//! How the host and everything it depends on are, for `/readyz`, `/api/v1/bindings` and `doctor`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_api::{Binding, Part, Readiness, State};
use stepwell_catalog::Catalog;
use stepwell_inference::{Health as ModelHealth, LibraryStatus};
use stepwell_kafka_trigger::KafkaTriggers;
use stepwell_vector::Health as VectorHealth;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::deployer::Deployer;
use crate::services::Services;
use crate::tls::LiveTls;

/// Longest that one look at everything takes.
const LIMIT: Duration = Duration::from_secs(4);

/// For so long one look at everything serves all who ask: whoever may ask for nothing else must not make work for others.
const FRESH: Duration = Duration::from_secs(2);

/// What readiness is asked of.
pub(crate) struct Health {
    pub(crate) remote: Remote,
    pub(crate) kafka: Arc<KafkaTriggers>,
    pub(crate) deployer: Arc<Deployer>,
    /// The certificates of the listeners that have one.
    pub(crate) tls: Vec<Arc<LiveTls>>,
    pub(crate) stopping: CancellationToken,
}

impl Health {
    /// Every part. The host as a whole is `down` only while it stops: what it depends on may be away, and pipelines that do
    /// not need it go on. Without names, what belongs to namespaces is counted.
    pub(crate) async fn readiness(&self, with_names: bool) -> Readiness {
        let Seen { catalog, bindings } = self.remote.seen().await;
        let mut parts = vec![catalog];
        let behind = self.deployer.behind();
        parts.push(pipelines(&self.deployer.failures(), behind, with_names));
        let subscriptions = self.kafka.state().into_iter();
        let errors = subscriptions.map(|one| (one.group, one.error));
        parts.extend(subscriptions_of(errors.collect(), with_names));
        for live in &self.tls {
            let part = live.part();
            // Both listeners may have the same files.
            if !parts.iter().any(|known: &Part| known.name == part.name) {
                parts.push(part);
            }
        }
        for binding in bindings {
            parts.push(Part {
                name: format!("{}/{}", binding.kind, binding.name),
                status: binding.state,
                reason: binding.reason,
            });
        }
        // What the host itself does is asked last, and each time: a load balancer acts on it.
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

    /// Every binding, in the order of kinds and names.
    pub(crate) async fn bindings(&self) -> Vec<Binding> {
        self.remote.seen().await.bindings
    }
}

/// What the host depends on, as it was seen last.
pub(crate) struct Remote {
    catalog: Arc<Catalog>,
    services: Arc<Services>,
    last: Shared<Seen>,
}

#[derive(Clone)]
struct Seen {
    catalog: Part,
    bindings: Vec<Binding>,
}

impl Remote {
    pub(crate) fn new(catalog: Arc<Catalog>, services: Arc<Services>) -> Self {
        Self {
            catalog,
            services,
            last: Shared::default(),
        }
    }

    async fn seen(&self) -> Seen {
        let (catalog, services) = (self.catalog.clone(), self.services.clone());
        let look = async move {
            let catalog = async {
                if let Err(error) = catalog.ping().await {
                    return part("catalog", State::Down, Some(error.to_string()));
                }
                match catalog.check_writes().await {
                    Ok(()) => part("catalog", State::Ok, None),
                    Err(error) => {
                        let reason = format!("changes cannot be stored: {error}");
                        part("catalog", State::Degraded, Some(reason))
                    }
                }
            };
            let (catalog, bindings) = tokio::join!(catalog, bindings(&services));
            Seen { catalog, bindings }
        };
        match self.last.get(look).await {
            Some(seen) => seen,
            // Only while the runtime ends.
            None => Seen {
                catalog: part("catalog", State::Down, Some("it was not asked".into())),
                bindings: Vec::new(),
            },
        }
    }
}

/// What one task found out for all who ask while it is fresh.
struct Shared<T>(Arc<Mutex<Option<(Instant, T)>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + 'static> Shared<T> {
    /// What is fresh, or what `look` finds out. It runs to its end even if whoever asks goes away, so that asking and hanging up
    /// makes no more work than waiting. None when it panicked, or was not run.
    async fn get(&self, look: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let mut last = self.0.clone().lock_owned().await;
        if let Some((_, found)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(found.clone());
        }
        let looking = tokio::spawn(async move {
            let found = look.await;
            *last = Some((Instant::now(), found.clone()));
            found
        });
        looking.await.ok()
    }
}

/// Revisions that cannot be deployed, which `failures` has as `NAMESPACE/PIPELINE revision N`, and why changes are not deployed
/// at all.
fn pipelines(
    failures: &BTreeMap<String, String>,
    behind: Option<String>,
    with_names: bool,
) -> Part {
    if let Some(error) = behind {
        let reason = format!("changes are not deployed: {error}");
        return part("pipelines", State::Degraded, Some(reason));
    }
    let reason = match failures.len() {
        0 => return part("pipelines", State::Ok, None),
        _ if with_names => {
            let reasons = failures
                .iter()
                .map(|(name, reason)| format!("{name}: {reason}"));
            reasons.collect::<Vec<_>>().join("; ")
        }
        1 => "1 revision cannot be deployed".to_owned(),
        count => format!("{count} revisions cannot be deployed"),
    };
    part("pipelines", State::Degraded, Some(reason))
}

/// Subscriptions by their groups, each with its client's last error; without names, all of them as one part.
fn subscriptions_of(all: Vec<(String, Option<String>)>, with_names: bool) -> Vec<Part> {
    let state = |is_ok| if is_ok { State::Ok } else { State::Degraded };
    if with_names || all.is_empty() {
        let parts = all.into_iter().map(|(group, error)| {
            let name = format!("kafka/{group}");
            part(&name, state(error.is_none()), error)
        });
        return parts.collect();
    }
    let failing = all.iter().filter(|(_, error)| error.is_some()).count();
    let reason = (failing > 0).then(|| format!("{failing} of {} subscriptions fail", all.len()));
    vec![part("kafka", state(failing == 0), reason)]
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asks_often_makes_one_look() {
        let shared = Arc::new(Shared::<usize>::default());
        let looks = Arc::new(AtomicUsize::new(0));
        let answers = Arc::new(Semaphore::new(0));
        let look = || {
            let (looks, answers) = (looks.clone(), answers.clone());
            async move {
                answers.acquire().await.unwrap().forget();
                looks.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        // Those who hang up at once, again and again, make no more.
        for _ in 0..20 {
            let asked = tokio::time::timeout(Duration::from_millis(5), shared.get(look()));
            assert!(asked.await.is_err());
        }
        answers.add_permits(100);
        let found = join_all((0..100).map(|_| shared.get(look()))).await;
        assert_eq!(found, vec![Some(1); 100]);
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        tokio::time::sleep(FRESH).await;
        assert_eq!(shared.get(look()).await, Some(2));
    }

    #[test]
    fn names_of_namespaces_pipelines_and_groups_are_told_only_when_asked() {
        let failures: BTreeMap<_, _> = [
            ("team-a/p revision 3", "plugin x is gone"),
            ("team-b/q revision 1", "no"),
        ]
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .into();
        let named = pipelines(&failures, None, true);
        assert_eq!(
            named.reason.as_deref(),
            Some("team-a/p revision 3: plugin x is gone; team-b/q revision 1: no")
        );
        let counted = pipelines(&failures, None, false);
        assert_eq!(
            counted.reason.as_deref(),
            Some("2 revisions cannot be deployed")
        );
        assert_eq!(counted.status, State::Degraded);
        assert_eq!(pipelines(&BTreeMap::new(), None, false).status, State::Ok);
        let behind = pipelines(&BTreeMap::new(), Some("it is locked".to_owned()), false);
        assert_eq!(
            (behind.status, behind.reason.as_deref()),
            (
                State::Degraded,
                Some("changes are not deployed: it is locked")
            )
        );

        let groups = |error: Option<&str>| {
            let failing = ("team-b.q".to_owned(), error.map(str::to_owned));
            vec![("team-a.p".to_owned(), None), failing]
        };
        let named = subscriptions_of(groups(Some("no broker")), true);
        let told = |parts: &[Part]| {
            let parts = parts
                .iter()
                .map(|part| (part.name.clone(), part.status, part.reason.clone()));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(
            told(&named),
            [
                ("kafka/team-a.p".to_owned(), State::Ok, None),
                (
                    "kafka/team-b.q".to_owned(),
                    State::Degraded,
                    Some("no broker".to_owned())
                ),
            ]
        );
        let counted = subscriptions_of(groups(Some("no broker")), false);
        let reason = Some("1 of 2 subscriptions fail".to_owned());
        assert_eq!(
            told(&counted),
            [("kafka".to_owned(), State::Degraded, reason)]
        );
        let counted = subscriptions_of(groups(None), false);
        assert_eq!(told(&counted), [("kafka".to_owned(), State::Ok, None)]);
        assert!(subscriptions_of(Vec::new(), false).is_empty());
    }
}
