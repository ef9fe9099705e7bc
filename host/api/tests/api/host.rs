use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use http_body_util::BodyExt;
use stepwell_test_hits::hits;

use crate::client::Client;

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
            "parts": [{"name": "catalog", "status": "degraded", "reason": "own/p"}],
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
async fn names_of_what_belongs_to_tenants_are_for_those_who_may_read_all() {
    for (token, names) in [
        (None, false),
        (Some("unknown"), false),
        (Some("old"), false),
        (Some("far"), false),
        (Some("invoker"), false),
        (Some("viewer/own"), false),
        (Some("viewer"), true),
        (Some("right"), true),
    ] {
        let client = Client::guarded();
        let client = match token {
            Some(token) => client.bearing(token),
            None => client,
        };
        let reply = client.get("/readyz").await;
        assert_eq!(reply.status, 200, "{token:?}");
        let reason = if names { "own/p" } else { "one" };
        assert_eq!(reply.json()["parts"][0]["reason"], reason, "{token:?}");
    }
    // A page that was led here by its own name is told no more in development mode.
    let foreign = [("host", "evil.example:8081")];
    let client = Client::new();
    let reply = client
        .send(Method::GET, "/readyz", &foreign, Body::empty())
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["parts"][0]["reason"], "one");
}

#[tokio::test]
async fn what_is_followed_ends_with_the_token() {
    let client = Client::guarded();
    let request = Request::get(format!("{LOGS}?follow=true&pipeline=p"))
        .header("authorization", "Bearer viewer/default")
        .body(Body::empty())
        .unwrap();
    let response = client.raw(request).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    // Longer than the time after which the token is looked at again.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(line.ends_with(b"\n"));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.gate.revoked.store(true, Ordering::Relaxed);
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        while body.frame().await.transpose().unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    rest.await.expect("the stream ends");
}

/// A reply that goes on without a line, as the bearer of a token follows logs.
async fn follow(client: &Client, token: &str) -> Response<Body> {
    let request = Request::get(format!("{LOGS}?follow=true&step=s"))
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty());
    client.raw(request.unwrap()).await
}

#[tokio::test]
async fn what_is_followed_has_a_blank_line_now_and_then() {
    let mut body = follow(&Client::guarded(), "viewer/default")
        .await
        .into_body();
    for _ in 0..3 {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await;
        let line = frame.unwrap().unwrap().unwrap().into_data().unwrap();
        assert_eq!(&line[..], b"\n");
    }
}

#[tokio::test]
async fn only_so_many_follow_logs_and_one_namespace_leaves_room_for_others() {
    let client = Client::guarded();
    let mut followed = Vec::new();
    for _ in 0..192 {
        let reply = follow(&client, "viewer/default").await;
        assert_eq!(reply.status(), 200);
        followed.push(reply);
    }
    let before = hits("followers");
    let refused = follow(&client, "deployer/default").await;
    assert_eq!(refused.status(), 503);
    assert!(hits("followers") > before);
    assert_eq!(refused.headers()["retry-after"], "5");
    let problem = refused.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&problem).unwrap();
    assert_eq!(problem["code"], "busy");
    for _ in 192..256 {
        let reply = follow(&client, "viewer").await;
        assert_eq!(reply.status(), 200);
        followed.push(reply);
    }
    assert_eq!(follow(&client, "right").await.status(), 503);
    // Who goes away gives the place back.
    followed.truncate(191);
    assert_eq!(follow(&client, "right").await.status(), 200);
    assert_eq!(follow(&client, "viewer/default").await.status(), 200);
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
