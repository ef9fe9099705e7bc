//! One assigned partition: a task that settles its records one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use metrics::counter;
use rdkafka::message::{Message, OwnedMessage};
use stepwell_core::{ErrorKind, Event, Outcome, RunId, StepError};
use stepwell_pipeline::{Deployment, Dispatcher, KafkaTriggerSpec, NotAdmitted, RunRequest};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::dead_letter::{self, Form, History};
use crate::fetched::{Fetched, MAX_RECORD, Queued};
use crate::output;
use crate::producer::{Producer, Write, WriteError};
use crate::record;
use crate::waiting::Waiting;

/// Longest pause between tries of what is not available.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What every partition of a subscription shares.
pub(crate) struct Shared {
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// The current revision; each record runs on the one that it finds here.
    pub(crate) deployment: ArcSwap<Deployment>,
    pub(crate) spec: KafkaTriggerSpec,
    pub(crate) producer: Producer,
    pub(crate) waiting: Waiting,
}

/// A record is settled: its offset may be committed.
pub(crate) struct Settled {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: u64,
    pub(crate) offset: i64,
}

/// Handles the records of one partition in order until `records` closes or `stop` is cancelled: then the record that is under way
/// is settled, if it can be without waiting for a retry, and the others are left to the partition's next owner.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    epoch: u64,
    mut records: mpsc::UnboundedReceiver<Fetched>,
    queued: Arc<Queued>,
    settled: std::sync::mpsc::Sender<Settled>,
    stop: CancellationToken,
) {
    loop {
        let fetched = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            fetched = records.recv() => match fetched {
                Some(fetched) => fetched,
                None => return,
            },
        };
        if settle(&shared, &fetched, &stop).await.is_err() {
            return;
        }
        queued.remove(&fetched);
        let record = &fetched.record;
        let done = Settled {
            topic: record.topic().to_owned(),
            partition: record.partition(),
            epoch,
            offset: record.offset(),
        };
        if settled.send(done).is_err() {
            return;
        }
    }
}

/// The partition was stopped before the record was settled.
struct Stopped;

/// Runs a record until it is delivered or dead-lettered.
async fn settle(
    shared: &Shared,
    fetched: &Fetched,
    stop: &CancellationToken,
) -> Result<(), Stopped> {
    let record = &fetched.record;
    let event = match fetched.too_large {
        None => record::to_event(record).map_err(|reason| reason.to_string()),
        Some(size) => Err(format!(
            "the record has {size} bytes, more than the {MAX_RECORD} that one may have"
        )),
    };
    let event = match event {
        Ok(event) => event,
        Err(reason) => {
            let deployment = shared.deployment.load_full();
            let error = StepError::new(ErrorKind::Invalid, reason);
            let failures = Failures::default();
            return give_up(shared, fetched, &deployment, &error, &failures, stop).await;
        }
    };
    let mut failures = Failures::default();
    loop {
        let (deployment, outcome) = run(shared, record, event.clone(), stop).await?;
        let error = match outcome {
            Outcome::Delivered(events) => match deliver(shared, record, &events, stop).await? {
                Delivery::Done => {
                    counted(
                        shared,
                        if events.is_empty() {
                            "filtered"
                        } else {
                            "delivered"
                        },
                    );
                    return Ok(());
                }
                Delivery::Refused(error) => error,
            },
            Outcome::Rejected(error) | Outcome::Errored(error) => error,
        };
        match failures.next(&error, &shared.spec) {
            Next::GiveUp => {
                return give_up(shared, fetched, &deployment, &error, &failures, stop).await;
            }
            Next::Retry(pause) => {
                counter!("stepwell_kafka_retries_total", "group" => shared.spec.group.clone(), "class" => error.kind.as_str())
                    .increment(1);
                warn!(
                    topic = record.topic(), partition = record.partition(), offset = record.offset(),
                    class = %error.kind, message = %error.message, pause_ms = pause.as_millis(),
                    "record will be run again"
                );
                sleep(pause, stop).await?;
            }
        }
    }
}

