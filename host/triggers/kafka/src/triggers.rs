use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use stepwell_core::Name;
use stepwell_pipeline::{Deployment, Dispatcher, KafkaTriggerSpec, TriggerSpec};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::{BrokerError, EmbeddedBroker};
use crate::config::{self, Brokers, KafkaConfig};
use crate::context::{Context, Health};
use crate::partition::Shared;
use crate::producer::Producer;
use crate::subscription;
use crate::topics::Topics;
use crate::waiting::Waiting;

/// Every Kafka subscription of this host.
pub struct KafkaTriggers {
    bootstrap: String,
    config: KafkaConfig,
    dispatcher: Arc<Dispatcher>,
    topics: Arc<Topics>,
    runtime: Handle,
    subscriptions: Mutex<Subscriptions>,
}

/// Threads that a subscription takes, and a few that it may start later.
const THREADS: usize = 12;

/// Whether so many threads could be started now: librdkafka waits for ever for one of its own that could not.
fn try_threads() -> std::io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let closed = gate.lock();
        let tried = (0..THREADS).try_for_each(|_| {
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            thread.spawn_scoped(scope, || drop(gate.lock())).map(drop)
        });
        drop(closed);
        tried
    })
}

/// The Kafka side could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The embedded broker did not start.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// librdkafka refuses a setting.
    #[error("[kafka.properties]: {0}")]
    Properties(String),
}

/// One subscription, for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionState {
    /// `namespace/pipeline`.
    pub pipeline: String,
    /// Consumer group.
    pub group: String,
    /// Partitions that this host holds.
    pub partitions: usize,
    /// What is wrong, if anything is.
    pub error: Option<String>,
}

/// A subscription is the same as long as its pipeline's name and its trigger are; a new revision with the same trigger only swaps
/// what its records run on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: Name,
    pipeline: Name,
    trigger: String,
}

#[derive(Default)]
struct Subscriptions {
    running: HashMap<Key, Subscription>,
    /// Those that could not be started. They are tried again.
    failed: HashMap<Key, Failed>,
}

struct Failed {
    deployment: Arc<Deployment>,
    spec: KafkaTriggerSpec,
    reason: String,
}

struct Subscription {
    shared: Arc<Shared>,
    health: Arc<Health>,
    stop: CancellationToken,
    drain: Arc<Mutex<Duration>>,
    thread: std::thread::JoinHandle<()>,
}

impl KafkaTriggers {
    /// Prepares for subscriptions; with [`Brokers::Embedded`] the broker is started here. Call it on the runtime that runs are to run on.
    ///
    /// # Errors
    /// The embedded broker does not start, or librdkafka refuses a property. A broker that is not reachable is no error: the
    /// subscriptions say so and recover by themselves.
    pub fn start(config: KafkaConfig, dispatcher: Arc<Dispatcher>) -> Result<Self, StartError> {
        let (bootstrap, topics) = match &config.brokers {
            Brokers::Embedded => {
                let broker = EmbeddedBroker::start()?;
                (broker.bootstrap().to_owned(), Topics::Embedded(broker))
            }
            Brokers::Servers(servers) => (
                servers.clone(),
                Topics::Broker {
                    bootstrap: servers.clone(),
                    properties: config.properties.clone(),
                },
            ),
        };
        // Every property is tried once now, so that a mistake is found at the start and not at the first apply.
        let tried: Result<BaseConsumer, KafkaError> =
            config::consumer(&bootstrap, &config.properties, "stepwell-check").create();
        tried.map_err(|error| StartError::Properties(error.to_string()))?;
        Ok(Self {
            bootstrap,
            config,
            dispatcher,
            topics: Arc::new(topics),
            runtime: Handle::current(),
            subscriptions: Mutex::default(),
        })
    }

