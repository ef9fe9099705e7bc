use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use stepwell_tests::{Config, Host, guest, send};

use crate::harm::{Harm, MADE};

fn document(name: &str, steps: &[&str], limits: &str) -> String {
    let steps = steps.iter().enumerate().map(|(at, plugin)| {
        format!("  - {{id: step{at}, plugin: {plugin}@1, limits: {limits}}}\n")
    });
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n{}",
        steps.collect::<String>()
    )
}

/// A host with a well-behaved tenant, whose guests may take their time.
pub(crate) async fn start(config: &Config) -> Arc<Host> {
    let host = Host::start(config).await.unwrap();
    host.upload("hostile", "1.0.0", "hostile").await.unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let limits = "{cpu: 200ms, wall: 1s, memory: 64MiB}";
    host.apply("bad", &document("bad", &["hostile"], limits))
        .await
        .unwrap();
    let limits = "{cpu: 1s, wall: 10s}";
    host.apply("good", &document("good", &["hostile"], limits))
        .await
        .unwrap();
    Arc::new(host)
}

/// Those who mean harm, in the namespace `default`, whose functions see their paths as they are; and another tenant.
pub(crate) async fn hostile(host: &Host) {
    let put = async |path: &str, body: Vec<u8>| {
        let path = format!("/api/v1/namespaces/{path}");
        let request = host.admin_request(Method::PUT, &path).body(body);
        let reply = send(request).await.unwrap();
        assert!(reply.status.is_success(), "{path}: {}", reply.json());
    };
    put("calm", Vec::new()).await;
    let step = guest("hostile").unwrap();
    put("calm/plugins/hostile/versions/1.0.0", step).await;
    let good = document("good", &["hostile"], "{cpu: 1s, wall: 10s}");
    put("calm/pipelines/good", good.into_bytes()).await;
    let made = MADE.iter().map(|(name, module)| {
        let text = include_str!("../../guests/step.wat");
        let text = text.replace("MODULE", module).replace("BESIDE", "");
        (*name, wat::parse_str(text).unwrap())
    });
    let function = ("hostile-http", guest("hostile-http").unwrap());
    for (name, bytes) in made.chain([function]) {
        put(&format!("default/plugins/{name}/versions/1.0.0"), bytes).await;
    }
    // A machine that is busy takes its time to give a guest that of `cpu`. Those that wait for ever have less.
    let limits = "{cpu: 200ms, wall: 20s, memory: 64MiB}";
    let short = "{cpu: 200ms, wall: 1s, memory: 64MiB}";
    let alone = ["tables", "memories", "liar", "letters"];
    let mut documents: Vec<_> = alone
        .iter()
        .map(|name| (*name, document(name, &[name], limits)))
        .collect();
    documents.push(("bad", document("bad", &["hostile"], limits)));
    documents.push(("short", document("short", &["hostile"], short)));
    let steps = ["hostile", "hostile", "nothing"];
    documents.push(("calls", document("calls", &steps, limits)));
    for (name, limits, paths) in [
        ("function", limits, "spin deaf endless fields/{*rest}"),
        ("short-function", short, "stall"),
    ] {
        let paths = paths.split(' ');
        let triggers: String = paths
            .map(|path| format!("  - http: {{path: '/{path}'}}\n"))
            .collect();
        let function = document(name, &["hostile-http"], limits);
        let own = format!("  - http: {{method: POST, path: /{name}}}\n");
        documents.push((name, function.replace(&own, &triggers)));
    }
    for (name, document) in documents {
        let path = format!("default/pipelines/{name}");
        put(&path, document.into_bytes()).await;
    }
}

/// Asks a hostile guest to do what it does.
pub(crate) fn request(host: &Host, harm: &Harm) -> RequestBuilder {
    let (pipeline, what) = (harm.pipeline, harm.what);
    if pipeline.ends_with("function") {
        let path = format!("/{what}");
        return host
            .request(Method::POST, &path)
            .body(vec![b'x'; 256 << 10]);
    }
    // What each event of an answer carries on.
    let query = match harm.limit {
        Some("carried") => "x".repeat(8_000),
        _ => String::new(),
    };
    host.request(Method::POST, &format!("/{pipeline}?{query}"))
        .header("ce-specversion", "1.0")
        .header("ce-source", "/test")
        .header("ce-id", "1")
        .header("ce-type", what)
}

/// What it takes that a light step answers, and that the host says that it lives: all but the slowest of a hundred.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calm {
    step: Duration,
    livez: Duration,
}

impl Calm {
    pub(crate) fn within(self, alone: Self, grace: Duration) -> bool {
        self.step <= alone.step * 2 + grace && self.livez <= alone.livez * 2 + grace
    }
}

/// Measures it, with a pause after each request.
pub(crate) async fn calm(host: &Host) -> Calm {
    const REQUESTS: usize = 200;
    let (mut steps, mut lives) = (Vec::new(), Vec::new());
    for number in 0..REQUESTS {
        let asked = Instant::now();
        let id = number.to_string();
        let reply = host
            .event("/@calm/good", &id, "echo", "hello")
            .await
            .unwrap();
        steps.push(asked.elapsed());
        assert_eq!(
            (reply.status, &reply.body[..]),
            (StatusCode::OK, &b"hello"[..])
        );
        let asked = Instant::now();
        let live = host.get("/livez").await.unwrap();
        lives.push(asked.elapsed());
        assert_eq!(live.status, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let p99 = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() * 99 / 100 - 1]
    };
    Calm {
        step: p99(steps),
        livez: p99(lives),
    }
}

/// Callers of a hostile guest, each of which calls again soon after it is answered.
pub(crate) struct Siege {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

/// Events at once of each hostile class.
const CALLERS: usize = 24;

/// Between two requests of one caller. Answers that come at once would have the callers themselves take what the machine has.
const PAUSE: Duration = Duration::from_millis(10);

impl Siege {
    pub(crate) fn begin(host: &Arc<Host>, harm: &'static Harm) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let callers = (0..CALLERS)
            .map(|_| {
                let (host, stop) = (host.clone(), stop.clone());
                let answered: Arc<AtomicUsize> = Arc::clone(&answered);
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        // A body that nobody reads may not have been sent when the host has waited for it long enough.
                        if let Ok(response) = request(&host, harm).send().await {
                            assert_ne!(response.status(), StatusCode::NOT_FOUND);
                            // It may break off.
                            let _ = response.bytes().await;
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        tokio::time::sleep(PAUSE).await;
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

    /// Waits until all of them may have begun.
    pub(crate) async fn is_under_way(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!self.callers.iter().any(|caller| caller.is_finished()));
    }

    /// How many were answered.
    pub(crate) async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}
