//! What the Kafka trigger promises, seen from outside on a real Apache Kafka: hosts are killed, come and go, and records are bad.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use reqwest::Method;
use stepwell_test_services::Kafka;
use stepwell_tests::{Config, Host, send};

const PARTITIONS: i32 = 4;
const KEYS: usize = 23;

fn brokers() -> String {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start().unwrap()).brokers()
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// A host that a broker gives up after the shortest time that it allows.
async fn host() -> Host {
    host_of(&brokers()).await
}

async fn host_of(brokers: &str) -> Host {
    let properties =
        "[kafka.properties]\n\"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500\n";
    Host::start(&Config::with(&format!(
        "[kafka]\nbrokers = \"{brokers}\"\n{properties}"
    )))
    .await
    .unwrap()
}

async fn create(names: &[&str]) {
    create_for(names, "1048588").await;
}

/// Makes topics for records of this many bytes.
async fn create_for(names: &[&str], largest: &str) {
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
fn tagged(prefix: &str) -> String {
    format!(
        "stepwell: 1\nname: {prefix}\ntriggers:\n\
         \x20 - kafka: {{topics: [{prefix}-in], group: {prefix}, output: {prefix}-out}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \" done\"}}}}\n"
    )
}

struct Sent {
    partition: i32,
    offset: i64,
}

/// Produces numbers and answers where each of them is. A key's numbers grow. With `kind`, they are events of these types.
async fn produce_numbers(
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

fn headers(all: &[(&str, &str)]) -> OwnedHeaders {
    all.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header {
            key,
            value: Some(*value),
        })
    })
}

