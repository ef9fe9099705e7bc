#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! What a run promises, with steps that are plain functions.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use stepwell_core::{
    Blame, Call, ErrorKind, Event, Gone, Grants, Lingering, Name, Outcome, RunId, StepError,
    StepScope, TraceContext,
};
use stepwell_pipeline::{
    Body, Deployed, DeployedFunction, DeployedStep, Deployment, Dispatcher, EventMemory, Function,
    NotAdmitted, Retry, RunEnd, RunObserver, RunRequest, Step,
};
use tokio::sync::Notify;

type Reply = Result<Vec<Event>, StepError>;
type Code = dyn Fn(Call, Event) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

struct Fake(Box<Code>);

#[async_trait]
impl Step for Fake {
    async fn call(&self, call: &Call, event: Event) -> Reply {
        (self.0)(call.clone(), event).await
    }
}

fn scope(id: &str) -> Arc<StepScope> {
    Arc::new(StepScope {
        namespace: Name::default_namespace(),
        pipeline: "p".parse().unwrap(),
        revision: 3,
        step: id.parse().unwrap(),
        plugin: format!("{id}@1.0.0"),
        digest: None,
        grants: Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    })
}

fn step<F: Future<Output = Reply> + Send + 'static>(
    id: &str,
    code: impl Fn(Call, Event) -> F + Send + Sync + 'static,
) -> DeployedStep {
    DeployedStep {
        scope: scope(id),
        step: Arc::new(Fake(Box::new(move |call, event| {
            Box::pin(code(call, event))
        }))),
        timeout: None,
        retry: None,
    }
}

/// Adds `suffix` to the data.
fn append(id: &str, suffix: &'static str) -> DeployedStep {
    step(id, move |_, mut event| async move {
        event.data = [event.data.as_ref(), suffix.as_bytes()].concat().into();
        Ok(vec![event])
    })
}

/// Returns the event this many times, each with its number appended.
fn times(id: &str, count: usize) -> DeployedStep {
    step(id, move |_, event| async move {
        let numbered = |number: usize| {
            let mut event = event.clone();
            event.data = [event.data.as_ref(), number.to_string().as_bytes()]
                .concat()
                .into();
            event
        };
        Ok((0..count).map(numbered).collect())
    })
}

fn failing(id: &str, kind: ErrorKind, times: usize, calls: &Arc<AtomicUsize>) -> DeployedStep {
    let calls = calls.clone();
    step(id, move |_, event| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move {
            if call < times {
                Err(StepError::new(kind, format!("failure {call}")))
            } else {
                Ok(vec![event])
            }
        }
    })
}

fn retry(attempts: u32, backoff: Duration, errors: &[ErrorKind]) -> Option<Retry> {
    Some(Retry {
        attempts,
        backoff,
        errors: errors.to_vec(),
    })
}

fn deployment(steps: Vec<DeployedStep>) -> Arc<Deployment> {
    Arc::new(Deployment {
        namespace: Name::default_namespace(),
        name: "p".parse().unwrap(),
        revision: 3,
        triggers: Vec::new(),
        body: Deployed::Steps(steps),
    })
}

