//! The Kafka trigger: from records of a consumer group to events, and from outcomes to committed offsets.
//!
//! One OS thread per subscription owns the consumer and only polls ([`subscription`]); each assigned partition is a task
//! ([`partition`]) that takes one record after the other, so every order that a pipeline may ask for holds. An offset is
//! committed only when its record's outcome is settled: delivered (and its output acknowledged), or dead-lettered (and that
//! acknowledged). Everything is therefore handled at least once.

mod broker;
mod config;
mod context;
mod dead_letter;
mod fetched;
mod output;
mod partition;
mod producer;
mod record;
mod subscription;
mod topics;
mod triggers;
mod waiting;

pub use broker::{BrokerError, EmbeddedBroker};
pub use config::{Brokers, KafkaConfig, RESERVED_PROPERTIES};
pub use triggers::{KafkaTriggers, StartError, SubscriptionState};

/// Describes this crate's metrics.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_gauge!(
        "stepwell_kafka_lag",
        Unit::Count,
        "Records between the committed offset and the end of the partition"
    );
    describe_gauge!(
        "stepwell_kafka_queued",
        Unit::Count,
        "Records fetched and not settled"
    );
    describe_gauge!(
        "stepwell_kafka_queued_bytes",
        Unit::Bytes,
        "Bytes of records fetched and not settled"
    );
    describe_counter!(
        "stepwell_kafka_dead_letters_cut_total",
        Unit::Count,
        "Dead letters that have less than their records, by what they have"
    );
    describe_counter!(
        "stepwell_kafka_records_total",
        Unit::Count,
        "Settled records by outcome"
    );
    describe_counter!(
        "stepwell_kafka_retries_total",
        Unit::Count,
        "Runs of a record beyond its first"
    );
    describe_counter!(
        "stepwell_kafka_dead_letters_total",
        Unit::Count,
        "Records written to a dead-letter topic"
    );
    describe_counter!(
        "stepwell_kafka_write_failures_total",
        Unit::Count,
        "Failed writes to output and dead-letter topics; the record waits and is tried again"
    );
    describe_counter!(
        "stepwell_kafka_rebalances_total",
        Unit::Count,
        "Partitions assigned, revoked and lost"
    );
    describe_counter!(
        "stepwell_kafka_commit_failures_total",
        Unit::Count,
        "Offset commits that the broker refused"
    );
    describe_counter!(
        "stepwell_kafka_drain_timeouts_total",
        Unit::Count,
        "Revoked partitions whose record did not settle in time"
    );
}
