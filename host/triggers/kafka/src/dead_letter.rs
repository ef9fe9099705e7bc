//! Records that cannot be processed: kept as they were, with what went wrong in their headers.

use rdkafka::Timestamp;
use rdkafka::message::{Message, OwnedHeaders, OwnedMessage};
use stepwell_core::StepError;
use stepwell_pipeline::{Deployed, Deployment};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::fetched::SHORT_KEY;
use crate::producer::{Write, with};

/// Longest error message that a header carries, in bytes.
const MAX_MESSAGE: usize = 2048;

/// How much of a record its dead letter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// All of it, and the `dlq.` headers.
    Whole,
    /// All of it, and no header more.
    Original,
    /// The `dlq.` headers, which say where the record itself is, and its key where that is short. A record that no topic takes a
    /// second time would stop its partition for ever.
    Bare,
}

impl Form {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Original => "original",
            Self::Bare => "bare",
        }
    }

    /// What is smaller.
    pub(crate) fn less(self) -> Option<Self> {
        match self {
            Self::Whole => Some(Self::Original),
            Self::Original => Some(Self::Bare),
            Self::Bare => None,
        }
    }
}

/// What happened to a record until it was given up.
pub(crate) struct History {
    pub(crate) attempts: u32,
    pub(crate) first_failed: OffsetDateTime,
    pub(crate) last_failed: OffsetDateTime,
}

/// The dead letter: original key, value, headers and timestamp, and the `dlq.` headers; or less of that.
pub(crate) fn to_write(
    topic: &str,
    group: &str,
    deployment: &Deployment,
    record: &OwnedMessage,
    error: &StepError,
    history: &History,
    form: Form,
) -> Write {
    let original = || record.headers().cloned().unwrap_or_else(OwnedHeaders::new);
    let mut headers = match form {
        Form::Whole | Form::Original => original(),
        Form::Bare => OwnedHeaders::new(),
    };
    let generation = previous_generation(record) + 1;
    let timestamp = match record.timestamp() {
        Timestamp::NotAvailable => None,
        Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => Some(millis),
    };
    if form == Form::Original {
        return write(topic, record, timestamp, headers);
    }
    headers = with(headers, "dlq.original.topic", record.topic());
    headers = with(
        headers,
        "dlq.original.partition",
        record.partition().to_string(),
    );
    headers = with(headers, "dlq.original.offset", record.offset().to_string());
    if let Some(millis) = timestamp {
        headers = with(headers, "dlq.original.timestamp", millis.to_string());
    }
    headers = with(headers, "dlq.group", group);
    headers = with(headers, "dlq.pipeline", deployment.name.as_str());
    headers = with(headers, "dlq.revision", deployment.revision.to_string());
    if let Some(step) = &error.step {
        headers = with(headers, "dlq.step", step);
        if let Some(plugin) = plugin_of(deployment, step) {
            headers = with(headers, "dlq.plugin", plugin);
        }
    }
    headers = with(headers, "dlq.error.class", error.kind.as_str());
    headers = with(headers, "dlq.error.message", shorten(&error.message));
    headers = with(headers, "dlq.attempts", history.attempts.to_string());
    headers = with(
        headers,
        "dlq.first-failed-at",
        rfc3339(history.first_failed),
    );
    headers = with(headers, "dlq.last-failed-at", rfc3339(history.last_failed));
    headers = with(headers, "dlq.generation", generation.to_string());
    if form == Form::Whole {
        return write(topic, record, timestamp, headers);
    }
    let key = record.key().filter(|key| key.len() <= SHORT_KEY);
    headers = with(headers, "dlq.left-out", "value, headers, long key");
    Write {
        topic: topic.to_owned(),
        key: key.map(<[u8]>::to_vec),
        // Without any value it would be a tombstone.
        value: Some(Vec::new()),
        // The topic may have refused that of the record.
        timestamp: None,
        headers,
    }
}

fn write(
    topic: &str,
    record: &OwnedMessage,
    timestamp: Option<i64>,
    headers: OwnedHeaders,
) -> Write {
    Write {
        topic: topic.to_owned(),
        key: record.key().map(<[u8]>::to_vec),
        value: record.payload().map(<[u8]>::to_vec),
        timestamp,
        headers,
    }
}

/// `name@version sha256:…` of the step's plugin.
fn plugin_of(deployment: &Deployment, step: &str) -> Option<String> {
    let scope = match &deployment.body {
        Deployed::Steps(steps) => steps
            .iter()
            .find(|deployed| deployed.scope.step.as_str() == step)
            .map(|deployed| &deployed.scope),
        Deployed::Function(function) => Some(&function.scope),
    }?;
    Some(match &scope.digest {
        Some(digest) => format!("{} {digest}", scope.plugin),
        None => scope.plugin.clone(),
    })
}

/// How often the record was dead-lettered before (a replayed record may come back).
fn previous_generation(record: &OwnedMessage) -> u64 {
    use rdkafka::message::Headers;
    record
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        .filter(|header| header.key == "dlq.generation")
        .filter_map(|header| std::str::from_utf8(header.value?).ok()?.parse().ok())
        .max()
        .unwrap_or(0)
}

fn shorten(message: &str) -> &str {
    let end = (0..=MAX_MESSAGE.min(message.len()))
        .rev()
        .find(|end| message.is_char_boundary(*end))
        .unwrap_or(0);
    message.get(..end).unwrap_or_default()
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}
