//! What the trigger promises, on a real Apache Kafka (and the first promise on the embedded broker too).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use stepwell_core::{Call, ErrorKind, Event, Name, Quotas, StepError, StepScope};
use stepwell_kafka_trigger::{Brokers, KafkaConfig, KafkaTriggers};
use stepwell_pipeline::{
    Deployed, DeployedStep, Deployment, Dispatcher, KafkaTriggerSpec, Order, RunRetry, Step,
    TriggerSpec,
};
use stepwell_test_services::Kafka;

type Process = dyn Fn(&Event) -> Result<Vec<Event>, StepError> + Send + Sync;

struct Closure(Box<Process>, Duration);

#[async_trait]
impl Step for Closure {
    async fn call(&self, _call: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        tokio::time::sleep(self.1).await;
        (self.0)(&event)
    }
}

fn deployment(
    spec: KafkaTriggerSpec,
    revision: u64,
    pause: Duration,
    process: Box<Process>,
) -> Arc<Deployment> {
    let name: Name = "pipe".parse().unwrap();
    let scope = StepScope {
        namespace: Name::default_namespace(),
        pipeline: name.clone(),
        revision,
        step: "only".parse().unwrap(),
        plugin: "closure@1.0.0".into(),
        digest: Some(stepwell_core::Digest::of(b"closure")),
        grants: stepwell_core::Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    };
    Arc::new(Deployment {
        namespace: Name::default_namespace(),
        name,
        revision,
        triggers: vec![TriggerSpec::Kafka(spec)],
        body: Deployed::Steps(vec![DeployedStep {
            scope: Arc::new(scope),
            step: Arc::new(Closure(process, pause)),
            timeout: None,
            retry: None,
        }]),
    })
}

fn spec(prefix: &str) -> KafkaTriggerSpec {
    KafkaTriggerSpec {
        topics: vec![format!("{prefix}-in")],
        group: format!("{prefix}-group"),
        output: Some(format!("{prefix}-out")),
        dead_letter: format!("{prefix}-group.dlq"),
        order: Order::Key,
        timeout: Duration::from_secs(10),
        retry: RunRetry {
            attempts: 3,
            backoff: Duration::from_millis(20),
            max_age: Duration::from_secs(60),
        },
    }
}

fn shared_kafka() -> String {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start().unwrap()).brokers()
}

fn triggers(brokers: Brokers) -> KafkaTriggers {
    triggers_on(brokers, Dispatcher::new(64))
}

fn triggers_on(brokers: Brokers, dispatcher: Dispatcher) -> KafkaTriggers {
    let config = KafkaConfig {
        brokers,
        properties: vec![
            ("session.timeout.ms".into(), "6000".into()),
            ("heartbeat.interval.ms".into(), "500".into()),
        ],
        drain_timeout: Duration::from_secs(10),
    };
    KafkaTriggers::start(config, Arc::new(dispatcher)).unwrap()
}

fn real() -> KafkaTriggers {
    triggers(Brokers::Servers(shared_kafka()))
}

async fn stop(triggers: KafkaTriggers) {
    tokio::task::spawn_blocking(move || {
        triggers.shutdown(Instant::now() + Duration::from_secs(20))
    })
    .await
    .unwrap();
}

async fn produce(brokers: &str, topic: &str, records: impl IntoIterator<Item = (String, String)>) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("allow.auto.create.topics", "true")
        .create()
        .unwrap();
    for (key, value) in records {
        let mut tries = 0;
        // The topic is made by the subscription: it may take a moment to be there.
        while let Err((error, _)) = producer
            .send(
                FutureRecord::to(topic).key(&key).payload(&value),
                Duration::from_secs(10),
            )
            .await
        {
            tries += 1;
            assert!(tries < 50, "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = (String, String)> {
    range.map(|n| (format!("k{}", n % 7), format!("{n}")))
}

/// Reads a topic until `count` records are there, or fails.
async fn read(brokers: &str, topic: &str, count: usize) -> Vec<OwnedMessage> {
    read_until(brokers, topic, move |records| records.len() >= count).await
}

/// Reads a topic from its start until `enough` holds, or fails.
async fn read_until(
    brokers: &str,
    topic: &str,
    enough: impl Fn(&[OwnedMessage]) -> bool + Send + 'static,
) -> Vec<OwnedMessage> {
    static READERS: AtomicU32 = AtomicU32::new(0);
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let reader = READERS.fetch_add(1, Ordering::Relaxed);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", format!("reader-{reader}"))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("topic.metadata.refresh.interval.ms", "500")
            .create()
            .unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let mut records = Vec::new();
        while !enough(&records) {
            assert!(
                Instant::now() < end,
                "{topic}: only {} records",
                records.len()
            );
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                records.push(message.detach());
            }
        }
        records
    })
    .await
    .unwrap()
}

