//! How a record becomes an event.

use bytes::Bytes;
use rdkafka::Timestamp;
use rdkafka::message::{Headers, Message, OwnedMessage};
use stepwell_core::cloudevents::{self, Attributes, Malformed, malformed};
use stepwell_core::{Event, TraceContext};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The event of a record: CloudEvents binary mode by its `ce_` headers, structured mode by its content type, else the value
/// itself with attributes that say where it was read.
///
/// # Errors
/// The record says that it is a CloudEvent and is none: the record's fault, so `invalid`.
pub(crate) fn to_event(record: &OwnedMessage) -> Result<Event, Malformed> {
    let content_type = header(record, "content-type");
    let mut event = if header(record, "ce_specversion").is_some() {
        binary(record, content_type)?
    } else if content_type.as_deref().is_some_and(is_structured) {
        cloudevents::from_json(record.payload().unwrap_or_default())?
    } else {
        plain(record, content_type)
    };
    event.drop_http_extensions();
    if let Some(key) = record.key().and_then(|key| std::str::from_utf8(key).ok()) {
        if event.extensions.len() >= Event::MAX_EXTENSIONS
            && event.extension("partitionkey").is_none()
        {
            let most = Event::MAX_EXTENSIONS;
            return Err(malformed(format!(
                "with the record's key, it has more than {most} extensions"
            )));
        }
        event.set_extension("partitionkey", key);
    }
    Ok(event)
}

/// The trace that a record belongs to.
pub(crate) fn trace(record: &OwnedMessage) -> TraceContext {
    TraceContext::from_headers(
        header(record, "traceparent").as_deref(),
        header(record, "tracestate").as_deref(),
    )
}

fn plain(record: &OwnedMessage, datacontenttype: Option<String>) -> Event {
    Event {
        id: format!(
            "{}/{}/{}",
            record.topic(),
            record.partition(),
            record.offset()
        ),
        source: format!("/kafka/{}", record.topic()),
        r#type: "kafka.record".into(),
        subject: None,
        time: timestamp(record),
        datacontenttype,
        extensions: Vec::new(),
        data: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
    }
}

fn binary(record: &OwnedMessage, datacontenttype: Option<String>) -> Result<Event, Malformed> {
    let mut attributes = Attributes::default();
    for header in record.headers().into_iter().flat_map(Headers::iter) {
        let Some(name) = header.key.strip_prefix("ce_") else {
            continue;
        };
        // In binary mode the content type has a header of its own.
        if name == "datacontenttype" {
            continue;
        }
        let value = std::str::from_utf8(header.value.unwrap_or_default());
        let value = value
            .map_err(|_| malformed(format!("the attribute '{}' is not UTF-8", shown(name))))?;
        attributes.insert(name, value.to_owned())?;
    }
    if let Some(content_type) = datacontenttype {
        attributes.insert("datacontenttype", content_type)?;
    }
    attributes.into_event(Bytes::copy_from_slice(record.payload().unwrap_or_default()))
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

fn is_structured(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/cloudevents+json")
}

/// The last value of a header, when it is UTF-8.
fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    record
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        // Kafka's headers are case-sensitive; producers disagree on how to write this one.
        .filter(|header| {
            header.key == name || (name == "content-type" && header.key.eq_ignore_ascii_case(name))
        })
        .filter_map(|header| std::str::from_utf8(header.value?).ok())
        .last()
        .map(str::to_owned)
}

fn timestamp(record: &OwnedMessage) -> Option<String> {
    let millis = match record.timestamp() {
        Timestamp::NotAvailable => return None,
        Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => millis,
    };
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .ok()?
        .format(&Rfc3339)
        .ok()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    fn record(headers: &[(&str, &str)], value: &str) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value.as_bytes()),
                })
            });
        OwnedMessage::new(
            Some(value.as_bytes().to_vec()),
            Some(b"k1".to_vec()),
            "digits".into(),
            Timestamp::CreateTime(1_000),
            3,
            42,
            Some(headers),
        )
    }

    #[test]
    fn a_plain_record_says_where_it_was_read() {
        let event = to_event(&record(&[("content-type", "image/png")], "x")).unwrap();
        assert_eq!(event.id, "digits/3/42");
        assert_eq!(event.source, "/kafka/digits");
        assert_eq!(event.r#type, "kafka.record");
        assert_eq!(event.time.as_deref(), Some("1970-01-01T00:00:01Z"));
        assert_eq!(event.datacontenttype.as_deref(), Some("image/png"));
        assert_eq!(event.extension("partitionkey"), Some("k1"));
    }

    #[test]
    fn binary_mode_reads_the_headers_and_drops_forged_ones() {
        let event = to_event(&record(
            &[
                ("ce_specversion", "1.0"),
                ("ce_id", "1"),
                ("ce_source", "/s"),
                ("ce_type", "t"),
                ("ce_tenant", "a"),
                ("ce_httpmethod", "POST"),
            ],
            "x",
        ))
        .unwrap();
        assert_eq!(event.extension("tenant"), Some("a"));
        assert_eq!(event.extension("httpmethod"), None);
    }

    #[test]
    fn structured_mode_reads_the_value() {
        let value = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a":1}}"#;
        let event = to_event(&record(
            &[("content-type", "application/cloudevents+json")],
            value,
        ))
        .unwrap();
        assert_eq!(event.r#type, "t");
        assert_eq!(event.data, Bytes::from_static(br#"{"a":1}"#));
    }

    #[test]
    fn so_many_extensions_with_the_key_and_no_more() {
        let of = |count: usize| {
            let names: Vec<String> = (0..count).map(|i| format!("ce_x{i}")).collect();
            let known = [
                ("ce_specversion", "1.0"),
                ("ce_id", "1"),
                ("ce_source", "/s"),
                ("ce_type", "t"),
            ];
            let extensions = names.iter().map(|name| (name.as_str(), "1"));
            let headers: Vec<_> = known.into_iter().chain(extensions).collect();
            to_event(&record(&headers, "x"))
        };
        let most = Event::MAX_EXTENSIONS;
        assert_eq!(of(most - 1).unwrap().extensions.len(), most);
        for count in [most, most + 1] {
            let error = of(count).unwrap_err().to_string();
            assert!(error.contains("more than 256 extensions"), "{error}");
        }
    }

    #[test]
    fn a_missing_attribute_is_named() {
        let error =
            to_event(&record(&[("ce_specversion", "1.0"), ("ce_id", "1")], "x")).unwrap_err();
        assert!(error.to_string().contains("'source' is missing"), "{error}");
    }
}
