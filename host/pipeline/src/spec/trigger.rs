//! The items of `triggers`.

use std::time::Duration;

use stepwell_document::{At, nearest};

use super::auth::read_auth;
use super::limits::{MAX_BODY, MAX_TIME, duration, read_run_retry, size};
use super::path::PathPattern;
use crate::trigger::DEAD_LETTER_SUFFIX;
use crate::{HttpAuth, HttpTriggerSpec, KafkaTriggerSpec, Order, TriggerSpec};

/// The methods that a route may name.
pub(crate) const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

const HTTP_TO_COME: [&str; 5] = ["cancel_on_disconnect", "cors", "host", "mode", "rate_limit"];
const KAFKA_TO_COME: [&str; 7] = [
    "batch",
    "delivery",
    "drain_timeout",
    "max_batch",
    "max_in_flight",
    "on_exhausted",
    "start",
];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_BODY: u64 = 1 << 20;
const MAX_TOPIC: usize = 249;
const MAX_TOPICS: usize = 64;

pub(super) fn read_trigger(at: &At<'_>) -> Option<TriggerSpec> {
    let entries = at.entries()?;
    let [(key, value)] = entries.as_slice() else {
        let found = entries.len();
        at.problem_with_hint(
            format!("a trigger is one of 'http' and 'kafka', found {found} keys"),
            "write one list item for each trigger",
        );
        return None;
    };
    match key.name.as_str() {
        "http" => read_http(value).map(TriggerSpec::Http),
        "kafka" => read_kafka(value).map(TriggerSpec::Kafka),
        other => {
            let shown: String = other.chars().take(100).collect();
            let hint = nearest(other, ["http", "kafka"]).map_or_else(
                || "known here: http, kafka".to_owned(),
                |word| format!("perhaps {word}"),
            );
            at.key_problem(key, format!("unknown trigger '{shown}'"), Some(hint));
            None
        }
    }
}

fn read_http(at: &At<'_>) -> Option<HttpTriggerSpec> {
    let mut map = at.mapping()?;
    let method = map.optional("method").map(|at| read_method(&at));
    let path = map.required("path").and_then(|at| read_path(&at));
    let max_body = map
        .optional("max_body")
        .and_then(|at| size(&at, 0, MAX_BODY));
    let timeout = map
        .optional("timeout")
        .and_then(|at| duration(&at, MAX_TIME));
    let auth = map.optional("auth").map(|at| read_auth(&at));
    for key in HTTP_TO_COME
        .into_iter()
        .filter(|key| map.has(key))
        .collect::<Vec<_>>()
    {
        map.refuse(
            key,
            &format!("this host does not support `{key}` of an http trigger yet"),
        );
    }
    map.finish();
    Some(HttpTriggerSpec {
        method: match method {
            None => None,
            Some(method) => Some(method?),
        },
        path: path?.to_string(),
        max_body: max_body.unwrap_or(DEFAULT_BODY),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        auth: match auth {
            None => HttpAuth::None,
            Some(auth) => auth?,
        },
    })
}

fn read_method(at: &At<'_>) -> Option<String> {
    at.one_of(&METHODS).map(ToOwned::to_owned)
}

fn read_path(at: &At<'_>) -> Option<PathPattern> {
    match at.string()?.parse::<PathPattern>() {
        Ok(path) => Some(path),
        Err(error) => {
            match error.hint.clone() {
                Some(hint) => at.problem_with_hint(error.to_string(), hint),
                None => at.problem(error.to_string()),
            }
            None
        }
    }
}

fn read_kafka(at: &At<'_>) -> Option<KafkaTriggerSpec> {
    let mut map = at.mapping()?;
    let topics = map.required("topics").and_then(|at| read_topics(&at));
    let group = map.required("group").and_then(|at| read_group(&at));
    let output_at = map.optional("output");
    let output = output_at.as_ref().and_then(read_topic);
    let dead_letter_at = map.optional("dead_letter");
    let dead_letter = match &dead_letter_at {
        Some(at) => read_topic(at),
        None => group
            .as_ref()
            .map(|group| format!("{group}{DEAD_LETTER_SUFFIX}")),
    };
    let order = map
        .optional("order")
        .and_then(|at| at.one_of(&["key", "partition", "none"]));
    let timeout = map
        .optional("timeout")
        .and_then(|at| duration(&at, MAX_TIME));
    let retry = read_run_retry(map.optional("retry"));
    for key in KAFKA_TO_COME
        .into_iter()
        .filter(|key| map.has(key))
        .collect::<Vec<_>>()
    {
        map.refuse(
            key,
            &format!("this host does not support `{key}` of a kafka trigger yet"),
        );
    }
    map.finish();

    let sources = topics.as_deref().unwrap_or_default();
    if let Some(topic) = dead_letter.as_ref().filter(|topic| sources.contains(topic)) {
        let message = format!(
            "the dead-letter topic '{topic}' is one of the source topics: a record that fails would come back for ever"
        );
        dead_letter_at.as_ref().unwrap_or(at).problem(message);
    }
    if let (Some(topic), Some(at)) = (&output, &output_at) {
        if sources.contains(topic) {
            at.problem(format!("the output topic '{topic}' is one of the source topics: every result would start another run"));
        } else if dead_letter.as_ref() == Some(topic) {
            at.problem(format!(
                "the output topic '{topic}' is the dead-letter topic too"
            ));
        }
    }
    Some(KafkaTriggerSpec {
        topics: topics?,
        group: group?,
        output: match output_at {
            None => None,
            Some(_) => Some(output?),
        },
        dead_letter: dead_letter?,
        order: match order {
            Some("partition") => Order::Partition,
            Some("none") => Order::None,
            _ => Order::Key,
        },
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        retry,
    })
}

fn read_topics(at: &At<'_>) -> Option<Vec<String>> {
    let items = at.sequence()?;
    if items.is_empty() {
        at.problem("no topic is named");
        return None;
    }
    if items.len() > MAX_TOPICS {
        at.problem(format!("more than {MAX_TOPICS} topics"));
        return None;
    }
    let mut topics: Vec<String> = Vec::new();
    for item in items {
        let Some(topic) = read_topic(&item) else {
            continue;
        };
        if topics.contains(&topic) {
            item.problem(format!("the topic '{topic}' is there already"));
        } else {
            topics.push(topic);
        }
    }
    Some(topics)
}

fn read_topic(at: &At<'_>) -> Option<String> {
    kafka_name(at, "topic", MAX_TOPIC)
}

/// Its dead-letter topic takes the group's name, so what is legal for a topic holds for the group too.
fn read_group(at: &At<'_>) -> Option<String> {
    kafka_name(at, "group", MAX_TOPIC - DEAD_LETTER_SUFFIX.len())
}

fn kafka_name(at: &At<'_>, what: &str, max: usize) -> Option<String> {
    let text = at.string()?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !(1..=max).contains(&text.len()) || !text.bytes().all(legal) || text == "." || text == ".." {
        let shown: String = text.chars().take(100).collect();
        at.problem(format!(
            "'{shown}' is no {what}: 1 to {max} letters, digits, dots, hyphens and underscores"
        ));
        return None;
    }
    Some(text.to_owned())
}
