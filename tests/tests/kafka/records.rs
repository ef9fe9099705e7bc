use rdkafka::message::Message;
use stepwell_tests::{Config, Host};

use crate::support::{
    KEYS, Reader, all_committed, brokers, create, event, header, host, hostile, produce, tagged,
    text,
};

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