    /// The broker's address: the embedded broker's, or as configured.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Whether the broker is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.config.brokers == Brokers::Embedded
    }

    /// Makes the subscriptions those of these deployments: unchanged ones go on with the new revision, others are stopped (after their
    /// records under way) and started.
    pub fn apply(&self, deployments: &[Arc<Deployment>]) {
        let mut wanted: HashMap<Key, (Arc<Deployment>, KafkaTriggerSpec)> = HashMap::new();
        for deployment in deployments {
            for trigger in &deployment.triggers {
                if let TriggerSpec::Kafka(spec) = trigger {
                    let key = Key {
                        namespace: deployment.namespace.clone(),
                        pipeline: deployment.name.clone(),
                        trigger: format!("{spec:?}"),
                    };
                    wanted.insert(key, (deployment.clone(), spec.clone()));
                }
            }
        }
        let mut all = self.lock();
        all.failed.clear();
        all.running.retain(|key, subscription| {
            let keep = wanted.contains_key(key);
            if !keep {
                subscription.stop.cancel();
            }
            keep
        });
        for (key, (deployment, spec)) in wanted {
            if let Some(subscription) = all.running.get(&key) {
                subscription.shared.deployment.store(deployment);
                continue;
            }
            if let Err(error) = self.begin(&mut all, key, deployment, spec) {
                error!(%error, "subscription not started; it is tried again");
            }
        }
    }

    /// Tries again what could not be started: the process may have threads or files to spare by now.
    pub fn retry(&self) {
        let mut all = self.lock();
        for (key, failed) in std::mem::take(&mut all.failed) {
            // Why it failed is in the log already, and in what readiness says.
            let _ = self.begin(&mut all, key, failed.deployment, failed.spec);
        }
    }

    fn begin(
        &self,
        all: &mut Subscriptions,
        key: Key,
        deployment: Arc<Deployment>,
        spec: KafkaTriggerSpec,
    ) -> Result<(), KafkaError> {
        let begun = try_threads()
            .map_err(|error| {
                KafkaError::ClientCreation(format!(
                    "{THREADS} more threads cannot be started: {error}; raise the limit of threads (pids.max, ulimit -u)"
                ))
            })
            .and_then(|()| self.subscribe(deployment.clone(), spec.clone()));
        match begun {
            Ok(subscription) => {
                all.running.insert(key, subscription);
                Ok(())
            }
            Err(error) => {
                let reason = format!("not started: {error}");
                let failed = Failed {
                    deployment,
                    spec,
                    reason,
                };
                all.failed.insert(key, failed);
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(
        &self,
        deployment: Arc<Deployment>,
        spec: KafkaTriggerSpec,
    ) -> Result<Subscription, KafkaError> {
        let health = Arc::new(Health::default());
        let properties = &self.config.properties;
        let consumer: BaseConsumer<Context> =
            config::consumer(&self.bootstrap, properties, &spec.group)
                .create_with_context(Context::new(&spec.group, health.clone()))?;
        let producer = Producer::new(&self.bootstrap, properties)?;
        let mut names = spec.topics.clone();
        names.extend(spec.output.clone());
        names.push(spec.dead_letter.clone());
        info!(pipeline = %deployment.name, group = spec.group, topics = spec.topics.join(","), "subscribing");
        let topics: Vec<&str> = spec.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        self.ensure_topics(names);
        let shared = Arc::new(Shared {
            dispatcher: self.dispatcher.clone(),
            deployment: ArcSwap::new(deployment),
            spec,
            producer,
            waiting: Waiting::default(),
        });
        let stop = CancellationToken::new();
        let drain = Arc::new(Mutex::new(self.config.drain_timeout));
        let thread = std::thread::Builder::new()
            .name(format!(
                "kafka-{}",
                shared.spec.group.chars().take(9).collect::<String>()
            ))
            .spawn({
                let (shared, runtime, drain, stop) = (
                    shared.clone(),
                    self.runtime.clone(),
                    drain.clone(),
                    stop.clone(),
                );
                move || subscription::run(consumer, shared, runtime, drain, &stop)
            })
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Subscription {
            shared,
            health,
            stop,
            drain,
            thread,
        })
    }

    /// Makes missing topics in the background, until that has worked: the broker may be down just now.
    fn ensure_topics(&self, names: Vec<String>) {
        let topics = self.topics.clone();
        self.runtime.spawn(async move {
            let mut pause = Duration::from_millis(200);
            for _ in 0..200 {
                if topics.ensure(&names).await {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            warn!(topics = names.join(","), "gave up creating topics");
        });
    }

    /// How the subscriptions are.
    pub fn state(&self) -> Vec<SubscriptionState> {
        let all = self.lock();
        let failed = all.failed.iter().map(|(key, failed)| SubscriptionState {
            pipeline: format!("{}/{}", key.namespace, key.pipeline),
            group: failed.spec.group.clone(),
            partitions: 0,
            error: Some(failed.reason.clone()),
        });
        let mut states: Vec<SubscriptionState> = all
            .running
            .iter()
            .map(|(key, subscription)| SubscriptionState {
                pipeline: format!("{}/{}", key.namespace, key.pipeline),
                group: subscription.shared.spec.group.clone(),
                partitions: subscription.health.assigned.load(Ordering::Relaxed),
                error: subscription
                    .health
                    .error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone()
                    .or_else(|| subscription.shared.waiting.why()),
            })
            .chain(failed)
            .collect();
        states.sort_by(|a, b| (&a.pipeline, &a.group).cmp(&(&b.pipeline, &b.group)));
        states
    }

    /// Stops intake, waits for records under way until `deadline`, commits and leaves the groups. Blocks: call it off the runtime's workers.
    pub fn shutdown(&self, deadline: Instant) {
        let subscriptions: Vec<Subscription> = {
            let mut all = self.lock();
            all.failed.clear();
            all.running
                .drain()
                .map(|(_, subscription)| subscription)
                .collect()
        };
        for subscription in &subscriptions {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut drain = subscription
                .drain
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *drain = (*drain).min(left);
            drop(drain);
            subscription.stop.cancel();
        }
        for subscription in subscriptions {
            if subscription.thread.join().is_err() {
                error!("a subscription's thread had panicked");
            }
        }
    }
}
