use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::BodyExt;
use stepwell_core::Digest;

use crate::client::Client;

const DECODE: &str = "/api/v1/namespaces/default/plugins/decode/versions/1.0.0";
const WASM: &[u8] = b"\0asm and more";

#[tokio::test]
async fn a_version_is_uploaded_once() {
    let client = Client::new();
    let first = client.put(DECODE, WASM).await;
    assert_eq!(first.status, 201);
    assert_eq!(first.header("content-type"), "application/json");
    let version = first.json();
    assert_eq!(version["name"], "decode");
    assert_eq!(version["version"], "1.0.0");
    assert_eq!(version["digest"], Digest::of(WASM).to_string());
    assert_eq!(version["world"], "stepwell:pipeline/step@0.1.0");
    assert_eq!(version["imports"], serde_json::json!([]));
    assert_eq!(version["exports"][0], "stepwell:pipeline/handler@0.1.0");
    assert_eq!(version["size"], WASM.len());
    assert_eq!(version["compile_ms"], 7);
    assert_eq!(version["created_at"], "1970-01-01T00:00:00Z");

    let again = client.put(DECODE, WASM).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.json(), version);
    let other = client.put(DECODE, &b"\0asm but other"[..]).await;
    other.problem(409, "version-exists");
    client.put(DECODE, "rubbish").await.problem(422, "not-wasm");

    assert_eq!(client.get(DECODE).await.json(), version);
    let gone = client.delete(DECODE).await;
    assert_eq!(gone.status, 204);
    assert!(gone.body.is_empty());
    client.get(DECODE).await.problem(404, "not-found");
    client.delete(DECODE).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_version_is_no_longer_than_a_key_may_be() {
    let client = Client::new();
    let versions = "/api/v1/namespaces/default/plugins/decode/versions";
    let longest = format!("{versions}/1.0.0-{}", "a".repeat(122));
    assert_eq!(client.put(&longest, WASM).await.status, 201);
    let refused = client.put(&format!("{longest}a"), WASM).await;
    refused.problem(422, "invalid-version");
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("129 characters; 128 are"), "{detail}");
    client
        .delete(&format!("{longest}a"))
        .await
        .problem(404, "not-found");
}

#[tokio::test]
async fn the_bytes_come_back_with_their_digest_as_entity_tag() {
    let client = Client::new();
    client.put(DECODE, WASM).await;
    let path = format!("{DECODE}/component");
    let component = client.get(&path).await;
    assert_eq!(component.status, 200);
    assert_eq!(component.header("content-type"), "application/wasm");
    assert_eq!(component.body, WASM);
    let tag = component.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", Digest::of(WASM)));
    let known = client
        .send(
            Method::GET,
            &path,
            &[("if-none-match", &tag)],
            Body::empty(),
        )
        .await;
    assert_eq!(known.status, 304);
    assert!(known.body.is_empty());
}

#[tokio::test]
async fn a_download_waits_while_others_are_not_sent() {
    let client = Client::new();
    client.put(DECODE, WASM).await;
    let get = || {
        let request = Request::get(format!("{DECODE}/component"));
        client.raw(request.body(Body::empty()).unwrap())
    };
    let mut unsent = Vec::new();
    for _ in 0..4 {
        unsent.push(get().await);
    }
    let mut waits = Box::pin(get());
    let while_unsent = tokio::time::timeout(Duration::from_millis(200), waits.as_mut());
    assert!(while_unsent.await.is_err(), "a fifth is in memory");
    drop(unsent);
    let sent = waits.await.into_body().collect().await.unwrap();
    assert_eq!(sent.to_bytes(), WASM);
}

#[tokio::test]
async fn one_namespace_leaves_a_place_for_the_downloads_of_others() {
    let client = Client::guarded().bearing("right");
    client.put(DECODE, WASM).await;
    let get = |token: &str| {
        let request = Request::get(format!("{DECODE}/component"))
            .header("authorization", format!("Bearer {token}"));
        client.raw(request.body(Body::empty()).unwrap())
    };
    let mut unsent = Vec::new();
    for _ in 0..3 {
        unsent.push(get("viewer/default").await);
    }
    let mut waits = Box::pin(get("deployer/default"));
    let soon = Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, waits.as_mut()).await.is_err());
    let other = get("right").await.into_body().collect().await.unwrap();
    assert_eq!(other.to_bytes(), WASM);
    drop(unsent);
    assert_eq!(waits.await.status(), 200);
}

