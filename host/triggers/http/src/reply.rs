use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use serde_json::value::RawValue;
use stepwell_core::{Event, Outcome};
use stepwell_pipeline::Body;

use crate::body;
use crate::percent;
use crate::problem::Problem;
use stepwell_core::cloudevents::{Structured, json_data, sendable_extensions};

/// Bytes of all `ce-` headers of a reply; more than this, and clients and proxies give up on it.
const MAX_ATTRIBUTES: usize = 32 << 10;

/// The response for the outcome of a run, to a caller who may speak CloudEvents.
pub(crate) fn from_outcome(outcome: Outcome, cloudevents: bool) -> Result<Response<Body>, Problem> {
    let events = match outcome {
        Outcome::Delivered(events) => events,
        Outcome::Rejected(error) | Outcome::Errored(error) => return Err(error.into()),
    };
    let mut response = match events.as_slice() {
        [] => Response::new(body::empty()),
        [event] => one(event, cloudevents)?,
        several => many(several)?,
    };
    *response.status_mut() = status(&events)?;
    if has_no_body(response.status()) {
        *response.body_mut() = body::empty();
        response.headers_mut().remove(CONTENT_TYPE);
    }
    Ok(response)
}

/// What the first event that says anything about it says.
fn status(events: &[Event]) -> Result<StatusCode, Problem> {
    if events.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let Some(wanted) = events
        .iter()
        .find_map(|event| event.extension("httpstatus"))
    else {
        return Ok(StatusCode::OK);
    };
    // Interim responses and what HTTP does not know would break the connection.
    let status = wanted
        .parse()
        .ok()
        .filter(|code| (200..=599).contains(code));
    status
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| {
            let shown: String = wanted.chars().take(40).collect();
            Problem::UnusableReply(format!(
                "the plugin set the status {shown:?}, which is not from 200 to 599"
            ))
        })
}

fn has_no_body(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    )
}

fn one(event: &Event, cloudevents: bool) -> Result<Response<Body>, Problem> {
    let mut response = Response::new(body::full(event.data.clone()));
    let headers = response.headers_mut();
    if let Some(content_type) = &event.datacontenttype {
        // A plugin's text that is no header value: the data is still what it is, only nobody can say what.
        let value = HeaderValue::from_str(content_type)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_TYPE, value);
    }
    if cloudevents {
        attributes(event, headers)?;
    }
    Ok(response)
}

/// The event's attributes as the headers of binary mode.
fn attributes(event: &Event, headers: &mut HeaderMap) -> Result<(), Problem> {
    let known = [
        ("specversion", Some("1.0")),
        ("id", Some(event.id.as_str())),
        ("source", Some(event.source.as_str())),
        ("type", Some(event.r#type.as_str())),
        ("subject", event.subject.as_deref()),
        ("time", event.time.as_deref()),
    ];
    let known = known
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)));
    let mut size = 0;
    for (name, value) in known.chain(sendable_extensions(event)) {
        let value = percent::encode_attribute(value);
        size += name.len() + value.len();
        if size > MAX_ATTRIBUTES {
            return Err(Problem::UnusableReply(format!(
                "its attributes are larger than {MAX_ATTRIBUTES} bytes"
            )));
        }
        let name = HeaderName::try_from(format!("ce-{name}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    Ok(())
}

/// Several events: an array of their data where all of it is JSON, and otherwise a batch.
fn many(events: &[Event]) -> Result<Response<Body>, Problem> {
    let data: Option<Vec<&RawValue>> = events.iter().map(json_data).collect();
    let (content_type, bytes) = match data {
        Some(data) => ("application/json", serde_json::to_vec(&data)),
        None => {
            let batch: Vec<_> = events.iter().map(Structured).collect();
            (
                "application/cloudevents-batch+json",
                serde_json::to_vec(&batch),
            )
        }
    };
    let bytes = bytes.map_err(|error| {
        Problem::UnusableReply(format!("its events cannot be written: {error}"))
    })?;
    let mut response = Response::new(body::full(Bytes::from(bytes)));
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}
