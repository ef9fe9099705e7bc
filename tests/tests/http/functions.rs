use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use stepwell_tests::{Config, Host, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::assert_problem;

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
        let status = head.split_whitespace().nth(1).unwrap().to_owned();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let (body, after) = match length {
            Some(length) => {
                let length = length.parse::<usize>().unwrap().min(after.len());
                let (body, after) = after.split_at(length);
                (body.to_owned(), after)
            }
            None => in_chunks(after),
        };
        rest = after.to_owned();
        replies.push((status, body));
    }
    replies
}

/// A body in chunks, as those are whose guest was interrupted before their end, and what follows it.
fn in_chunks(mut rest: &str) -> (String, &str) {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let (chunk, after) = after.split_at(size);
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
        if size == 0 {
            return (body, rest);
        }
    }
}

/// The same where the first is refused. A busy machine may interrupt a guest between what it announces and what is wrong with it, and
/// then what was announced is out.
async fn refused_on_one_connection(host: &Host, paths: [&str; 2]) -> Vec<(String, String)> {
    let mut tries = 0;
    loop {
        let replies = on_one_connection(host, paths).await;
        if replies[0].0 != "200" {
            return replies;
        }
        assert!(replies.iter().all(|reply| reply.1 == "hello"));
        tries += 1;
        assert!(tries < 100, "{paths:?}: never refused");
    }
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
        let replies = refused_on_one_connection(&host, [path, "/hello"]).await;
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
