use reqwest::{Method, StatusCode};
use serde_json::json;
use stepwell_tests::{Config, send};

use crate::support::{ask, assert_problem, event, probe};

#[tokio::test]
async fn each_outcome_has_its_status() {
    let host = probe(&Config::default()).await;
    for (what, status, code) in [
        ("invalid:wrong", 422, "invalid"),
        ("unavailable:secret", 503, "unavailable"),
        ("failed:secret", 500, "failed"),
        ("trap", 500, "failed"),
        ("panic", 500, "failed"),
        ("exit", 500, "failed"),
        // Limits.
        ("spin", 500, "failed"),
        ("call-host", 500, "failed"),
        ("allocate:100000000", 500, "failed"),
        ("output:100000", 500, "failed"),
        ("recurse:100000000", 500, "failed"),
        // Time.
        ("sleep:60000", 504, "timeout"),
    ] {
        assert_problem(&ask(&host, what).await, status, code);
    }
    // An invalid event's sender is told what is wrong with it; of the rest nobody but the owner learns.
    assert_eq!(ask(&host, "invalid:wrong").await.json()["detail"], "wrong");
    let logs = host
        .get("/api/v1/namespaces/default/logs?limit=500")
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&logs.body).contains("secret"),
        "the owner sees why it failed"
    );
    assert_eq!(
        ask(&host, "echo").await.status,
        StatusCode::OK,
        "the host is none the worse"
    );

    let get = |method: Method, path: &str| send(host.request(method, path));
    assert_problem(
        &get(Method::POST, "/nowhere").await.unwrap(),
        404,
        "not-found",
    );
    assert_problem(
        &get(Method::POST, "/probe/a/b").await.unwrap(),
        404,
        "not-found",
    );
    let wrong = get(Method::DELETE, "/probe/a").await.unwrap();
    assert_problem(&wrong, 405, "method-not-allowed");
    let mut allowed: Vec<String> = wrong
        .header("allow")
        .split(',')
        .map(|method| method.trim().to_owned())
        .collect();
    allowed.sort();
    assert_eq!(allowed, ["POST", "PUT"]);
    let large = host
        .post("/probe/a", "text/plain", vec![b'x'; 1025])
        .await
        .unwrap();
    assert_problem(&large, 413, "too-large");
    let fits = send(event(&host, "echo").body(vec![b'x'; 1024]))
        .await
        .unwrap();
    assert_eq!(fits.status, StatusCode::OK);
    // The length is not announced.
    let chunks = futures::stream::iter((0..8).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 200])));
    let chunked = send(event(&host, "echo").body(reqwest::Body::wrap_stream(chunks)))
        .await
        .unwrap();
    assert_problem(&chunked, 413, "too-large");
}

#[tokio::test]
async fn replies_of_none_one_and_several_events() {
    let host = probe(&Config::default()).await;
    let none = ask(&host, "drop").await;
    assert_eq!((none.status, none.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(none.header("stepwell-run-id").len(), 36);

    let several = event(&host, "repeat:3")
        .header("content-type", "application/json")
        .body(r#"{"n": 1}"#);
    let several = send(several).await.unwrap();
    assert_eq!(
        (several.status, several.json()),
        (StatusCode::OK, json!([{"n": 1}, {"n": 1}, {"n": 1}]))
    );
    assert!(
        several
            .header("content-type")
            .starts_with("application/json")
    );

    let batch = event(&host, "repeat:2")
        .header("content-type", "text/plain")
        .body("text");
    let batch = send(batch).await.unwrap();
    assert!(
        batch
            .header("content-type")
            .starts_with("application/cloudevents-batch+json")
    );
    assert_eq!(batch.json().as_array().unwrap().len(), 2);
    assert_eq!(
        (&batch.json()[0]["data"], &batch.json()[1]["id"]),
        (&json!("text"), &json!("1"))
    );

    for (wanted, status) in [("201", 201), ("404", 404), ("599", 599)] {
        let reply = ask(&host, &format!("status:{wanted}")).await;
        assert_eq!(reply.status.as_u16(), status);
        assert!(!reply.headers.contains_key("ce-httpstatus"));
    }
    for unusable in ["100", "600", "-1", "many"] {
        assert_problem(
            &ask(&host, &format!("status:{unusable}")).await,
            500,
            "failed",
        );
    }
}

#[tokio::test]
async fn invoke_answers_as_a_route_does() {
    let host = probe(&Config::default()).await;
    let invoke = |name: &str, what: &str| {
        host.admin_request(
            Method::POST,
            &format!("/api/v1/namespaces/default/pipelines/{name}/invoke"),
        )
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", what)
        .header("content-type", "text/plain")
        .body("data")
    };
    let reply = send(invoke("probe", "echo")).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (StatusCode::OK, &b"data"[..])
    );
    assert_eq!(
        (
            reply.header("ce-type"),
            reply.header("stepwell-run-id").len()
        ),
        ("echo".into(), 36)
    );
    assert_problem(
        &send(invoke("probe", "invalid:x")).await.unwrap(),
        422,
        "invalid",
    );
    assert_problem(
        &send(invoke("probe", "failed:x")).await.unwrap(),
        500,
        "failed",
    );
    let unknown = send(invoke("nobody", "echo")).await.unwrap();
    assert_eq!(
        (unknown.status, unknown.code()),
        (StatusCode::NOT_FOUND, "not-found".into())
    );
    assert_eq!(
        unknown.header("stepwell-run-id").len(),
        36,
        "also when no run began"
    );
}
