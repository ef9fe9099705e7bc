use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::binding::Binding;
use crate::client::{Health, VectorStore};
use crate::config::{VectorBackend, VectorBindingConfig};
use crate::limits::Shape;
use crate::local::LocalStore;
use crate::pinecone::{Budgets, PineconeStore};
use crate::unusable::Unusable;

const PROBE_TIME: Duration = Duration::from_secs(2);
/// Calls under way at once on one service.
const PINECONE_PERMITS: usize = 64;

/// Every configured index, for the life of the process.
pub struct Vectors {
    bindings: BTreeMap<String, Arc<Binding>>,
}

/// One index in a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingState {
    /// The operator's name for it.
    pub name: String,
    /// `local` or `pinecone`.
    pub backend: &'static str,
    /// Whether it can be used.
    pub health: Health,
}

impl Vectors {
    /// Opens every index. One that cannot be used does not stop the others: its calls answer `unavailable`, its state says
    /// why, and it is tried again as it is used and probed.
    pub async fn open(data_dir: &Path, bindings: BTreeMap<String, VectorBindingConfig>) -> Self {
        let budgets = Budgets::default();
        let bindings = bindings
            .into_iter()
            .map(|(name, config)| {
                let binding = Arc::new(binding(data_dir, &name, config, &budgets));
                (name, binding)
            })
            .collect();
        let vectors = Self { bindings };
        // A file may take longer to load than a service to answer, and is worth waiting for.
        let until = Instant::now() + Duration::from_secs(60);
        join_all(vectors.bindings.values().map(|binding| async {
            let patience = match binding.backend() {
                "local" => until,
                _ => Instant::now() + PROBE_TIME,
            };
            binding.probe(patience).await
        }))
        .await;
        vectors
    }

    /// An index by the operator's name, for use inside the host: the same limits hold, and no grant is asked for.
    pub fn store(&self, name: &str) -> Option<Arc<dyn VectorStore>> {
        self.bindings
            .get(name)
            .map(|binding| Arc::clone(binding) as Arc<dyn VectorStore>)
    }

    /// The state of every index as the last call or probe saw it.
    pub fn state(&self) -> Vec<BindingState> {
        self.bindings
            .iter()
            .map(|(name, binding)| BindingState {
                name: name.clone(),
                backend: binding.backend(),
                health: binding.health(),
            })
            .collect()
    }

    /// The state of every index, found out by trying, within two seconds.
    pub async fn probe(&self) -> Vec<BindingState> {
        let deadline = Instant::now() + PROBE_TIME;
        join_all(
            self.bindings
                .values()
                .map(|binding| binding.probe(deadline)),
        )
        .await;
        self.state()
    }

    /// Finishes accepted writes and closes every index.
    pub async fn close(&self) {
        join_all(self.bindings.values().map(|binding| binding.close())).await;
    }
}

fn binding(data_dir: &Path, name: &str, config: VectorBindingConfig, budgets: &Budgets) -> Binding {
    let mut mistakes = config.mistakes();
    // The name becomes a file's.
    if name.parse::<stepwell_core::Name>().is_err() {
        mistakes.push(("name", "is not a name".into()));
    }
    let shape = Shape {
        dimension: config.dimension,
        metric: config.metric,
    };
    let label: Arc<str> = Arc::from(name);
    let backend = config.backend.as_str();
    let (store, permits): (Arc<dyn VectorStore>, usize) =
        if let Some((key, mistake)) = mistakes.first() {
            let reason = format!("it is configured wrongly: {key} {mistake}");
            (Arc::new(Unusable(reason)), 1)
        } else {
            match config.backend {
                VectorBackend::Local => {
                    let path = data_dir.join("vectors").join(format!("{name}.sqlite"));
                    let cores = std::thread::available_parallelism().map_or(2, usize::from);
                    (
                        Arc::new(LocalStore::new(Arc::clone(&label), path, shape)),
                        cores * 8,
                    )
                }
                VectorBackend::Pinecone {
                    host,
                    api_key,
                    namespace,
                } => {
                    match PineconeStore::new(
                        Arc::clone(&label),
                        &host,
                        &api_key,
                        namespace,
                        shape,
                        budgets,
                    ) {
                        Ok(store) => (Arc::new(store), PINECONE_PERMITS),
                        Err(reason) => (Arc::new(Unusable(reason)), 1),
                    }
                }
            }
        };
    Binding::new(label, backend, shape, store, permits)
}
