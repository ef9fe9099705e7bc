//! Stopping: what was begun is answered, nothing new is taken up, and what does not finish is named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use stepwell_tests::{Config, Host, Reply};
use tokio::net::TcpStream;

/// A pipeline that does what the type of its event says, for at most 30 s.
const SLOW: &str = "\
stepwell: 1
name: slow
triggers:
  - http: {method: POST, path: /slow, timeout: 40s}
steps:
  - {id: only, plugin: probe@1, limits: {cpu: 1s, wall: 30s, output: 4MiB}}
";

async fn host(grace_period: &str) -> Arc<Host> {
    let config = Config {
        server: format!("grace_period = \"{grace_period}\""),
        sections: String::new(),
    };
    let host = Host::start(&config).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("slow", SLOW).await.unwrap();
    Arc::new(host)
}

/// Requests that sleep in the guest, one connection each.
fn begin(
    host: &Arc<Host>,
    count: usize,
    millis: u32,
) -> Vec<tokio::task::JoinHandle<anyhow::Result<Reply>>> {
    let one = |n: usize| {
        let host = host.clone();
        tokio::spawn(async move {
            host.event("/slow", &n.to_string(), &format!("sleep:{millis}"), "")
                .await
        })
    };
    (0..count).map(one).collect()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the host says that this many runs are under way.
async fn running(host: &Host, count: usize) {
    let line = format!("stepwell_runs_in_flight {count}");
    eventually(&line, async || {
        let metrics = host.get("/metrics").await.unwrap().body;
        String::from_utf8_lossy(&metrics)
            .lines()
            .any(|found| found == line)
    })
    .await;
}

/// Waits until `/readyz` says that the host stops, and no new connection is taken.
async fn stopping(host: &Host) {
    eventually("/readyz says that the host stops", async || {
        let ready = host.get("/readyz").await.unwrap();
        ready.status == StatusCode::SERVICE_UNAVAILABLE && ready.json()["status"] == "down"
    })
    .await;
    let address = host.data().strip_prefix("http://").unwrap();
    eventually("new connections are refused", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
}

/// Waits for the exit code while the answers that are still under way come in.
async fn exit_code(host: Arc<Host>) -> (i32, String) {
    // Callers that have ended give their share of the host back a moment later.
    eventually("the callers have ended", async || {
        Arc::strong_count(&host) == 1
    })
    .await;
    let mut host = Arc::into_inner(host).unwrap();
    tokio::task::spawn_blocking(move || (host.wait().unwrap(), host.log()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_begun_is_answered_in_full() {
    let host = host("25s").await;
    let calls = begin(&host, 40, 3000);
    running(&host, 40).await;
    // Others come and go all the while, each on a connection of its own.
    let [answered, turned_away, cut_off] = [(); 3].map(|()| Arc::new(AtomicU32::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (host, answered) = (host.clone(), answered.clone());
            let (turned_away, cut_off) = (turned_away.clone(), cut_off.clone());
            tokio::spawn(async move {
                let body = vec![b'x'; 256 << 10];
                let http = reqwest::Client::builder()
                    .no_proxy()
                    .pool_max_idle_per_host(0)
                    .build()
                    .unwrap();
                loop {
                    let request = http.post(format!("{}/slow", host.data())).headers(
                        [
                            ("ce-specversion", "1.0"),
                            ("ce-id", "1"),
                            ("ce-source", "/t"),
                            ("ce-type", "echo"),
                        ]
                        .into_iter()
                        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                        .collect(),
                    );
                    let response = match request.body(body.clone()).send().await {
                        Ok(response) => response,
                        Err(error) => {
                            turned_away.fetch_add(1, Ordering::Relaxed);
                            cut_off.fetch_add(u32::from(!error.is_connect()), Ordering::Relaxed);
                            return;
                        }
                    };
                    assert_eq!(response.status(), StatusCode::OK);
                    // An answer that has begun ends.
                    assert_eq!(response.bytes().await.unwrap().len(), body.len());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("callers are answered", async || {
        answered.load(Ordering::Relaxed) > 50
    })
    .await;

    host.terminate().unwrap();
    stopping(&host).await;
    assert!(
        calls.iter().all(|call| !call.is_finished()),
        "the host stops while requests are under way"
    );
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status, StatusCode::OK);
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(turned_away.load(Ordering::Relaxed), 8);
    // Refused before they were connected; the kernel may still connect one in the very moment that the listener closes.
    let cut_off = cut_off.load(Ordering::Relaxed);
    assert!(
        cut_off <= 1,
        "{cut_off} requests were sent and not answered"
    );
    let (code, log) = exit_code(host).await;
    assert_eq!(code, 0, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_takes_too_long_is_named() {
    let host = host("1s").await;
    let calls = begin(&host, 2, 20_000);
    running(&host, 2).await;
    let begun = Instant::now();
    host.terminate().unwrap();
    for call in calls {
        if let Ok(reply) = call.await.unwrap() {
            assert_ne!(
                reply.status,
                StatusCode::OK,
                "it cannot have slept that long"
            );
        }
    }
    let (code, log) = exit_code(host).await;
    assert_ne!(code, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the host did not wait for the runs"
    );
    let named = log
        .lines()
        .filter(|line| {
            line.contains("did not finish within the grace period") && line.contains("slow ")
        })
        .count();
    assert_eq!(named, 2, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_stops_at_once() {
    let host = host("60s").await;
    let calls = begin(&host, 1, 25_000);
    running(&host, 1).await;
    let begun = Instant::now();
    host.terminate().unwrap();
    stopping(&host).await;
    assert!(!calls[0].is_finished());
    host.terminate().unwrap();
    for call in calls {
        assert!(call.await.unwrap().is_err(), "no answer");
    }
    let (code, log) = exit_code(host).await;
    assert_ne!(code, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "at once: {:?}",
        begun.elapsed()
    );
    assert!(log.contains("second signal"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_stops_a_host_that_still_starts() {
    // A catalog that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stepwell.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndata_dir = \"data\"\n[catalog]\nurl = \"postgres://a:b@{}/c\"\n",
        silent.local_addr().unwrap()
    );
    std::fs::write(&file, text).unwrap();
    let log = directory.path().join("log");
    let mut process = std::process::Command::new(stepwell_tests::stepwell().unwrap())
        .args(["serve", "--config"])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    // It has asked the catalog, so that it knows of signals by now.
    let asked = tokio::task::spawn_blocking(move || (silent.accept().unwrap(), silent));
    // Both are kept: connections must go on to be taken and not answered.
    let _asked = asked.await.unwrap();
    let begun = Instant::now();
    for _ in 0..2 {
        let pid = process.id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status();
        assert!(sent.unwrap().success());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut ended = None;
    while ended.is_none() && begun.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ended = process.try_wait().unwrap();
    }
    let _ = process.kill();
    process.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(ended.is_some_and(|status| !status.success()), "{log}");
    assert!(log.contains("at once by a second signal"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_nothing_to_do_ends_at_once() {
    let host = host("60s").await;
    // A kept connection that is idle does not hold the host up.
    assert_eq!(
        host.event("/slow", "1", "echo", "x").await.unwrap().body,
        "x"
    );
    let idle = TcpStream::connect(host.data().strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let path = "/api/v1/namespaces/default/pipelines/slow/invoke";
    let invoked = host
        .admin_request(Method::POST, path)
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(
        invoked.status(),
        StatusCode::UNPROCESSABLE_ENTITY,
        "no such behaviour: http.request"
    );
    let begun = Instant::now();
    host.terminate().unwrap();
    let (code, log) = exit_code(host).await;
    assert_eq!(code, 0, "{log}");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_right_after_the_ready_line_is_heeded() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    for round in 0..8 {
        assert_eq!(host.stop().unwrap(), 0, "round {round}");
        host.restart().await.unwrap();
    }
    // Two in one go: the host ends, whichever of them it sees.
    host.terminate().unwrap();
    host.terminate().unwrap();
    let code = host.wait().unwrap();
    assert!(matches!(code, 0 | 1), "{code}");
}
