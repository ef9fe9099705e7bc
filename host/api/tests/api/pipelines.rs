use axum::body::Body;
use axum::http::Method;

use crate::client::{Client, Reply};

const READER: &str = "/api/v1/namespaces/default/pipelines/reader";

async fn put_if(client: &Client, header: (&str, &str), body: &'static str) -> Reply {
    client.send(Method::PUT, READER, &[header], body).await
}

#[tokio::test]
async fn a_pipeline_is_created_changed_and_left_alone() {
    let client = Client::new();
    let created = client.put(READER, "a: 1").await;
    assert_eq!(created.status, 201);
    assert_eq!(created.header("etag"), "\"1\"");
    let pipeline = created.json();
    assert_eq!(pipeline["name"], "reader");
    assert_eq!(pipeline["revision"], 1);
    assert_eq!(pipeline["etag"], "\"1\"");
    assert_eq!(pipeline["change"], "created");
    assert_eq!(pipeline["document"]["text"], "a: 1");
    assert_eq!(pipeline["document"]["json"], false);
    let step = &pipeline["steps"][0];
    assert_eq!(step["id"], "only");
    assert_eq!(step["plugin"], "decode");
    assert_eq!(step["version"], "1.0.0");
    assert!(step["digest"].as_str().unwrap().starts_with("sha256:"));

    let same = client.put(READER, "a: 1").await;
    assert_eq!(
        (same.status.as_u16(), same.json()["revision"].as_u64()),
        (200, Some(1))
    );
    assert_eq!(same.json()["change"], "unchanged");
    let changed = client.put(READER, "a: 2").await;
    assert_eq!(
        (changed.status.as_u16(), changed.json()["revision"].as_u64()),
        (200, Some(2))
    );
    assert_eq!(changed.header("etag"), "\"2\"");

    let shown = client.get(READER).await;
    assert_eq!(shown.header("etag"), "\"2\"");
    assert_eq!(shown.json()["source"], "a: 2");
    assert!(shown.json().get("change").is_none());
    let listed = client
        .get("/api/v1/namespaces/default/pipelines")
        .await
        .json();
    assert_eq!(listed["items"][0]["revision"], 2);
    assert!(listed["items"][0].get("source").is_none());

    assert_eq!(client.delete(READER).await.status, 204);
    client.get(READER).await.problem(404, "not-found");
    client.delete(READER).await.problem(404, "not-found");
}

#[tokio::test]
async fn json_is_json_only_if_it_says_so() {
    let client = Client::new();
    for (content_type, json) in [
        ("application/json", true),
        ("Application/JSON; charset=utf-8", true),
        ("application/yaml", false),
        ("application/x-www-form-urlencoded", false),
    ] {
        let reply = put_if(&client, ("content-type", content_type), "{}").await;
        assert_eq!(reply.json()["document"]["json"], json, "{content_type}");
    }
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let client = Client::new();
    let valid = client.put(&format!("{READER}?dry_run=true"), "a: 1").await;
    assert_eq!(valid.status, 200);
    assert_eq!(valid.header("etag"), "");
    assert_eq!(valid.json()["change"], "validated");
    assert_eq!(valid.json()["revision"], 1);
    client.get(READER).await.problem(404, "not-found");
    let invalid = client.put(&format!("{READER}?dry_run=true"), "oops").await;
    invalid.problem(422, "invalid-pipeline");
    // What may have been meant as a dry run is none.
    for query in ["dryrun=true", "dry_run=maybe", "dry-run=true"] {
        let refused = client.put(&format!("{READER}?{query}"), "a: 1").await;
        refused.problem(400, "bad-request");
    }
    client.get(READER).await.problem(404, "not-found");
}

#[tokio::test]
async fn every_mistake_is_reported_with_its_place() {
    let client = Client::new();
    let problem = client
        .put(READER, "oops")
        .await
        .problem(422, "invalid-pipeline");
    assert_eq!(
        problem["errors"],
        serde_json::json!([
            {"path": "/steps/0/plugin", "line": 1, "column": 5, "message": "one"},
            {"path": "/steps/0/plugin", "line": 2, "column": 5, "message": "two"},
        ])
    );
}

