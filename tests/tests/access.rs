//! Who may do what: roles, tokens, namespaces, quotas, and the log of who did what.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell_test_services::Postgres;
use stepwell_tests::{Config, Host, Reply, guest, send};

const ADMIN: &str = "correct-horse-battery";

/// Who may call an operation: one letter for each role, and where its right must be.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// No token is needed.
    Open,
    /// In the namespace of the path.
    Here,
    /// In any namespace.
    Somewhere,
    /// In all namespaces.
    Everywhere,
}

/// What is expected of every operation of the API. An operation that is not here fails the test.
const EXPECTED: [(&str, Where, &[&str]); 32] = {
    use Where::{Everywhere, Here, Open, Somewhere};
    const READ: &[&str] = &["viewer", "deployer", "operator"];
    const INVOKE: &[&str] = &["invoker", "deployer", "operator"];
    const CHANGE: &[&str] = &["deployer", "operator"];
    const OPERATE: &[&str] = &["operator"];
    [
        ("put_plugin_version", Here, CHANGE),
        ("list_plugins", Here, READ),
        ("show_plugin", Here, READ),
        ("show_plugin_version", Here, READ),
        ("delete_plugin_version", Here, CHANGE),
        ("get_component", Here, READ),
        ("put_pipeline", Here, CHANGE),
        ("list_pipelines", Here, READ),
        ("show_pipeline", Here, READ),
        ("delete_pipeline", Here, CHANGE),
        ("list_pipeline_revisions", Here, READ),
        ("show_pipeline_revision", Here, READ),
        ("rollback_pipeline", Here, CHANGE),
        ("invoke_pipeline", Here, INVOKE),
        ("show_logs", Here, READ),
        ("list_models", Somewhere, READ),
        ("show_model", Somewhere, READ),
        ("list_bindings", Somewhere, READ),
        ("list_namespaces", Somewhere, READ),
        ("show_namespace", Here, READ),
        ("put_namespace", Everywhere, OPERATE),
        ("delete_namespace", Everywhere, OPERATE),
        ("create_token", Everywhere, OPERATE),
        ("list_tokens", Everywhere, OPERATE),
        ("show_token", Everywhere, OPERATE),
        ("revoke_token", Everywhere, OPERATE),
        ("show_audit", Somewhere, CHANGE),
        ("livez", Open, &[]),
        ("readyz", Open, &[]),
        ("show_metrics", Everywhere, READ),
        ("get_openapi", Open, &[]),
        ("show_docs", Open, &[]),
    ]
};

fn guarded() -> Config {
    Config {
        server: format!("admin_token = \"{ADMIN}\"\n"),
        ..Config::default()
    }
}

async fn ask(host: &Host, token: &str, method: Method, path: &str, body: Vec<u8>) -> Reply {
    let request = host.admin_request(method, path).bearer_auth(token);
    send(request.body(body)).await.unwrap()
}

async fn get(host: &Host, token: &str, path: &str) -> Reply {
    ask(host, token, Method::GET, path, Vec::new()).await
}

async fn put(host: &Host, token: &str, path: &str, body: impl Into<Vec<u8>>) -> Reply {
    ask(host, token, Method::PUT, path, body.into()).await
}

/// Makes a token, and answers its id and its value.
async fn token(host: &Host, admin: &str, body: Value) -> (String, String) {
    let body = body.to_string().into_bytes();
    let made = ask(host, admin, Method::POST, "/api/v1/tokens", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.json());
    let text = |key: &str| made.json()[key].as_str().unwrap().to_owned();
    (text("id"), text("token"))
}

async fn namespace(host: &Host, name: &str) {
    let made = put(host, ADMIN, &format!("/api/v1/namespaces/{name}"), "").await;
    assert!(made.status.is_success(), "{}", made.json());
}

