//! What callers of the data listener see: statuses, headers, CloudEvents in and out, functions that answer themselves; and who may
//! reach the admin listener.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use stepwell_tests::{Config, Host, Reply, cli, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A pipeline of one step that does what the event's type says.
const PROBE: &str = "\
stepwell: 1
name: probe
triggers:
  - http: {method: POST, path: '/probe/{set}', max_body: 1KiB, timeout: 5s}
  - http: {method: PUT, path: '/probe/{set}', max_body: 1KiB}
steps:
  - {id: first, plugin: probe@1, limits: {cpu: 250ms, wall: 1s, memory: 16MiB, output: 64KiB}}
";

async fn probe(config: &Config) -> Host {
    let host = Host::start(config).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("probe", PROBE).await.unwrap();
    host
}

/// A CloudEvent in binary mode that asks for this behaviour.
fn event(host: &Host, what: &str) -> RequestBuilder {
    host.request(Method::POST, "/probe/a")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", what)
}

async fn ask(host: &Host, what: &str) -> Reply {
    send(event(host, what)).await.unwrap()
}

/// Every refusal and failure has the same form and says nothing that is not the caller's business.
fn assert_problem(reply: &Reply, status: u16, code: &str) {
    let problem = reply.json();
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (status, code),
        "{problem}"
    );
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(problem["status"], status);
    let run = reply.header("stepwell-run-id");
    assert_eq!(run.len(), 36, "a UUID: {run}");
    assert_eq!(problem["run_id"], run);
    for internal in ["wasm", "backtrace", "/src/", ".rs", "wasmtime", "secret"] {
        assert!(!problem.to_string().contains(internal), "{problem}");
    }
}

#[tokio::test]
async fn each_outcome_has_its_status() {
    let host = probe(&Config::default()).await;
    for (what, status, code) in [
        ("invalid:wrong", 422, "invalid"),
        ("unavailable:secret", 503, "unavailable"),
        ("failed:secret", 500, "failed"),
        ("trap", 500, "failed"),
        ("panic", 500, "failed"),
        ("exit", 500, "failed"),
        // Limits.
        ("spin", 500, "failed"),
        ("call-host", 500, "failed"),
        ("allocate:100000000", 500, "failed"),
        ("output:100000", 500, "failed"),
        ("recurse:100000000", 500, "failed"),
        // Time.
        ("sleep:60000", 504, "timeout"),
    ] {
        assert_problem(&ask(&host, what).await, status, code);
    }
    // An invalid event's sender is told what is wrong with it; of the rest nobody but the owner learns.
    assert_eq!(ask(&host, "invalid:wrong").await.json()["detail"], "wrong");
    let logs = host
        .get("/api/v1/namespaces/default/logs?limit=500")
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&logs.body).contains("secret"),
        "the owner sees why it failed"
    );
    assert_eq!(
        ask(&host, "echo").await.status,
        StatusCode::OK,
        "the host is none the worse"
    );

    let get = |method: Method, path: &str| send(host.request(method, path));
    assert_problem(
        &get(Method::POST, "/nowhere").await.unwrap(),
        404,
        "not-found",
    );
    assert_problem(
        &get(Method::POST, "/probe/a/b").await.unwrap(),
        404,
        "not-found",
    );
    let wrong = get(Method::DELETE, "/probe/a").await.unwrap();
    assert_problem(&wrong, 405, "method-not-allowed");
    let mut allowed: Vec<String> = wrong
        .header("allow")
        .split(',')
        .map(|method| method.trim().to_owned())
        .collect();
    allowed.sort();
    assert_eq!(allowed, ["POST", "PUT"]);
    let large = host
        .post("/probe/a", "text/plain", vec![b'x'; 1025])
        .await
        .unwrap();
    assert_problem(&large, 413, "too-large");
    let fits = send(event(&host, "echo").body(vec![b'x'; 1024]))
        .await
        .unwrap();
    assert_eq!(fits.status, StatusCode::OK);
    // The length is not announced.
    let chunks = futures::stream::iter((0..8).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 200])));
    let chunked = send(event(&host, "echo").body(reqwest::Body::wrap_stream(chunks)))
        .await
        .unwrap();
    assert_problem(&chunked, 413, "too-large");
}

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