#[tokio::test]
async fn preconditions_are_honoured() {
    let client = Client::new();
    put_if(&client, ("if-match", "*"), "a: 1")
        .await
        .problem(412, "stale");
    put_if(&client, ("if-match", "\"1\""), "a: 1")
        .await
        .problem(412, "stale");
    let created = put_if(&client, ("if-none-match", "*"), "a: 1").await;
    assert_eq!(created.status, 201);
    put_if(&client, ("if-none-match", "*"), "a: 2")
        .await
        .problem(412, "stale");

    let changed = put_if(&client, ("if-match", "\"1\""), "a: 2").await;
    assert_eq!(
        (changed.status.as_u16(), changed.header("etag")),
        (200, "\"2\"")
    );
    for stale in ["\"1\"", "W/\"2\"", "\"elsewhere\"", "\"-2\""] {
        put_if(&client, ("if-match", stale), "a: 3")
            .await
            .problem(412, "stale");
    }
    for unknown in [
        "\"02\"",
        "\"+2\"",
        "\"2,3\"",
        "\"\"",
        "\"99999999999999999999999\"",
    ] {
        put_if(&client, ("if-match", unknown), "a: 3")
            .await
            .problem(412, "stale");
    }
    for no_tag in [
        "2",
        "+2",
        "\"\"\"2\"\"\"",
        "\"2",
        "2\"",
        "\"",
        "w/\"2\"",
        "W/2",
        "W/W/\"2\"",
        "\"2 \"",
    ] {
        put_if(&client, ("if-match", no_tag), "a: 3")
            .await
            .problem(400, "bad-request");
    }
    for unclear in [("if-match", "\"1\", \"2\""), ("if-none-match", "\"1\"")] {
        put_if(&client, unclear, "a: 3")
            .await
            .problem(400, "bad-request");
    }
    let both = [("if-match", "\"2\""), ("if-none-match", "*")];
    let both = client.send(Method::PUT, READER, &both, "a: 3").await;
    both.problem(400, "bad-request");

    let stale = [("if-match", "\"1\"")];
    let stale = client
        .send(Method::DELETE, READER, &stale, Body::empty())
        .await;
    stale.problem(412, "stale");
    let fresh = [("if-match", "\"2\"")];
    let fresh = client
        .send(Method::DELETE, READER, &fresh, Body::empty())
        .await;
    assert_eq!(fresh.status, 204);
}

#[tokio::test]
async fn who_has_the_revision_gets_no_copy() {
    let client = Client::new();
    client.put(READER, "a: 1").await;
    let get = async |tag: &str| {
        let headers = [("if-none-match", tag)];
        client
            .send(Method::GET, READER, &headers, Body::empty())
            .await
    };
    for known in ["\"1\"", "W/\"1\"", "\"7\", \"1\"", "*"] {
        let reply = get(known).await;
        assert_eq!(reply.status, 304, "{known}");
        assert_eq!(reply.header("etag"), "\"1\"");
    }
    for unknown in ["\"2\"", "1", "W/W/\"1\""] {
        assert_eq!(get(unknown).await.status, 200, "{unknown}");
    }
}

