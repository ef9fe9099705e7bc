use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use stepwell_core::{Event, RunId, TraceContext};
use stepwell_pipeline::Deployment;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::percent;
use stepwell_core::cloudevents::{self, Attributes, Malformed, malformed};

/// An event, and how it came.
pub(crate) struct Incoming {
    pub(crate) event: Event,
    /// The caller speaks CloudEvents, and is answered in kind.
    pub(crate) cloudevents: bool,
}

/// The event of a request: structured mode by its content type, binary mode by its `ce-specversion`, and otherwise an event of
/// the host's own making around the body.
pub(crate) fn from_request(
    headers: &HeaderMap,
    body: Bytes,
    run: RunId,
    deployment: &Deployment,
) -> Result<Incoming, Malformed> {
    let content_type = headers.get(CONTENT_TYPE);
    if content_type.is_some_and(is_structured) {
        let event = cloudevents::from_json(&body)?;
        return Ok(Incoming {
            event,
            cloudevents: true,
        });
    }
    let content_type = content_type
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .map(str::to_owned);
    if headers.contains_key("ce-specversion") {
        let event = binary(headers, content_type, body)?;
        return Ok(Incoming {
            event,
            cloudevents: true,
        });
    }
    let event = Event {
        id: run.encode(&mut [0; 36]).to_owned(),
        source: format!("/stepwell/{}/{}", deployment.namespace, deployment.name),
        r#type: "http.request".to_owned(),
        subject: None,
        time: OffsetDateTime::now_utc().format(&Rfc3339).ok(),
        datacontenttype: content_type,
        extensions: Vec::new(),
        data: body,
    };
    Ok(Incoming {
        event,
        cloudevents: false,
    })
}

/// The caller's trace.
pub(crate) fn trace(headers: &HeaderMap) -> TraceContext {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    TraceContext::from_headers(text("traceparent"), text("tracestate"))
}

fn is_structured(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next();
    essence.is_some_and(|essence| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/cloudevents+json")
    })
}

fn binary(
    headers: &HeaderMap,
    content_type: Option<String>,
    data: Bytes,
) -> Result<Event, Malformed> {
    let mut attributes = Attributes::default();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix("ce-") else {
            continue;
        };
        // In this mode it is the header `Content-Type`.
        if name == "datacontenttype" {
            continue;
        }
        let value = std::str::from_utf8(value.as_bytes())
            .ok()
            .and_then(|value| percent::decode(&unquote(value)).map(|value| value.into_owned()))
            .ok_or_else(|| malformed(format!("the header '{header}' is no UTF-8")))?;
        attributes.insert(name, value)?;
    }
    if let Some(content_type) = content_type {
        attributes.insert("datacontenttype", content_type)?;
    }
    attributes.into_event(data)
}

/// Takes the double quotes off a quoted header value, which the HTTP binding allows.
fn unquote(value: &str) -> String {
    let inner = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    let Some(inner) = inner else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        });
    }
    text
}