#[tokio::test]
async fn replies_of_none_one_and_several_events() {
    let host = probe(&Config::default()).await;
    let none = ask(&host, "drop").await;
    assert_eq!((none.status, none.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(none.header("stepwell-run-id").len(), 36);

    let several = event(&host, "repeat:3")
        .header("content-type", "application/json")
        .body(r#"{"n": 1}"#);
    let several = send(several).await.unwrap();
    assert_eq!(
        (several.status, several.json()),
        (StatusCode::OK, json!([{"n": 1}, {"n": 1}, {"n": 1}]))
    );
    assert!(
        several
            .header("content-type")
            .starts_with("application/json")
    );

    let batch = event(&host, "repeat:2")
        .header("content-type", "text/plain")
        .body("text");
    let batch = send(batch).await.unwrap();
    assert!(
        batch
            .header("content-type")
            .starts_with("application/cloudevents-batch+json")
    );
    assert_eq!(batch.json().as_array().unwrap().len(), 2);
    assert_eq!(
        (&batch.json()[0]["data"], &batch.json()[1]["id"]),
        (&json!("text"), &json!("1"))
    );

    for (wanted, status) in [("201", 201), ("404", 404), ("599", 599)] {
        let reply = ask(&host, &format!("status:{wanted}")).await;
        assert_eq!(reply.status.as_u16(), status);
        assert!(!reply.headers.contains_key("ce-httpstatus"));
    }
    for unusable in ["100", "600", "-1", "many"] {
        assert_problem(
            &ask(&host, &format!("status:{unusable}")).await,
            500,
            "failed",
        );
    }
}

#[tokio::test]
async fn invoke_answers_as_a_route_does() {
    let host = probe(&Config::default()).await;
    let invoke = |name: &str, what: &str| {
        host.admin_request(
            Method::POST,
            &format!("/api/v1/namespaces/default/pipelines/{name}/invoke"),
        )
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", what)
        .header("content-type", "text/plain")
        .body("data")
    };
    let reply = send(invoke("probe", "echo")).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (StatusCode::OK, &b"data"[..])
    );
    assert_eq!(
        (
            reply.header("ce-type"),
            reply.header("stepwell-run-id").len()
        ),
        ("echo".into(), 36)
    );
    assert_problem(
        &send(invoke("probe", "invalid:x")).await.unwrap(),
        422,
        "invalid",
    );
    assert_problem(
        &send(invoke("probe", "failed:x")).await.unwrap(),
        500,
        "failed",
    );
    let unknown = send(invoke("nobody", "echo")).await.unwrap();
    assert_eq!(
        (unknown.status, unknown.code()),
        (StatusCode::NOT_FOUND, "not-found".into())
    );
    assert_eq!(
        unknown.header("stepwell-run-id").len(),
        36,
        "also when no run began"
    );
}

#[tokio::test]
async fn functions_answer_requests_themselves() {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("hello-http", "1.0.0", "hello-http")
        .await
        .unwrap();
    host.upload("probe-http", "1.0.0", "hostile-http")
        .await
        .unwrap();
    let hello =
        std::fs::read_to_string(stepwell_tests::repository().join("plugins/pipelines/hello.yaml"))
            .unwrap();
    host.apply("hello", &hello).await.unwrap();
    let document = "\
stepwell: 1
name: function
triggers: [{http: {path: '/{*rest}', max_body: 4MiB}}]
steps: [{id: only, plugin: probe-http@1, limits: {cpu: 200ms, wall: 2s, output: 2MiB}}]
";
    host.apply("function", document).await.unwrap();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "BREW"] {
        let request = host.request(method.parse().unwrap(), "/hello/a%20b/c?name=Ada&x=?");
        let reply = send(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("stepwell-run-id").len(), 36);
        let json = reply.json();
        assert_eq!(
            (json["method"].as_str(), json["path"].as_str()),
            (Some(method), Some("/hello/a%20b/c"))
        );
        assert_eq!(json["query"], "name=Ada&x=?");
    }
    // A longer body than fits one buffer comes back as it went in.
    let body: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = host
        .post("/echo/", "application/octet-stream", body.clone())
        .await
        .unwrap();
    assert_eq!(echoed.status, StatusCode::OK);
    assert!(echoed.body == body, "{} bytes came back", echoed.body.len());

    let get = |path: &'static str| send(host.request(Method::GET, path));
    assert_eq!(
        get("/elsewhere").await.unwrap().status,
        StatusCode::NOT_FOUND,
        "the function's own answer"
    );
    for path in ["/trap-early", "/nothing", "/spin"] {
        // The head of a function that computes for long may be out before it fails.
        let Ok(reply) = get(path).await else {
            assert_eq!(path, "/trap-early");
            continue;
        };
        assert!(
            matches!(reply.status.as_u16(), 500 | 504),
            "{path}: {}",
            reply.status
        );
        assert_problem(&reply, reply.status.as_u16(), &reply.code());
    }
    assert_eq!(get("/big/1000000").await.unwrap().body.len(), 1_000_000);
    // A body that breaks off must not look like a whole one.
    assert!(get("/trap-midway").await.is_err());
    assert!(
        get("/big/9000000").await.is_err(),
        "more than limits.output"
    );
    assert_eq!(
        get("/hello").await.unwrap().status,
        StatusCode::OK,
        "and the neighbours do not notice"
    );
}

/// The statuses and bodies of what comes back on one connection for these requests, as a proxy would read them; the last may be cut
/// off.
async fn on_one_connection(host: &Host, paths: [&str; 2]) -> Vec<(String, String)> {
    let address = host.data().strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    let [first, second] = paths;
    let requests = format!(
        "GET {first} HTTP/1.1\r\nhost: x\r\n\r\nGET {second} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(requests.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // What breaks off may end with a reset.
    let _ = connection.read_to_end(&mut answer).await;
    let mut rest = String::from_utf8(answer).unwrap();
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.unwrap().parse::<usize>().unwrap().min(after.len());
        let status = head.split_whitespace().nth(1).unwrap().to_owned();
        let (body, after) = after.split_at(length);
        replies.push((status, body.to_owned()));
        rest = after.to_owned();
    }
    replies
}

#[tokio::test]
async fn a_function_cannot_write_the_next_response_of_its_connection() {
    let host = Host::start(&Config::default()).await.unwrap();
    for (name, guest) in [("old", "hostile-http"), ("new", "service")] {
        host.upload(name, "1.0.0", guest).await.unwrap();
    }
    let document = |name: &str, path: &str| {
        format!(
            "stepwell: 1\nname: {name}\ntriggers: [{{http: {{path: '{path}'}}}}]\n\
             steps: [{{id: only, plugin: {name}@1, limits: {{cpu: 1s, wall: 5s}}}}]\n"
        )
    };
    let whole = |text: &str| ("200".to_owned(), text.to_owned());
    host.apply("old", &document("old", "/{*rest}"))
        .await
        .unwrap();
    for path in ["/overlong/0", "/short/0"] {
        let replies = on_one_connection(&host, [path, "/hello"]).await;
        assert_eq!(replies.len(), 2, "{path}: {replies:?}");
        assert_eq!(replies[0].0, "500", "{path}: {replies:?}");
        assert_eq!(replies[1], whole("hello"), "{path}");
    }
    // What was announced is out before the rest is written.
    let replies = on_one_connection(&host, ["/overlong/300", "/hello"]).await;
    assert!(replies.iter().all(|reply| *reply == whole("hello")));
    let replies = on_one_connection(&host, ["/short/300", "/hello"]).await;
    assert_eq!(replies, [whole("hello")], "nothing fills it up");

    let removed = host.cli(&["pipeline", "rm", "old"]).unwrap();
    assert_eq!(removed.status.code(), Some(0));
    host.apply("new", &document("new", "/{*rest}"))
        .await
        .unwrap();
    for path in ["/overlong", "/short"] {
        let replies = on_one_connection(&host, [path, "/"]).await;
        assert!(replies.len() <= 2, "{path}: {replies:?}");
        assert!(!replies[0].1.contains("HTTP/1.1"), "{path}: {replies:?}");
        let next = replies.get(1);
        assert!(next.is_none_or(|reply| *reply == whole("hello")), "{path}");
    }
}

/// A host whose every path goes to the hostile function.
async fn hostile_function(wall: &str) -> Host {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("probe-http", "1.0.0", "hostile-http")
        .await
        .unwrap();
    let document = format!(
        "\
stepwell: 1
name: function
triggers: [{{http: {{path: '/{{*rest}}'}}}}]
steps: [{{id: only, plugin: probe-http@1, limits: {{wall: {wall}}}}}]
"
    );
    host.apply("function", &document).await.unwrap();
    host
}

#[tokio::test]
async fn a_guest_that_goes_on_after_its_response_counts_as_a_run() {
    let host = hostile_function("10s").await;
    let set = ["namespace", "set", "default", "--concurrent-runs", "1"];
    assert_eq!(host.cli(&set).unwrap().status.code(), Some(0));
    let get = async |path: &str| send(host.request(Method::GET, path)).await.unwrap();
    for path in ["/linger/5000", "/linger-streamed/5000"] {
        let reply = loop {
            let reply = get(path).await;
            if reply.status != StatusCode::TOO_MANY_REQUESTS {
                break reply;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(reply.body, "hello", "{path}");
        let refused = get("/hello").await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    while get("/hello").await.status != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_function_streams() {
    let host = hostile_function("3s").await;
    // It sends a few bytes and then sleeps past its limit. Had the host waited for the whole body, there would be a 504.

    let response = host.request(Method::GET, "/stall").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.bytes_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "begun");
    assert!(body.next().await.unwrap().is_err());
}

#[tokio::test]
async fn a_busy_host_says_when_to_come_back() {
    let host = Arc::new(probe(&Config::with("[limits]\nconcurrent_runs = 1\n")).await);
    host.apply("probe", &PROBE.replace("wall: 1s", "wall: 10s"))
        .await
        .unwrap();
    let busy = {
        let host = host.clone();
        tokio::spawn(async move {
            loop {
                // It may be the one that is refused at first.
                let status = ask(&host, "sleep:3000").await.status;
                if status != StatusCode::TOO_MANY_REQUESTS {
                    return status;
                }
            }
        })
    };
    let refused = loop {
        let reply = ask(&host, "echo").await;
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            break reply;
        }
        assert!(!busy.is_finished(), "it was never busy");
    };
    assert_problem(&refused, 429, "busy");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    let hits = "stepwell_limit_hits_total{limit=\"concurrent_runs\"}";
    assert!(host.metric(hits).await.unwrap() >= 1.0);
    assert_eq!(busy.await.unwrap(), StatusCode::OK);
    assert_eq!(ask(&host, "echo").await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_for_which_there_is_no_room_are_refused_and_counted() {
    let host = probe(&Config::with("[limits]\nbodies = \"1MiB\"\n")).await;
    let large = PROBE.replace("max_body: 1KiB, timeout", "max_body: 4MiB, timeout");
    host.apply("probe", &large).await.unwrap();
    let send_so_much = async |bytes: usize| {
        let request = event(&host, "drop").body(vec![b'x'; bytes]);
        send(request).await.unwrap()
    };
    assert_eq!(send_so_much(900 << 10).await.status, StatusCode::NO_CONTENT);
    let refused = send_so_much(1200 << 10).await;
    assert_problem(&refused, 429, "busy");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    let hits = "stepwell_limit_hits_total{limit=\"bodies\"}";
    assert_eq!(host.metric(hits).await.unwrap(), 1.0);
    assert_eq!(host.metric("stepwell_http_body_bytes").await.unwrap(), 0.0);
    assert_eq!(send_so_much(900 << 10).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_admin_listener_asks_for_the_token() {
    let config = Config {
        server: "admin_token = \"correct-horse-battery\"\n".to_owned(),
        ..Config::default()
    };
    let host = Host::start(&config).await.unwrap();
    let ask = |path: &'static str, token: Option<&'static str>| {
        let request = host.admin_request(Method::GET, path);
        send(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    };
    for path in [
        "/api/v1/namespaces/default/plugins",
        "/api/v1/bindings",
        "/api/v1/models",
        "/metrics",
    ] {
        for token in [None, Some("wrong"), Some("correct-horse-batter"), Some("")] {
            let reply = ask(path, token).await.unwrap();
            assert_eq!(
                (reply.status, reply.code()),
                (StatusCode::UNAUTHORIZED, "unauthorized".into()),
                "{path} {token:?}"
            );
            assert!(reply.header("www-authenticate").starts_with("Bearer"));
        }
        assert_eq!(
            ask(path, Some("correct-horse-battery"))
                .await
                .unwrap()
                .status,
            StatusCode::OK,
            "{path}"
        );
    }
    for path in ["/livez", "/readyz", "/openapi.json"] {
        assert_eq!(
            ask(path, None).await.unwrap().status,
            StatusCode::OK,
            "{path}"
        );
    }
    let refused = host.cli(&["plugin", "list"]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let listed = host
        .cli(&["plugin", "list", "--token", "correct-horse-battery"])
        .unwrap();
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    assert!(!host.log().contains("correct-horse-battery"));
}

#[test]
fn no_token_no_address_that_others_reach() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let refused = cli(
        "http://127.0.0.1:1",
        path,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "0.0.0.0:0",
        ],
    )
    .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("admin_token") && error.contains("0.0.0.0:0"),
        "{error}"
    );
    assert!(refused.stdout.is_empty());
}