fn event(data: &str) -> Event {
    Event {
        id: "1".into(),
        source: "/test".into(),
        r#type: "test".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        extensions: Vec::new(),
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

fn request(deployment: &Arc<Deployment>, within: Duration) -> RunRequest {
    RunRequest {
        deployment: deployment.clone(),
        run: RunId::new(),
        trigger: "http",
        event: event("x"),
        deadline: Instant::now() + within,
        trace: TraceContext::default(),
    }
}

const LONG: Duration = Duration::from_secs(60);

async fn run(steps: Vec<DeployedStep>, within: Duration) -> Outcome {
    let dispatcher = Dispatcher::new(10);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    dispatcher
        .run(permit, request(&deployment(steps), within))
        .await
}

fn delivered(outcome: Outcome) -> Vec<String> {
    match outcome {
        Outcome::Delivered(events) => events
            .into_iter()
            .map(|event| String::from_utf8(event.data.to_vec()).unwrap())
            .collect(),
        other => panic!("not delivered: {other:?}"),
    }
}

fn errored(outcome: Outcome) -> StepError {
    match outcome {
        Outcome::Errored(error) => error,
        other => panic!("not errored: {other:?}"),
    }
}

#[tokio::test]
async fn steps_run_in_order() {
    let steps = vec![append("a", "1"), append("b", "2"), append("c", "3")];
    assert_eq!(delivered(run(steps, LONG).await), ["x123"]);
}

#[tokio::test]
async fn what_follows_a_fan_out_runs_once_for_each_in_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let last = step("last", move |_, event| {
        log.lock().unwrap().push(event.data.clone());
        async move { Ok(vec![event]) }
    });
    let steps = vec![times("a", 2), times("b", 3), last];
    let expected = ["x00", "x01", "x02", "x10", "x11", "x12"];
    assert_eq!(delivered(run(steps, LONG).await), expected);
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn no_event_ends_the_run_as_filtered() {
    let calls = Arc::new(AtomicUsize::new(0));
    let steps = vec![times("a", 0), failing("b", ErrorKind::Failed, 99, &calls)];
    let outcome = run(steps, LONG).await;
    assert_eq!(outcome.as_str(), "filtered");
    assert_eq!(delivered(outcome), Vec::<String>::new());
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_error_names_its_step_and_ends_the_run() {
    let (calls, after) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    let steps = vec![
        append("a", "1"),
        failing("b", ErrorKind::Invalid, 9, &calls),
        failing("c", ErrorKind::Failed, 0, &after),
    ];
    let Outcome::Rejected(error) = run(steps, LONG).await else {
        panic!("an invalid event is rejected")
    };
    assert_eq!(error.step.as_deref(), Some("b"));
    assert_eq!(after.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_step_is_tried_again_as_its_policy_says() {
    let kinds = [ErrorKind::Unavailable, ErrorKind::Trap];
    let millisecond = Duration::from_millis(1);
    // (kind, failures, attempts) → calls, whether it is delivered
    for (kind, failures, attempts, calls, good) in [
        (ErrorKind::Unavailable, 2, 3, 3, true),
        (ErrorKind::Trap, 1, 3, 2, true),
        (ErrorKind::Unavailable, 3, 3, 3, false),
        (ErrorKind::Failed, 1, 3, 1, false),
        (ErrorKind::Invalid, 1, 3, 1, false),
        (ErrorKind::Unavailable, 1, 1, 1, false),
    ] {
        let counter = Arc::new(AtomicUsize::new(0));
        let mut step = failing("a", kind, failures, &counter);
        step.retry = retry(attempts, millisecond, &kinds);
        let outcome = run(vec![step], LONG).await;
        assert_eq!(
            counter.load(Ordering::SeqCst),
            calls,
            "{kind} {failures} {attempts}"
        );
        assert_eq!(
            matches!(outcome, Outcome::Delivered(_)),
            good,
            "{kind} {failures} {attempts}"
        );
    }
}

#[tokio::test]
async fn retries_end_with_the_runs_time() {
    let counter = Arc::new(AtomicUsize::new(0));
    let mut step = failing("a", ErrorKind::Unavailable, usize::MAX, &counter);
    step.retry = retry(
        u32::MAX,
        Duration::from_secs(3600),
        &[ErrorKind::Unavailable],
    );
    let started = Instant::now();
    let error = errored(run(vec![step], Duration::from_millis(300)).await);
    // The last error says more than that time was up, and no pause is begun that would outlast the run.
    assert!(
        matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_steps_timeout_bounds_its_retries() {
    let counter = Arc::new(AtomicUsize::new(0));
    let calls = counter.clone();
    let mut slow = step("slow", move |call, _| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(call.remaining() <= Duration::from_millis(100));
            tokio::time::sleep(LONG).await;
            Ok(vec![])
        }
    });
    slow.timeout = Some(Duration::from_millis(100));
    slow.retry = retry(5, Duration::from_millis(1), &ErrorKind::ALL);
    let error = errored(run(vec![slow], LONG).await);
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.message, "the step's timeout of 100ms was up");
    assert_eq!(error.step.as_deref(), Some("slow"));
    assert_eq!(counter.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_run_ends_at_its_deadline() {
    let mut slow = step("slow", |_, _| async {
        tokio::time::sleep(LONG).await;
        Ok(vec![])
    });
    slow.timeout = Some(LONG);
    let error = errored(run(vec![append("a", "1"), slow], Duration::from_millis(100)).await);
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.message, "the run's time was up");
    assert_eq!(error.step.as_deref(), Some("slow"));
}

#[tokio::test]
async fn a_panic_in_a_step_is_an_error_of_the_run() {
    #[allow(unreachable_code, reason = "the type of a future that panics")]
    let steps = vec![step("a", |_, _| async {
        panic!("a bug");
        Ok(vec![])
    })];
    let error = errored(run(steps, LONG).await);
    assert_eq!((error.kind, error.blame), (ErrorKind::Failed, Blame::Host));
    assert_eq!(error.step.as_deref(), Some("a"));
    assert!(!error.message.contains("a bug"));
}

#[tokio::test]
async fn a_fan_out_is_bounded() {
    let nothing = step("c", |_, _| async { Ok(Vec::new()) });
    let steps = vec![times("a", 200), times("b", 200), nothing];
    let error = errored(run(steps, LONG).await);
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("10000 calls"), "{error}");

    let large = step("large", |_, mut event| async move {
        event.data = vec![0; 1 << 20].into();
        Ok(vec![event; 100])
    });
    let error = errored(run(vec![large], LONG).await);
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("64MiB"), "{error}");
}

/// A step that says when it has begun, waits to be let go, and says that it is done.
fn gated(begun: &Arc<Notify>, go: &Arc<Notify>, done: &Arc<Notify>) -> DeployedStep {
    let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
    step("gated", move |_, event| {
        let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
        async move {
            begun.notify_one();
            go.notified().await;
            done.notify_one();
            Ok(vec![event])
        }
    })
}

#[tokio::test]
async fn a_caller_that_hangs_up_cannot_stop_a_run() {
    for inline in [false, true] {
        let (begun, go, done) = (Arc::default(), Arc::default(), Arc::default());
        let deployment = deployment(vec![gated(&begun, &go, &done)]);
        let dispatcher = Dispatcher::new(1);
        let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
        let caller = tokio::spawn({
            let (dispatcher, request) = (dispatcher.clone(), request(&deployment, LONG));
            async move {
                if inline {
                    dispatcher.run_inline(permit, request).await
                } else {
                    dispatcher.run(permit, request).await
                }
            }
        });
        begun.notified().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert!(
            dispatcher.admit(&Name::default_namespace()).is_err(),
            "the run still holds its permit"
        );
        go.notify_one();
        done.notified().await;
        assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    }
}

#[tokio::test]
async fn permits_bound_the_runs_under_way() {
    let (begun, go, done) = (Arc::default(), Arc::default(), Arc::default());
    let deployment = deployment(vec![gated(&begun, &go, &done)]);
    let dispatcher = Dispatcher::new(1);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let busy = NotAdmitted::Busy {
        retry_after: Duration::from_secs(1),
    };
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(busy)
    );
    let request = request(&deployment, LONG);
    let run = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { dispatcher.run(permit, request).await }
    });
    begun.notified().await;
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(busy)
    );
    go.notify_one();
    assert_eq!(run.await.unwrap().as_str(), "delivered");
    assert!(dispatcher.admit(&Name::default_namespace()).is_ok());
}

