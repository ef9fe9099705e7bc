use stepwell_document::At;
use stepwell_egress::{EgressConfig, read_ca};

use super::{Reader, Section, duration};

/// The keys of `[egress]`.
pub(super) const KEYS: [&str; 12] = [
    "private",
    "allow",
    "deny",
    "ca",
    "connect_timeout",
    "first_byte_timeout",
    "between_bytes_timeout",
    "requests",
    "requests_per_namespace",
    "requests_per_call",
    "connections",
    "response_bytes",
];

/// Those that are numbers.
pub(super) const COUNTS: [&str; 4] = [
    "requests",
    "requests_per_namespace",
    "requests_per_call",
    "connections",
];

const MAX_COUNT: i64 = 100_000;

impl Reader<'_> {
    pub(super) fn egress(&self, section: &mut Section<'_>) -> Option<EgressConfig> {
        let default = EgressConfig::default();
        let private = texts(section, "private", |text| {
            text.parse().map_err(|error: stepwell_egress::InvalidNet| {
                (format!("'{text}': {error}"), error.hint)
            })
        });
        let mut hosts = |key| {
            texts(section, key, |text| {
                text.parse().map_err(|error: stepwell_core::InvalidOrigin| {
                    (format!("'{text}': {error}"), error.hint)
                })
            })
        };
        let (allow, deny) = (hosts("allow"), hosts("deny"));
        let ca = match section.optional("ca") {
            None => Some(Vec::new()),
            Some(at) => at.string().and_then(|text| {
                read_ca(&self.resolve(&at, text))
                    .map_err(|message| at.problem(message))
                    .ok()
            }),
        };
        let connect_timeout = duration(section, "connect_timeout", default.connect_timeout);
        let first_byte_timeout =
            duration(section, "first_byte_timeout", default.first_byte_timeout);
        let between_bytes_timeout = duration(
            section,
            "between_bytes_timeout",
            default.between_bytes_timeout,
        );
        let requests = count(section, "requests", default.requests);
        let requests_per_namespace = count(
            section,
            "requests_per_namespace",
            default.requests_per_namespace,
        );
        let requests_per_call = count(section, "requests_per_call", default.requests_per_call);
        let connections = count(section, "connections", default.connections);
        let response_bytes = section
            .optional("response_bytes")
            .map_or(Some(default.response_bytes), |at| at.size());
        section.finish();
        Some(EgressConfig {
            private: private?,
            allow: allow?,
            deny: deny?,
            ca: ca?,
            connect_timeout: connect_timeout?,
            first_byte_timeout: first_byte_timeout?,
            between_bytes_timeout: between_bytes_timeout?,
            requests: requests?,
            requests_per_namespace: requests_per_namespace?,
            requests_per_call: requests_per_call?,
            connections: connections?,
            response_bytes: response_bytes?,
            ..default
        })
    }
}

type Invalid = (String, Option<String>);

/// A list of texts; from the environment, one text with commas.
fn texts<T>(
    section: &mut Section<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Option<Vec<T>> {
    let Some(at) = section.optional(key) else {
        return Some(Vec::new());
    };
    let read = |at: &At<'_>, text: &str| match parse(text.trim()) {
        Ok(value) => Some(value),
        Err((message, Some(hint))) => {
            at.problem_with_hint(message, hint);
            None
        }
        Err((message, None)) => {
            at.problem(message);
            None
        }
    };
    if let stepwell_document::Value::String(list) = &at.node().value {
        return list.split(',').map(|text| read(&at, text)).collect();
    }
    let items = at.sequence()?;
    // Each is read whether or not the ones before it were right.
    let values: Vec<Option<T>> = items
        .iter()
        .map(|item| item.string().and_then(|text| read(item, text)))
        .collect();
    values.into_iter().collect()
}

fn count(section: &mut Section<'_>, key: &'static str, default: usize) -> Option<usize> {
    match section.optional(key) {
        None => Some(default),
        Some(at) => at
            .integer(1, MAX_COUNT)
            .and_then(|number| usize::try_from(number).ok()),
    }
}
