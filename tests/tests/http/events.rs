use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell_tests::{Config, send};

use crate::support::{ask, assert_problem, event, probe};

#[tokio::test]
async fn events_come_in_and_go_out_as_cloudevents() {
    let host = probe(&Config::default()).await;
    // Binary.
    let request = event(&host, "echo")
        .header("ce-subject", "caf%C3%A9")
        .header("ce-time", "2026-01-02T03:04:05Z")
        .header("ce-mine", "kept")
        .header("content-type", "text/plain")
        .body("data");
    let reply = send(request).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (StatusCode::OK, &b"data"[..])
    );
    assert_eq!(reply.header("stepwell-run-id").len(), 36);
    for (name, value) in [
        ("content-type", "text/plain"),
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/test"),
        ("ce-type", "echo"),
        ("ce-subject", "caf%C3%A9"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-mine", "kept"),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }

    // Structured: the reply's data is the event's.
    let structured = |more: Value| {
        let mut event = json!({"specversion": "1.0", "id": "2", "source": "/test", "type": "echo", "subject": "s"});
        event
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        host.post(
            "/probe/a",
            "application/cloudevents+json",
            event.to_string(),
        )
    };
    let reply = structured(json!({"data": {"a": [1, 2]}})).await.unwrap();
    assert_eq!(
        (reply.status, reply.json()),
        (StatusCode::OK, json!({"a": [1, 2]}))
    );
    assert_eq!(
        (reply.header("ce-id"), reply.header("ce-subject")),
        ("2".into(), "s".into())
    );
    let reply = structured(json!({"data_base64": "AAEC", "datacontenttype": "image/png"}))
        .await
        .unwrap();
    assert_eq!(
        (&reply.body[..], reply.header("content-type")),
        (&[0, 1, 2][..], "image/png".into())
    );
    let reply = structured(json!({"datacontenttype": "text/plain", "data": "plain"}))
        .await
        .unwrap();
    assert_eq!(reply.body, "plain");

    // What claims to be one and is not.
    for (name, request) in [
        (
            "no id",
            host.request(Method::POST, "/probe/a")
                .header("ce-specversion", "1.0")
                .header("ce-source", "/s")
                .header("ce-type", "t"),
        ),
        (
            "no type",
            host.request(Method::POST, "/probe/a")
                .header("ce-specversion", "1.0")
                .header("ce-id", "1")
                .header("ce-source", "/s"),
        ),
        (
            "another version",
            event(&host, "echo").header("ce-specversion", "0.3"),
        ),
    ] {
        let reply = send(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{name}");
        assert_problem(&reply, 400, "malformed");
    }
    let broken = host
        .post("/probe/a", "application/cloudevents+json", "{")
        .await
        .unwrap();
    assert_problem(&broken, 400, "malformed");
    assert_problem(
        &structured(json!({"id": null})).await.unwrap(),
        400,
        "malformed",
    );

    // A body that is no CloudEvent is the data of one that the host makes; its type is no behaviour of the probe's.
    let plain = host.post("/probe/a", "text/plain", "hello").await.unwrap();
    assert_problem(&plain, 422, "invalid");
    assert_eq!(plain.json()["detail"], "no such behaviour: http.request");
    assert_eq!(plain.header("ce-id"), "");
}

#[tokio::test]
async fn what_the_host_says_of_a_request_cannot_be_forged() {
    let host = probe(&Config::default()).await;
    let request = event(&host, "extensions")
        .header("ce-httppath", "/forged")
        .header("ce-httpparamset", "forged")
        .header("ce-httpmine", "forged")
        .header("ce-mine", "kept");
    let text = String::from_utf8(send(request).await.unwrap().body.to_vec()).unwrap();
    assert!(!text.contains("forged"), "{text}");
    for (name, value) in [
        ("mine", "kept"),
        ("httpmethod", "POST"),
        ("httppath", "/probe/a"),
        ("httpparamset", "a"),
    ] {
        assert!(
            text.contains(&format!(r#"("{name}", "{value}")"#)),
            "{name} in {text}"
        );
    }
    let structured = json!({
        "specversion": "1.0", "id": "1", "source": "/s", "type": "extensions", "httpparamset": "forged", "httpstatus": "418",
    });
    let path = "/probe/caf%C3%A9%20%2F?q=1&r=%20";
    let reply = host
        .post(path, "application/cloudevents+json", structured.to_string())
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    assert!(!text.contains("forged") && !text.contains("418"), "{text}");
    assert!(text.contains(r#"("httpparamset", "café /")"#), "{text}");
    assert!(text.contains(r#"("httpquery", "q=1&r=%20")"#), "{text}");
    // None of them leaves the host.
    let echoed = ask(&host, "echo").await;
    assert!(
        echoed
            .headers
            .keys()
            .all(|name| !name.as_str().starts_with("ce-http")),
        "{:?}",
        echoed.headers
    );
}

#[tokio::test]
async fn later_steps_know_the_request_too() {
    let host = probe(&Config::default()).await;
    let document = "\
stepwell: 1
name: two
triggers: [{http: {method: POST, path: '/two/{set}'}}]
steps:
  - {id: first, plugin: tagger@1, config: {tag: x}}
  - {id: second, plugin: probe@1}
";
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    host.apply("two", document).await.unwrap();
    let request = host
        .request(Method::POST, "/two/mine")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", "extensions");
    let text = String::from_utf8(send(request).await.unwrap().body.to_vec()).unwrap();
    assert!(text.contains(r#"("httpparamset", "mine")"#), "{text}");
    assert_eq!(text.matches("httpparamset").count(), 1, "{text}");
}
