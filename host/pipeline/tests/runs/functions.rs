use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use stepwell_core::{Call, ErrorKind, Gone, Lingering, Name, RunId, StepError, TraceContext};
use stepwell_pipeline::{
    Body, Deployed, DeployedFunction, Deployment, Dispatcher, Function, NotAdmitted,
};
use tokio::sync::Notify;

use crate::support::{Ends, LONG, append, deployment, errored, request, scope};

type BodyError = Box<dyn std::error::Error + Send + Sync>;

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
    let of_guest = || StepError::new(ErrorKind::Trap, "the guest trapped").into();
    let of_others = || "the connection is gone".into();
    let cases: [(fn() -> BodyError, _, _); 2] = [
        (of_guest, "trap", "the guest trapped"),
        (of_others, "failed", "the connection is gone"),
    ];
    for (error, outcome, why) in cases {
        let ends = Arc::new(Ends::default());
        let dispatcher = Dispatcher::with(1, None, Some(ends.clone()));
        let broken = function(move || async move {
            let half = http_body::Frame::data(Bytes::from_static(b"half"));
            StreamBody::new(futures::stream::iter([Ok(half), Err(error())])).boxed_unsync()
        });
        let response = handle(&dispatcher, &broken, LONG).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        let heard = ends.0.lock().unwrap().clone();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].1, outcome);
        let told = heard[0].2.as_deref().unwrap();
        assert!(told.contains("broke off") && told.contains(why), "{told}");
        assert!(told.contains("only"), "its step: {told}");
    }
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