#[tokio::test]
async fn a_drain_waits_and_names_what_did_not_end() {
    let (begun, go, done): (Arc<Notify>, Arc<Notify>, _) =
        (Arc::default(), Arc::default(), Arc::default());
    let deployment = deployment(vec![gated(&begun, &go, &done)]);
    let dispatcher = Dispatcher::new(10);
    let request = request(&deployment, LONG);
    let id = request.run;
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let run = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { dispatcher.run(permit, request).await }
    });
    begun.notified().await;
    dispatcher.close();
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(NotAdmitted::ShuttingDown)
    );
    let soon = Instant::now() + Duration::from_millis(50);
    assert_eq!(dispatcher.drained(soon).await, [format!("p {id}")]);
    go.notify_one();
    assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    assert_eq!(run.await.unwrap().as_str(), "delivered");
}

#[derive(Default)]
struct Ends(Mutex<Vec<(RunId, &'static str, Option<String>)>>);

impl RunObserver for Ends {
    fn run_ended(&self, end: &RunEnd<'_>) {
        let error = end.error.map(|error| {
            let step = error.step.as_deref().unwrap_or("-");
            format!("{step}: {}", error.message)
        });
        self.0.lock().unwrap().push((end.run, end.outcome, error));
    }
}

#[tokio::test]
async fn the_observer_hears_of_each_run_once() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(10, None, Some(ends.clone()));
    let calls = Arc::default();
    let bad = deployment(vec![failing("b", ErrorKind::Failed, 1, &calls)]);
    for expected in [
        ("failed", Some("b: failure 0".to_owned())),
        ("delivered", None),
    ] {
        let request = request(&bad, LONG);
        let id = request.run;
        dispatcher
            .run(
                dispatcher.admit(&Name::default_namespace()).unwrap(),
                request,
            )
            .await;
        let heard = std::mem::take(&mut *ends.0.lock().unwrap());
        assert_eq!(heard, [(id, expected.0, expected.1)]);
    }
}

struct Answer(Box<dyn Fn() -> Pin<Box<dyn Future<Output = Body> + Send>> + Send + Sync>);

#[async_trait]
impl Function for Answer {
    async fn handle(
        &self,
        _: &Call,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError> {
        Ok(http::Response::new((self.0)().await))
    }
}

fn function<F: Future<Output = Body> + Send + 'static>(
    code: impl Fn() -> F + Send + Sync + 'static,
) -> Arc<Deployment> {
    Arc::new(Deployment {
        namespace: Name::default_namespace(),
        name: "f".parse().unwrap(),
        revision: 1,
        triggers: Vec::new(),
        body: Deployed::Function(DeployedFunction {
            scope: scope("only"),
            function: Arc::new(Answer(Box::new(move || Box::pin(code())))),
        }),
    })
}

fn body(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync()
}

async fn handle(
    dispatcher: &Dispatcher,
    function: &Arc<Deployment>,
    within: Duration,
) -> Result<http::Response<Body>, StepError> {
    dispatcher
        .handle(
            dispatcher.admit(&Name::default_namespace()).unwrap(),
            function.clone(),
            RunId::new(),
            http::Request::new(body("")),
            Instant::now() + within,
            TraceContext::default(),
        )
        .await
}

#[tokio::test]
async fn a_functions_run_ends_with_its_body() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
    let hello = function(|| async {
        let frame = http_body::Frame::data(Bytes::from_static(b"hello"));
        StreamBody::new(futures::stream::iter([Ok(frame)])).boxed_unsync()
    });
    let response = handle(&dispatcher, &hello, LONG).await.unwrap();
    assert!(
        dispatcher.admit(&Name::default_namespace()).is_err(),
        "the body holds the permit"
    );
    assert!(ends.0.lock().unwrap().is_empty());
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "hello");
    assert_eq!(ends.0.lock().unwrap()[0].1, "delivered");
    assert!(dispatcher.admit(&Name::default_namespace()).is_ok());

    let response = handle(&dispatcher, &hello, LONG).await.unwrap();
    drop(response);
    assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    assert_eq!(ends.0.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_body_that_is_there_with_its_head_keeps_no_run() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
    for text in ["hello", ""] {
        let whole = function(move || async move { body(text) });
        let response = handle(&dispatcher, &whole, LONG).await.unwrap();
        assert_eq!(ends.0.lock().unwrap().pop().unwrap().1, "delivered");
        assert!(
            dispatcher.admit(&Name::default_namespace()).is_ok(),
            "nobody has read it yet"
        );
        let read = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(read, text);
        assert!(ends.0.lock().unwrap().is_empty(), "it ended once");
    }
}

