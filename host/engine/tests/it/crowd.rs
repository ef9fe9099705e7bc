//! Instances of WASI 0.3 functions that answer several calls at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use stepwell_core::{Digest, ErrorKind, Limits, Reuse, StepError};
use stepwell_engine::{
    Bind, Body, Engine, EngineConfig, Environment, Kept, LogStream, Plugin, StoreBase, StoreState,
};

use crate::support::{Host, Lines, State, generous, guest, host, soon};

struct Crowd {
    host: Host,
    plugin: Arc<Plugin<State>>,
    kept: Kept<State>,
}

async fn crowd(limits: Limits, reuse: Reuse) -> Crowd {
    let host = host();
    let plugin = host.plugin(guest("service.wasm")).await;
    let kept = plugin.keep(limits, reuse);
    Crowd { host, plugin, kept }
}

fn of(concurrency: u32) -> Reuse {
    Reuse {
        concurrency,
        ..Reuse::default()
    }
}

struct Call<'a>(&'a Host);

impl Bind<State> for Call<'_> {
    fn fresh(&self) -> State {
        self.0.state()
    }

    fn renew(&self, state: &mut State) {
        state.base().rebind(self.0.lines.clone());
    }
}

impl Crowd {
    async fn get(&self, path: &str) -> Result<Response<Body>, StepError> {
        self.send(path, Bytes::new()).await
    }

    async fn send(&self, path: &str, body: Bytes) -> Result<Response<Body>, StepError> {
        let request = get(path).map(|_| whole(body));
        self.kept
            .handle(&self.plugin, &Call(&self.host), soon(), request)
            .await
    }

    async fn text(&self, path: &str) -> String {
        read(self.get(path).await.unwrap()).await.unwrap()
    }

    /// How many calls the instance has had with this one.
    async fn count(&self, path: &str) -> u32 {
        self.text(path).await.parse().unwrap()
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn get(path: &str) -> Request<Body> {
    Request::builder()
        .uri(path)
        .header("host", "example.com")
        .body(whole(Bytes::new()))
        .unwrap()
}

async fn read(
    response: Response<Body>,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec())?)
}

#[tokio::test]
async fn fifty_calls_wait_together_in_one_instance() {
    let crowd = crowd(generous(), of(50)).await;
    let began = Instant::now();
    let mut counts = join_all((0..50).map(|_| crowd.count("/sleep/200"))).await;
    let took = began.elapsed();
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
    // One after the other they would take ten seconds.
    assert!(took < Duration::from_secs(5), "{took:?}");
    // A call more than an instance takes at once starts another.
    let busy = join_all((0..50).map(|_| crowd.count("/sleep/4000")));
    let other = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        crowd.count("/count").await
    };
    let (_, other) = tokio::join!(busy, other);
    assert_eq!(other, 1);
}

#[tokio::test]
async fn a_response_that_is_not_what_it_says_is_none() {
    let crowd = crowd(generous(), of(5)).await;
    for path in ["/short", "/error-text/4000000"] {
        let error = match crowd.get(path).await {
            Err(error) => error.message,
            Ok(response) => read(response).await.unwrap_err().to_string(),
        };
        assert!(error.len() < 400, "{} bytes", error.len());
        assert!(!error.contains(char::is_control), "{error}");
    }
    if let Ok(response) = crowd.get("/overlong").await
        && let Ok(body) = read(response).await
    {
        assert_eq!(body, "hello");
    }
}

#[tokio::test]
async fn no_instance_answers_more_calls_at_once_than_it_may() {
    let crowd = crowd(generous(), of(2)).await;
    // Long enough for all of them to have begun before one ends.
    let mut counts = join_all((0..6).map(|_| crowd.count("/sleep/3000"))).await;
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 1, 2, 2, 2]);
    // One at a time follow each other in the instance of the caller's own task, or, where that went on elsewhere since the machine
    // is busy, find it there a moment later.
    let kept = crowd.plugin.keep(generous(), of(1));
    let serial = Crowd {
        host: host(),
        plugin: crowd.plugin.clone(),
        kept,
    };
    for _ in 0..100 {
        if serial.count("/count").await == 3 {
            return;
        }
    }
    panic!("no instance answers three calls");
}

