use std::sync::atomic::Ordering;

use crate::fake::Client;

const LOGS: &str = "/api/v1/namespaces/default/logs";

#[tokio::test]
async fn logs_are_listed_as_asked() {
    let client = Client::new();
    let reply = client
        .get(&format!(
            "{LOGS}?pipeline=reader&step=decode&level=warn&limit=3"
        ))
        .await;
    assert_eq!(reply.status, 200);
    let lines = reply.json();
    assert_eq!(
        lines["items"][0]["message"],
        "LogQuery { pipeline: Some(\"reader\"), step: Some(\"decode\"), level: Some(Warn), limit: 3 }"
    );
    assert_eq!(lines["items"][0]["level"], "info");
    assert_eq!(lines["next_cursor"], serde_json::Value::Null);
    for bad in [
        "level=loud",
        "pipeline=No_Name",
        "follow=perhaps",
        "since=1h",
    ] {
        let reply = client.get(&format!("{LOGS}?{bad}")).await;
        reply.problem(400, "bad-request");
    }
}

#[tokio::test]
async fn logs_are_followed_line_by_line() {
    let client = Client::new();
    let reply = client.get(&format!("{LOGS}?follow=true")).await;
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    let messages: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(messages, ["one", "two\nlines"]);
    assert!(text.ends_with('\n'));
}

#[tokio::test]
async fn models_and_bindings_are_shown() {
    let client = Client::new();
    let models = client.get("/api/v1/models").await.json();
    let model = client.get("/api/v1/models/half_plus_two").await.json();
    assert_eq!(models["items"][0], model);
    assert_eq!(model["versions"][0]["inputs"][0]["shape"][0], -1);
    let missing = client.get("/api/v1/models/none").await;
    missing.problem(404, "not-found");
    let bindings = client.get("/api/v1/bindings").await.json();
    assert_eq!(bindings["items"][0]["kind"], "keyvalue");
    assert_eq!(bindings["items"][0]["state"], "down");
    assert_eq!(bindings["next_cursor"], serde_json::Value::Null);
}

#[tokio::test]
async fn readiness_names_what_is_the_matter() {
    let client = Client::new();
    let reply = client.get("/readyz").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json(),
        serde_json::json!({
            "status": "degraded",
            "parts": [{"name": "catalog", "status": "degraded", "reason": "it is busy"}],
        })
    );
    client.fake.is_down.store(true, Ordering::Relaxed);
    let reply = client.get("/readyz").await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["status"], "down");
    let reply = client.get("/livez").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["status"], "ok");
}

#[tokio::test]
async fn metrics_are_text() {
    let reply = Client::new().get("/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(reply.body.starts_with(b"# HELP stepwell_up"));
}

#[tokio::test]
async fn the_cause_of_a_failure_stays_in_the_log() {
    let client = Client::new();
    client.fake.is_down.store(true, Ordering::Relaxed);
    let reply = client.get("/api/v1/bindings").await;
    reply.problem(500, "internal");
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(!text.contains("10.0.0.1") && !text.contains("secret-cause"));
}
