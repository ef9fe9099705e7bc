use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::picture;
use crate::report::{Answer, Answered};
use crate::scans::Scan;

const INPUT: &str = "digits";
const OUTPUT: &str = "answers";
const DEAD: &str = "digits.dlq";
/// How long to wait for topics that the host makes.
const TOPICS: Duration = Duration::from_secs(30);
/// How long without an answer means that no more will come.
const SILENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(5);

/// Produces a record for each scan, and consumes until each has its answer.
pub(crate) fn read_all(broker: &str, scans: &[Scan], progress: impl Fn(usize)) -> Result<Answered> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker)
        .set("broker.address.family", "v4");
    let producer: BaseProducer = config
        .set("linger.ms", "2")
        .create()
        .context("cannot make a producer")?;
    config.remove("linger.ms");
    let consumer: BaseConsumer = config
        .set("group.id", "stepwell-demo")
        .set("enable.auto.commit", "false")
        .create()
        .context("cannot make a consumer")?;
    wait_for_topic(&consumer, INPUT)?;
    consumer.assign(&whole(&consumer, OUTPUT)?)?;

    let start = Instant::now();
    for (position, scan) in scans.iter().enumerate() {
        let picture = picture::of(position, scan);
        let header = Header {
            key: "content-type",
            value: Some(picture.media_type),
        };
        let key = scan.name();
        let record = BaseRecord::to(INPUT)
            .key(&key)
            .payload(&picture.bytes)
            .headers(OwnedHeaders::new().insert(header));
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .context("cannot produce to the topic digits")?;
        producer.poll(Duration::ZERO);
    }
    producer
        .flush(SHORT)
        .context("the broker does not take the records")?;
    let mut answers = consume(&consumer, scans, progress)?;
    let elapsed = start.elapsed();
    let in_order = scans
        .iter()
        .filter_map(|scan| answers.remove(&scan.name()))
        .collect();
    Ok(Answered::new(scans, in_order, elapsed))
}

fn consume(
    consumer: &BaseConsumer,
    scans: &[Scan],
    progress: impl Fn(usize),
) -> Result<HashMap<String, Answer>> {
    let mut answers = HashMap::with_capacity(scans.len());
    let mut last = Instant::now();
    let mut failure = String::new();
    while answers.len() < scans.len() {
        if last.elapsed() > SILENCE {
            let (missing, silence) = (scans.len() - answers.len(), SILENCE.as_secs());
            let dead = dead_letters(consumer).map_or_else(
                |_| "an unknown number of".to_owned(),
                |count| count.to_string(),
            );
            bail!(
                "{missing} answers are missing after {silence} s of silence; {DEAD} has {dead} records{failure}"
            );
        }
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            // The client goes on by itself after most errors.
            Some(Err(error)) => failure = format!("; the last error was: {error}"),
            Some(Ok(message)) => {
                // A record may be answered twice, when the host was interrupted; the second says the same.
                let (key, answer) = parse(&message)?;
                answers.insert(key, answer);
                last = Instant::now();
                progress(answers.len());
            }
        }
    }
    Ok(answers)
}

fn parse(message: &BorrowedMessage<'_>) -> Result<(String, Answer)> {
    let key = message.key().context("an answer has no key")?;
    let data = message.payload().context("an answer has no value")?;
    let answer = serde_json::from_slice(data)
        .with_context(|| format!("not the answer expected: {}", String::from_utf8_lossy(data)))?;
    Ok((String::from_utf8_lossy(key).into_owned(), answer))
}

/// All of a topic, from its beginning.
fn whole(consumer: &BaseConsumer, topic: &str) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for partition in wait_for_topic(consumer, topic)? {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(list)
}

fn wait_for_topic(consumer: &BaseConsumer, name: &str) -> Result<Vec<i32>> {
    let end = Instant::now() + TOPICS;
    loop {
        let partitions = partitions(consumer, name)?;
        if !partitions.is_empty() {
            return Ok(partitions);
        }
        ensure!(
            Instant::now() < end,
            "the host has not made the topic {name}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn partitions(consumer: &BaseConsumer, name: &str) -> Result<Vec<i32>> {
    let metadata = consumer
        .fetch_metadata(Some(name), SHORT)
        .context("the broker does not answer")?;
    let topics = metadata
        .topics()
        .iter()
        .filter(|topic| topic.name() == name && topic.error().is_none());
    Ok(topics
        .flat_map(|topic| topic.partitions().iter().map(|partition| partition.id()))
        .collect())
}

fn dead_letters(consumer: &BaseConsumer) -> Result<i64> {
    let mut count = 0;
    for partition in partitions(consumer, DEAD)? {
        let (low, high) = consumer.fetch_watermarks(DEAD, partition, SHORT)?;
        count += high - low;
    }
    Ok(count)
}
