use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use stepwell_tests::{Config, Host, Reply, send};

pub(crate) const ADMIN: &str = "correct-horse-battery";

pub(crate) fn guarded() -> Config {
    Config {
        server: format!("admin_token = \"{ADMIN}\"\n"),
        ..Config::default()
    }
}

pub(crate) async fn ask(
    host: &Host,
    token: &str,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Reply {
    let request = host.admin_request(method, path).bearer_auth(token);
    send(request.body(body)).await.unwrap()
}

pub(crate) async fn get(host: &Host, token: &str, path: &str) -> Reply {
    ask(host, token, Method::GET, path, Vec::new()).await
}

pub(crate) async fn put(host: &Host, token: &str, path: &str, body: impl Into<Vec<u8>>) -> Reply {
    ask(host, token, Method::PUT, path, body.into()).await
}

/// Makes a token, and answers its id and its value.
pub(crate) async fn token(host: &Host, admin: &str, body: Value) -> (String, String) {
    let body = body.to_string().into_bytes();
    let made = ask(host, admin, Method::POST, "/api/v1/tokens", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.json());
    let text = |key: &str| made.json()[key].as_str().unwrap().to_owned();
    (text("id"), text("token"))
}

pub(crate) async fn namespace(host: &Host, name: &str) {
    let made = put(host, ADMIN, &format!("/api/v1/namespaces/{name}"), "").await;
    assert!(made.status.is_success(), "{}", made.json());
}

pub(crate) async fn until_status(host: &Host, token: &str, path: &str, status: StatusCode) {
    let end = Instant::now() + Duration::from_secs(30);
    while get(host, token, path).await.status != status {
        assert!(Instant::now() < end, "{path} never answered {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn pipeline(name: &str, tag: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /tag}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}