/// A function whose guest is gone when the other end says so.
struct Lingers {
    body: fn() -> Body,
    time: Duration,
    gone: Mutex<Option<Gone>>,
}

#[async_trait]
impl Function for Lingers {
    async fn handle(
        &self,
        _: &Call,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError> {
        let (lingering, gone) = Lingering::new(Instant::now() + self.time);
        *self.gone.lock().unwrap() = Some(gone);
        let mut response = http::Response::new((self.body)());
        response.extensions_mut().insert(lingering);
        Ok(response)
    }
}

#[tokio::test]
async fn a_guest_that_goes_on_after_its_response_keeps_its_permit() {
    let streamed: fn() -> Body = || {
        let frame = http_body::Frame::data(Bytes::from_static(b"hello"));
        StreamBody::new(futures::stream::iter([Ok(frame)])).boxed_unsync()
    };
    for hello in [|| body("hello"), streamed] {
        let ends = Arc::new(Ends::default());
        let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
        let code = Arc::new(Lingers {
            body: hello,
            time: LONG,
            gone: Mutex::default(),
        });
        let lingers = Arc::new(Deployment {
            namespace: Name::default_namespace(),
            name: "f".parse().unwrap(),
            revision: 1,
            triggers: Vec::new(),
            body: Deployed::Function(DeployedFunction {
                scope: scope("only"),
                function: code.clone(),
            }),
        });
        let response = handle(&dispatcher, &lingers, LONG).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, "hello");
        let (id, outcome, _) = ends.0.lock().unwrap().pop().unwrap();
        assert_eq!(outcome, "delivered");
        let refused = dispatcher.admit(&Name::default_namespace()).err();
        assert!(matches!(refused, Some(NotAdmitted::Busy { .. })));
        // It is given back when the guest is gone, and a drain waits for that.
        *code.gone.lock().unwrap() = None;
        assert!(dispatcher.admit(&Name::default_namespace()).is_ok());

        let response = handle(&dispatcher, &lingers, LONG).await.unwrap();
        response.into_body().collect().await.unwrap();
        let (other, ..) = ends.0.lock().unwrap().pop().unwrap();
        assert_ne!(id, other);
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(dispatcher.drained(soon).await, [format!("f {other}")]);
        *code.gone.lock().unwrap() = None;
        assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
        assert!(ends.0.lock().unwrap().is_empty(), "it ended once");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_within_the_body_cannot_stop_the_function() {
    let (go, done): (Arc<Notify>, Arc<Notify>) = Default::default();
    let streaming = function({
        let (go, done) = (go.clone(), done.clone());
        move || {
            let (go, done) = (go.clone(), done.clone());
            let frames = futures::stream::unfold(0, move |count| {
                let (go, done) = (go.clone(), done.clone());
                async move {
                    match count {
                        0 => {}
                        1 => go.notified().await,
                        _ => {
                            done.notify_one();
                            return None;
                        }
                    }
                    let frame = http_body::Frame::data(Bytes::from_static(b"x"));
                    Some((Ok(frame), count + 1))
                }
            });
            async move { StreamBody::new(frames).boxed_unsync() }
        }
    });
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
    let mut response = handle(&dispatcher, &streaming, LONG).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert!(
        dispatcher.admit(&Name::default_namespace()).is_err(),
        "the function goes on"
    );
    go.notify_one();
    done.notified().await;
    assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    assert_eq!(ends.0.lock().unwrap()[0].1, "delivered");
}

#[tokio::test]
async fn a_caller_that_reads_nothing_cannot_keep_a_run() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
    let endless = function(|| async {
        let frame = || Ok(http_body::Frame::data(Bytes::from_static(b"x")));
        StreamBody::new(futures::stream::repeat_with(frame)).boxed_unsync()
    });
    let response = handle(&dispatcher, &endless, Duration::from_millis(50))
        .await
        .unwrap();
    let started = Instant::now();
    while dispatcher.admit(&Name::default_namespace()).is_err() {
        assert!(started.elapsed() < LONG, "the run is taken from its caller");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ends.0.lock().unwrap()[0].1, "unread");
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.to_string(), "the response was not read in time");
}

