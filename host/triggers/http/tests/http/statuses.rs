use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use stepwell_core::{ErrorKind, StepError, TraceContext};
use stepwell_http_trigger::HttpTrigger;
use stepwell_pipeline::{Dispatcher, Permit};

use super::{
    Reply, deployment, error, inspect, one, post, send, slow_step, spec, step, steps, trigger,
    trigger_on,
};

#[tokio::test]
async fn each_kind_of_error_has_its_status_and_tells_nothing_internal() {
    for (kind, status, code) in [
        (ErrorKind::Unavailable, 503, "unavailable"),
        (ErrorKind::Timeout, 504, "timeout"),
        (ErrorKind::Failed, 500, "failed"),
        (ErrorKind::Trap, 500, "failed"),
        (ErrorKind::Limit, 500, "failed"),
    ] {
        let trigger = one(step(move |_| Err(error(kind))));
        let document = send(&trigger, post("/p"), "")
            .await
            .assert_problem(status, code);
        assert!(!document.to_string().contains("hunter2"), "{document}");
    }
}

#[tokio::test]
async fn what_the_plugin_says_of_a_bad_event_is_for_the_caller() {
    let trigger = one(step(|_| {
        Err(StepError::new(ErrorKind::Invalid, "not a \"picture\""))
    }));
    let document = send(&trigger, post("/p"), "")
        .await
        .assert_problem(422, "invalid");
    assert_eq!(document["detail"], "not a \"picture\"");
    let long = || StepError::new(ErrorKind::Invalid, "é".repeat(100_000));
    let document = send(&one(step(move |_| Err(long()))), post("/p"), "")
        .await
        .json();
    assert!(document["detail"].as_str().unwrap().len() <= 4 << 10);
}

#[tokio::test]
async fn until_routes_are_known_none_is_said_to_be_missing() {
    let trigger = Arc::new(HttpTrigger::new(Dispatcher::new(10)));
    let reply = send(&trigger, post("/nowhere"), "").await;
    reply.assert_problem(503, "unavailable");
    assert_eq!(reply.header("retry-after"), Some("1"));
    trigger.apply(&[]);
    let reply = send(&trigger, post("/nowhere"), "").await;
    reply.assert_problem(404, "not-found");
}

#[tokio::test]
async fn no_route_and_wrong_method() {
    let trigger = trigger(&[
        deployment(spec("POST", "/p"), 1, steps(vec![inspect()])),
        deployment(spec("GET", "/q"), 1, steps(vec![inspect()])),
    ]);
    let reply = send(&trigger, post("/nowhere"), "").await;
    reply.assert_problem(404, "not-found");
    let reply = send(&trigger, Request::get("/p"), "").await;
    reply.assert_problem(405, "method-not-allowed");
    assert_eq!(reply.header("allow"), Some("POST"));
    let reply = send(&trigger, Request::options("/q"), "").await;
    reply.assert_problem(405, "method-not-allowed");
    assert_eq!(reply.header("allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn a_body_may_have_as_many_bytes_as_the_route_says() {
    let trigger = one(inspect());
    let body = |size: usize| Box::leak("x".repeat(size).into_boxed_str()) as &'static str;
    assert_eq!(send(&trigger, post("/p"), body(1_000)).await.status, 200);
    let reply = send(&trigger, post("/p"), body(1_001)).await;
    let detail = reply.assert_problem(413, "too-large")["detail"].to_string();
    assert!(detail.contains("1000 bytes"), "{detail}");

    // Nothing announced, and an endless body: it is given up at the limit.
    let endless =
        stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[0; 300]))));
    let request = post("/p").body(StreamBody::new(endless)).unwrap();
    let reply = Reply::of(trigger.handle(request).await).await;
    reply.assert_problem(413, "too-large");

    let broken = stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("gone"))]);
    let request = post("/p").body(StreamBody::new(broken)).unwrap();
    let reply = Reply::of(trigger.handle(request).await).await;
    reply.assert_problem(400, "broken-body");
}

#[tokio::test]
async fn no_permit_is_429_and_a_host_that_ends_is_503() {
    let dispatcher = Dispatcher::new(1);
    let trigger = trigger_on(
        dispatcher.clone(),
        &[deployment(spec("POST", "/p"), 1, steps(vec![inspect()]))],
    );
    let taken: Permit = dispatcher
        .admit(&stepwell_core::Name::default_namespace())
        .unwrap();
    let reply = send(&trigger, post("/p"), "").await;
    reply.assert_problem(429, "busy");
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    drop(taken);
    assert_eq!(send(&trigger, post("/p"), "").await.status, 200);
    dispatcher.close();
    let reply = send(&trigger, post("/p"), "").await;
    reply.assert_problem(503, "shutting-down");
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_504() {
    let mut spec = spec("POST", "/p");
    spec.timeout = Duration::from_millis(50);
    let never = slow_step(|_| Box::pin(std::future::pending()));
    let trigger = trigger(&[deployment(spec, 1, steps(vec![never]))]);
    let reply = send(&trigger, post("/p"), "").await;
    reply.assert_problem(504, "timeout");
}

#[tokio::test]
async fn the_callers_trace_is_passed_on_and_a_forged_one_is_not() {
    static SEEN: Mutex<Vec<TraceContext>> = Mutex::new(Vec::new());
    let dispatcher = Dispatcher::with(
        8,
        Some(|_, trace| SEEN.lock().unwrap().push(trace.clone())),
        None,
    );
    let trigger = trigger_on(
        dispatcher,
        &[deployment(spec("POST", "/p"), 1, steps(vec![inspect()]))],
    );
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = post("/p")
        .header("traceparent", parent)
        .header("tracestate", "a=b");
    send(&trigger, request, "").await;
    send(&trigger, post("/p").header("traceparent", "00-evil"), "").await;
    let seen = SEEN.lock().unwrap();
    assert_eq!(seen[0].traceparent.as_deref(), Some(parent));
    assert_eq!(seen[0].tracestate.as_deref(), Some("a=b"));
    assert_eq!(seen[1], TraceContext::default());
}