async fn until_status(host: &Host, token: &str, path: &str, status: StatusCode) {
    let end = Instant::now() + Duration::from_secs(30);
    while get(host, token, path).await.status != status {
        assert!(Instant::now() < end, "{path} never answered {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pipeline(name: &str, tag: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /tag}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}

#[tokio::test]
async fn every_operation_lets_in_whom_it_should_and_nobody_else() {
    let host = Host::start(&guarded()).await.unwrap();
    for name in ["own", "other"] {
        namespace(&host, name).await;
    }
    let mut bearers: Vec<(String, &str, Option<&str>)> = Vec::new();
    for role in ["viewer", "invoker", "deployer"] {
        for namespace in [None, Some("own")] {
            let body = json!({"role": role, "namespace": namespace});
            let (_, value) = token(&host, ADMIN, body).await;
            bearers.push((value, role, namespace));
        }
    }
    let (_, value) = token(&host, ADMIN, json!({"role": "operator"})).await;
    bearers.push((value, "operator", None));
    bearers.push((ADMIN.to_owned(), "operator", None));

    let document = host.get("/openapi.json").await.unwrap().json();
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let Some((_, place, roles)) = EXPECTED.iter().find(|(known, ..)| *known == id) else {
                panic!("say who may call {id} ({method} {path})");
            };
            seen += 1;
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            // Nothing has these names, so that nothing is changed by those who may.
            let path = path
                .replace("{name}", "none")
                .replace("{version}", "9.9.9")
                .replace("{n}", "9")
                .replace("{id}", "none");
            let url = path.replace("{ns}", "own");
            let anonymous = send(host.admin_request(method.clone(), &url))
                .await
                .unwrap();
            let is_open = *place == Where::Open;
            assert_eq!(
                anonymous.status != StatusCode::UNAUTHORIZED,
                is_open,
                "{method} {url} {}",
                anonymous.status
            );
            for (value, role, confined) in &bearers {
                for ns in ["own", "other", "missing"] {
                    let url = path.replace("{ns}", ns);
                    let reply = ask(&host, value, method.clone(), &url, Vec::new()).await;
                    let is_there = match place {
                        Where::Open => true,
                        Where::Somewhere => roles.contains(role),
                        Where::Everywhere => roles.contains(role) && confined.is_none(),
                        Where::Here => roles.contains(role) && confined.is_none_or(|own| own == ns),
                    };
                    let status = reply.status;
                    let who = format!("{method} {url} by {role} of {confined:?}: {status}");
                    if is_there || is_open {
                        assert!(
                            status != StatusCode::FORBIDDEN && status != StatusCode::UNAUTHORIZED,
                            "{who}"
                        );
                        assert!(!status.is_server_error(), "{who}");
                    } else {
                        let expected = (StatusCode::FORBIDDEN, "forbidden".to_owned());
                        assert_eq!((status, reply.code()), expected, "{who}");
                    }
                }
            }
        }
    }
    assert_eq!(seen, EXPECTED.len(), "every expectation is of an operation");
    let metrics = get(&host, ADMIN, "/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    for reason in ["missing", "forbidden"] {
        let line = format!("stepwell_auth_failures_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&line), "{line}");
    }
}

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
async fn development_mode_asks_for_no_token_and_takes_the_rights_of_one_that_is_presented() {
    let host = Host::start(&Config::default()).await.unwrap();
    assert!(host.logs("development mode: whoever").await);
    let anonymous = host.get("/api/v1/tokens").await.unwrap();
    assert_eq!(anonymous.status, StatusCode::OK);
    let made = host.cli(&["token", "create", "--role", "viewer"]).unwrap();
    let viewer = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let pipelines = "/api/v1/namespaces/default/pipelines";
    assert_eq!(get(&host, &viewer, pipelines).await.status, StatusCode::OK);
    let refused = get(&host, &viewer, "/api/v1/tokens").await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    // What is no token of a host's is none here either.
    assert_eq!(get(&host, "mine", pipelines).await.status, StatusCode::OK);
    let listed = host.get("/api/v1/tokens").await.unwrap().json();
    let path = format!(
        "/api/v1/tokens/{}",
        listed["items"][0]["id"].as_str().unwrap()
    );
    let revoked = ask(&host, "", Method::DELETE, &path, Vec::new()).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let after = get(&host, &viewer, pipelines).await;
    assert_eq!(
        after.status,
        StatusCode::UNAUTHORIZED,
        "revoked is not everything"
    );
    assert_eq!(host.get(pipelines).await.unwrap().status, StatusCode::OK);
}

/// Whoever may only look at probes learns of no tenant; whoever may read everything does.
#[tokio::test]
async fn probes_name_no_tenant_to_strangers() {
    let host = Host::start(&guarded()).await.unwrap();
    namespace(&host, "team-a").await;
    let at = "/api/v1/namespaces/team-a";
    let plugin = format!("{at}/plugins/tagger/versions/1.0.0");
    let stored = put(&host, ADMIN, &plugin, guest("tagger").unwrap()).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.json());
    let document = "stepwell: 1\nname: hidden\ntriggers:\n\
         \x20 - kafka: {topics: [hidden-in], group: hidden-group}\nsteps:\n\
         \x20 - {id: only, plugin: tagger@1, config: {tag: a}}\n";
    let applied = put(&host, ADMIN, &format!("{at}/pipelines/hidden"), document).await;
    assert_eq!(applied.status, StatusCode::CREATED, "{}", applied.json());
    let viewer = json!({"role": "viewer", "namespace": "team-a"});
    let (_, of_a) = token(&host, ADMIN, viewer).await;
    let (_, of_all) = token(&host, ADMIN, json!({"role": "viewer"})).await;
    let anonymous = host.get("/readyz").await.unwrap();
    for (reply, names) in [
        (anonymous, false),
        (get(&host, "wrong", "/readyz").await, false),
        (get(&host, &of_a, "/readyz").await, false),
        (get(&host, &of_all, "/readyz").await, true),
        (get(&host, ADMIN, "/readyz").await, true),
    ] {
        assert_eq!(reply.status, StatusCode::OK);
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(text.contains("\"kafka/hidden-group\""), names, "{text}");
        assert_eq!(text.contains("hidden"), names, "{text}");
        assert_eq!(text.contains("\"kafka\""), !names, "{text}");
    }
}

#[tokio::test]
async fn development_mode_takes_nothing_from_web_pages() {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    for tag in ["first", "second"] {
        host.apply("tags", &pipeline("tags", tag)).await.unwrap();
    }
    let path = "/api/v1/namespaces/default/pipelines/tags/rollback";
    let post = async |header: &str, value: &str| {
        let request = host.admin_request(Method::POST, path);
        send(request.header(header, value)).await.unwrap()
    };
    for (header, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("host", "evil.example"),
    ] {
        let reply = post(header, value).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::FORBIDDEN, "forbidden".into()),
            "{header}: {value}"
        );
    }
    let same = host.post("/tag", "text/plain", "").await.unwrap();
    assert_eq!(&same.body[..], b"second ");
    // The page at /docs is the listener's own.
    let reply = post("origin", host.admin()).await;
    assert_eq!(reply.status, StatusCode::OK);
    let back = host.post("/tag", "text/plain", "").await.unwrap();
    assert_eq!(&back.body[..], b"first ");
    let listed = host.cli(&["pipeline", "list"]).unwrap();
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
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

