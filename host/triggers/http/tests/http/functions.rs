use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::json;
use stepwell_core::ErrorKind;
use stepwell_pipeline::Body;

use super::{Reply, deployment, error, function, post, send, spec, trigger};

fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

#[tokio::test]
async fn a_function_sees_the_request_as_it_is() {
    let echo = function(|request| {
        Box::pin(async move {
            let (parts, request_body) = request.into_parts();
            let data = request_body.collect().await.unwrap().to_bytes();
            let seen = json!({
                "method": parts.method.as_str(), "uri": parts.uri.to_string(),
                "authorization": parts.headers["authorization"].to_str().unwrap(),
                "data": String::from_utf8_lossy(&data),
            });
            let response = Response::builder()
                .status(418)
                .header("x-own", "kept")
                .header("stepwell-run-id", "forged")
                .body(body(seen.to_string()));
            Ok(response.unwrap())
        })
    });
    let trigger = trigger(&[deployment(spec("", "/fun/{*rest}"), 1, echo)]);
    for method in ["GET", "DELETE", "PURGE"] {
        let request = Request::builder().method(method).uri("/fun/a%2Fb//c?d=%ff");
        let reply = send(&trigger, request.header("authorization", "mine"), "hi").await;
        assert_eq!(reply.status, 418);
        let seen = reply.json();
        assert_eq!(seen["method"], method);
        assert_eq!(seen["uri"], "/fun/a%2Fb//c?d=%ff");
        assert_eq!(seen["authorization"], "mine");
        assert_eq!(seen["data"], "hi");
        assert_eq!(reply.header("x-own"), Some("kept"));
        assert_eq!(reply.header("stepwell-run-id").unwrap().len(), 36);
    }
    // A parameter that is no UTF-8 is the function's own affair.
    let request = Request::get("/fun/%ff").header("authorization", "");
    assert_eq!(send(&trigger, request, "").await.status, 418);
}

#[tokio::test]
async fn errors_before_the_head_have_their_statuses() {
    for (kind, status, code) in [
        (ErrorKind::Unavailable, 503, "unavailable"),
        (ErrorKind::Timeout, 504, "timeout"),
        (ErrorKind::Trap, 500, "failed"),
    ] {
        let failing = function(move |_| Box::pin(async move { Err(error(kind)) }));
        let trigger = trigger(&[deployment(spec("", "/fun/{*rest}"), 1, failing)]);
        let reply = send(&trigger, post("/fun/x"), "").await;
        reply.assert_problem(status, code);
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let double = function(|request| {
        Box::pin(async move {
            let frames = request.into_body().into_data_stream();
            let doubled = futures::StreamExt::map(frames, |frame| {
                frame.map(|data| Frame::data(Bytes::from([data.clone(), data].concat())))
            });
            Ok(Response::new(StreamBody::new(doubled).boxed_unsync()))
        })
    });
    let trigger = trigger(&[deployment(spec("", "/fun/{*rest}"), 1, double)]);
    let (sender, receiver) = tokio::sync::mpsc::channel::<&'static str>(1);
    let frames = stream::unfold(receiver, |mut receiver| async {
        let text = receiver.recv().await?;
        let frame = Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(text.as_bytes())));
        Some((frame, receiver))
    });
    let request = post("/fun/x")
        .body(StreamBody::new(Box::pin(frames)))
        .unwrap();
    // The head is there before the request's body has begun.
    let mut response = trigger.handle(request).await;
    assert_eq!(response.status(), 200);
    for (text, doubled) in [("a", "aa"), ("bc", "bcbc")] {
        sender.send(text).await.unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), doubled);
    }
    drop(sender);
    assert!(response.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_whatever_the_function_makes_of_it() {
    let collect = function(|request| {
        Box::pin(async move {
            let text = match request.into_body().collect().await {
                Ok(_) => "read",
                Err(_) => "broke off",
            };
            Ok(Response::new(body(text)))
        })
    });
    let trigger = trigger(&[deployment(spec("", "/fun/{*rest}"), 1, collect)]);
    let announced = Box::leak("x".repeat(1_001).into_boxed_str());
    let reply = send(&trigger, post("/fun/x"), announced).await;
    reply.assert_problem(413, "too-large");
    let endless =
        stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[0; 300]))));
    let request = post("/fun/x").body(StreamBody::new(endless)).unwrap();
    let reply = Reply::of(trigger.handle(request).await).await;
    reply.assert_problem(413, "too-large");
    assert_eq!(
        &*send(&trigger, post("/fun/x"), "small").await.body,
        b"read"
    );
}
