use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::json;
use stepwell_core::Name;
use stepwell_http_trigger::{
    Auth, FetchError, HttpTrigger, KeyFetcher, KeySource, KeyTimes, Subject, TokenVerifier,
    Unavailable,
};
use stepwell_pipeline::{Deployed, Dispatcher, HttpAuth};

use super::{Reply, deployment, function, inspect, post, send, spec, step, steps, trigger};

/// Knows `good`, `weak`, which may do nothing, and `away`, which cannot be checked.
struct Tokens;

#[async_trait]
impl TokenVerifier for Tokens {
    async fn verify(&self, token: &str, namespace: &Name) -> Result<Option<Subject>, Unavailable> {
        assert_eq!(namespace.as_str(), "default");
        let subject = |may_invoke| {
            Ok(Some(Subject {
                name: Arc::from("somebody"),
                may_invoke,
            }))
        };
        match token {
            "good" => subject(true),
            "weak" => subject(false),
            "away" => Err(Unavailable),
            _ => Ok(None),
        }
    }
}

struct NoKeys;

#[async_trait]
impl KeyFetcher for NoKeys {
    async fn fetch(&self, _: &KeySource) -> Result<Bytes, FetchError> {
        Err(FetchError("there are none".to_owned()))
    }
}

fn guarded(auth: HttpAuth, body: Deployed) -> HttpTrigger {
    let mut spec = spec("POST", "/p");
    spec.auth = auth;
    let checks = Auth::new(
        Arc::new(Tokens),
        None,
        Arc::new(NoKeys),
        KeyTimes::default(),
    );
    let trigger = HttpTrigger::with_auth(Dispatcher::new(8), checks);
    trigger.apply(&[deployment(spec, 1, body)]);
    trigger
}

fn bearing(token: &str) -> http::request::Builder {
    post("/p").header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn a_token_opens_the_route_and_the_guest_learns_whose_it_is() {
    let trigger = guarded(HttpAuth::Token, steps(vec![inspect()]));
    for request in [
        bearing("good"),
        post("/p").header("authorization", "bearer   good "),
        // What callers say of themselves is dropped.
        bearing("good")
            .header("ce-specversion", "1.0")
            .header("ce-id", "1")
            .header("ce-source", "/s")
            .header("ce-type", "t")
            .header("ce-httpauthsubject", "root"),
    ] {
        let reply = send(&trigger, request, "").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["extensions"]["httpauthsubject"], "somebody");
    }
}

#[tokio::test]
async fn who_has_no_good_token_is_told_so() {
    let trigger = guarded(HttpAuth::Token, steps(vec![step(|_| panic!("it ran"))]));
    let long = "x".repeat(9_000);
    for (request, status, code, challenge) in [
        (post("/p"), 401, "unauthorized", "Bearer realm=\"stepwell\""),
        (bearing("bad"), 401, "unauthorized", "invalid_token"),
        (bearing(&long), 401, "unauthorized", "too long"),
        (bearing(""), 401, "unauthorized", "invalid_request"),
        (bearing("good good"), 401, "unauthorized", "invalid_request"),
        (
            post("/p").header("authorization", "Basic Z29vZDo="),
            401,
            "unauthorized",
            "invalid_request",
        ),
        (
            bearing("good").header("authorization", "Bearer good"),
            401,
            "unauthorized",
            "invalid_request",
        ),
        (bearing("weak"), 403, "forbidden", "insufficient_scope"),
    ] {
        let reply = send(&trigger, request, "").await;
        reply.assert_problem(status, code);
        let found = reply.header("www-authenticate").unwrap();
        assert!(
            found.starts_with("Bearer ") && found.contains(challenge),
            "{found}"
        );
    }
    let reply = send(&trigger, bearing("away"), "").await;
    reply.assert_problem(503, "unavailable");
    assert_eq!(reply.header("www-authenticate"), None);
    // A path that is not there is not there for anybody.
    send(&trigger, post("/q"), "")
        .await
        .assert_problem(404, "not-found");
}

#[tokio::test]
async fn the_check_comes_before_the_body_and_the_permit() {
    let trigger = guarded(HttpAuth::Token, steps(vec![inspect()]));
    let read = Arc::new(AtomicBool::new(false));
    let seen = read.clone();
    let body = stream::poll_fn(move |_| {
        seen.store(true, Ordering::SeqCst);
        std::task::Poll::<Option<Result<Frame<Bytes>, std::io::Error>>>::Pending
    });
    // A client that asks first is refused before it has sent anything.
    let request = bearing("bad")
        .header("expect", "100-continue")
        .body(StreamBody::new(body))
        .unwrap();
    let reply = Reply::of(trigger.handle(request).await).await;
    reply.assert_problem(401, "unauthorized");
    assert!(!read.load(Ordering::SeqCst), "the body was read");
}

#[tokio::test]
async fn a_host_that_cannot_tell_who_calls_lets_nobody_in() {
    let mut guarded = spec("POST", "/p");
    guarded.auth = HttpAuth::Token;
    let trigger = trigger(&[deployment(guarded, 1, steps(vec![inspect()]))]);
    let reply = send(&trigger, bearing("good"), "").await;
    reply.assert_problem(503, "unavailable");
}

#[tokio::test]
async fn a_host_without_an_issuer_takes_no_json_web_token() {
    let trigger = guarded(HttpAuth::Jwt, steps(vec![inspect()]));
    let reply = send(&trigger, bearing("a.b.c"), "").await;
    reply.assert_problem(503, "unavailable");
}

fn headers() -> Deployed {
    function(|request| {
        Box::pin(async move {
            let header = |name: &str| {
                request
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap())
            };
            let seen = json!({
                "authorization": header("authorization"),
                "subject": header("stepwell-auth-subject"),
            });
            let body = Full::new(Bytes::from(seen.to_string())).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    })
}

#[tokio::test]
async fn a_function_gets_the_subject_in_place_of_the_token() {
    let trigger = guarded(HttpAuth::Token, headers());
    let request = bearing("good").header("stepwell-auth-subject", "root");
    let seen = send(&trigger, request, "").await.json();
    assert_eq!(seen, json!({"authorization": null, "subject": "somebody"}));
    // Without a check the token is the function's own affair, and there is no subject, whatever a caller says.
    let trigger = guarded(HttpAuth::None, headers());
    let request = bearing("mine").header("stepwell-auth-subject", "root");
    let seen = send(&trigger, request, "").await.json();
    let expected = json!({"authorization": "Bearer mine", "subject": null});
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn invoke_has_a_check_of_its_own() {
    let mut open = spec("POST", "/p");
    open.auth = HttpAuth::Token;
    let deployment = deployment(open, 1, steps(vec![inspect()]));
    let request = Request::post("/api").body(Full::new(Bytes::new())).unwrap();
    let reply = Reply::of(trigger(&[]).invoke(deployment, request).await).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["extensions"]["httpauthsubject"], json!(null));
}
