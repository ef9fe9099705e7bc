//! The thread that owns a consumer. It only polls, so that heartbeats never depend on what a record takes.
//!
//! A partition is `Active` from its assignment on, `Draining` after a revoke until its record under way is settled, and then
//! un-assigned. Every assignment gets a new epoch; what settles in an older one is dropped, since the broker does not check
//! that for us.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, RebalanceProtocol};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::context::{Change, Context, Place};
use crate::fetched::{self, Fetched, Queued};
use crate::partition::{Settled, Shared, handle};

/// How long one poll may wait: what else the loop does is at most this late.
const POLL: Duration = Duration::from_millis(50);

const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// A host that dies repeats what was not committed: on a fast topic, a second's records would be too many.
const COMMIT_AFTER: usize = 500;

/// How long a subscription that ends waits for the group to take its last offsets.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the group protocol may take to let a closing consumer go.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// Runs until `stop` is cancelled; then drains every partition within `drain` and leaves the group.
pub(crate) fn run(
    consumer: BaseConsumer<Context>,
    shared: Arc<Shared>,
    runtime: Handle,
    drain: Arc<Mutex<Duration>>,
    stop: &CancellationToken,
) {
    let (settled_sender, settled) = mpsc::channel();
    let mut poller = Poller {
        consumer,
        shared,
        runtime,
        drain,
        partitions: HashMap::new(),
        settled_sender,
        settled,
        epoch: 0,
        last_commit: Instant::now(),
        settled_since: 0,
    };
    while !stop.is_cancelled() {
        poller.turn();
    }
    poller.close();
}

struct Partition {
    epoch: u64,
    records: tokio::sync::mpsc::UnboundedSender<Fetched>,
    queued: Arc<Queued>,
    task: JoinHandle<()>,
    stop: CancellationToken,
    paused: bool,
    /// The next offset to commit, once a record is settled.
    watermark: Option<i64>,
    /// Whether the watermark has moved since it was last committed.
    dirty: bool,
    /// Since when the partition is being given back.
    draining: Option<Instant>,
}

struct Poller {
    consumer: BaseConsumer<Context>,
    shared: Arc<Shared>,
    runtime: Handle,
    drain: Arc<Mutex<Duration>>,
    partitions: HashMap<Place, Partition>,
    settled_sender: mpsc::Sender<Settled>,
    settled: mpsc::Receiver<Settled>,
    epoch: u64,
    last_commit: Instant,
    /// Records settled since then.
    settled_since: usize,
}

impl Poller {
    /// One turn of the loop: everything else first, then one poll.
    fn turn(&mut self) {
        self.collect_settled();
        self.rebalance();
        self.finish_drained();
        self.balance_queues();
        if self.last_commit.elapsed() >= COMMIT_EVERY || self.settled_since >= COMMIT_AFTER {
            if self
                .consumer
                .context()
                .recommit
                .swap(false, Ordering::Relaxed)
            {
                for partition in self.partitions.values_mut() {
                    partition.dirty = partition.watermark.is_some();
                }
            }
            self.commit(CommitMode::Async, |_| true);
            self.last_commit = Instant::now();
            self.settled_since = 0;
        }
        self.poll();
    }

    fn poll(&mut self) {
        // A burst is taken in one go; the loop's other duties are never later than the poll's own timeout.
        let end = Instant::now() + POLL;
        let share = self.share();
        let mut timeout = POLL;
        while let Some(result) = self.consumer.poll(timeout) {
            let mut is_full = false;
            match result {
                Ok(message) => {
                    self.consumer.context().health.set(None);
                    let place = (message.topic().to_owned(), message.partition());
                    if let Some(partition) = self
                        .partitions
                        .get(&place)
                        .filter(|partition| partition.draining.is_none())
                    {
                        let fetched = Fetched::of(&message);
                        partition.queued.add(&fetched);
                        is_full = partition.queued.is_full(share);
                        // A task that has ended (a bug) must not lose the record: its offset is never committed.
                        if partition.records.send(fetched).is_err() {
                            warn!(
                                topic = place.0,
                                partition = place.1,
                                "the partition's task has ended"
                            );
                        }
                    }
                }
                Err(error) => {
                    // A topic that is not there yet will be found; librdkafka goes on by itself.
                    debug!(%error, "consumer");
                    self.consumer.context().health.set(Some(error.to_string()));
                }
            }
            // What is full is paused before more of it comes.
            if is_full || Instant::now() >= end {
                break;
            }
            timeout = Duration::ZERO;
        }
    }

