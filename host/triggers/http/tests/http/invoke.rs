use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use stepwell_core::ErrorKind;

use super::{Reply, deployment, error, function, inspect, spec, step, steps, trigger};

const API: &str = "/api/v1/namespaces/default/pipelines/p/invoke";

fn api(query: &str) -> http::request::Builder {
    Request::post(format!("{API}{query}"))
        .header("authorization", "Bearer operator-token")
        .header("cookie", "session=1")
        .header("host", "admin.internal:8081")
}

#[tokio::test]
async fn it_is_the_same_as_a_request_of_the_trigger() {
    let deployment = deployment(spec("POST", "/digits"), 1, steps(vec![inspect()]));
    let trigger = trigger(&[]);
    let request = api("?a=b").header("content-type", "text/plain");
    let request = request.body(Full::new(Bytes::from("hi"))).unwrap();
    let reply = Reply::of(trigger.invoke(deployment.clone(), request).await).await;
    assert_eq!(reply.status, 200);
    let event = reply.json();
    assert_eq!(event["id"].as_str(), reply.header("stepwell-run-id"));
    assert_eq!(event["type"], "http.request");
    assert_eq!(event["datacontenttype"], "text/plain");
    assert_eq!(event["data"], "hi");
    let expected = json!({"httpmethod": "POST", "httppath": "/digits", "httpquery": "a=b"});
    assert_eq!(event["extensions"], expected);

    let request = api("").header("ce-specversion", "1.0").header("ce-id", "1");
    let request = request.header("ce-source", "/s").header("ce-type", "t");
    let request = request
        .header("ce-httpforged", "x")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let reply = Reply::of(trigger.invoke(deployment.clone(), request).await).await;
    assert_eq!(reply.header("ce-id"), Some("1"));
    assert_eq!(reply.json()["extensions"]["httpforged"], json!(null));

    let large = api("")
        .body(Full::new(Bytes::from(vec![0; 1_001])))
        .unwrap();
    let reply = Reply::of(trigger.invoke(deployment, large).await).await;
    reply.assert_problem(413, "too-large");
}

#[tokio::test]
async fn errors_are_the_same_too() {
    let failing = step(|_| Err(error(ErrorKind::Failed)));
    let deployment = deployment(spec("POST", "/x/{id}"), 1, steps(vec![failing]));
    let request = api("").body(Full::new(Bytes::new())).unwrap();
    let reply = Reply::of(trigger(&[]).invoke(deployment, request).await).await;
    reply.assert_problem(500, "failed");
}

#[tokio::test]
async fn a_function_sees_nothing_of_the_api() {
    let reflect = function(|request| {
        Box::pin(async move {
            let seen = format!("{} {:?}", request.uri(), request.headers());
            let body = Full::new(Bytes::from(seen)).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    let deployment = deployment(spec("", "/fun/{*rest}"), 1, reflect);
    let request = api("?q=1").header("stepwell-auth-subject", "forged");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let reply = Reply::of(trigger(&[]).invoke(deployment, request).await).await;
    let seen = String::from_utf8(reply.body.to_vec()).unwrap();
    assert!(seen.starts_with("/?q=1 "), "{seen}");
    for secret in [
        "operator-token",
        "session",
        "admin.internal",
        "api/v1",
        "forged",
    ] {
        assert!(!seen.contains(secret), "{seen}");
    }
}