#[tokio::test]
async fn revisions_are_listed_shown_and_gone_back_to() {
    let client = Client::new();
    for text in ["a: 1", "a: 2", "a: 3"] {
        client.put(READER, text).await;
    }
    let listed = client.get(&format!("{READER}/revisions")).await.json();
    let numbers: Vec<u64> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    let first = client.get(&format!("{READER}/revisions/1")).await;
    assert_eq!(first.json()["source"], "a: 1");
    for missing in ["4", "0", "-1", "first", "18446744073709551616"] {
        let reply = client.get(&format!("{READER}/revisions/{missing}")).await;
        reply.problem(404, "not-found");
    }

    let rollback = format!("{READER}/rollback");
    let back = client.post(&rollback, r#"{"revision": 1}"#).await;
    assert_eq!((back.status.as_u16(), back.header("etag")), (200, "\"4\""));
    assert_eq!(back.json()["source"], "a: 1");
    for nothing in ["", " \n", "{}", r#"{"revision": null}"#] {
        let before = client.post(&rollback, nothing).await;
        assert_eq!(before.status, 200, "{nothing:?}");
    }
    for bad in ["[]", "{", r#"{"revision": "1"}"#, r#"{"revison": 1}"#] {
        let reply = client.post(&rollback, bad).await;
        reply.problem(400, "bad-request");
    }
    let unknown = client.post(&rollback, r#"{"revision": 99}"#).await;
    unknown.problem(404, "not-found");
    let stale = [("if-match", "\"1\"")];
    let stale = client
        .send(Method::POST, &rollback, &stale, Body::empty())
        .await;
    stale.problem(412, "stale");
}

#[tokio::test]
async fn what_is_encoded_is_refused_and_not_taken_for_what_it_is_not() {
    let client = Client::new();
    let plugin = "/api/v1/namespaces/default/plugins/decode/versions/1.0.0";
    let encoded = async |path: &str, encoding: &str, body: &'static str| {
        let headers = [("content-encoding", encoding)];
        client.send(Method::PUT, path, &headers, body).await
    };
    for encoding in ["gzip", "identity, br", "GZIP", "x"] {
        for (path, body) in [(READER, "a: 1"), (plugin, "\0asm")] {
            let reply = encoded(path, encoding, body).await;
            let problem = reply.problem(415, "unsupported-encoding");
            assert!(problem["detail"].as_str().unwrap().contains(encoding));
            assert_eq!(reply.header("accept-encoding"), "identity");
        }
    }
    for encoding in ["identity", "Identity", ""] {
        let path = format!("{READER}{}", encoding.len());
        let reply = encoded(&path, encoding, "a: 1").await;
        assert!(reply.status.is_success(), "{encoding}");
    }
    assert_eq!(encoded(plugin, "identity", "\0asm").await.status, 201);
}

#[tokio::test]
async fn documents_are_text_of_reasonable_size() {
    let client = Client::new();
    let large = client.put(READER, "#".repeat((1 << 20) + 1)).await;
    large.problem(413, "too-large");
    let binary = client
        .put(READER, &b"a: \xff"[..])
        .await
        .problem(400, "bad-request");
    assert!(binary["detail"].as_str().unwrap().contains("byte 3"));
    client
        .put("/api/v1/namespaces/default/pipelines/Reader", "a: 1")
        .await
        .problem(422, "invalid-name");
}

#[tokio::test]
async fn an_invocation_is_handed_on_as_it_is() {
    let client = Client::new();
    let headers = [("content-type", "text/plain")];
    let reply = client
        .send(Method::POST, &format!("{READER}/invoke"), &headers, "hello")
        .await;
    assert_eq!(reply.status, 203);
    assert_eq!(reply.header("stepwell-run-id"), "the-run");
    assert_eq!(reply.header("content-type"), "text/plain");
    assert_eq!(reply.body, "reader: hello");
}

#[tokio::test]
async fn every_reply_of_an_invocation_has_a_run_id() {
    let client = Client::guarded();
    for path in [
        "default/pipelines/reader",
        "other/pipelines/reader",
        "default/pipelines/R",
    ] {
        let path = format!("/api/v1/namespaces/{path}/invoke");
        for (method, token) in [(Method::POST, "Bearer x"), (Method::GET, "Bearer t")] {
            let headers = [("authorization", token), ("content-type", "text/plain")];
            let reply = client.send(method, &path, &headers, "").await;
            assert!(reply.status.is_client_error());
            assert_eq!(reply.header("stepwell-run-id").len(), 36, "{path}");
        }
    }
    let elsewhere = client.get(READER).await;
    assert_eq!(elsewhere.header("stepwell-run-id"), "");
}
