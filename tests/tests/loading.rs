//! Compiling, loading and unloading: what an upload may cost, and whom.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use stepwell_tests::{Config, Host, guest, stepwell};

/// The same component with another digest.
fn variant(component: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend([0, 9, 8]);
    bytes.extend(format!("{number:08x}").as_bytes());
    bytes
}

fn document(name: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n  - {{id: only, plugin: {name}@1}}\n"
    )
}

async fn deploy(host: &Host, name: &str, component: Vec<u8>) {
    let reply = host.put_plugin(name, "1.0.0", component).await.unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{:?}", reply.json());
    host.apply(name, &document(name)).await.unwrap();
}

async fn metric(host: &Host, name: &str) -> f64 {
    let metrics = host.get("/metrics").await.unwrap();
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with([' ', '{']))
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or(0.0)
}

/// A step with a module in it that nobody instantiates: one function, whose 400,000 instructions are all in memory at once while it
/// is compiled.
fn bomb() -> Vec<u8> {
    let section = |id: u8, content: Vec<u8>| [vec![id], leb(content.len()), content].concat();
    // Each stores what is at an address to that address.
    let store = [0x20, 0, 0x20, 0, 0x28, 2, 0, 0x36, 2, 0];
    let body = [vec![0], store.repeat(100_000), vec![0x0b]].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, vec![1, 0x60, 1, 0x7f, 0]),
        section(3, vec![1, 0]),
        section(5, vec![1, 0, 1]),
        section(10, [vec![1], leb(body.len()), body].concat()),
    ];
    [guest("echo").unwrap(), section(1, module.concat())].concat()
}

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_too_much_to_compile_is_refused_and_costs_nobody_else() {
    for (limit, code, setting) in [
        (
            "compile_memory = \"16MiB\"",
            "compile-failed",
            "limits.compile_memory",
        ),
        ("compile = \"1ms\"", "compile-timeout", "limits.compile"),
    ] {
        let host = Host::start(&Config::with(&format!("[limits]\n{limit}\n")))
            .await
            .unwrap();
        let reply = host.put_plugin("bomb", "1.0.0", bomb()).await.unwrap();
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned())
        );
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(setting), "{detail}");
        assert_eq!(host.get("/livez").await.unwrap().status, StatusCode::OK);
        let list = host
            .get("/api/v1/namespaces/default/plugins")
            .await
            .unwrap();
        assert_eq!(list.json()["items"].as_array().unwrap().len(), 0);
        assert!(metric(&host, "stepwell_compile_failures_total").await >= 1.0);
    }
}

#[test]
fn the_compilers_command_is_nobody_elses() {
    let output = std::process::Command::new(stepwell().unwrap())
        .arg("compile-worker")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(11));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the host's own use"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_components_than_stay_loaded_answer_all_the_same() {
    let mut host = Host::start(&Config::with("[limits]\nloaded_components = 2\n"))
        .await
        .unwrap();
    let echo = guest("echo").unwrap();
    for number in 0..5 {
        deploy(&host, &format!("e{number}"), variant(&echo, number)).await;
    }
    let compiled = metric(&host, "stepwell_compile_cache_misses_total").await;
    assert_eq!(compiled, 5.0);
    let call_all = async |host: &Host| {
        for round in 0..10 {
            let calls = (0..5).map(|number| async move {
                let reply = host
                    .post(&format!("/e{number}"), "text/plain", format!("{round}"))
                    .await
                    .unwrap();
                assert_eq!(reply.status, StatusCode::OK);
                assert_eq!(reply.body, format!("{round}"));
            });
            futures::future::join_all(calls).await;
        }
    };
    call_all(&host).await;
    assert!(metric(&host, "stepwell_components_evicted_total").await >= 3.0);
    assert!(metric(&host, "stepwell_components_loaded").await <= 2.0);
    assert_eq!(
        metric(&host, "stepwell_compile_cache_misses_total").await,
        compiled,
        "mapped again, never compiled again"
    );
    // The next process compiles nothing at all.
    assert_eq!(host.stop().unwrap(), 0);
    host.restart().await.unwrap();
    call_all(&host).await;
    assert_eq!(
        metric(&host, "stepwell_compile_cache_misses_total").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_cache_is_made_again_before_anybody_calls() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    deploy(&host, "echo", guest("echo").unwrap()).await;
    assert_eq!(host.stop().unwrap(), 0);
    std::fs::remove_dir_all(host.directory().join("data/cache")).unwrap();
    host.restart().await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while metric(&host, "stepwell_compile_seconds_count").await < 1.0 {
        assert!(Instant::now() < end, "nothing was compiled: {}", host.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reply = host.post("/echo", "text/plain", "x").await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, &b"x"[..]));
    assert_eq!(
        metric(&host, "stepwell_compile_cache_misses_total").await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_storm_leaves_requests_alone() {
    let host = Arc::new(Host::start(&Config::default()).await.unwrap());
    let echo = guest("echo").unwrap();
    deploy(&host, "calm", echo.clone()).await;
    let alone = slowest(&host).await;
    let over = Arc::new(AtomicBool::new(false));
    let storm: Vec<_> = (0..6)
        .map(|uploader| {
            let (host, echo, over) = (host.clone(), echo.clone(), over.clone());
            tokio::spawn(async move {
                let mut stored = 0;
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("s{uploader}-{number}");
                    let bytes = variant(&echo, uploader * 10_000 + number);
                    let reply = host.put_plugin(&name, "1.0.0", bytes).await.unwrap();
                    match reply.status {
                        StatusCode::CREATED => stored += 1,
                        StatusCode::SERVICE_UNAVAILABLE => assert_eq!(reply.code(), "busy"),
                        other => panic!("{other}: {:?}", reply.json()),
                    }
                }
                stored
            })
        })
        .collect();
    let stormy = slowest(&host).await;
    over.store(true, Ordering::Relaxed);
    let mut stored = 0;
    for uploader in storm {
        stored += uploader.await.unwrap();
    }
    assert!(stored > 0, "the storm was one");
    // The bench has the real bound; here the machine may be busy with anything.
    let most = alone * 10 + Duration::from_secs(1);
    assert!(stormy < most, "{stormy:?} in the storm, {alone:?} alone");
}

/// The 99th percentile of some hundred requests, one after the other.
async fn slowest(host: &Host) -> Duration {
    let mut times = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        let reply = host.post("/calm", "text/plain", "x").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() * 99 / 100]
}