async fn produce(brokers: &str, topic: &str, key: &str, headers: &[(&str, &str)], value: &str) {
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
struct Reader {
    consumer: BaseConsumer,
    records: Vec<OwnedMessage>,
}

impl Reader {
    fn new(brokers: &str, topic: &str) -> Self {
        Self::of(brokers, topic, PARTITIONS)
    }

    fn of(brokers: &str, topic: &str, partitions: i32) -> Self {
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
    fn poll(&mut self, time: Duration) -> bool {
        match self.consumer.poll(time) {
            Some(Ok(message)) => {
                self.records.push(message.detach());
                true
            }
            _ => false,
        }
    }

    /// Reads until this holds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&[OwnedMessage]) -> bool) {
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
    fn read_to_end(&mut self, topic: &str) {
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
    fn numbers(&self) -> Vec<usize> {
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

    fn distinct(&self) -> HashSet<usize> {
        self.numbers().into_iter().collect()
    }

    /// First completions of a key come in order.
    fn assert_ordered(&self) {
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

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

fn header(record: &OwnedMessage, name: &str) -> String {
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
async fn committed(group: &str, topic: &str) -> BTreeMap<i32, i64> {
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

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn all_committed(group: &str, topic: &str, count: usize) {
    eventually("every offset is committed", async || {
        committed(group, topic).await.values().sum::<i64>() == i64::try_from(count).unwrap()
    })
    .await;
}

/// Every third record is bad: its outcome is a dead letter.
fn mixed(number: usize) -> &'static str {
    if number.is_multiple_of(3) {
        "invalid:a third"
    } else {
        "echo"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_killed_in_the_middle_of_a_batch_loses_no_record() {
    const COUNT: usize = 9000;
    create(&["kill-in", "kill-out", "kill-dead"]).await;
    let sent = produce_numbers("kill-in", 0..COUNT, Some(mixed)).await;
    let mut host = host().await;
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("kill", &hostile("kill")).await.unwrap();
    let (mut output, mut dead) = (
        Reader::new(&brokers(), "kill-out"),
        Reader::new(&brokers(), "kill-dead"),
    );
    let (mut might_repeat, mut in_the_middle) = (0, 0);
    for round in 1..=3 {
        let wanted = round * COUNT / 6;
        output.until("output", |records| records.len() >= wanted);
        host.kill();
        output.read_to_end("kill-out");
        dead.read_to_end("kill-dead");
        let done: HashSet<usize> = output.distinct().union(&dead.distinct()).copied().collect();
        let offsets = committed("kill", "kill-in").await;
        // Committed is only what has its output or its dead letter.
        for (number, place) in sent.iter().enumerate() {
            assert!(
                place.offset >= offsets[&place.partition] || done.contains(&number),
                "record {number} is committed and came to nothing"
            );
        }
        let uncommitted = done.len() - usize::try_from(offsets.values().sum::<i64>()).unwrap();
        println!(
            "kill {round}: {} of {COUNT} done, {uncommitted} of them not committed",
            done.len()
        );
        // And what each partition had under way when the host died: the broker may have got it after we looked.
        might_repeat += uncommitted + usize::try_from(PARTITIONS).unwrap();
        in_the_middle += usize::from(done.len() < COUNT);
        host.restart().await.unwrap();
    }
    assert!(in_the_middle > 0, "the host was never killed in the middle");
    all_committed("kill", "kill-in", COUNT).await;
    output.read_to_end("kill-out");
    dead.read_to_end("kill-dead");
    let (good, bad): (HashSet<usize>, HashSet<usize>) =
        (0..COUNT).partition(|number| mixed(*number) == "echo");
    assert!(
        output.distinct() == good,
        "all that is good, and nothing else, came out"
    );
    assert!(
        dead.distinct() == bad,
        "all that is bad, and nothing else, was dead-lettered"
    );
    output.assert_ordered();
    dead.assert_ordered();
    let repeated = output.records.len() + dead.records.len() - COUNT;
    println!("{repeated} records came twice, {might_repeat} might have");
    assert!(
        repeated <= might_repeat,
        "{repeated} repeated, but only {might_repeat} were done and not committed at the kills"
    );
    assert!(
        might_repeat < COUNT / 2,
        "what is done is committed soon: {might_repeat}"
    );
    assert_eq!(host.stop().unwrap(), 0);
}

fn assigned(host: &Host) -> usize {
    host.log().matches("partition assigned").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_join_and_leave_lose_and_repeat_nothing() {
    const COUNT: usize = 4000;
    create(&["join-in", "join-out"]).await;
    let (mut first, mut second) = (host().await, host().await);
    for host in [&first, &second] {
        host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    }
    first.apply("join", &tagged("join")).await.unwrap();
    eventually("the first host takes all partitions", async || {
        assigned(&first) >= 4
    })
    .await;
    // Records keep coming while the hosts come and go.
    let sender = tokio::spawn(async {
        for start in (0..COUNT).step_by(100) {
            produce_numbers("join-in", start..start + 100, None).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut output = Reader::new(&brokers(), "join-out");
    output.until("the first host's output", |records| records.len() > 200);
    second.apply("join", &tagged("join")).await.unwrap();
    eventually("the second host takes some", async || assigned(&second) > 0).await;
    assert_eq!(first.stop().unwrap(), 0);
    let before = output.records.len();
    output.until("the second host's output", |records| {
        records.len() > before + 100
    });
    let had = assigned(&first);
    first.restart().await.unwrap();
    eventually("the first host takes some again", async || {
        assigned(&first) > had
    })
    .await;
    assert_eq!(second.stop().unwrap(), 0);
    sender.await.unwrap();
    output.until("every record", |records| records.len() >= COUNT);
    eventually("every record", async || {
        output.poll(Duration::from_millis(20));
        output.distinct().len() == COUNT
    })
    .await;
    all_committed("join", "join-in", COUNT).await;
    output.read_to_end("join-out");
    output.assert_ordered();
    assert_eq!(
        output.records.len(),
        COUNT,
        "whoever leaves in good order commits what it did: nothing came twice"
    );
    let sample = &output.records[0];
    assert_eq!(
        text(sample.key()),
        format!("key-{}", output.numbers()[0] % KEYS),
        "keyed by the input's key"
    );
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_type", "kafka.record"),
        ("ce_source", "/kafka/join-in"),
    ] {
        assert_eq!(header(sample, name), value);
    }
    assert!(
        header(sample, "ce_id").starts_with("join-in/"),
        "TOPIC/PARTITION/OFFSET"
    );
    assert_eq!(first.stop().unwrap(), 0);
}

/// Does what the type of each event says.
fn hostile(prefix: &str) -> String {
    format!(
        "stepwell: 1\nname: {prefix}\ntriggers:\n\
         \x20 - kafka: {{topics: [{prefix}-in], group: {prefix}, output: {prefix}-out, dead_letter: {prefix}-dead, \
         retry: {{attempts: 3, backoff: 10ms}}}}\nsteps:\n\
         \x20 - {{id: only, plugin: probe@1}}\n"
    )
}

fn event(kind: &str) -> [(&str, &str); 4] {
    [
        ("ce_specversion", "1.0"),
        ("ce_id", "the id"),
        ("ce_source", "/test"),
        ("ce_type", kind),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_become_dead_letters_that_say_why() {
    create(&["bad-in", "bad-out", "bad-dead"]).await;
    let host = host().await;
    host.upload("probe", "1.2.3", "hostile").await.unwrap();
    host.apply("bad", &hostile("bad")).await.unwrap();
    let plugin = host
        .get("/api/v1/namespaces/default/plugins/probe/versions/1.2.3")
        .await
        .unwrap()
        .json();
    let mut invalid = event("invalid:the reason").to_vec();
    invalid.push(("own", "kept"));
    invalid.push((
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ));
    // One key, so one partition: each comes after the one before.
    produce(&brokers(), "bad-in", "k", &invalid, "the value").await;
    produce(&brokers(), "bad-in", "k", &event("failed:again"), "").await;
    produce(&brokers(), "bad-in", "k", &event("trap"), "").await;
    produce(
        &brokers(),
        "bad-in",
        "k",
        &[("ce_specversion", "1.0"), ("ce_id", "1")],
        "no source",
    )
    .await;
    produce(
        &brokers(),
        "bad-in",
        "k",
        &[("content-type", "application/cloudevents+json")],
        "{rubbish",
    )
    .await;
    produce(&brokers(), "bad-in", "k", &event("drop"), "filtered").await;
    produce(&brokers(), "bad-in", "k", &event("echo"), "good").await;

    let mut output = Reader::new(&brokers(), "bad-out");
    output.until("what is good", |records| !records.is_empty());
    assert_eq!(text(output.records[0].payload()), "good");
    let mut dead = Reader::new(&brokers(), "bad-dead");
    dead.until("what is bad", |records| records.len() >= 5);
    let classes: Vec<(String, String)> = dead
        .records
        .iter()
        .map(|record| {
            (
                header(record, "dlq.error.class"),
                header(record, "dlq.attempts"),
            )
        })
        .collect();
    let expected = [
        ("invalid", "1"),
        ("failed", "3"),
        ("trap", "2"),
        ("invalid", "1"),
        ("invalid", "1"),
    ];
    assert_eq!(
        classes,
        expected.map(|(class, attempts)| (class.to_owned(), attempts.to_owned()))
    );

    let letter = &dead.records[0];
    assert_eq!(
        (text(letter.key()), text(letter.payload())),
        ("k".into(), "the value".into())
    );
    assert_eq!(letter.timestamp().to_millis(), Some(1_700_000_000_123));
    for (name, value) in &invalid {
        assert_eq!(header(letter, name), *value, "{name} is untouched");
    }
    for (name, value) in [
        ("dlq.original.topic", "bad-in"),
        ("dlq.original.offset", "0"),
        ("dlq.original.timestamp", "1700000000123"),
        ("dlq.group", "bad"),
        ("dlq.pipeline", "bad"),
        ("dlq.revision", "1"),
        ("dlq.step", "only"),
        ("dlq.error.message", "the reason"),
        ("dlq.generation", "1"),
    ] {
        assert_eq!(header(letter, name), value, "{name}");
    }
    assert!(
        header(letter, "dlq.original.partition")
            .parse::<i32>()
            .is_ok()
    );
    let by = header(letter, "dlq.plugin");
    assert!(
        by.contains("probe@1.2.3") && by.contains(plugin["digest"].as_str().unwrap()),
        "{by}"
    );
    let (first, last) = (
        header(&dead.records[1], "dlq.first-failed-at"),
        header(&dead.records[1], "dlq.last-failed-at"),
    );
    assert!(first < last && first.contains('T'), "{first} {last}");
    let missing = header(&dead.records[3], "dlq.error.message");
    assert!(missing.contains("source"), "{missing}");
    all_committed("bad", "bad-in", 7).await;
    assert_eq!(output.records.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloudevents_come_and_go_in_both_modes() {
    create(&["modes-in", "modes-out", "modes-dead"]).await;
    let host = host().await;
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("modes", &hostile("modes")).await.unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut binary = event("echo").to_vec();
    binary.extend([
        ("ce_subject", "s"),
        ("ce_time", "2020-01-02T03:04:05Z"),
        ("ce_tenant", "a"),
        ("ce_httpstatus", "299"),
        ("content-type", "text/x-binary"),
        ("traceparent", trace),
    ]);
    produce(&brokers(), "modes-in", "one", &binary, "binary").await;
    let structured = r#"{"specversion":"1.0","id":"i2","source":"/s2","type":"echo","subject":"t","tenant":"b",
        "partitionkey":"forged","datacontenttype":"application/json","data":{"n":[1,2]}}"#;
    let content_type = [(
        "content-type",
        "application/cloudevents+json; charset=utf-8",
    )];
    produce(&brokers(), "modes-in", "two", &content_type, structured).await;

    let mut output = Reader::new(&brokers(), "modes-out");
    output.until("both", |records| records.len() >= 2);
    output
        .records
        .sort_by_key(|record| record.key().map(<[u8]>::to_vec));
    let (one, two) = (&output.records[0], &output.records[1]);
    assert_eq!(
        (text(one.key()), text(one.payload())),
        ("one".into(), "binary".into())
    );
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", "the id"),
        ("ce_source", "/test"),
        ("ce_type", "echo"),
        ("ce_subject", "s"),
        ("ce_time", "2020-01-02T03:04:05Z"),
        ("ce_tenant", "a"),
        ("ce_partitionkey", "one"),
        ("ce_httpstatus", ""),
        ("content-type", "text/x-binary"),
    ] {
        assert_eq!(header(one, name), value, "{name}");
    }
    let sent_on = header(one, "traceparent");
    assert_eq!(
        sent_on.get(3..35),
        trace.get(3..35),
        "the same trace: {sent_on}"
    );
    // The record's key is what orders, whatever the event says.
    assert_eq!(text(two.key()), "two");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(two.payload().unwrap()).unwrap(),
        serde_json::json!({"n": [1, 2]})
    );
    for (name, value) in [
        ("ce_id", "i2"),
        ("ce_source", "/s2"),
        ("ce_subject", "t"),
        ("ce_tenant", "b"),
    ] {
        assert_eq!(header(two, name), value, "{name}");
    }
    assert_eq!(header(two, "content-type"), "application/json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_serves_any_client() {
    let host = Host::start(&Config::default()).await.unwrap();
    assert!(!host.kafka().is_empty(), "the ready line says where it is");
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    host.apply("embedded", &tagged("embedded")).await.unwrap();
    for n in 0..20 {
        produce(
            host.kafka(),
            "embedded-in",
            &format!("key-{}", n % KEYS),
            &[],
            &n.to_string(),
        )
        .await;
    }
    let mut output = Reader::new(host.kafka(), "embedded-out");
    output.until("every record", |records| records.len() >= 20);
    output.assert_ordered();
    assert_eq!(output.distinct().len(), 20);
    assert_eq!(host.part("kafka/embedded").await.unwrap(), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_goes_away_and_comes_back() {
    let mut kafka = Kafka::start().unwrap();
    let brokers = kafka.brokers();
    kafka.stop();
    // A host starts without it, serves what does not need it, and takes a pipeline that does.
    let host = host_of(&brokers).await;
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let document = tagged("away").replace(
        "triggers:\n",
        "triggers:\n  - http: {method: POST, path: /away}\n",
    );
    host.apply("away", &document).await.unwrap();
    host.wait_for("kafka/away", "degraded").await.unwrap();
    assert_eq!(
        host.post("/away", "text/plain", "x").await.unwrap().body,
        "x done "
    );

    kafka.restart().unwrap();
    host.wait_for("kafka/away", "ok").await.unwrap();
    let metadata: BaseConsumer = client(&brokers).create().unwrap();
    for topic in ["away-in", "away-out", "away.dlq"] {
        eventually("the host has made the topic", async || {
            let found = metadata
                .fetch_metadata(None, Duration::from_secs(10))
                .unwrap();
            found.topics().iter().any(|known| known.name() == topic)
        })
        .await;
    }
    for n in 0..50 {
        produce(&brokers, "away-in", "k", &[], &n.to_string()).await;
    }
    kafka.stop();
    host.wait_for("kafka/away", "degraded").await.unwrap();
    assert_eq!(
        host.post("/away", "text/plain", "y").await.unwrap().body,
        "y done "
    );
    kafka.restart().unwrap();
    for n in 50..100 {
        produce(&brokers, "away-in", "k", &[], &n.to_string()).await;
    }
    // One partition: the broker's own default.
    let mut output = Reader::of(&brokers, "away-out", 1);
    let mut seen = HashSet::new();
    output.until("every record", |records| {
        seen.extend(records.last().map(|record| text(record.payload())));
        seen.len() == 100
    });
    let mut first: Vec<usize> = Vec::new();
    for number in output.numbers() {
        if !first.contains(&number) {
            first.push(number);
        }
    }
    assert!(first.is_sorted(), "{first:?}");
    host.wait_for("kafka/away", "ok").await.unwrap();
}

/// The value of a series without labels beside the group.
async fn gauge(host: &Host, name: &str, group: &str) -> f64 {
    let metrics = send(host.admin_request(Method::GET, "/metrics"))
        .await
        .unwrap();
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    let line = format!("{name}{{group=\"{group}\"}} ");
    let found = metrics.lines().find_map(|text| text.strip_prefix(&line));
    found.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_large_records_waits_at_the_broker_and_not_in_memory() {
    const COUNT: usize = 120;
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    create(&["bulk-in", "bulk-out", "bulk-dead"]).await;
    let producer: FutureProducer = client(&brokers()).create().unwrap();
    let value = vec![0_u8; 900_000];
    for number in 0..COUNT {
        let key = format!("key-{number}");
        let record = FutureRecord::to("bulk-in")
            .key(&key)
            .payload(&value)
            .headers(headers(&event("sleep:60000")));
        producer
            .send(record, Duration::from_secs(20))
            .await
            .unwrap();
    }
    let mut host = host().await;
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("bulk", &hostile("bulk")).await.unwrap();
    let queued = async || gauge(&host, "stepwell_kafka_queued_bytes", "bulk").await / MEBIBYTE;
    eventually("some are fetched", async || queued().await > 16.0).await;
    for _ in 0..20 {
        let now = queued().await;
        // One record more than the share of each partition.
        assert!(now < 32.0 + 4.0, "{now} MiB are fetched and not settled");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    host.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_of_a_subscription_goes_with_it() {
    create(&["counted-in", "counted-out"]).await;
    create_for(&["counted-dead"], "2000").await;
    let host = host().await;
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("counted", &hostile("counted")).await.unwrap();
    let value = "x".repeat(5_000);
    produce(&brokers(), "counted-in", "k", &event("invalid:so"), &value).await;
    let failures = async || {
        let metrics = send(host.admin_request(Method::GET, "/metrics"));
        let metrics = String::from_utf8(metrics.await.unwrap().body.to_vec()).unwrap();
        metrics.contains(
            "stepwell_kafka_write_failures_total{group=\"counted\",topic=\"counted-dead\"}",
        )
    };
    eventually("the dead letter is refused", async || failures().await).await;
    let path = "/api/v1/namespaces/default/pipelines/counted";
    let deleted = host.admin_request(Method::DELETE, path).send().await;
    assert!(deleted.unwrap().status().is_success());
    eventually("nothing of it is left", async || !failures().await).await;
}

/// A document that reads this many topics, each in a group of its own.
fn subscribed(name: &str, count: usize) -> String {
    let triggers: String = (0..count)
        .map(|number| format!("  - kafka: {{topics: [{name}-{number}], group: {name}-{number}}}\n"))
        .collect();
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n{triggers}steps: [{{id: only, plugin: tagger@1}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_has_so_many_subscriptions_and_one_namespace_not_all_of_them() {
    let host = Host::start(&Config::with("[limits]\nsubscriptions = 4\n"))
        .await
        .unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let put = async |path: &str, body: String| {
        let path = format!("/api/v1/namespaces/{path}");
        let request = host.admin_request(Method::PUT, &path).body(body);
        send(request).await.unwrap()
    };
    let apply = async |namespace: &str, name: &str, count: usize| {
        let path = format!("{namespace}/pipelines/{name}");
        let reply = put(&path, subscribed(name, count)).await;
        let message = reply.json()["errors"][0]["message"].clone();
        (
            reply.status.as_u16(),
            message.as_str().unwrap_or_default().to_owned(),
        )
    };
    // Alone, a namespace may have all.
    let (status, message) = apply("default", "a", 5).await;
    assert_eq!(status, 422);
    assert!(
        message.starts_with("5 Kafka triggers, where there is room for 4"),
        "{message}"
    );
    assert_eq!(apply("default", "a", 4).await.0, 201);
    assert_eq!(apply("default", "b", 1).await.0, 422);
    // With another beside it, three quarters.
    assert_eq!(put("team", "{}".to_owned()).await.status.as_u16(), 201);
    let component = stepwell_tests::guest("tagger").unwrap();
    let request = host
        .admin_request(
            Method::PUT,
            "/api/v1/namespaces/team/plugins/tagger/versions/1.0.0",
        )
        .body(component);
    assert_eq!(send(request).await.unwrap().status.as_u16(), 201);
    assert_eq!(apply("team", "t", 1).await.0, 422);
    // What is there already stays, and may become less.
    assert_eq!(apply("default", "a", 4).await.0, 200);
    assert_eq!(apply("default", "a", 2).await.0, 200);
    assert_eq!(apply("default", "a", 4).await.0, 422);
    assert_eq!(apply("default", "a", 3).await.0, 200);
    assert_eq!(apply("team", "t", 1).await.0, 201);
    let metrics = send(host.admin_request(Method::GET, "/metrics"))
        .await
        .unwrap();
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    let hits = "stepwell_limit_hits_total{limit=\"subscriptions\"} 4\n";
    assert!(metrics.contains(hits), "{metrics}");
    // A subscription that ends is no error.
    assert!(!host.logs("ERROR").await, "{}", host.log());
}