/// One run, once there is a permit for it.
async fn run(
    shared: &Shared,
    record: &OwnedMessage,
    event: Event,
    stop: &CancellationToken,
) -> Result<(Arc<Deployment>, Outcome), Stopped> {
    let mut pause = Duration::from_millis(5);
    let permit = loop {
        let admitted = shared.dispatcher.admit(&shared.deployment.load().namespace);
        match admitted {
            Ok(permit) => break permit,
            Err(NotAdmitted::ShuttingDown) => return Err(Stopped),
            // The partition stands still meanwhile, which is all the back-pressure that Kafka needs.
            Err(NotAdmitted::Busy { .. } | NotAdmitted::Quota { .. }) => sleep(pause, stop).await?,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    };
    let deployment = shared.deployment.load_full();
    let request = RunRequest {
        deployment: deployment.clone(),
        run: RunId::new(),
        trigger: "kafka",
        event,
        deadline: Instant::now() + shared.spec.timeout,
        trace: record::trace(record),
    };
    let outcome = shared.dispatcher.run(permit, request).await;
    Ok((deployment, outcome))
}

enum Delivery {
    Done,
    Refused(StepError),
}

/// Writes the resulting events to the output topic, if there is one, until they are acknowledged.
async fn deliver(
    shared: &Shared,
    record: &OwnedMessage,
    events: &[Event],
    stop: &CancellationToken,
) -> Result<Delivery, Stopped> {
    let Some(topic) = &shared.spec.output else {
        return Ok(Delivery::Done);
    };
    let trace = record::trace(record);
    for event in events {
        let write = output::to_write(topic, event, record, trace.traceparent.as_deref());
        if let Err(refused) = write_until_acknowledged(shared, &write, stop).await? {
            return Ok(Delivery::Refused(StepError::new(ErrorKind::Limit, refused)));
        }
    }
    Ok(Delivery::Done)
}

/// Dead-letters a record: as a whole, or where the topic does not take that with less. Until it is acknowledged the record is not
/// settled, and its partition waits.
async fn give_up(
    shared: &Shared,
    fetched: &Fetched,
    deployment: &Deployment,
    error: &StepError,
    failures: &Failures,
    stop: &CancellationToken,
) -> Result<(), Stopped> {
    let record = &fetched.record;
    let now = OffsetDateTime::now_utc();
    let history = History {
        attempts: failures.runs.max(1),
        first_failed: failures.first_failed.unwrap_or(now),
        last_failed: now,
    };
    let topic = &shared.spec.dead_letter;
    let mut form = match fetched.too_large {
        None => Form::Whole,
        Some(_) => Form::Bare,
    };
    loop {
        let write = dead_letter::to_write(
            topic,
            &shared.spec.group,
            deployment,
            record,
            error,
            &history,
            form,
        );
        let Err(refused) = write_until_acknowledged(shared, &write, stop).await? else {
            break;
        };
        write_failed(shared, topic);
        let less = form.less();
        error!(
            topic,
            offset = record.offset(),
            reason = refused,
            next = less.map_or("the same again", Form::as_str),
            "dead letter refused"
        );
        match less {
            Some(less) => form = less,
            None => {
                let _waits = shared.waiting.begin(refused);
                sleep(MAX_PAUSE, stop).await?;
            }
        }
    }
    if form != Form::Whole {
        counter!("stepwell_kafka_dead_letters_cut_total", "group" => shared.spec.group.clone(), "form" => form.as_str())
            .increment(1);
    }
    counter!("stepwell_kafka_dead_letters_total", "group" => shared.spec.group.clone(), "class" => error.kind.as_str())
        .increment(1);
    counted(shared, "dead_lettered");
    info!(
        topic = record.topic(), partition = record.partition(), offset = record.offset(), dead_letter = topic,
        class = %error.kind, message = %error.message, attempts = history.attempts,
        "record dead-lettered"
    );
    Ok(())
}

/// Writes a record, again and again while that is not possible; `Err` inside: the topic will never take it.
async fn write_until_acknowledged(
    shared: &Shared,
    write: &Write,
    stop: &CancellationToken,
) -> Result<Result<(), String>, Stopped> {
    let mut pause = Duration::from_millis(200);
    // Known until it is written, or left to another owner of the partition.
    let mut waits = None;
    loop {
        let attempt = tokio::select! {
            biased;
            result = shared.producer.write(write) => result,
            () = stopped_for(stop, MAX_PAUSE) => return Err(Stopped),
        };
        match attempt {
            Ok(()) => return Ok(Ok(())),
            Err(refused @ WriteError::Refused { .. }) => return Ok(Err(refused.to_string())),
            Err(failure) => {
                write_failed(shared, &write.topic);
                warn!(%failure, "the record waits");
                waits.get_or_insert_with(|| shared.waiting.begin(failure.to_string()));
                sleep(pause, stop).await?;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

fn write_failed(shared: &Shared, topic: &str) {
    let (group, topic) = (shared.spec.group.clone(), topic.to_owned());
    counter!("stepwell_kafka_write_failures_total", "group" => group, "topic" => topic)
        .increment(1);
}

/// How a record has failed so far.
#[derive(Default)]
struct Failures {
    /// Runs in all.
    runs: u32,
    /// Runs that count against the policy's attempts.
    attempts: u32,
    traps: u32,
    unavailable: u32,
    first: Option<Instant>,
    first_failed: Option<OffsetDateTime>,
}

enum Next {
    Retry(Duration),
    GiveUp,
}

impl Failures {
    fn next(&mut self, error: &StepError, spec: &KafkaTriggerSpec) -> Next {
        self.runs = self.runs.saturating_add(1);
        let first = *self.first.get_or_insert_with(Instant::now);
        self.first_failed
            .get_or_insert_with(OffsetDateTime::now_utc);
        match error.kind {
            ErrorKind::Invalid => Next::GiveUp,
            // The dependency's fault: no attempt is spent, and nothing is given up, however long it takes.
            ErrorKind::Unavailable => {
                self.unavailable = self.unavailable.saturating_add(1);
                Next::Retry(jittered(spec.retry.backoff, self.unavailable))
            }
            ErrorKind::Trap | ErrorKind::Failed | ErrorKind::Limit | ErrorKind::Timeout => {
                self.attempts = self.attempts.saturating_add(1);
                self.traps += u32::from(error.kind == ErrorKind::Trap);
                let spent =
                    self.attempts >= spec.retry.attempts || first.elapsed() >= spec.retry.max_age;
                // A trap that repeats on a fresh instance will not go away.
                if spent || self.traps >= 2 {
                    Next::GiveUp
                } else {
                    Next::Retry(jittered(spec.retry.backoff, self.attempts))
                }
            }
        }
    }
}

/// Exponential back-off with full jitter.
fn jittered(backoff: Duration, failures: u32) -> Duration {
    let ceiling = backoff
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(MAX_PAUSE);
    ceiling.mul_f64(rand::random::<f64>())
}

async fn sleep(pause: Duration, stop: &CancellationToken) -> Result<(), Stopped> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped),
        () = tokio::time::sleep(pause) => Ok(()),
    }
}

/// Ends a while after `stop`: an acknowledgement that is nearly there saves a duplicate.
async fn stopped_for(stop: &CancellationToken, grace: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(grace).await;
}

fn counted(shared: &Shared, outcome: &'static str) {
    counter!("stepwell_kafka_records_total", "group" => shared.spec.group.clone(), "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use stepwell_pipeline::{Order, RunRetry};

    use super::*;

    fn spec(attempts: u32) -> KafkaTriggerSpec {
        KafkaTriggerSpec {
            topics: vec!["t".into()],
            group: "g".into(),
            output: None,
            dead_letter: "g.dlq".into(),
            order: Order::Key,
            timeout: Duration::from_secs(1),
            retry: RunRetry {
                attempts,
                ..RunRetry::default()
            },
        }
    }

    fn retries(kind: ErrorKind, attempts: u32) -> u32 {
        let mut failures = Failures::default();
        let error = StepError::new(kind, "x");
        let mut count = 0;
        while count < 50 && matches!(failures.next(&error, &spec(attempts)), Next::Retry(_)) {
            count += 1;
        }
        count
    }

    #[test]
    fn what_is_retried_and_how_often() {
        assert_eq!(retries(ErrorKind::Invalid, 5), 0);
        assert_eq!(retries(ErrorKind::Failed, 5), 4);
        assert_eq!(retries(ErrorKind::Timeout, 3), 2);
        assert_eq!(retries(ErrorKind::Trap, 5), 1);
        assert_eq!(retries(ErrorKind::Unavailable, 1), 50, "never given up");
    }

    #[test]
    fn an_outage_spends_no_attempts() {
        let mut failures = Failures::default();
        for _ in 0..10 {
            failures.next(&StepError::new(ErrorKind::Unavailable, "x"), &spec(2));
        }
        assert!(matches!(
            failures.next(&StepError::new(ErrorKind::Failed, "x"), &spec(2)),
            Next::Retry(_)
        ));
    }

    #[test]
    fn pauses_are_bounded() {
        for failures in [1, 5, 40, u32::MAX] {
            assert!(jittered(Duration::from_secs(1), failures) <= MAX_PAUSE);
        }
    }
}
