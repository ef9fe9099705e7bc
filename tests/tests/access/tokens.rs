use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell_test_services::Postgres;
use stepwell_tests::{Host, send};

use crate::support::{ADMIN, ask, get, guarded, namespace, token, until_status};

#[tokio::test]
async fn a_token_works_until_it_expires_or_is_revoked() {
    let host = Host::start(&guarded()).await.unwrap();
    let cli = |arguments: &[&str]| {
        let output = host
            .cli(&[arguments, &["--token", ADMIN]].concat())
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, made, told) = cli(&["token", "create", "--role", "viewer", "--name", "watcher"]);
    assert_eq!(code, Some(0), "{told}");
    let value = made.trim().to_owned();
    assert!(
        value.starts_with("sw_") && value.len() == 46,
        "the token alone: {made}"
    );
    assert!(
        told.contains("viewer of default") && !told.contains(&value),
        "{told}"
    );
    let path = "/api/v1/namespaces/default/plugins";
    assert_eq!(get(&host, &value, path).await.status, StatusCode::OK);

    // Everything that looks like it, and is not.
    for wrong in [
        value[..45].to_owned(),
        format!("{value}A"),
        value.to_uppercase(),
        format!("sw_{}", "A".repeat(43)),
        format!("{value} {value}"),
        "a".repeat(6000),
    ] {
        let reply = get(&host, &wrong, path).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNAUTHORIZED, "unauthorized".into())
        );
        assert!(reply.header("www-authenticate").contains("invalid_token"));
    }
    let basic = host
        .admin_request(Method::GET, path)
        .basic_auth("x", Some(&value));
    assert_eq!(send(basic).await.unwrap().status, StatusCode::UNAUTHORIZED);
    let huge = get(&host, &"a".repeat(100_000), path).await.status;
    assert!(huge.is_client_error(), "{huge}");
    assert_eq!(get(&host, &value, path).await.status, StatusCode::OK);

    let (_, listed, _) = cli(&["token", "list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let item = &listed["items"][0];
    assert_eq!(
        [
            &item["name"],
            &item["role"],
            &item["namespace"],
            &item["created_by"]
        ],
        ["watcher", "viewer", "default", "admin_token"]
    );
    assert!(item["last_used_at"].is_string(), "{item}");
    let id = item["id"].as_str().unwrap().to_owned();
    let (_, table, _) = cli(&["token", "list"]);
    assert!(table.contains(&id) && table.contains("watcher"), "{table}");

    let (code, revoked, _) = cli(&["token", "revoke", &id]);
    assert_eq!(
        (code, revoked.trim()),
        (Some(0), format!("revoked token {id}").as_str())
    );
    let reply = get(&host, &value, path).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "at once");
    assert_eq!(cli(&["token", "revoke", &id]).0, Some(1));

    let (_, short) = token(&host, ADMIN, json!({"role": "viewer", "expires": "2s"})).await;
    assert_eq!(get(&host, &short, path).await.status, StatusCode::OK);
    until_status(&host, &short, path, StatusCode::UNAUTHORIZED).await;
    let expired = get(&host, &short, path).await.json();
    assert_eq!(expired["detail"], "the token has expired");

    // Wrong usage, and what the host refuses.
    assert_eq!(cli(&["token", "create", "--role", "king"]).0, Some(2));
    let arguments = [
        "token",
        "create",
        "--role",
        "operator",
        "--namespace",
        "default",
    ];
    let (code, _, told) = cli(&arguments);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("every namespace"), "{told}");
    let arguments = [
        "token",
        "create",
        "--role",
        "viewer",
        "--namespace",
        "nowhere",
    ];
    let (code, _, told) = cli(&arguments);
    assert!(
        code == Some(1) && told.contains("there is no namespace nowhere"),
        "{told}"
    );
    let (_, all, _) = cli(&[
        "token",
        "create",
        "--role",
        "viewer",
        "--all-namespaces",
        "--json",
    ]);
    let all: Value = serde_json::from_str(&all).unwrap();
    assert!(all["namespace"].is_null(), "{all}");

    let audit = get(&host, ADMIN, "/api/v1/audit").await.body;
    let shown = host.log() + &String::from_utf8_lossy(&audit) + &listed.to_string() + &table;
    for secret in [&value, &short, all["token"].as_str().unwrap(), ADMIN] {
        assert!(!shown.contains(secret) && !shown.contains(&secret[3..]));
    }
}

#[tokio::test]
async fn a_token_is_made_and_revoked_on_every_host_that_shares_the_catalog() {
    let postgres = Postgres::start().unwrap();
    let mut config = guarded();
    config.sections = format!("[catalog]\nurl = \"{}\"\n", postgres.url());
    let (a, b) = tokio::join!(Host::start(&config), Host::start(&config));
    let (a, b) = (a.unwrap(), b.unwrap());
    namespace(&a, "team-a").await;
    let body = json!({"role": "viewer", "namespace": "team-a"});
    let (id, value) = token(&a, ADMIN, body).await;
    let path = "/api/v1/namespaces/team-a/plugins";
    assert_eq!(
        get(&b, &value, path).await.status,
        StatusCode::OK,
        "made there, used here"
    );
    let revoke = format!("/api/v1/tokens/{id}");
    let revoked = ask(&a, ADMIN, Method::DELETE, &revoke, Vec::new()).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    assert_eq!(get(&a, &value, path).await.status, StatusCode::UNAUTHORIZED);
    until_status(&b, &value, path, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn followed_lines_end_when_the_token_is_revoked() {
    let host = Host::start(&guarded()).await.unwrap();
    let viewer = json!({"role": "viewer", "namespace": "default"});
    let (id, value) = token(&host, ADMIN, viewer).await;
    let follow = "/api/v1/namespaces/default/logs?follow=true";
    let request = host.admin_request(Method::GET, follow).bearer_auth(value);
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // Valid, it outlives a look at it, after which a blank line comes.
    let early = tokio::time::timeout(Duration::from_secs(17), response.chunk()).await;
    let early = early.unwrap().unwrap().unwrap();
    assert_eq!(&early[..], b"\n");
    let path = format!("/api/v1/tokens/{id}");
    let revoked = ask(&host, ADMIN, Method::DELETE, &path, Vec::new()).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let end = tokio::time::timeout(Duration::from_secs(20), response.chunk());
    assert!(matches!(end.await, Ok(Ok(None))), "the stream goes on");
}
