use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use stepwell_test_services::Kafka;
use stepwell_tests::{Config, Host};

pub(crate) const PARTITIONS: i32 = 4;
pub(crate) const KEYS: usize = 23;

pub(crate) fn brokers() -> String {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start().unwrap()).brokers()
}

pub(crate) fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// A host that a broker gives up after the shortest time that it allows.
pub(crate) async fn host() -> Host {
    host_of(&brokers()).await
}

pub(crate) async fn host_of(brokers: &str) -> Host {
    let properties =
        "[kafka.properties]\n\"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500\n";
    Host::start(&Config::with(&format!(
        "[kafka]\nbrokers = \"{brokers}\"\n{properties}"
    )))
    .await
    .unwrap()
}

pub(crate) async fn create(names: &[&str]) {
    create_for(names, "1048588").await;
}

/// Makes topics for records of this many bytes.
pub(crate) async fn create_for(names: &[&str], largest: &str) {
    let admin: AdminClient<DefaultClientContext> = client(&brokers()).create().unwrap();
    let topics: Vec<_> = names
        .iter()
        .map(|name| {
            NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))
                .set("max.message.bytes", largest)
        })
        .collect();
    for result in admin
        .create_topics(&topics, &AdminOptions::new())
        .await
        .unwrap()
    {
        result.unwrap();
    }
}

/// Appends a tag to each record of `PREFIX-in` and puts it into `PREFIX-out`.
pub(crate) fn tagged(prefix: &str) -> String {
    format!(
        "stepwell: 1\nname: {prefix}\ntriggers:\n\
         \x20 - kafka: {{topics: [{prefix}-in], group: {prefix}, output: {prefix}-out}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \" done\"}}}}\n"
    )
}

pub(crate) struct Sent {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// Produces numbers and answers where each of them is. A key's numbers grow. With `kind`, they are events of these types.
pub(crate) async fn produce_numbers(
    topic: &str,
    range: std::ops::Range<usize>,
    kind: Option<fn(usize) -> &'static str>,
) -> Vec<Sent> {
    let producer: FutureProducer = client(&brokers())
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    let mut deliveries = Vec::new();
    for n in range {
        let (key, value) = (format!("key-{}", n % KEYS), n.to_string());
        let headers = kind
            .map(|kind| headers(&event(kind(n))))
            .unwrap_or_default();
        let record = FutureRecord::to(topic)
            .key(&key)
            .payload(&value)
            .headers(headers);
        deliveries.push(producer.send_result(record).unwrap());
    }
    let mut sent = Vec::new();
    for delivery in deliveries {
        let place = delivery.await.unwrap().unwrap();
        sent.push(Sent {
            partition: place.partition,
            offset: place.offset,
        });
    }
    sent
}

pub(crate) fn headers(all: &[(&str, &str)]) -> OwnedHeaders {
    all.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header {
            key,
            value: Some(*value),
        })
    })
}

pub(crate) async fn produce(
    brokers: &str,
    topic: &str,
    key: &str,
    headers: &[(&str, &str)],
    value: &str,
) {
    let producer: FutureProducer = client(brokers).create().unwrap();
    let record = FutureRecord::to(topic)
        .key(key)
        .payload(value)
        .headers(self::headers(headers))
        .timestamp(1_700_000_000_123);
    producer
        .send(record, Duration::from_secs(20))
        .await
        .unwrap();
}

/// Reads a topic from its start, on and on.
pub(crate) struct Reader {
    pub(crate) consumer: BaseConsumer,
    pub(crate) records: Vec<OwnedMessage>,
}

impl Reader {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        Self::of(brokers, topic, PARTITIONS)
    }

    pub(crate) fn of(brokers: &str, topic: &str, partitions: i32) -> Self {
        let consumer: BaseConsumer = client(brokers)
            .set("group.id", "reader-without-a-group")
            .set("enable.auto.commit", "false")
            .set("topic.metadata.refresh.interval.ms", "500")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        Self {
            consumer,
            records: Vec::new(),
        }
    }

    /// Takes what comes within this time.
    pub(crate) fn poll(&mut self, time: Duration) -> bool {
        match self.consumer.poll(time) {
            Some(Ok(message)) => {
                self.records.push(message.detach());
                true
            }
            _ => false,
        }
    }

    /// Reads until this holds.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&[OwnedMessage]) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(&self.records) {
            assert!(
                Instant::now() < end,
                "{what}: {} records were read",
                self.records.len()
            );
            self.poll(Duration::from_millis(50));
        }
    }

    /// Takes what is there already, to the end of every partition.
    pub(crate) fn read_to_end(&mut self, topic: &str) {
        let ends: i64 = (0..PARTITIONS)
            .map(|partition| {
                self.consumer
                    .fetch_watermarks(topic, partition, Duration::from_secs(10))
                    .unwrap()
                    .1
            })
            .sum();
        self.until("the end", |records| {
            records.len() >= usize::try_from(ends).unwrap()
        });
    }

    /// The numbers in the output, as they came.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.records
            .iter()
            .map(|record| {
                text(record.payload())
                    .trim_end_matches(" done ")
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    pub(crate) fn distinct(&self) -> HashSet<usize> {
        self.numbers().into_iter().collect()
    }

    /// First completions of a key come in order.
    pub(crate) fn assert_ordered(&self) {
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        let mut seen = HashSet::new();
        for number in self.numbers() {
            if seen.insert(number) {
                let before = last.insert(number % KEYS, number);
                assert!(before < Some(number), "{number} came after {before:?}");
            }
        }
    }
}

pub(crate) fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

pub(crate) fn header(record: &OwnedMessage, name: &str) -> String {
    let mut values = record
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        .filter(|header| header.key == name);
    values
        .next()
        .map(|header| text(header.value))
        .unwrap_or_default()
}

/// What the group has committed, by partition.
pub(crate) async fn committed(group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let (group, topic) = (group.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client(&brokers()).set("group.id", &group).create().unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition(&topic, partition);
        }
        let offsets = consumer
            .committed_offsets(list, Duration::from_secs(10))
            .unwrap();
        let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            element.offset().to_raw().unwrap_or(0).max(0)
        };
        offsets
            .elements()
            .iter()
            .map(|element| (element.partition(), offset(element)))
            .collect()
    })
    .await
    .unwrap()
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn all_committed(group: &str, topic: &str, count: usize) {
    eventually("every offset is committed", async || {
        committed(group, topic).await.values().sum::<i64>() == i64::try_from(count).unwrap()
    })
    .await;
}

/// Does what the type of each event says.
pub(crate) fn hostile(prefix: &str) -> String {
    format!(
        "stepwell: 1\nname: {prefix}\ntriggers:\n\
         \x20 - kafka: {{topics: [{prefix}-in], group: {prefix}, output: {prefix}-out, dead_letter: {prefix}-dead, \
         retry: {{attempts: 3, backoff: 10ms}}}}\nsteps:\n\
         \x20 - {{id: only, plugin: probe@1}}\n"
    )
}

pub(crate) fn event(kind: &str) -> [(&str, &str); 4] {
    [
        ("ce_specversion", "1.0"),
        ("ce_id", "the id"),
        ("ce_source", "/test"),
        ("ce_type", kind),
    ]
}