#[tokio::test]
async fn an_instance_ends_with_its_last_call_and_its_idle_time() {
    let few = Reuse {
        max_calls: 3,
        concurrency: 2,
        ..Reuse::default()
    };
    let crowd = crowd(generous(), few).await;
    for expected in [1, 2, 3, 1, 2, 3, 1] {
        assert_eq!(crowd.count("/count").await, expected);
    }
    let brief = Reuse {
        idle: Duration::from_secs(2),
        concurrency: 2,
        ..Reuse::default()
    };
    let crowd = Crowd {
        kept: crowd.plugin.keep(generous(), brief),
        ..crowd
    };
    assert_eq!(crowd.count("/count").await, 1);
    // Waiting for its own timer, it is not idle.
    assert_eq!(crowd.count("/sleep/2500").await, 2);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(crowd.count("/count").await, 1);
}

#[tokio::test]
async fn streams_trailers_and_errors_are_as_in_a_fresh_instance() {
    let limits = Limits {
        output: 2_000_000,
        ..generous()
    };
    let crowd = crowd(limits, of(10)).await;
    let sent = Bytes::from(vec![b'x'; 1_000_000]);
    let response = crowd.send("/echo", sent.clone()).await.unwrap();
    let back = response.into_body().collect().await.unwrap();
    assert_eq!(back.trailers().unwrap()["x-bytes"], "1000000");
    assert_eq!(back.to_bytes(), sent);
    let error = crowd.get("/error").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("DestinationNotFound"), "{error}");
    let response = crowd.get("/endless").await.unwrap();
    let error = read(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.output"), "{error}");
    // None of these was the instance's end.
    assert_eq!(crowd.count("/count").await, 4);
}

#[tokio::test]
async fn a_trap_fails_the_calls_of_its_instance_and_no_others() {
    let crowd = crowd(generous(), of(10)).await;
    let response = crowd.get("/stall").await.unwrap();
    let waiting = join_all((0..3).map(|_| crowd.get("/sleep/30000")));
    let trapping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        crowd.get("/trap").await
    };
    let (waiting, trapped, stalled) = tokio::join!(waiting, trapping, read(response));
    for outcome in waiting.into_iter().chain([trapped]) {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Trap);
        assert!(error.message.contains("unreachable"), "{error}");
        assert!(error.message.contains("4 other calls"), "{error}");
    }
    let error = stalled.unwrap_err().to_string();
    assert!(error.contains("unreachable"), "{error}");
    assert_eq!(crowd.count("/count").await, 1);
}

#[tokio::test]
async fn a_spinning_call_has_the_budget_of_those_under_way() {
    let limits = Limits {
        cpu: Duration::from_millis(100),
        ..generous()
    };
    let crowd = crowd(limits, of(10)).await;
    // Many calls, each within its budget, use more than one budget together.
    for expected in 1..=20 {
        assert_eq!(crowd.count("/count").await, expected);
    }
    let (spinning, waiting) = tokio::join!(crowd.get("/spin"), crowd.get("/sleep/30000"));
    for outcome in [spinning, waiting] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit);
        assert!(error.message.contains("limits.cpu"), "{error}");
    }
    let response = crowd.get("/spin-midway").await;
    assert!(response.is_err() || read(response.unwrap()).await.is_err());
    assert_eq!(crowd.count("/count").await, 1);
}

#[tokio::test]
async fn memory_is_the_instances() {
    let crowd = crowd(generous(), of(10)).await;
    let error = crowd.get("/allocate/100000000").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.memory"), "{error}");
    assert_eq!(crowd.count("/count").await, 1);
}

#[tokio::test]
async fn a_call_whose_time_is_up_leaves_the_others_alone() {
    let limits = Limits {
        wall: Duration::from_secs(6),
        ..generous()
    };
    let crowd = crowd(limits, of(10)).await;
    let late = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        crowd.count("/sleep/3000").await
    };
    let (overdue, late) = tokio::join!(crowd.get("/sleep/60000"), late);
    let error = overdue.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("limits.wall"), "{error}");
    assert_eq!(late, 2);
    // The instance still holds what the first call left, and takes no more.
    assert_eq!(crowd.count("/count").await, 1);

    let response = crowd.get("/stall").await.unwrap();
    let error = read(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.wall"), "{error}");
    assert_eq!(crowd.count("/count").await, 1);
}

