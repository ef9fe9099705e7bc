use std::time::Duration;

use rdkafka::ClientConfig;

use crate::fetched;

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brokers {
    /// librdkafka's mock cluster inside this process: for laptops; it keeps nothing.
    Embedded,
    /// `host:port,host:port`.
    Servers(String),
}

/// How the host speaks to Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Where the broker is.
    pub brokers: Brokers,
    /// librdkafka's own settings, passed on as they are.
    pub properties: Vec<(String, String)>,
    /// How long a revoked partition waits for the record that is being handled.
    pub drain_timeout: Duration,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: Brokers::Embedded,
            properties: Vec::new(),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// Settings of librdkafka that the trigger's promises rest on: an operator may not set them.
pub const RESERVED_PROPERTIES: [&str; 10] = [
    "bootstrap.servers",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "partition.assignment.strategy",
    "isolation.level",
    "auto.offset.reset",
    "enable.idempotence",
    "acks",
    "transactional.id",
];

/// The settings that every client shares.
pub(crate) fn client(bootstrap: &str, properties: &[(String, String)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "stepwell");
    for (key, value) in properties {
        config.set(key, value);
    }
    config.set("bootstrap.servers", bootstrap);
    config
}

pub(crate) fn consumer(
    bootstrap: &str,
    properties: &[(String, String)],
    group: &str,
) -> ClientConfig {
    let mut config = client(bootstrap, properties);
    // A topic that is made after the subscription is found within this time.
    defaulted(
        &mut config,
        properties,
        "topic.metadata.refresh.interval.ms",
        "3000",
    );
    defaulted(&mut config, properties, "statistics.interval.ms", "1000");
    defaulted(
        &mut config,
        properties,
        "queued.max.messages.kbytes",
        "16384",
    );
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest");
    config
}

pub(crate) fn producer(bootstrap: &str, properties: &[(String, String)]) -> ClientConfig {
    let consumer_only = |key: &str| {
        key.starts_with("session.")
            || key.starts_with("fetch.")
            || key.starts_with("max.poll.")
            || key.starts_with("heartbeat.")
            || key.starts_with("queued.")
            || key == "group.instance.id"
    };
    let kept: Vec<(String, String)> = properties
        .iter()
        .filter(|(key, _)| !consumer_only(key))
        .cloned()
        .collect();
    let mut config = client(bootstrap, &kept);
    defaulted(&mut config, &kept, "message.timeout.ms", "30000");
    defaulted(&mut config, &kept, "linger.ms", "0");
    // The topic says what is too large. librdkafka's own 1,000,000 are less than what a broker takes by default: a record that was
    // read could not be written again.
    let largest = (2 * fetched::MAX_RECORD).to_string();
    defaulted(&mut config, &kept, "message.max.bytes", &largest);
    config.set("enable.idempotence", "true").set("acks", "all");
    config
}

fn defaulted(config: &mut ClientConfig, properties: &[(String, String)], key: &str, value: &str) {
    if !properties.iter().any(|(name, _)| name == key) {
        config.set(key, value);
    }
}
