//! What librdkafka tells a consumer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{counter, gauge};
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, warn};

/// A partition of a topic.
pub(crate) type Place = (String, i32);

/// What the subscription is doing, for readiness.
#[derive(Default)]
pub(crate) struct Health {
    /// The last error of the client; cleared when records or assignments arrive again.
    pub(crate) error: Mutex<Option<String>>,
    pub(crate) assigned: AtomicUsize,
}

impl Health {
    pub(crate) fn set(&self, error: Option<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// What librdkafka tells us, kept until the loop's next turn: its callbacks return at once.
pub(crate) struct Context {
    group: String,
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// Partitions that were revoked and are not un-assigned yet.
    pending_unassign: Mutex<Vec<Place>>,
    pub(crate) closing: AtomicBool,
    pub(crate) recommit: AtomicBool,
    pub(crate) health: Arc<Health>,
}

pub(crate) struct Rebalance {
    pub(crate) change: Change,
    pub(crate) places: Vec<Place>,
}

pub(crate) enum Change {
    Assigned,
    Revoked,
    Lost,
}

impl Context {
    pub(crate) fn new(group: &str, health: Arc<Health>) -> Self {
        Self {
            group: group.to_owned(),
            rebalances: Mutex::default(),
            pending_unassign: Mutex::default(),
            closing: AtomicBool::new(false),
            recommit: AtomicBool::new(false),
            health,
        }
    }

    pub(crate) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    pub(crate) fn take_pending_unassign(&self) -> Vec<Place> {
        std::mem::take(
            &mut self
                .pending_unassign
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values() {
            for partition in topic
                .partitions
                .values()
                .filter(|partition| partition.partition >= 0 && partition.desired)
            {
                // Before the first commit there is no committed offset: everything from the start is still to do.
                let committed = if partition.committed_offset >= 0 {
                    partition.committed_offset
                } else {
                    partition.lo_offset.max(0)
                };
                let lag = (partition.hi_offset - committed).max(0);
                #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
                gauge!(
                    "stepwell_kafka_lag",
                    "group" => self.group.clone(),
                    "topic" => topic.topic.clone(),
                    "partition" => partition.partition.to_string()
                )
                .set(lag as f64);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "Kafka client");
        self.health.set(Some(error.to_string()));
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let places: Vec<Place> = partitions
            .elements()
            .iter()
            .map(|element| (element.topic().to_owned(), element.partition()))
            .collect();
        let cooperative = matches!(
            consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        );
        // A later rebalance supersedes what an earlier one left to be given back.
        self.pending_unassign
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|place| !places.contains(place));
        let change = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let result = if cooperative {
                consumer.incremental_assign(partitions)
            } else {
                consumer.assign(partitions)
            };
            if let Err(error) = result {
                warn!(%error, "cannot take partitions");
            }
            Change::Assigned
        } else if self.closing.load(Ordering::Acquire) {
            let result = if cooperative {
                consumer.incremental_unassign(partitions)
            } else {
                consumer.unassign()
            };
            if let Err(error) = result {
                debug!(%error, "leaving the group");
            }
            return;
        } else if consumer.assignment_lost() {
            Change::Lost
        } else {
            self.pending_unassign
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(places.iter().cloned());
            Change::Revoked
        };
        self.rebalances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Rebalance { change, places });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            counter!("stepwell_kafka_commit_failures_total", "group" => self.group.clone())
                .increment(1);
            self.recommit.store(true, Ordering::Relaxed);
            // During a rebalance this is expected: the records' next owner runs them again, or we commit the next watermark.
            debug!(%error, "offset commit refused");
        }
    }
}
