//! HTTP functions of WASI 0.3, uploaded and deployed like those of 0.2.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use stepwell_tests::{Config, Host, guest, send};

const SERVICE: &str = "\
stepwell: 1
name: service
triggers: [{http: {path: '/{*rest}', max_body: 4MiB, timeout: 20s}}]
steps: [{id: only, plugin: service@1, config: {greeting: hi}, limits: {cpu: 500ms, wall: 5s, output: 4MiB}}]
";

async fn service() -> Host {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("service", "1.0.0", "service").await.unwrap();
    host.apply("service", SERVICE).await.unwrap();
    host
}

#[tokio::test]
async fn a_service_is_uploaded_deployed_and_answers() {
    let mut host = service().await;
    let shown = host
        .get("/api/v1/namespaces/default/plugins/service/versions/1.0.0")
        .await
        .unwrap()
        .json();
    assert_eq!(shown["world"], "wasi:http/service@0.3.0");
    let imports = shown["imports"].to_string();
    assert!(imports.contains("wasi:http/types@0.3.0") && imports.contains("wasi:io/streams@0.2"));

    // The second time from the cache of the process before.
    for _ in 0..2 {
        let reply = send(host.request(Method::GET, "/")).await.unwrap();
        assert_eq!(
            (reply.status, reply.body.as_ref()),
            (StatusCode::OK, &b"hello"[..])
        );
        assert_eq!(reply.header("stepwell-run-id").len(), 36);
        let body: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let echoed = host
            .post("/echo", "application/octet-stream", body.clone())
            .await
            .unwrap();
        assert!(echoed.body == body, "{} bytes came back", echoed.body.len());
        let about = send(host.request(Method::PUT, "/about/a%20b?c=d"))
            .await
            .unwrap();
        let text = String::from_utf8(about.body.to_vec()).unwrap();
        assert!(text.starts_with("Method::Put Some(Scheme::Http) Some(\"127.0.0.1:"));
        assert!(text.ends_with("/about/a%20b?c=d"), "{text}");
        let seen = send(host.request(Method::GET, "/environment"))
            .await
            .unwrap();
        assert_eq!(seen.body, r#"[("greeting", "hi")] true []"#);
        host.restart().await.unwrap();
    }
}

#[tokio::test]
async fn what_goes_wrong_reaches_the_caller_as_for_any_function() {
    let host = service().await;
    let get = |path: &'static str| send(host.request(Method::GET, path));
    for (path, status) in [
        ("/trap", 500),
        ("/exit", 500),
        ("/error", 500),
        ("/spin", 500),
        ("/allocate/100000000", 500),
        ("/streams/20000", 500),
        ("/sleep/60000", 504),
        ("/none", 404),
    ] {
        let reply = get(path).await.unwrap();
        assert_eq!(reply.status.as_u16(), status, "{path}");
    }
    // Bodies that break off must not look like whole ones.
    assert!(get("/trap-midway").await.is_err());
    assert!(get("/endless").await.is_err());
    let response = host.request(Method::GET, "/stall").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.bytes_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "begun");
    assert!(body.next().await.unwrap().is_err());
    // What it logged belongs to its run.
    let reply = get("/log/line").await.unwrap();
    let run = reply.header("stepwell-run-id");
    let logs = host
        .get("/api/v1/namespaces/default/logs?pipeline=service")
        .await
        .unwrap();
    let logs = String::from_utf8(logs.body.to_vec()).unwrap();
    for line in ["0.2 line", "0.3 line"] {
        let found = logs
            .split('{')
            .any(|entry| entry.contains(line) && entry.contains(&run));
        assert!(found, "{line} of {run}: {logs}");
    }
    let metrics = host.get("/metrics").await.unwrap();
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    for limit in ["cpu", "memory", "handles", "output"] {
        let hits = format!("stepwell_limit_hits_total{{limit=\"{limit}\"}}");
        assert!(metrics.contains(&hits), "{hits}");
    }
}

#[tokio::test]
async fn what_is_no_function_of_0_3_0_is_refused() {
    let host = Host::start(&Config::default()).await.unwrap();
    // Names of the same length, so that the rest of the component fits.
    let whole = guest("service").unwrap();
    let from = b"@0.3.0";
    let mut bytes = whole.clone();
    let at: Vec<usize> = whole
        .windows(from.len())
        .enumerate()
        .filter_map(|(at, window)| (window == from).then_some(at))
        .collect();
    for at in at {
        bytes[at..at + from.len()].copy_from_slice(b"@0.4.0");
    }
    let reply = host.put_plugin("newer", "1.0.0", bytes).await.unwrap();
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    let problem = reply.json().to_string();
    assert!(
        problem.contains("0.4.0") && problem.contains("0.3.0"),
        "{problem}"
    );
    // A pipeline's other steps are no place for a function.
    host.upload("service", "1.0.0", "service").await.unwrap();
    let two = SERVICE.replace("steps: [", "steps: [{id: first, plugin: service@1}, ");
    let refused = host.put_pipeline("service", &two).await.unwrap();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn guests_that_fail_after_their_responses_are_counted_and_do_not_fill_the_log() {
    let host = service().await;
    let mut failed = 0.0;
    for (isolation, limits, path, calls) in [
        ("fresh", "wall: 1s", "/linger/60000", 80u32),
        (
            "{reuse: {concurrency: 2, max_calls: 1}}",
            "cpu: 20ms",
            "/linger-spin/1",
            3,
        ),
    ] {
        let document = SERVICE
            .replace("id: only", &format!("id: only, isolation: {isolation}"))
            .replace("cpu: 500ms, wall: 5s", limits);
        host.apply("service", &document).await.unwrap();
        failed += f64::from(calls);
        for _ in 0..calls {
            let reply = send(host.request(Method::GET, path)).await.unwrap();
            assert_eq!(reply.body, "hello");
        }
        let counted = async || {
            let counted = host.metric("stepwell_guests_failed_late_total").await;
            counted.unwrap()
        };
        for _ in 0..200 {
            if counted().await >= failed {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(counted().await, failed, "{isolation}");
    }
    for said in [
        "guests that failed after their responses: too many for the log",
        "limits.wall",
        "limits.cpu",
    ] {
        assert!(host.logs(said).await, "{said}: {}", host.log());
    }
    let log = host.log();
    let lines = log.matches("\"a guest failed after its response\"").count();
    assert!((1..70).contains(&lines), "{lines}");
    assert!(log.contains("default/service/only"), "{log}");
}