#[tokio::test]
async fn a_caller_that_reads_nothing_cannot_keep_a_guest_beyond_its_time() {
    let endless: fn() -> Body = || {
        let frame = || Ok(http_body::Frame::data(Bytes::from_static(b"x")));
        StreamBody::new(futures::stream::repeat_with(frame)).boxed_unsync()
    };
    for (time, kept) in [(Duration::from_millis(50), false), (LONG, true)] {
        let ends = Arc::new(Ends::default());
        let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
        let lingers = Deployment {
            namespace: Name::default_namespace(),
            name: "f".parse().unwrap(),
            revision: 1,
            triggers: Vec::new(),
            body: Deployed::Function(DeployedFunction {
                scope: scope("only"),
                function: Arc::new(Lingers {
                    body: endless,
                    time,
                    gone: Mutex::default(),
                }),
            }),
        };
        // The run itself would have the time.
        let mut response = handle(&dispatcher, &Arc::new(lingers), LONG).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let ended: Vec<_> = ends.0.lock().unwrap().iter().map(|end| end.1).collect();
        let next = response.body_mut().frame().await.unwrap();
        match kept {
            true => assert!(next.is_ok() && ended.is_empty(), "{ended:?}"),
            false => assert!(next.is_err() && ended == ["unread"], "{ended:?}"),
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failed_run() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
    let broken = function(|| async {
        let frames = [
            Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
            Err("the guest trapped".into()),
        ];
        StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
    });
    let response = handle(&dispatcher, &broken, LONG).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let heard = ends.0.lock().unwrap().clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, "failed");
    assert!(heard[0].2.as_deref().unwrap().contains("the guest trapped"));
}

#[tokio::test]
async fn a_function_is_held_to_its_deadline_and_survives_a_hang_up() {
    let dispatcher = Dispatcher::new(1);
    let slow = function(|| async {
        tokio::time::sleep(LONG).await;
        body("")
    });
    let error = handle(&dispatcher, &slow, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.step.as_deref(), Some("only"));

    let (begun, go, done): (Arc<Notify>, Arc<Notify>, Arc<Notify>) = Default::default();
    let gated = function({
        let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
        move || {
            let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                done.notify_one();
                body("")
            }
        }
    });
    tokio::select! {
        biased;
        _ = handle(&dispatcher, &gated, LONG) => panic!("not let go yet"),
        () = begun.notified() => {}
    }
    assert!(dispatcher.admit(&Name::default_namespace()).is_err());
    go.notify_one();
    done.notified().await;
    assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
}