    fn collect_settled(&mut self) {
        while let Ok(settled) = self.settled.try_recv() {
            let Some(partition) = self.partitions.get_mut(&(settled.topic, settled.partition))
            else {
                continue;
            };
            if partition.epoch == settled.epoch {
                partition.watermark = Some(settled.offset + 1);
                partition.dirty = true;
                self.settled_since += 1;
            }
        }
    }

    fn rebalance(&mut self) {
        while let Some(rebalance) = self.consumer.context().next_rebalance() {
            let group = self.shared.spec.group.clone();
            match rebalance.change {
                Change::Assigned => {
                    for place in rebalance.places {
                        counter!("stepwell_kafka_rebalances_total", "group" => group.clone(), "change" => "assigned").increment(1);
                        self.assign(place);
                    }
                }
                Change::Revoked => {
                    for place in rebalance.places {
                        counter!("stepwell_kafka_rebalances_total", "group" => group.clone(), "change" => "revoked").increment(1);
                        if let Some(partition) = self.partitions.get_mut(&place) {
                            partition.stop.cancel();
                            partition.draining = Some(Instant::now());
                        } else {
                            self.unassign(&[place]);
                        }
                    }
                }
                Change::Lost => {
                    for place in &rebalance.places {
                        counter!("stepwell_kafka_rebalances_total", "group" => group.clone(), "change" => "lost").increment(1);
                        // Somebody else has it already: no commit, and what runs here is of no use.
                        if let Some(partition) = self.partitions.remove(place) {
                            partition.stop.cancel();
                            partition.task.abort();
                        }
                    }
                    self.unassign(&rebalance.places);
                }
            }
            self.consumer.context().health.set(None);
            self.count_assigned();
        }
    }

    fn assign(&mut self, place: Place) {
        self.epoch += 1;
        let (records, receiver) = tokio::sync::mpsc::unbounded_channel();
        let queued = Arc::new(Queued::default());
        let stop = CancellationToken::new();
        let task = self.runtime.spawn(handle(
            self.shared.clone(),
            self.epoch,
            receiver,
            queued.clone(),
            self.settled_sender.clone(),
            stop.clone(),
        ));
        info!(
            topic = place.0,
            partition = place.1,
            group = self.shared.spec.group,
            "partition assigned"
        );
        let partition = Partition {
            epoch: self.epoch,
            records,
            queued,
            task,
            stop,
            paused: false,
            watermark: None,
            dirty: false,
            draining: None,
        };
        if let Some(old) = self.partitions.insert(place, partition) {
            old.stop.cancel();
            old.task.abort();
        }
    }

    /// Gives back revoked partitions whose record under way is settled, or whose time is up.
    fn finish_drained(&mut self) {
        let limit = *self.drain.lock().unwrap_or_else(PoisonError::into_inner);
        let done: Vec<Place> = self
            .partitions
            .iter()
            .filter(|(_, partition)| {
                partition
                    .draining
                    .is_some_and(|since| partition.task.is_finished() || since.elapsed() > limit)
            })
            .map(|(place, _)| place.clone())
            .collect();
        if done.is_empty() {
            return;
        }
        self.collect_settled();
        self.commit_for_good(|place| done.contains(place));
        for place in &done {
            if let Some(partition) = self.partitions.remove(place) {
                if !partition.task.is_finished() {
                    warn!(
                        topic = place.0,
                        partition = place.1,
                        "record under way did not settle in time; its next owner runs it again"
                    );
                    counter!("stepwell_kafka_drain_timeouts_total", "group" => self.shared.spec.group.clone()).increment(1);
                    partition.task.abort();
                }
                info!(
                    topic = place.0,
                    partition = place.1,
                    group = self.shared.spec.group,
                    "partition given back"
                );
            }
        }
        // librdkafka waits for one call that names all partitions of the rebalance.
        if self
            .partitions
            .values()
            .all(|partition| partition.draining.is_none())
        {
            let places = self.consumer.context().take_pending_unassign();
            self.unassign(&places);
        }
        self.count_assigned();
    }