#[tokio::test]
async fn a_cancelled_call_ends_its_instance() {
    let crowd = crowd(generous(), of(10)).await;
    assert_eq!(crowd.count("/count").await, 1);
    let cancelled =
        tokio::time::timeout(Duration::from_millis(50), crowd.get("/sleep/60000")).await;
    assert!(cancelled.is_err());
    assert_eq!(crowd.count("/count").await, 1);
    // Whoever hangs up while the body comes is seen by the guest when it writes.
    drop(crowd.get("/endless").await.unwrap());
    assert_eq!(crowd.count("/count").await, 3);
}

#[tokio::test]
async fn calls_under_way_outlive_their_step() {
    let Crowd { host, plugin, kept } = crowd(generous(), of(10)).await;
    let call = Call(&host);
    let answer = kept.handle(&plugin, &call, soon(), get("/sleep/300"));
    let response = answer.await.unwrap();
    drop(kept);
    assert_eq!(read(response).await.unwrap(), "1");
}

#[tokio::test]
async fn an_idle_instance_makes_room_for_others() {
    let mut host = host();
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.instances = 1;
    host.engine = Engine::new(config, |_| Ok(())).unwrap();
    let plugin = host.plugin(guest("service.wasm")).await;
    let crowds = [(); 2].map(|()| plugin.keep(generous(), of(10)));
    let call = Call(&host);
    for _ in 0..3 {
        for kept in &crowds {
            let answer = kept.handle(&plugin, &call, soon(), get("/count"));
            assert_eq!(read(answer.await.unwrap()).await.unwrap(), "1");
        }
    }
}

#[tokio::test]
async fn lines_are_those_of_the_call_that_began_last() {
    let mut crowd = crowd(generous(), of(10)).await;
    let mut logs = Vec::new();
    for line in ["one", "two"] {
        crowd.host.lines = Arc::new(Lines::default());
        assert_eq!(crowd.text(&format!("/log/{line}")).await, "logged");
        logs.push((line, crowd.host.lines.clone()));
    }
    for (line, log) in logs {
        assert_eq!(
            log.all(),
            [
                (LogStream::Stdout, format!("0.2 {line}")),
                (LogStream::Stdout, format!("0.3 {line}"))
            ]
        );
    }
}

/// A state that can be made to break the host that looks at it.
struct Fragile {
    base: StoreBase,
    breaks: bool,
}

impl StoreState for Fragile {
    fn base(&mut self) -> &mut StoreBase {
        assert!(!self.breaks, "broken on purpose");
        &mut self.base
    }
}

/// A call whose state breaks, or does not.
struct Breaking(bool);

impl Bind<Fragile> for Breaking {
    fn fresh(&self) -> Fragile {
        let environment = Arc::new(Environment::default());
        Fragile {
            base: StoreBase::new(environment, Arc::new(Lines::default())),
            breaks: self.0,
        }
    }

    fn renew(&self, _: &mut Fragile) {}
}

#[tokio::test]
async fn a_host_that_breaks_off_is_the_end_of_the_instance_and_not_of_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.instances = 10;
    let engine = Engine::<Fragile>::new(config, |_| Ok(())).unwrap();
    let bytes = Bytes::from(guest("service.wasm"));
    let fetched = bytes.clone();
    let plugin = engine
        .load(Digest::of(&bytes), async move { Ok::<_, String>(fetched) })
        .await
        .unwrap();
    let kept = plugin.keep(generous(), of(10));
    let answer = |breaks, path: &'static str| {
        let (kept, plugin) = (&kept, &plugin);
        async move {
            let call = Breaking(breaks);
            let response = kept.handle(plugin, &call, soon(), get(path)).await?;
            Ok::<_, StepError>(read(response).await.unwrap())
        }
    };
    assert_eq!(answer(false, "/count").await.unwrap(), "1");
    let (waiting, breaking) = tokio::join!(answer(false, "/sleep/30000"), answer(true, "/count"));
    for outcome in [waiting, breaking] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("a bug in the host"), "{error}");
    }
    assert_eq!(answer(false, "/count").await.unwrap(), "1");
}
