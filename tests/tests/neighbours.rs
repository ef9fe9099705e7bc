//! What one tenant's guests do, another tenant does not feel, and the host's own duties still less.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::StatusCode;
use stepwell_tests::{Config, Host};

/// Longer than anything below takes even where the tests share two cores with a build, and far shorter than waiting for guests
/// to end would be.
const SLOW: Duration = Duration::from_secs(5);

/// Events at once of each hostile class.
const CALLERS: usize = 24;

fn document(name: &str, plugin: &str, limits: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n\
         \x20 - {{id: only, plugin: {plugin}@1, limits: {limits}}}\n"
    )
}

async fn start(config: &Config) -> Arc<Host> {
    let host = Host::start(config).await.unwrap();
    host.upload("hostile", "1.0.0", "hostile").await.unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let limits = "{cpu: 200ms, wall: 1s, memory: 64MiB}";
    host.apply("bad", &document("bad", "hostile", limits))
        .await
        .unwrap();
    let limits = "{cpu: 1s, wall: 10s}";
    host.apply("good", &document("good", "hostile", limits))
        .await
        .unwrap();
    Arc::new(host)
}

/// Callers of a hostile guest, each of which calls again as soon as it is answered.
struct Siege {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Siege {
    fn begin(host: &Arc<Host>, kind: &'static str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let callers = (0..CALLERS)
            .map(|_| {
                let (host, stop) = (host.clone(), stop.clone());
                let answered: Arc<AtomicUsize> = Arc::clone(&answered);
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = host.event("/bad", "1", kind, "x").await.unwrap();
                        let text = String::from_utf8_lossy(&reply.body).into_owned();
                        // What stopped the guest is for its deployer.
                        assert!(
                            !text.contains("limits.") && !text.contains("hostile"),
                            "{kind}: {text}"
                        );
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self {
            stop,
            answered,
            callers,
        }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_and_the_hosts_own_duties_go_on_beside_every_hostile_guest() {
    let host = start(&Config::default()).await;
    for kind in [
        "spin",
        "call-host",
        "allocate:1073741824",
        "recurse:100000000",
        "panic",
        "output:8000000",
        "log:100000",
        "handles:100000",
        "pollables:100000",
        "fields:100000",
        "sleep:3600000",
    ] {
        let siege = Siege::begin(&host, kind);
        let end = Instant::now() + Duration::from_millis(800);
        let mut rounds = 0;
        while Instant::now() < end || rounds < 5 {
            let asked = Instant::now();
            let reply = host
                .event("/good", &rounds.to_string(), "echo", "hello")
                .await
                .unwrap();
            assert_eq!(
                (reply.status, &reply.body[..]),
                (StatusCode::OK, &b"hello"[..])
            );
            assert!(asked.elapsed() < SLOW, "{kind}: {:?}", asked.elapsed());
            let asked = Instant::now();
            let live = host.get("/livez").await.unwrap();
            assert_eq!(live.status, StatusCode::OK);
            assert!(
                asked.elapsed() < SLOW,
                "{kind}: /livez {:?}",
                asked.elapsed()
            );
            rounds += 1;
        }
        assert!(siege.end().await > 0, "{kind}");
    }
    // Nothing is left of them: no run, no instance, no memory.
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = host.get("/metrics").await.unwrap();
        let text = String::from_utf8(metrics.body.to_vec()).unwrap();
        let left = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.is_some_and(|line| !line.ends_with(" 0"))
        };
        if !left("stepwell_guest_memory_bytes ") && !left("stepwell_slow_lane_calls_active ") {
            assert!(
                text.contains("stepwell_limit_hits_total{limit=\""),
                "{text}"
            );
            break;
        }
        assert!(Instant::now() < end, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// MiB of a host that no file stands behind.
fn anonymous(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid().unwrap())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_guests_leave_where_no_call_looks_is_given_back() {
    let host = start(&Config::with("[limits]\nguest_memory = \"1GiB\"\n")).await;
    let before = anonymous(&host);
    let callers = (0..8).map(|_| {
        let host = host.clone();
        tokio::spawn(async move {
            // Each a little smaller than the one before: what that wrote to stays where it was.
            for size in (3..60).rev() {
                let reply = host
                    .event("/good", "1", &format!("reach:{size}"), "x")
                    .await
                    .unwrap();
                assert_eq!(
                    (reply.status, &reply.body[..]),
                    (StatusCode::OK, size.to_string().as_bytes())
                );
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let (swept, now) = (
            host.metric("stepwell_pool_swept_total").await.unwrap(),
            anonymous(&host),
        );
        // It is worth it at an eighth of what guests may have.
        if swept > 0.0 && now < before + 256 {
            break;
        }
        assert!(
            Instant::now() < end,
            "{swept} swept, {before} MiB, {now} MiB"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployer_and_nobody_else_learns_where_a_guest_was() {
    let host = start(&Config::default()).await;
    let reply = host
        .event("/bad", "1", "recurse:100000000", "x")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let path = "/api/v1/namespaces/default/pipelines/bad/invoke";
    let invoked = host
        .admin_request(reqwest::Method::POST, path)
        .header("ce-specversion", "1.0")
        .header("ce-source", "/test")
        .header("ce-id", "2")
        .header("ce-type", "recurse:100000000")
        .send()
        .await
        .unwrap();
    assert_eq!(invoked.status(), StatusCode::INTERNAL_SERVER_ERROR);
    for body in [reply.body, invoked.bytes().await.unwrap()] {
        let text = String::from_utf8(body.to_vec()).unwrap();
        for secret in ["recurse", "hostile", "stack", "wasm"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
    let logs = host
        .get("/api/v1/namespaces/default/logs?pipeline=bad&level=error")
        .await
        .unwrap()
        .json();
    let items = logs["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{logs}");
    for item in items {
        assert_eq!(item["step"], "only");
        assert_eq!(item["fields"]["plugin"], "hostile@1.0.0");
        assert_eq!(item["fields"]["trap"], "stack-overflow");
        let names = item["fields"]["backtrace"].as_array().unwrap();
        assert!(
            names
                .iter()
                .any(|name| name.as_str().unwrap().contains("recurse")),
            "{names:?}"
        );
    }
    let shown = host.cli(&["logs", "--pipeline", "bad"]).unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        text.contains("\n    in ") && text.contains("recurse"),
        "{text}"
    );
    assert!(host.logs("hostile@1.0.0").await && host.logs("stack-overflow").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_group_is_not_disturbed_by_guests_that_spin() {
    let session = "[kafka.properties]\n\"session.timeout.ms\" = 6000\n";
    let host = start(&Config::with(session)).await;
    let document = "stepwell: 1\nname: tagging\ntriggers:\n\
         \x20 - kafka: {topics: [tagging-in], group: tagging, output: tagging-out}\nsteps:\n\
         \x20 - {id: only, plugin: tagger@1, config: {tag: \" done\"}}\n";
    host.apply("tagging", document).await.unwrap();
    host.wait_for("kafka/tagging", "ok").await.unwrap();

    let siege = Siege::begin(&host, "spin");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", host.kafka())
        .create()
        .unwrap();
    // Longer than the broker waits for a consumer that has gone silent.
    for n in 0..16 {
        let payload = n.to_string();
        let record = FutureRecord::<(), str>::to("tagging-in").payload(&payload);
        producer
            .send(record, Duration::from_secs(20))
            .await
            .map_err(|(error, _)| error)
            .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (bootstrap, wanted) = (host.kafka().to_owned(), 16);
    let seen = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("group.id", "look")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&["tagging-out"]).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let mut seen = Vec::new();
        while seen.len() < wanted && Instant::now() < end {
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(200)) {
                seen.push(String::from_utf8(record.payload().unwrap().to_vec()).unwrap());
            }
        }
        seen.sort();
        seen
    })
    .await
    .unwrap();
    assert!(siege.end().await > 0);
    let mut expected: Vec<String> = (0..wanted).map(|n| format!("{n} done ")).collect();
    expected.sort();
    // Each exactly once: nothing was handed to the group again.
    assert_eq!(seen, expected);
    // And the group was formed once.
    let log = host.log();
    assert!(!log.contains("partition given back"), "{log}");
}
