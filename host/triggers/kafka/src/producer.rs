use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;

use crate::config;

/// Writes output and dead letters: acknowledged by all in-sync replicas, without duplicates of the producer's own making.
#[derive(Clone)]
pub(crate) struct Producer(FutureProducer);

/// A record to be written.
pub(crate) struct Write {
    pub(crate) topic: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) timestamp: Option<i64>,
    pub(crate) headers: OwnedHeaders,
}

/// A record was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// It never will be: it is too large for the topic, or the topic does not allow its timestamp, or that it has no key.
    #[error("topic '{topic}' does not take it: {reason}")]
    Refused { topic: String, reason: String },
    /// It may be later.
    #[error("cannot write to topic '{topic}': {reason}")]
    Unavailable { topic: String, reason: String },
}

impl Producer {
    pub(crate) fn new(
        bootstrap: &str,
        properties: &[(String, String)],
    ) -> Result<Self, KafkaError> {
        config::producer(bootstrap, properties).create().map(Self)
    }

    /// Writes a record and waits for its acknowledgement.
    pub(crate) async fn write(&self, write: &Write) -> Result<(), WriteError> {
        let mut record: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(&write.topic).headers(write.headers.clone());
        if let Some(key) = &write.key {
            record = record.key(key);
        }
        if let Some(value) = &write.value {
            record = record.payload(value);
        }
        if let Some(timestamp) = write.timestamp {
            record = record.timestamp(timestamp);
        }
        let (error, _) = match self.0.send(record, Duration::from_secs(10)).await {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        let topic = write.topic.clone();
        let reason = error.to_string();
        Err(match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::MessageBatchTooLarge
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp,
            ) => WriteError::Refused { topic, reason },
            _ => WriteError::Unavailable { topic, reason },
        })
    }
}

/// Headers with one more, `value` as it is.
pub(crate) fn with(headers: OwnedHeaders, key: &str, value: impl AsRef<[u8]>) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value.as_ref()),
    })
}
