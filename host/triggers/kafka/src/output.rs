//! How a resulting event becomes a record of the output topic: CloudEvents binary mode.

use rdkafka::message::{Message, OwnedHeaders, OwnedMessage};
use stepwell_core::Event;
use stepwell_core::cloudevents::sendable_extensions;

use crate::producer::{Write, with};

/// The record for one event of a run that `input` started.
pub(crate) fn to_write(
    topic: &str,
    event: &Event,
    input: &OwnedMessage,
    traceparent: Option<&str>,
) -> Write {
    let mut headers = OwnedHeaders::new();
    headers = with(headers, "ce_specversion", "1.0");
    headers = with(headers, "ce_id", &event.id);
    headers = with(headers, "ce_source", &event.source);
    headers = with(headers, "ce_type", &event.r#type);
    if let Some(subject) = &event.subject {
        headers = with(headers, "ce_subject", subject);
    }
    if let Some(time) = &event.time {
        headers = with(headers, "ce_time", time);
    }
    for (name, value) in sendable_extensions(event) {
        headers = with(headers, &format!("ce_{name}"), value);
    }
    if let Some(content_type) = &event.datacontenttype {
        headers = with(headers, "content-type", content_type);
    }
    if let Some(traceparent) = traceparent {
        headers = with(headers, "traceparent", traceparent);
    }
    let key = event
        .extension("partitionkey")
        .map(|key| key.as_bytes().to_vec())
        .or_else(|| input.key().map(<[u8]>::to_vec));
    Write {
        topic: topic.to_owned(),
        key,
        value: Some(event.data.to_vec()),
        timestamp: None,
        headers,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rdkafka::Timestamp;
    use rdkafka::message::Headers;

    use super::*;

    #[test]
    fn events_are_keyed_by_partitionkey_else_by_the_input() {
        let input = OwnedMessage::new(
            None,
            Some(b"in".to_vec()),
            "t".into(),
            Timestamp::NotAvailable,
            0,
            0,
            None,
        );
        let mut event = Event {
            id: "1".into(),
            source: "/s".into(),
            r#type: "t".into(),
            subject: None,
            time: None,
            datacontenttype: Some("application/json".into()),
            extensions: vec![("httpstatus".into(), "201".into())],
            data: Bytes::from_static(b"{}"),
        };
        let write = to_write("out", &event, &input, None);
        assert_eq!(write.key.as_deref(), Some(&b"in"[..]));
        assert!(
            write
                .headers
                .iter()
                .all(|header| header.key != "ce_httpstatus")
        );
        event.set_extension("partitionkey", "other");
        assert_eq!(
            to_write("out", &event, &input, None).key.as_deref(),
            Some(&b"other"[..])
        );
    }
}
