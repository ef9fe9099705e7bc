use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::Soak;
use crate::target::Visit;

const INPUT: &str = "marks";
const OUTPUT: &str = "marked";

/// How long the answers to a batch may take: a busy machine, and a group that is being joined.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(10);

/// Produces records and waits for what the pipeline makes of each. The embedded broker forgets them when the host ends.
pub(crate) async fn producer(soak: Arc<Soak>, mut rng: StdRng) {
    while !soak.stop.is_cancelled() {
        let Some(visit) = soak.target.visit() else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let batches = rng.random_range(1..20);
        let seed = rng.random();
        if let Err(error) = produce(&soak, &visit, batches, seed).await
            && soak.target.undisturbed(&visit)
        {
            soak.findings.wrong(format!("records: {error:#}"));
        }
    }
}

/// Some batches with the same clients.
async fn produce(soak: &Arc<Soak>, visit: &Visit, batches: u32, seed: u64) -> Result<()> {
    let broker = visit.kafka.clone();
    let mut clients = tokio::task::spawn_blocking(move || Clients::connect(&broker)).await??;
    for batch in 0..batches {
        let pass = soak.gate.pass().await;
        if soak.stop.is_cancelled() || !soak.target.undisturbed(visit) {
            return Ok(());
        }
        let (of_batch, visit) = (soak.clone(), visit.clone());
        let count;
        (clients, count) = tokio::task::spawn_blocking(move || {
            let count = 1 + (seed >> (batch % 56)) % 100;
            let gone = || !of_batch.target.undisturbed(&visit);
            clients.batch(&format!("{seed}-{batch}"), count, gone)?;
            anyhow::Ok((clients, count))
        })
        .await??;
        drop(pass);
        soak.findings.add("record answered", count);
    }
    Ok(())
}

/// What the host's topic consists of, once the host has made it.
fn partitions(consumer: &BaseConsumer) -> Result<Vec<i32>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let metadata = consumer.fetch_metadata(Some(OUTPUT), SHORT)?;
        let topics = metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none());
        let partitions: Vec<i32> = topics
            .flat_map(|topic| topic.partitions().iter().map(|partition| partition.id()))
            .collect();
        if !partitions.is_empty() {
            return Ok(partitions);
        }
        ensure!(
            Instant::now() < end,
            "the host has not made the topic {OUTPUT}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Clients {
    producer: BaseProducer,
    consumer: BaseConsumer,
}

impl Clients {
    fn connect(broker: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", broker)
            .set("broker.address.family", "v4");
        let producer = config.clone().set("linger.ms", "2").create()?;
        let consumer: BaseConsumer = config
            .set("group.id", "soak")
            .set("enable.auto.commit", "false")
            .create()?;
        let mut ends = TopicPartitionList::new();
        for partition in partitions(&consumer)? {
            let (_, end) = consumer.fetch_watermarks(OUTPUT, partition, SHORT)?;
            ends.add_partition_offset(OUTPUT, partition, Offset::Offset(end))?;
        }
        consumer.assign(&ends)?;
        Ok(Self { producer, consumer })
    }

    /// Every record of the batch must be answered, and with what the pipeline makes of it, unless the host is `gone`.
    fn batch(&self, name: &str, count: u64, gone: impl Fn() -> bool) -> Result<()> {
        let mut missing = HashMap::new();
        for n in 0..count {
            let (key, value) = (format!("{name}-{n}"), format!("record {n} of {name}"));
            let record = BaseRecord::to(INPUT).key(&key).payload(&value);
            let sent = self.producer.send(record);
            sent.map_err(|(error, _)| error)?;
            missing.insert(key, format!("{value} done "));
        }
        self.producer.flush(PATIENCE)?;
        let end = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            if gone() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{} of {count} records were not answered within {PATIENCE:?}",
                missing.len()
            );
            let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            let text = |bytes: Option<&[u8]>| {
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            // Anything may come twice, after a batch that was waited for in vain too.
            if let Some(expected) = missing.remove(&text(message.key())) {
                let value = text(message.payload());
                ensure!(value == expected, "'{value}' where '{expected}' is right");
            }
        }
        Ok(())
    }
}