#[tokio::test]
async fn uploads_that_announce_much_and_send_little_keep_nobody_out() {
    let client = Client::guarded();
    let upload = |token: &str, version: u32, length: &str, body: Body| {
        let path = format!("/api/v1/namespaces/default/plugins/decode/versions/1.0.{version}");
        let request = Request::put(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-length", length)
            .body(body);
        client.raw(request.unwrap())
    };
    // More than the room for all uploads, were it taken for what is announced.
    let announced = (1 << 20).to_string();
    let mut slow = stream::FuturesUnordered::new();
    for version in 0..2_000 {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"\0"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        slow.push(upload("deployer/default", version, &announced, body));
    }
    let soon = tokio::time::timeout(Duration::from_millis(100), slow.next());
    assert!(soon.await.is_err(), "they wait for the rest");
    let other = upload("right", 9_999, &WASM.len().to_string(), Body::from(WASM));
    let other = tokio::time::timeout(Duration::from_secs(5), other).await;
    assert_eq!(other.unwrap().status(), 201);
}

#[tokio::test]
async fn plugins_are_listed_in_parts() {
    let client = Client::new();
    for name in ["a", "b", "c"] {
        for version in ["1.0.0", "1.1.0"] {
            let path = format!("/api/v1/namespaces/default/plugins/{name}/versions/{version}");
            assert_eq!(client.put(&path, WASM).await.status, 201);
        }
    }
    let list = "/api/v1/namespaces/default/plugins";
    let all = client.get(list).await.json();
    assert_eq!(all["items"].as_array().unwrap().len(), 3);
    assert_eq!(all["next_cursor"], serde_json::Value::Null);
    assert_eq!(all["items"][0]["latest"], "1.1.0");
    assert_eq!(all["items"][0]["versions"][1]["version"], "1.0.0");
    let part = client.get(&format!("{list}?limit=2")).await.json();
    assert_eq!(part["next_cursor"], "b");
    let rest = client.get(&format!("{list}?limit=2&cursor=b")).await.json();
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);
    // A limit of nothing or of everything is clamped, not refused.
    for (limit, items) in [(0, 1), (4_000_000_000_u64, 3)] {
        let part = client.get(&format!("{list}?limit={limit}")).await.json();
        assert_eq!(part["items"].as_array().unwrap().len(), items);
    }
    let plugin = client.get(&format!("{list}/b")).await.json();
    assert_eq!(plugin, all["items"][1]);
    client
        .get(&format!("{list}/none"))
        .await
        .problem(404, "not-found");
    for query in ["limit=many", "limt=3", "limit=-1"] {
        let refused = client.get(&format!("{list}?{query}")).await;
        refused.problem(400, "bad-request");
    }
}

#[tokio::test]
async fn a_version_in_use_stays() {
    let client = Client::new();
    let path = "/api/v1/namespaces/default/plugins/used/versions/1.0.0";
    client.put(path, WASM).await;
    let problem = client.delete(path).await.problem(409, "in-use");
    assert!(problem["detail"].as_str().unwrap().contains("reader"));
    assert_eq!(client.get(path).await.status, 200);
}

#[tokio::test]
async fn names_and_versions_are_checked() {
    let client = Client::new();
    let upload = async |name: &str, version: &str| {
        let path = format!("/api/v1/namespaces/default/plugins/{name}/versions/{version}");
        client.put(&path, WASM).await
    };
    let problem = upload("My_Plugin", "1.0.0")
        .await
        .problem(422, "invalid-name");
    assert_eq!(problem["errors"][0]["hint"], "perhaps my-plugin");
    let problem = upload("decode", "v1.2")
        .await
        .problem(422, "invalid-version");
    assert_eq!(problem["errors"][0]["hint"], "perhaps 1.2.0");
    for (name, version) in [("..%2f..", "1.0.0"), ("a", "latest"), ("a", "1.0.0%00")] {
        assert_eq!(upload(name, version).await.status, 422, "{name} {version}");
    }
    assert_eq!(upload("a", "%ff").await.status, 400);
    assert_eq!(upload("decode", "1.0.0-rc.1+build.7").await.status, 201);
    // Nothing has a name that cannot be.
    let read = client
        .get("/api/v1/namespaces/default/plugins/My_Plugin")
        .await;
    read.problem(404, "not-found");
    let read = client
        .get("/api/v1/namespaces/default/plugins/decode/versions/1")
        .await
        .problem(404, "not-found");
    assert_eq!(read["errors"][0]["hint"], "perhaps 1.0.0");
}

#[tokio::test]
async fn other_namespaces_are_not_there() {
    let client = Client::new();
    for namespace in ["other", "Default", "%2e%2e"] {
        let path = format!("/api/v1/namespaces/{namespace}/plugins");
        let problem = client.get(&path).await.problem(404, "not-found");
        let hint = problem["errors"][0]["hint"].as_str().unwrap();
        let makeable = hint == "an operator makes it with 'stepwell namespace set other'";
        assert_eq!(makeable, namespace == "other", "{hint}");
        let path = format!("{path}/decode/versions/1.0.0");
        client.put(&path, WASM).await.problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_component_may_be_as_large_as_the_limit_and_no_larger() {
    let client = Client::new();
    let mut component = vec![0; 1 << 20];
    component[..4].copy_from_slice(b"\0asm");
    assert_eq!(client.put(DECODE, component.clone()).await.status, 201);
    component.push(0);
    let problem = client
        .put(DECODE, component)
        .await
        .problem(413, "too-large");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("1MiB") && detail.contains("limits.component"));
}

#[tokio::test]
async fn a_length_that_lies_changes_nothing_and_the_rest_is_read() {
    let client = Client::new();
    // Far more than the limit, with a small length or none; what is left is read, so that the sender sees the answer.
    for headers in [&[("content-length", "10")][..], &[]] {
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = sent.clone();
        let chunks = stream::iter((0..64).map(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![7; 1 << 16]))
        }));
        let reply = client
            .send(Method::PUT, DECODE, headers, Body::from_stream(chunks))
            .await;
        reply.problem(413, "too-large");
        assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 64);
    }
    // One that says the truth and waits for leave is told at once.
    let chunks = stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> {
            panic!("the body was read")
        },
    );
    let headers = [("content-length", "9999999"), ("expect", "100-continue")];
    let reply = client
        .send(Method::PUT, DECODE, &headers, Body::from_stream(chunks))
        .await;
    reply.problem(413, "too-large");
}

#[tokio::test]
async fn a_body_that_breaks_off_stores_nothing() {
    let client = Client::new();
    let chunks = stream::iter([
        Ok(Bytes::from_static(WASM)),
        Err(std::io::Error::other("gone")),
    ]);
    let request = Request::put(DECODE)
        .body(Body::from_stream(chunks))
        .unwrap();
    let response = client.raw(request).await;
    assert_eq!(response.status(), 400);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("gone"));
    client.get(DECODE).await.problem(404, "not-found");
}