/// Offsets that the group has committed on a topic, all partitions together.
async fn committed(brokers: &str, group: &str, topic: &str) -> i64 {
    let (brokers, group, topic) = (brokers.to_owned(), group.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", &group)
            .create()
            .unwrap();
        let metadata = consumer
            .fetch_metadata(Some(&topic), Duration::from_secs(10))
            .unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition(&topic, partition.id());
        }
        consumer
            .committed_offsets(list, Duration::from_secs(10))
            .unwrap()
            .elements()
            .iter()
            .filter_map(|element| element.offset().to_raw())
            .filter(|offset| *offset > 0)
            .sum()
    })
    .await
    .unwrap()
}

fn header(record: &OwnedMessage, name: &str) -> String {
    record
        .headers()
        .unwrap()
        .iter()
        .find(|header| header.key == name)
        .map(|header| String::from_utf8(header.value.unwrap().to_vec()).unwrap())
        .unwrap_or_default()
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap().to_vec()).unwrap()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn upper() -> Box<Process> {
    Box::new(|event| {
        let mut reply = event.clone();
        reply.data = format!("done {}", String::from_utf8_lossy(&event.data)).into();
        Ok(vec![reply])
    })
}

async fn records_pass_in_order(triggers: KafkaTriggers, prefix: &str) {
    let brokers = triggers.bootstrap().to_owned();
    let spec = spec(prefix);
    triggers.apply(&[deployment(spec.clone(), 1, Duration::ZERO, upper())]);
    produce(&brokers, &spec.topics[0], numbered(0..100)).await;
    let records = read(&brokers, spec.output.as_ref().unwrap(), 100).await;
    let mut by_key: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for record in &records {
        assert_eq!(header(record, "ce_type"), "kafka.record");
        assert_eq!(header(record, "ce_specversion"), "1.0");
        let number = text(record.payload())
            .strip_prefix("done ")
            .unwrap()
            .parse()
            .unwrap();
        by_key.entry(text(record.key())).or_default().push(number);
    }
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    eventually("all offsets are committed", async || {
        committed(&brokers, &spec.group, &spec.topics[0]).await == 100
    })
    .await;
    let state = triggers.state();
    assert_eq!(state.len(), 1);
    assert!(state[0].partitions > 0);
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_pass_in_order_on_apache_kafka() {
    records_pass_in_order(real(), "order").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_pass_in_order_on_the_embedded_broker() {
    records_pass_in_order(triggers(Brokers::Embedded), "order").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_at_its_quota_stands_still_and_goes_on() {
    let dispatcher = Dispatcher::new(64);
    let quota = |runs| {
        let quotas = Quotas {
            runs_per_second: runs,
            ..Quotas::default()
        };
        dispatcher.set_quotas(HashMap::from([(Name::default_namespace(), quotas)]));
    };
    quota(Some(0));
    let triggers = triggers_on(Brokers::Embedded, dispatcher.clone());
    let ran = Arc::new(AtomicU32::new(0));
    let count = ran.clone();
    let process: Box<Process> = Box::new(move |event| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(vec![event.clone()])
    });
    triggers.apply(&[deployment(spec("quota"), 1, Duration::ZERO, process)]);
    let brokers = triggers.bootstrap().to_owned();
    produce(&brokers, "quota-in", numbered(0..20)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ran.load(Ordering::SeqCst), 0, "a record ran over its quota");
    quota(None);
    let records = read(&brokers, "quota-out", 20).await;
    assert_eq!((records.len(), ran.load(Ordering::SeqCst)), (20, 20));
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_failure_ends_where_it_should() {
    let triggers = real();
    let brokers = triggers.bootstrap().to_owned();
    let spec = spec("fail");
    let calls: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let seen = calls.clone();
    let process: Box<Process> = Box::new(move |event| {
        let data = String::from_utf8_lossy(&event.data).into_owned();
        let count = {
            let mut seen = seen.lock().unwrap();
            let count = seen.entry(data.clone()).or_default();
            *count += 1;
            *count
        };
        let kind = match data.as_str() {
            "invalid" => ErrorKind::Invalid,
            "failed" => ErrorKind::Failed,
            "trap" => ErrorKind::Trap,
            // More often than there are attempts.
            "unavailable" if count <= 6 => ErrorKind::Unavailable,
            "flaky" if count <= 2 => ErrorKind::Failed,
            _ => return Ok(vec![event.clone()]),
        };
        Err(StepError::new(kind, format!("because {data}")))
    });
    triggers.apply(&[deployment(spec.clone(), 7, Duration::ZERO, process)]);
    let values = ["invalid", "failed", "trap", "unavailable", "flaky", "fine"];
    produce(
        &brokers,
        &spec.topics[0],
        values.map(|value| ("k".to_owned(), value.to_owned())),
    )
    .await;

    let delivered = read(&brokers, spec.output.as_ref().unwrap(), 3).await;
    let delivered: Vec<String> = delivered
        .iter()
        .map(|record| text(record.payload()))
        .collect();
    assert_eq!(delivered, ["unavailable", "flaky", "fine"]);

    let dead = read(&brokers, &spec.dead_letter, 3).await;
    let classes: Vec<(String, String, String)> = dead
        .iter()
        .map(|record| {
            (
                text(record.payload()),
                header(record, "dlq.error.class"),
                header(record, "dlq.attempts"),
            )
        })
        .collect();
    let expected = [
        ("invalid", "invalid", "1"),
        ("failed", "failed", "3"),
        ("trap", "trap", "2"),
    ]
    .map(|(value, class, attempts)| (value.to_owned(), class.to_owned(), attempts.to_owned()));
    assert_eq!(classes, expected);
    let letter = &dead[1];
    assert_eq!(text(letter.key()), "k");
    for (name, value) in [
        ("dlq.original.topic", spec.topics[0].as_str()),
        ("dlq.original.offset", "1"),
        ("dlq.group", spec.group.as_str()),
        ("dlq.pipeline", "pipe"),
        ("dlq.revision", "7"),
        ("dlq.step", "only"),
        (
            "dlq.plugin",
            &format!("closure@1.0.0 {}", stepwell_core::Digest::of(b"closure")),
        ),
        ("dlq.error.message", "because failed"),
        ("dlq.generation", "1"),
    ] {
        assert_eq!(header(letter, name), value, "{name}");
    }
    eventually("all offsets are committed", async || {
        committed(&brokers, &spec.group, &spec.topics[0]).await == 6
    })
    .await;
    stop(triggers).await;
}

/// Sends records of these sizes that say they are CloudEvents and are none, and a good one after them, all to one partition.
async fn produce_bad(brokers: &str, topic: &str, compression: &str, sizes: &[usize]) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.max.bytes", "100000000")
        .set("compression.type", compression)
        .create()
        .unwrap();
    for size in sizes {
        let header = Header {
            key: "ce_specversion",
            value: Some("1.0"),
        };
        let value = vec![0_u8; *size];
        let record = FutureRecord::to(topic)
            .key("k")
            .payload(&value)
            .headers(OwnedHeaders::new().insert(header));
        let sent = producer.send(record, Duration::from_secs(20)).await;
        sent.map_err(|(error, _)| error).unwrap();
    }
    let record = FutureRecord::to(topic).key("k").payload("good");
    let sent = producer.send(record, Duration::from_secs(20)).await;
    sent.map_err(|(error, _)| error).unwrap();
}

async fn create(brokers: &str, topics: &[(&str, &str)]) {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> =
        config.set("bootstrap.servers", brokers).create().unwrap();
    let topics: Vec<_> = topics
        .iter()
        .map(|(name, largest)| {
            NewTopic::new(name, 1, TopicReplication::Fixed(1)).set("max.message.bytes", largest)
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

/// What a dead letter has: bytes of its value, its class, the offset of its record, what was left out.
fn letter(record: &OwnedMessage) -> (usize, String, String, String) {
    let bytes = record.payload().map(<[u8]>::len).unwrap();
    let [class, offset, left_out] =
        ["dlq.error.class", "dlq.original.offset", "dlq.left-out"].map(|name| header(record, name));
    (bytes, class, offset, left_out)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_topic_takes_again_does_not_stop_its_partition() {
    let triggers = real();
    let brokers = triggers.bootstrap().to_owned();
    let bare = |offset: &str| {
        let left_out = "value, headers, long key".to_owned();
        (0, "invalid".to_owned(), offset.to_owned(), left_out)
    };
    // More than librdkafka sends by itself, and so much that the broker has no room for further headers.
    let spec = spec("large");
    let (input, dead) = (&spec.topics[0], &spec.dead_letter);
    create(&brokers, &[(input, "1048588"), (dead, "1048588")]).await;
    triggers.apply(&[deployment(spec.clone(), 1, Duration::ZERO, upper())]);
    produce_bad(&brokers, input, "none", &[1_030_000, 1_048_300]).await;
    let letters = read(&brokers, dead, 2).await;
    let whole = (
        1_030_000,
        "invalid".to_owned(),
        "0".to_owned(),
        String::new(),
    );
    assert_eq!(letter(&letters[0]), whole);
    let original = (1_048_300, String::new(), String::new(), String::new());
    assert_eq!(letter(&letters[1]), original);
    assert_eq!(header(&letters[1], "ce_specversion"), "1.0");
    let output = read(&brokers, spec.output.as_ref().unwrap(), 1).await;
    assert_eq!(text(output[0].payload()), "done good");
    // More than the dead-letter topic takes.
    let small = KafkaTriggerSpec {
        dead_letter: "small.dlq".to_owned(),
        ..self::spec("small")
    };
    let (input, dead) = (&small.topics[0], &small.dead_letter);
    create(&brokers, &[(input, "1048588"), (dead, "100000")]).await;
    triggers.apply(&[deployment(small.clone(), 1, Duration::ZERO, upper())]);
    produce_bad(&brokers, input, "none", &[200_000, 99_000]).await;
    let letters = read(&brokers, dead, 2).await;
    assert_eq!(letter(&letters[0]), bare("0"));
    assert_eq!(text(letters[0].key()), "k");
    assert_eq!(letter(&letters[1]).0, 99_000);
    read(&brokers, small.output.as_ref().unwrap(), 1).await;
    // A thousand times what the broker took.
    let bomb = self::spec("bomb");
    let (input, dead) = (&bomb.topics[0], &bomb.dead_letter);
    create(&brokers, &[(input, "1048588"), (dead, "1048588")]).await;
    triggers.apply(&[deployment(bomb.clone(), 1, Duration::ZERO, upper())]);
    produce_bad(&brokers, input, "gzip", &[65 << 20]).await;
    let letters = read(&brokers, dead, 1).await;
    assert_eq!(letter(&letters[0]), bare("0"));
    let message = header(&letters[0], "dlq.error.message");
    assert!(message.contains("more than the 67108864"), "{message}");
    read(&brokers, bomb.output.as_ref().unwrap(), 1).await;
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_waits_for_a_topic_is_known_until_it_is_written() {
    let triggers = real();
    let brokers = triggers.bootstrap().to_owned();
    let spec = spec("away");
    let output = spec.output.clone().unwrap();
    triggers.apply(&[deployment(spec.clone(), 1, Duration::ZERO, upper())]);
    produce(&brokers, &spec.topics[0], numbered(0..1)).await;
    read(&brokers, &output, 1).await;
    assert_eq!(triggers.state()[0].error, None);
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> =
        config.set("bootstrap.servers", &brokers).create().unwrap();
    let deleted = admin.delete_topics(&[&output], &AdminOptions::new()).await;
    deleted.unwrap()[0].as_ref().unwrap();
    produce(&brokers, &spec.topics[0], numbered(1..2)).await;
    eventually("the topic is missed", async || {
        let error = triggers.state()[0].error.clone();
        error.is_some_and(|error| error.contains(&output))
    })
    .await;
    create(&brokers, &[(&output, "1048588")]).await;
    let records = read(&brokers, &output, 1).await;
    assert_eq!(text(records[0].payload()), "done 1");
    eventually("nothing waits any more", async || {
        triggers.state()[0].error.is_none()
    })
    .await;
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_does_not_start_is_known_and_tried_again() {
    let triggers = triggers(Brokers::Embedded);
    // librdkafka subscribes to no topic without a name.
    let nameless = KafkaTriggerSpec {
        topics: vec![String::new()],
        ..spec("nameless")
    };
    let whole = spec("whole");
    triggers.apply(&[
        deployment(nameless.clone(), 1, Duration::ZERO, upper()),
        deployment(whole.clone(), 1, Duration::ZERO, upper()),
    ]);
    for _ in 0..2 {
        let state = triggers.state();
        let of = |group: &str| state.iter().find(|one| one.group == group).unwrap();
        let error = of(&nameless.group).error.clone().unwrap();
        assert!(error.starts_with("not started: "), "{error}");
        assert_eq!((state.len(), &of(&whole.group).error), (2, &None));
        triggers.retry();
    }
    triggers.apply(&[deployment(whole, 2, Duration::ZERO, upper())]);
    assert_eq!(triggers.state().len(), 1);
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_join_and_leave_lose_no_record() {
    let brokers = shared_kafka();
    let spec = spec("join");
    let seen: Arc<Mutex<HashSet<u32>>> = Arc::default();
    let runs = Arc::new(AtomicU32::new(0));
    let process = |seen: &Arc<Mutex<HashSet<u32>>>| -> Box<Process> {
        let (seen, runs) = (seen.clone(), runs.clone());
        Box::new(move |event| {
            runs.fetch_add(1, Ordering::Relaxed);
            let number = String::from_utf8_lossy(&event.data).parse().unwrap();
            seen.lock().unwrap().insert(number);
            Ok(Vec::new())
        })
    };
    let pause = Duration::from_millis(2);
    let first = real();
    first.apply(&[deployment(spec.clone(), 1, pause, process(&seen))]);
    let sender = tokio::spawn({
        let (brokers, topic) = (brokers.clone(), spec.topics[0].clone());
        async move { produce(&brokers, &topic, numbered(0..2000)).await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let second = real();
    second.apply(&[deployment(spec.clone(), 1, pause, process(&seen))]);
    tokio::time::sleep(Duration::from_millis(2000)).await;
    stop(first).await;
    let third = real();
    third.apply(&[deployment(spec.clone(), 1, pause, process(&seen))]);
    sender.await.unwrap();
    eventually("every record is seen", async || {
        seen.lock().unwrap().len() == 2000
    })
    .await;
    eventually("all offsets are committed", async || {
        committed(&brokers, &spec.group, &spec.topics[0]).await == 2000
    })
    .await;
    stop(second).await;
    stop(third).await;
    // At least once, and not much more: graceful hand-overs repeat nothing but what did not settle in time.
    assert!(
        runs.load(Ordering::Relaxed) < 2200,
        "{} runs",
        runs.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_revision_takes_over_without_a_new_subscription() {
    let triggers = real();
    let brokers = triggers.bootstrap().to_owned();
    let spec = spec("revise");
    let tag = |tag: &'static str| -> Box<Process> {
        Box::new(move |event| {
            let mut reply = event.clone();
            reply.data = tag.into();
            Ok(vec![reply])
        })
    };
    triggers.apply(&[deployment(spec.clone(), 1, Duration::ZERO, tag("one"))]);
    produce(&brokers, &spec.topics[0], numbered(0..3)).await;
    let output = spec.output.clone().unwrap();
    read(&brokers, &output, 3).await;
    triggers.apply(&[deployment(spec.clone(), 2, Duration::ZERO, tag("two"))]);
    produce(&brokers, &spec.topics[0], numbered(3..6)).await;
    let all = read(&brokers, &output, 6).await;
    let twos = all
        .iter()
        .filter(|record| record.payload() == Some(b"two"))
        .count();
    assert_eq!(twos, 3);
    triggers.apply(&[]);
    eventually("the subscription is gone", async || {
        triggers.state().is_empty()
    })
    .await;
    stop(triggers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_and_comes_back_loses_nothing() {
    let mut kafka = Kafka::start().unwrap();
    let brokers = kafka.brokers();
    let triggers = triggers(Brokers::Servers(brokers.clone()));
    let spec = spec("outage");
    triggers.apply(&[deployment(
        spec.clone(),
        1,
        Duration::from_millis(5),
        upper(),
    )]);
    produce(&brokers, &spec.topics[0], numbered(0..200)).await;
    tokio::task::block_in_place(|| {
        kafka.stop();
        std::thread::sleep(Duration::from_secs(2));
    });
    eventually("the outage is known", async || {
        triggers.state()[0].error.is_some()
    })
    .await;
    tokio::task::block_in_place(|| kafka.restart().unwrap());
    produce(&brokers, &spec.topics[0], numbered(200..210)).await;
    // Duplicates may come between: what counts is that every record comes.
    read_until(&brokers, spec.output.as_ref().unwrap(), |records| {
        let seen: HashSet<u32> = records
            .iter()
            .map(|record| {
                text(record.payload())
                    .strip_prefix("done ")
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        seen.len() == 210
    })
    .await;
    stop(triggers).await;
}

#[tokio::test]
async fn a_property_that_librdkafka_does_not_know_is_found_at_the_start() {
    let config = KafkaConfig {
        properties: vec![("no.such.setting".into(), "1".into())],
        ..KafkaConfig::default()
    };
    let error = KafkaTriggers::start(config, Arc::new(Dispatcher::new(1)))
        .err()
        .unwrap();
    assert!(error.to_string().contains("no.such.setting"), "{error}");
}