#[tokio::test]
async fn events_and_functions_do_not_mix() {
    let dispatcher = Dispatcher::new(1);
    let hello = function(|| async { body("hello") });
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let outcome = dispatcher.run(permit, request(&hello, LONG)).await;
    assert_eq!(errored(outcome).kind, ErrorKind::Failed);
    let error = handle(&dispatcher, &deployment(vec![append("a", "1")]), LONG)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
}

#[tokio::test]
async fn thousands_of_runs_side_by_side() {
    let dispatcher = Dispatcher::new(5000);
    let deployment = deployment(vec![times("a", 2), append("b", "!")]);
    let runs = (0..5000).map(|_| {
        let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
        dispatcher.run(permit, request(&deployment, LONG))
    });
    for outcome in futures::future::join_all(runs).await {
        assert_eq!(delivered(outcome), ["x0!", "x1!"]);
    }
    for _ in 0..5000 {
        assert!(dispatcher.admit(&Name::default_namespace()).is_ok());
    }
}

/// Events of this much data each, all of it the same memory.
fn large(id: &str, count: usize, data: &Bytes) -> DeployedStep {
    let data = data.clone();
    step(id, move |_, event| {
        let data = data.clone();
        async move { Ok(vec![Event { data, ..event }; count]) }
    })
}

/// What a namespace's runs hold together, at most this much.
fn memory(most: u64) -> (EventMemory, Arc<AtomicU64>, Arc<AtomicUsize>) {
    let (held, asked) = <(Arc<AtomicU64>, Arc<AtomicUsize>)>::default();
    let (all, asks) = (held.clone(), asked.clone());
    /// Gives back what is held.
    struct Own(Arc<AtomicU64>, u64);
    impl Drop for Own {
        fn drop(&mut self) {
            self.0.fetch_sub(self.1, Ordering::SeqCst);
        }
    }
    let memory: EventMemory = Box::new(move |namespace| {
        assert_eq!(*namespace, Name::default_namespace());
        asks.fetch_add(1, Ordering::SeqCst);
        let mut own = Own(all.clone(), 0);
        Box::new(move |bytes| {
            if own.0.load(Ordering::SeqCst) - own.1 + bytes > most {
                return Err(StepError::new(ErrorKind::Unavailable, "no memory"));
            }
            own.0.fetch_add(bytes, Ordering::SeqCst);
            own.0.fetch_sub(own.1, Ordering::SeqCst);
            own.1 = bytes;
            Ok(())
        })
    });
    (memory, held, asked)
}

async fn run_within(memory: EventMemory, steps: Vec<DeployedStep>, within: Duration) -> Outcome {
    let dispatcher = Dispatcher::new(10);
    dispatcher.set_event_memory(memory);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let request = request(&deployment(steps), within);
    dispatcher.run(permit, request).await
}

