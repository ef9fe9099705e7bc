//! `isolation: reuse`: which calls share an instance, and which never do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use stepwell_tests::{Config, Host, send};

/// Three steps of one plugin, of which the last has a fresh instance each time.
fn document(name: &str, path: &str, description: &str) -> String {
    format!(
        "stepwell: 1
name: {name}
description: {description}
triggers:
  - http: {{method: POST, path: {path}}}
defaults:
  isolation: {{reuse: {{idle: 1h}}}}
steps:
  - {{id: one, plugin: keepsake@1, config: {{name: one}}}}
  - {{id: two, plugin: keepsake@1, config: {{name: two}}, isolation: reuse}}
  - {{id: three, plugin: keepsake@1, isolation: fresh}}
"
    )
}

async fn host() -> Host {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("keepsake", "1.0.0", "keepsake").await.unwrap();
    host
}

/// How many calls the instance of each step has had.
async fn trail(host: &Host, path: &str) -> String {
    let reply = host.event(path, "1", "trail", "").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    String::from_utf8(reply.body.to_vec()).unwrap()
}

#[tokio::test]
async fn nothing_is_shared_between_steps_pipelines_and_revisions() {
    let host = host().await;
    host.apply("a", &document("a", "/a", "first"))
        .await
        .unwrap();
    for expected in ["1 1 1 ", "2 2 1 ", "3 3 1 "] {
        assert_eq!(trail(&host, "/a").await, expected);
    }
    // Another pipeline of the same plugin, applied while the first has instances.
    host.apply("b", &document("b", "/b", "first"))
        .await
        .unwrap();
    assert_eq!(trail(&host, "/b").await, "1 1 1 ");
    assert_eq!(trail(&host, "/a").await, "4 4 1 ");
    // A trap ends the instance of its step and no other.
    let reply = host.event("/a", "1", "trap-at:two", "").await.unwrap();
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(trail(&host, "/a").await, "6 1 1 ");
    assert_eq!(trail(&host, "/b").await, "2 2 1 ");
    // Another revision, which differs in nothing that runs, and the first one once more.
    host.apply("a", &document("a", "/a", "second"))
        .await
        .unwrap();
    assert_eq!(trail(&host, "/a").await, "1 1 1 ");
    let path = "/api/v1/namespaces/default/pipelines/a/rollback";
    let rolled = send(host.admin_request(Method::POST, path)).await.unwrap();
    assert!(rolled.status.is_success(), "{rolled:?}");
    assert_eq!(trail(&host, "/a").await, "1 1 1 ");
    assert_eq!(trail(&host, "/b").await, "3 3 1 ");
}

#[tokio::test]
async fn an_http_function_answers_in_the_instances_that_it_keeps() {
    let host = host().await;
    let plugin = "keepsake-http";
    host.upload(plugin, "1.0.0", plugin).await.unwrap();
    for (name, isolation) in [("kept", "{reuse: {max_calls: 3}}"), ("fresh", "fresh")] {
        let document = format!(
            "{{stepwell: 1, name: {name}, triggers: [{{http: {{path: '/{name}/{{*rest}}'}}}}], \
             steps: [{{id: only, plugin: {plugin}@1, isolation: {isolation}}}]}}"
        );
        host.apply(name, &document).await.unwrap();
    }
    let ask = async |path: &str| {
        let reply = send(host.request(Method::GET, path)).await.unwrap();
        String::from_utf8(reply.body.to_vec()).unwrap()
    };
    let mut counts = Vec::new();
    for kept in ["1", "1", "0", "1"] {
        counts.push(ask("/kept/count").await);
        // The response is there before the instance is.
        metrics_come_to(&host, &[("stepwell_instances_idle", kept)]).await;
    }
    assert_eq!(counts, ["1", "2", "3", "1"]);
    for _ in 0..2 {
        assert_eq!(ask("/fresh/count").await, "1");
    }
}

#[tokio::test]
async fn what_a_kept_instance_logs_belongs_to_the_run_that_it_is_in() {
    let host = host().await;
    host.apply("a", &document("a", "/a", "first"))
        .await
        .unwrap();
    let mut runs = Vec::new();
    for number in 0..3 {
        let kind = format!("say:message {number}");
        let reply = host.event("/a", "1", &kind, "").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        runs.push(reply.header("stepwell-run-id"));
    }
    let logs = host
        .get("/api/v1/namespaces/default/logs?pipeline=a&step=one")
        .await
        .unwrap();
    let logs = logs.json();
    let items = logs["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{logs}");
    for (number, run) in runs.iter().enumerate() {
        let message = format!("message {number}");
        let item = items.iter().find(|item| item["message"] == message);
        assert_eq!(item.unwrap()["run_id"], run.as_str(), "{logs}");
    }
}

#[tokio::test]
async fn metrics_say_what_became_of_instances() {
    let host = host().await;
    host.apply("a", &document("a", "/a", "first"))
        .await
        .unwrap();
    for _ in 0..3 {
        trail(&host, "/a").await;
    }
    let reply = host.event("/a", "1", "trap-at:one", "").await.unwrap();
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let path = "/api/v1/namespaces/default/pipelines/a";
    let removed = send(host.admin_request(Method::DELETE, path))
        .await
        .unwrap();
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    // Four calls of the first step and three of the second, in one instance each.
    let expected = [
        ("stepwell_instances_started_total", "2"),
        ("stepwell_instances_reused_total", "5"),
        ("stepwell_instances_discarded_total{reason=\"trap\"}", "1"),
        (
            "stepwell_instances_discarded_total{reason=\"retired\"}",
            "1",
        ),
        ("stepwell_instances_idle", "0"),
        ("stepwell_pool_instances_active", "0"),
    ];
    metrics_come_to(&host, &expected).await;
}

async fn metrics_come_to(host: &Host, expected: &[(&str, &str)]) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let text = host.get("/metrics").await.unwrap().body;
        let text = String::from_utf8(text.to_vec()).unwrap();
        let missing = expected
            .iter()
            .find(|(name, value)| !text.lines().any(|line| line == format!("{name} {value}")));
        let Some(missing) = missing else {
            break;
        };
        assert!(Instant::now() < end, "{missing:?}: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
