use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use tracing::{info, warn};

use crate::broker::EmbeddedBroker;
use crate::config;

/// Partitions of a topic that the embedded broker makes; a real broker uses its own default.
const EMBEDDED_PARTITIONS: i32 = 4;

/// Makes the topics that are missing.
pub(crate) enum Topics {
    Embedded(EmbeddedBroker),
    Broker {
        bootstrap: String,
        properties: Vec<(String, String)>,
    },
}

impl Topics {
    /// Makes those of `names` that are not there, and answers whether all of them are there now.
    pub(crate) async fn ensure(&self, names: &[String]) -> bool {
        match self {
            Self::Embedded(broker) => names.iter().all(|name| {
                broker
                    .create_topic(name, EMBEDDED_PARTITIONS)
                    .inspect_err(|error| warn!(%error, topic = name, "cannot create topic"))
                    .is_ok()
            }),
            Self::Broker {
                bootstrap,
                properties,
            } => create(bootstrap, properties, names).await,
        }
    }
}

async fn create(bootstrap: &str, properties: &[(String, String)], names: &[String]) -> bool {
    let admin: AdminClient<DefaultClientContext> =
        match config::client(bootstrap, &client_only(properties)).create() {
            Ok(admin) => admin,
            Err(error) => {
                warn!(%error, "cannot create Kafka admin client");
                return false;
            }
        };
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        // -1: the broker's own default.
        .map(|name| NewTopic::new(name, -1, TopicReplication::Fixed(-1)))
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(Duration::from_secs(10)))
        .operation_timeout(Some(Duration::from_secs(10)));
    match admin.create_topics(&topics, &options).await {
        Err(error) => {
            warn!(%error, "cannot create topics");
            false
        }
        Ok(results) => results.into_iter().all(|result| match result {
            Ok(topic) => {
                info!(topic, "topic created");
                true
            }
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => true,
            Err((topic, error)) => {
                warn!(topic, %error, "cannot create topic");
                false
            }
        }),
    }
}

/// Consumer settings would only make the admin client warn.
fn client_only(properties: &[(String, String)]) -> Vec<(String, String)> {
    properties
        .iter()
        .filter(|(key, _)| {
            ["security.", "sasl.", "ssl.", "broker.", "socket."]
                .iter()
                .any(|prefix| key.starts_with(prefix))
        })
        .cloned()
        .collect()
}