#[tokio::test]
async fn what_waits_between_steps_is_bounded_while_it_waits() {
    // Each level keeps what its step returned until the last event has gone through all others.
    let calls = Arc::new(AtomicUsize::new(0));
    let count = |id: &str, count: usize| {
        let (calls, inner) = (calls.clone(), times(id, count));
        step(id, move |call, event| {
            calls.fetch_add(1, Ordering::SeqCst);
            let inner = inner.step.clone();
            async move { inner.call(&call, event).await }
        })
    };
    let letters = ["a", "b", "c", "d", "e", "f"];
    let steps = letters.map(|id| count(id, 4_000)).into();
    let error = errored(run(steps, LONG).await);
    assert_eq!((error.kind, error.blame), (ErrorKind::Limit, Blame::Plugin));
    assert_eq!(error.step.as_deref(), Some("c"));
    assert!(error.message.contains("10000 events"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    // The same at the end of the run.
    let error = errored(run(vec![times("a", 100), times("b", 101)], LONG).await);
    assert!(error.message.contains("10000 events"), "{error}");
    assert_eq!(
        delivered(run(vec![times("a", 10_000)], LONG).await).len(),
        10_000
    );

    let data = Bytes::from(vec![0; 1 << 20]);
    let steps = letters.map(|id| large(id, 60, &data)).into();
    let error = errored(run(steps, LONG).await);
    assert_eq!(
        (error.kind, error.step.as_deref()),
        (ErrorKind::Limit, Some("c"))
    );
    assert!(error.message.contains("128MiB"), "{error}");
    // What one step may return passes, and what the run may end with beside it.
    let filter = step("b", |_, _| async { Ok(Vec::new()) });
    let most = Bytes::from(vec![0; 16 << 20]);
    assert!(delivered(run(vec![large("a", 4, &most), filter], LONG).await).is_empty());
}

#[tokio::test]
async fn what_runs_hold_is_taken_from_the_memory_of_all() {
    const MIB: u64 = 1 << 20;
    let (all, _, asked) = memory(10 * MIB);
    let outcome = run_within(all, vec![times("a", 100), append("b", "!")], LONG).await;
    assert_eq!(delivered(outcome).len(), 100);
    assert_eq!(asked.load(Ordering::SeqCst), 0);

    let data = Bytes::from(vec![0; 1 << 20]);
    let seen = |held: &Arc<AtomicU64>| {
        let (held, most) = (held.clone(), Arc::new(AtomicU64::new(0)));
        let seen = most.clone();
        let step = step("z", move |_, _| {
            seen.fetch_max(held.load(Ordering::SeqCst), Ordering::SeqCst);
            async { Ok(Vec::new()) }
        });
        (step, most)
    };
    let (all, held, asked) = memory(10 * MIB);
    let (last, most) = seen(&held);
    let outcome = run_within(all, vec![large("a", 9, &data), last], LONG).await;
    assert_eq!(outcome.as_str(), "filtered");
    assert_eq!(most.load(Ordering::SeqCst), 9 * MIB);
    assert_eq!(
        (asked.load(Ordering::SeqCst), held.load(Ordering::SeqCst)),
        (1, 0)
    );

    let (all, held, _) = memory(10 * MIB);
    let (last, most) = seen(&held);
    let outcome = run_within(all, vec![large("a", 12, &data), last], LONG).await;
    let error = errored(outcome);
    assert_eq!(
        (error.kind, error.step.as_deref()),
        (ErrorKind::Unavailable, Some("a"))
    );
    assert_eq!(
        (most.load(Ordering::SeqCst), held.load(Ordering::SeqCst)),
        (0, 0)
    );

    // Thousands are given back by another thread, and only when they are gone.
    let (all, held, asked) = memory(10 * MIB);
    let stuck = step("z", |_, _| std::future::pending());
    let outcome = run_within(
        all,
        vec![times("a", 9_000), stuck],
        Duration::from_millis(50),
    )
    .await;
    assert_eq!(errored(outcome).kind, ErrorKind::Timeout);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let start = Instant::now();
    while held.load(Ordering::SeqCst) > 0 {
        assert!(start.elapsed() < LONG, "never given back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
