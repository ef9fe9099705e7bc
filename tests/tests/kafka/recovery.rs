use std::collections::HashSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use stepwell_test_services::Kafka;
use stepwell_tests::Host;

use crate::support::{
    KEYS, PARTITIONS, Reader, all_committed, brokers, client, committed, create, eventually,
    header, host, host_of, hostile, produce, produce_numbers, tagged, text,
};

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