    fn unassign(&self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let result = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_unassign(&list(places)),
            _ => self.consumer.unassign(),
        };
        if let Err(error) = result {
            warn!(%error, "cannot give partitions back");
        }
    }

    /// What one partition may hold of the subscription's bytes.
    fn share(&self) -> usize {
        fetched::MAX_BYTES / self.partitions.len().max(1)
    }

    /// Pauses partitions that are far behind their task, resumes those that have caught up.
    fn balance_queues(&mut self) {
        let share = self.share();
        let (mut records, mut bytes) = (0, 0);
        for (place, partition) in &mut self.partitions {
            let queued = &partition.queued;
            records += queued.records();
            bytes += queued.bytes();
            let one = list(std::slice::from_ref(place));
            if !partition.paused && queued.is_full(share) {
                partition.paused = self.consumer.pause(&one).is_ok();
            } else if partition.paused && queued.is_low(share) {
                partition.paused = self.consumer.resume(&one).is_err();
            }
        }
        let group = &self.shared.spec.group;
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            gauge!("stepwell_kafka_queued", "group" => group.clone()).set(records as f64);
            gauge!("stepwell_kafka_queued_bytes", "group" => group.clone()).set(bytes as f64);
        }
    }

    /// Commits the watermarks of the partitions that `which` selects, as nobody does later: also those that were sent without
    /// waiting for the answer, which the group refuses while it is being rebalanced.
    fn commit_for_good(&mut self, which: impl Fn(&Place) -> bool) -> bool {
        for (place, partition) in &mut self.partitions {
            partition.dirty |= partition.watermark.is_some() && which(place);
        }
        self.commit(CommitMode::Sync, which)
    }

    /// Commits the watermarks of the partitions that `which` selects, if they have moved; whether that was possible.
    fn commit(&mut self, mode: CommitMode, which: impl Fn(&Place) -> bool) -> bool {
        let mut offsets = TopicPartitionList::new();
        let mut taken = Vec::new();
        for (place, partition) in &mut self.partitions {
            if !which(place) {
                continue;
            }
            if let Some(watermark) = partition.watermark.filter(|_| partition.dirty)
                && offsets
                    .add_partition_offset(&place.0, place.1, Offset::Offset(watermark))
                    .is_ok()
            {
                taken.push(place.clone());
            }
        }
        if taken.is_empty() {
            return true;
        }
        match self.consumer.commit(&offsets, mode) {
            Ok(()) => {
                for place in taken {
                    if let Some(partition) = self.partitions.get_mut(&place) {
                        partition.dirty = false;
                    }
                }
                true
            }
            Err(error) => {
                // The watermark stays dirty, so the next commit tries again; after a rebalance its new owner decides.
                counter!("stepwell_kafka_commit_failures_total", "group" => self.shared.spec.group.clone()).increment(1);
                warn!(%error, "offsets not committed");
                false
            }
        }
    }

    /// A revoke of everything, then good-bye to the group.
    fn close(mut self) {
        for partition in self.partitions.values_mut() {
            partition.stop.cancel();
        }
        let limit = *self.drain.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + limit;
        while Instant::now() < end
            && self
                .partitions
                .values()
                .any(|partition| !partition.task.is_finished())
        {
            // Polling goes on, so that the group does not lose us while we wait; new records are not taken up.
            let _ = self.consumer.poll(Duration::from_millis(10));
            while self.consumer.context().next_rebalance().is_some() {}
        }
        self.collect_settled();
        // A group that is being rebalanced takes no offsets until we have joined it again, which takes polling.
        let end = Instant::now() + limit.min(COMMIT_PATIENCE);
        while !self.commit_for_good(|_| true) && Instant::now() < end {
            let _ = self.consumer.poll(Duration::from_millis(50));
            while self.consumer.context().next_rebalance().is_some() {}
        }
        for (place, partition) in self.partitions.drain() {
            if !partition.task.is_finished() {
                warn!(
                    topic = place.0,
                    partition = place.1,
                    "record under way did not settle in time; it will be run again"
                );
                partition.task.abort();
            }
        }
        self.consumer
            .context()
            .closing
            .store(true, Ordering::Release);
        let places = self.consumer.context().take_pending_unassign();
        self.unassign(&places);
        if self.consumer.close_queue().is_ok() {
            let end = Instant::now() + CLOSE_WITHIN;
            while !self.consumer.closed() && Instant::now() < end {
                let _ = self.consumer.poll(Duration::from_millis(20));
            }
        }
    }

    fn count_assigned(&self) {
        let active = self
            .partitions
            .values()
            .filter(|partition| partition.draining.is_none())
            .count();
        self.consumer
            .context()
            .health
            .assigned
            .store(active, Ordering::Relaxed);
    }
}

fn list(places: &[Place]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition(topic, *partition);
    }
    list
}