#[tokio::test]
async fn namespaces_are_apart() {
    let host = Host::start(&guarded()).await.unwrap();
    let tagger = guest("tagger").unwrap();
    let mut deployers = Vec::new();
    for name in ["team-a", "team-b"] {
        namespace(&host, name).await;
        let body = json!({"role": "deployer", "namespace": name});
        deployers.push((name, token(&host, ADMIN, body).await.1));
    }
    deployers.push(("default", ADMIN.to_owned()));
    let at = |name: &str, rest: &str| format!("/api/v1/namespaces/{name}/{rest}");
    // A plugin of one is no plugin of the other.
    let (a, of_a) = &deployers[0];
    let (b, of_b) = &deployers[1];
    let version = "plugins/tagger/versions/1.0.0";
    let stored = put(&host, of_a, &at(a, version), tagger.clone()).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.json());
    let refused = put(&host, of_b, &at(b, "pipelines/tags"), pipeline("tags", "b")).await;
    assert_eq!(refused.code(), "invalid-pipeline", "{}", refused.json());
    let text = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(!text.contains("team-a"), "{text}");
    assert_eq!(
        get(&host, of_b, &at(b, version)).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        get(&host, of_b, &at(a, version)).await.status,
        StatusCode::FORBIDDEN
    );

    // The same names and paths in each, and each has its own answer.
    for (name, deployer) in &deployers {
        put(&host, deployer, &at(name, version), tagger.clone()).await;
        let applied = put(
            &host,
            deployer,
            &at(name, "pipelines/tags"),
            pipeline("tags", name),
        )
        .await;
        assert_eq!(applied.status, StatusCode::CREATED, "{}", applied.json());
    }
    for (route, answer) in [
        ("/@team-a/tag", "team-a "),
        ("/@team-b/tag", "team-b "),
        ("/tag", "default "),
    ] {
        let reply = host.post(route, "text/plain", "").await.unwrap();
        assert_eq!(
            (reply.status, &reply.body[..]),
            (StatusCode::OK, answer.as_bytes()),
            "{route}"
        );
    }
    for route in ["/@default/tag", "/@team-c/tag", "/team-a/tag"] {
        let reply = host.post(route, "text/plain", "").await.unwrap();
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{route}");
    }
    let invoke = at(a, "pipelines/tags/invoke");
    let (_, invoker) = token(
        &host,
        ADMIN,
        json!({"role": "invoker", "namespace": "team-a"}),
    )
    .await;
    let reply = ask(&host, &invoker, Method::POST, &invoke, Vec::new()).await;
    assert_eq!(&reply.body[..], b"team-a ");
    let reply = ask(&host, of_b, Method::POST, &invoke, Vec::new()).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert!(!reply.header("stepwell-run-id").is_empty());
    let metrics = get(&host, ADMIN, "/metrics").await.body;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    for (name, _) in &deployers {
        let label = format!("namespace=\"{name}\",pipeline=\"tags\"");
        assert!(metrics.contains(&label), "{label}");
    }

    // Deleting in one leaves the others alone; an empty one can go.
    let (id, _) = token(
        &host,
        ADMIN,
        json!({"role": "viewer", "namespace": "team-b"}),
    )
    .await;
    let delete = async |path: String| ask(&host, ADMIN, Method::DELETE, &path, Vec::new()).await;
    let full = delete("/api/v1/namespaces/team-b".to_owned()).await;
    assert_eq!(
        (full.status, full.code()),
        (StatusCode::CONFLICT, "in-use".into())
    );
    let detail = full.json()["detail"].to_string();
    assert!(
        detail.contains("1 plugin version, 1 pipeline, 2 tokens"),
        "{detail}"
    );
    assert_eq!(
        delete(at(b, "pipelines/tags")).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(delete(at(b, version)).await.status, StatusCode::NO_CONTENT);
    let items = get(&host, ADMIN, "/api/v1/tokens").await.json();
    for item in items["items"].as_array().unwrap() {
        if item["namespace"] == "team-b" {
            let path = format!("/api/v1/tokens/{}", item["id"].as_str().unwrap());
            assert_eq!(delete(path).await.status, StatusCode::NO_CONTENT);
        }
    }
    assert!(!id.is_empty());
    assert_eq!(
        delete("/api/v1/namespaces/team-b".to_owned()).await.status,
        StatusCode::NO_CONTENT
    );
    let gone = get(&host, ADMIN, &at(b, "plugins")).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let default = delete("/api/v1/namespaces/default".to_owned()).await;
    assert_eq!(
        (default.status, default.code()),
        (StatusCode::CONFLICT, "in-use".into())
    );
    let reply = host.post("/@team-a/tag", "text/plain", "").await.unwrap();
    assert_eq!(&reply.body[..], b"team-a ");
    let reply = host.post("/@team-b/tag", "text/plain", "").await.unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn logs_are_shown_to_their_own_namespace() {
    let host = Host::start(&guarded()).await.unwrap();
    namespace(&host, "team-a").await;
    let body = json!({"role": "viewer", "namespace": "team-a"});
    let (_, viewer) = token(&host, ADMIN, body).await;
    let hostile = guest("hostile").unwrap();
    let document = "stepwell: 1\nname: fails\ntriggers:\n  - http: {method: POST, path: /fails}\nsteps:\n\
                    \x20 - {id: only, plugin: probe@1}\n";
    for name in ["team-a", "default"] {
        let at = format!("/api/v1/namespaces/{name}");
        put(
            &host,
            ADMIN,
            &format!("{at}/plugins/probe/versions/1.0.0"),
            hostile.clone(),
        )
        .await;
        let applied = put(&host, ADMIN, &format!("{at}/pipelines/fails"), document).await;
        assert_eq!(applied.status, StatusCode::CREATED, "{}", applied.json());
    }
    let failed = host
        .event("/@team-a/fails", "1", "panic", "")
        .await
        .unwrap();
    let elsewhere = host.event("/fails", "2", "panic", "").await.unwrap();
    let runs = |reply: &Value| -> Vec<String> {
        let items = reply["items"].as_array().cloned().unwrap_or_default();
        let runs = items
            .iter()
            .map(|item| item["run_id"].as_str().unwrap_or_default().to_owned());
        runs.collect()
    };
    let logs = get(&host, &viewer, "/api/v1/namespaces/team-a/logs")
        .await
        .json();
    let own = failed.header("stepwell-run-id");
    assert!(runs(&logs).contains(&own), "{logs}");
    assert!(runs(&logs).iter().all(|run| *run == own), "{logs}");
    let other = get(&host, &viewer, "/api/v1/namespaces/default/logs").await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    let default = get(&host, ADMIN, "/api/v1/namespaces/default/logs")
        .await
        .json();
    assert!(
        runs(&default).contains(&elsewhere.header("stepwell-run-id")),
        "{default}"
    );
    assert!(!runs(&default).contains(&own), "{default}");
}

#[tokio::test]
async fn quotas_refuse_uploads_until_they_are_raised() {
    let host = Host::start(&guarded()).await.unwrap();
    let tagger = guest("tagger").unwrap();
    let cli = |arguments: &[&str]| {
        let output = host
            .cli(&[arguments, &["--token", ADMIN]].concat())
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    let (code, shown) = cli(&[
        "namespace",
        "set",
        "team-a",
        "--plugins",
        "1",
        "--concurrent-runs",
        "4",
    ]);
    assert_eq!(code, Some(0), "{shown}");
    let body = json!({"role": "deployer", "namespace": "team-a"});
    let (_, deployer) = token(&host, ADMIN, body).await;
    let at = |version: &str| format!("/api/v1/namespaces/team-a/plugins/tagger/versions/{version}");
    let first = put(&host, &deployer, &at("1.0.0"), tagger.clone()).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let refused = put(&host, &deployer, &at("1.0.1"), tagger.clone()).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::FORBIDDEN, "quota-exceeded".into())
    );
    let detail = refused.json()["detail"].to_string();
    for part in [
        "plugins 1",
        "has 1",
        "operator",
        "stepwell namespace set team-a --plugins",
    ] {
        assert!(detail.contains(part), "{part} in {detail}");
    }
    assert_eq!(
        get(&host, &deployer, &at("1.0.1")).await.status,
        StatusCode::NOT_FOUND
    );
    // A deployer raises nothing.
    let raise = put(&host, &deployer, "/api/v1/namespaces/team-a", "{}").await;
    assert_eq!(raise.status, StatusCode::FORBIDDEN);
    let size = tagger.len() * 2 - 1;
    let (code, shown) = cli(&[
        "namespace",
        "set",
        "team-a",
        "--plugins",
        "none",
        "--bytes",
        &size.to_string(),
    ]);
    assert_eq!(code, Some(0), "{shown}");
    let shown = get(&host, &deployer, "/api/v1/namespaces/team-a")
        .await
        .json();
    assert_eq!(
        shown["quotas"],
        json!({"bytes": size, "concurrent_runs": 4}),
        "the others stay"
    );
    assert_eq!(shown["usage"]["bytes"], tagger.len());
    let refused = put(&host, &deployer, &at("1.0.1"), tagger.clone()).await;
    assert_eq!(refused.code(), "quota-exceeded");
    assert!(refused.json()["detail"].to_string().contains("--bytes"));
    let (code, shown) = cli(&["namespace", "set", "team-a", "--bytes", "1GiB"]);
    assert!(code == Some(0) && shown.contains("1GiB"), "{shown}");
    let raised = put(&host, &deployer, &at("1.0.1"), tagger).await;
    assert_eq!(raised.status, StatusCode::CREATED);

    let (_, listed) = cli(&["namespace", "list"]);
    assert!(
        listed.contains("team-a") && listed.contains("default"),
        "{listed}"
    );
    let (code, wrong) = cli(&["namespace", "set", "team-a", "--plugins", "many"]);
    assert_eq!(code, Some(2), "{wrong}");
    let (code, wrong) = cli(&["namespace", "set", "team-a", "--bytes", "1GB"]);
    assert!(code == Some(1) && wrong.contains("GiB"), "{wrong}");
    let (code, wrong) = cli(&["namespace", "rm", "team-a"]);
    assert!(
        code == Some(1) && wrong.contains("2 plugin versions, 1 token"),
        "{wrong}"
    );
    assert_eq!(cli(&["namespace", "set", "empty"]).0, Some(0));
    assert_eq!(cli(&["namespace", "rm", "empty"]).0, Some(0));
}

