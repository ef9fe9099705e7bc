use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::Method;
use stepwell_tests::{Config, Host, send};

use crate::support::{
    brokers, client, create, create_for, event, eventually, headers, host, hostile, produce,
};

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
