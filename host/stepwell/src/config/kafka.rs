//! How Kafka is reached, and whose names there are whose.

use stepwell_core::Name;
use stepwell_document::{At, Key, Value};
use stepwell_kafka_trigger::{Brokers, KafkaConfig, RESERVED_PROPERTIES};
use stepwell_pipeline::KafkaOwners;

use super::secret::SecretReader;
use super::{Section, duration};

/// `[kafka]`.
pub(super) fn kafka(
    section: &mut Section<'_>,
    secrets: &SecretReader<'_>,
) -> (Option<KafkaConfig>, KafkaOwners) {
    let brokers = section.optional("brokers");
    let brokers = brokers.map_or(Some(Brokers::Embedded), |at| brokers_at(&at));
    let drain_timeout = duration(
        section,
        "drain_timeout",
        KafkaConfig::default().drain_timeout,
    );
    let mut properties = Vec::new();
    for (key, at) in section
        .optional("properties")
        .and_then(|at| at.entries())
        .unwrap_or_default()
    {
        if RESERVED_PROPERTIES.contains(&key.name.as_str()) {
            at.problem(format!(
                "'{}' is the host's own: what it promises rests on it",
                key.name
            ));
            continue;
        }
        let value = match &at.node().value {
            Value::Boolean(value) => Some(value.to_string()),
            Value::Integer(value) => Some(value.to_string()),
            Value::Float(value) => Some(value.to_string()),
            // Texts, and `ssl.key.password = { env = "…" }` and the like.
            _ => secrets
                .read_property(&at, &key.name)
                .map(|secret| secret.expose().to_owned()),
        };
        if let Some(value) = value {
            properties.push((key.name.clone(), value));
        }
    }
    let owners = owners(section);
    section.finish();
    let config = brokers
        .zip(drain_timeout)
        .map(|(brokers, drain_timeout)| KafkaConfig {
            brokers,
            properties,
            drain_timeout,
        });
    (config, owners)
}

fn brokers_at(at: &At<'_>) -> Option<Brokers> {
    let servers = match at.string()? {
        "embedded" => return Some(Brokers::Embedded),
        servers => servers,
    };
    let wrong = servers.split(',').find(|server| {
        server
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.trim().is_empty() || port.parse::<u16>().is_err())
    });
    if let Some(wrong) = wrong {
        at.problem_with_hint(
            format!("'{wrong}' is not host:port"),
            "or write \"embedded\"",
        );
        return None;
    }
    Some(Brokers::Servers(servers.to_owned()))
}

/// `[kafka.owners]`: what names begin with, and whose they are.
fn owners(section: &mut Section<'_>) -> KafkaOwners {
    let entries = section.optional("owners").and_then(|at| at.entries());
    let owner = |(key, at): (&Key, At<'_>)| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if key.name.is_empty() || !key.name.bytes().all(legal) {
            at.problem_with_hint(
                format!("no topic begins with '{}'", key.name),
                "names of topics are letters, digits and . _ -",
            );
        }
        let owner: Name = at
            .string()?
            .parse()
            .map_err(|error: stepwell_core::InvalidName| at.problem(error.to_string()))
            .ok()?;
        Some((key.name.clone(), owner))
    };
    entries
        .unwrap_or_default()
        .into_iter()
        .filter_map(owner)
        .collect()
}