#[tokio::test]
async fn every_change_is_in_the_audit_log() {
    let host = Host::start(&guarded()).await.unwrap();
    namespace(&host, "team-a").await;
    let body = json!({"role": "deployer", "namespace": "team-a", "name": "ci"});
    let (id, deployer) = token(&host, ADMIN, body).await;
    let at = |rest: &str| format!("/api/v1/namespaces/team-a/{rest}");
    let version = at("plugins/tagger/versions/1.0.0");
    let stored = put(&host, &deployer, &version, guest("tagger").unwrap()).await;
    for tag in ["one", "two"] {
        put(
            &host,
            &deployer,
            &at("pipelines/tags"),
            pipeline("tags", tag),
        )
        .await;
    }
    let dry = at("pipelines/tags?dry_run=true");
    put(&host, &deployer, &dry, pipeline("tags", "dry")).await;
    ask(
        &host,
        &deployer,
        Method::POST,
        &at("pipelines/tags/rollback"),
        Vec::new(),
    )
    .await;
    let refused = "/api/v1/namespaces/default/pipelines/theirs";
    ask(&host, &deployer, Method::DELETE, refused, Vec::new()).await;
    ask(
        &host,
        &deployer,
        Method::DELETE,
        &at("pipelines/tags"),
        Vec::new(),
    )
    .await;
    ask(&host, &deployer, Method::DELETE, &version, Vec::new()).await;
    let revoke = format!("/api/v1/tokens/{id}");
    let own = get(&host, &deployer, "/api/v1/audit").await.json();
    ask(&host, ADMIN, Method::DELETE, &revoke, Vec::new()).await;

    let lines = |reply: &Value| -> Vec<String> {
        let items = reply["items"].as_array().cloned().unwrap_or_default();
        let line = |item: &Value| {
            let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {} {} {}",
                text("who"),
                text("action"),
                text("outcome"),
                text("subject")
            )
        };
        items.iter().rev().map(line).collect()
    };
    let all = get(&host, ADMIN, "/api/v1/audit").await.json();
    let by = |action: &str, subject: &str| format!("{id} {action} done {subject}");
    let expected = [
        "admin_token namespace.set done namespace team-a".to_owned(),
        format!("admin_token token.create done token {id} (deployer)"),
        by("plugin.put", "plugin tagger@1.0.0"),
        by("pipeline.apply", "pipeline tags"),
        by("pipeline.apply", "pipeline tags"),
        by("pipeline.rollback", "pipeline tags"),
        format!("{id} delete_pipeline refused DELETE {refused}"),
        by("pipeline.delete", "pipeline tags"),
        by("plugin.delete", "plugin tagger@1.0.0"),
        format!("admin_token token.revoke done token {id} (deployer)"),
    ];
    assert_eq!(lines(&all), expected);
    assert_eq!(
        lines(&own),
        expected[..9],
        "a deployer sees its own namespace"
    );
    let items = all["items"].as_array().unwrap();
    let uploaded = &items[7];
    assert_eq!(uploaded["digest"], stored.json()["digest"]);
    assert_eq!(
        (&uploaded["name"], &uploaded["namespace"]),
        (&json!("ci"), &json!("team-a"))
    );
    assert_eq!(items[4]["revision"], 3, "the rollback's");

    let cli = |arguments: &[&str]| {
        let output = host
            .cli(&[arguments, &["--token", ADMIN]].concat())
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = cli(&["audit", "--namespace", "team-a", "--limit", "3"]);
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(
        shown.contains("token.revoke") && shown.contains("admin_token"),
        "{shown}"
    );
    let none = cli(&["audit", "--namespace", "default", "--json"]);
    let none: Value = serde_json::from_str(&none).unwrap();
    assert_eq!(none["items"], json!([]));

    let log = host.log();
    let audited = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let audited: Vec<Value> = audited.filter(|line| line["target"] == "audit").collect();
    assert_eq!(audited.len(), expected.len(), "one line for each: {log}");
    assert!(
        audited
            .iter()
            .any(|line| line.to_string().contains("plugin.put"))
    );
}
