use axum::body::Body;
use axum::http::Method;
use serde_json::json;
use stepwell_core::{Name, Role};

use crate::client::Client;

const LIST: &str = "/api/v1/namespaces/default/plugins";

#[tokio::test]
async fn the_token_opens_what_it_guards() {
    let client = Client::guarded().bearing("right");
    for path in [LIST, "/api/v1/models", "/metrics"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let client = Client::guarded();
    for accepted in ["bearer right", "BEARER  right"] {
        let headers = [("authorization", accepted)];
        let reply = client
            .send(Method::GET, LIST, &headers, Body::empty())
            .await;
        assert_eq!(reply.status, 200, "{accepted}");
    }
}

#[tokio::test]
async fn without_the_right_token_nothing_is_done_or_told() {
    let client = Client::guarded();
    for path in [
        LIST,
        "/api/v1/models",
        "/metrics",
        "/api/v1/namespaces/other/plugins",
    ] {
        let reply = client.get(path).await;
        reply.problem(401, "unauthorized");
        assert_eq!(
            reply.header("www-authenticate"),
            "Bearer realm=\"stepwell\""
        );
    }
    let long = format!("Bearer {}", "a".repeat(5000));
    for wrong in [
        "Bearer wrong",
        "Bearer right2",
        "Bearer righ",
        "Bearer old",
        "Bearer",
        "Bearer ",
        "Basic right",
        "right",
        "Bearer\tright",
        "Bearer r\u{fc}ght",
        &long,
    ] {
        let headers = [("authorization", wrong)];
        let reply = client
            .send(Method::GET, LIST, &headers, Body::empty())
            .await;
        reply.problem(401, "unauthorized");
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
    }
    let twice = [
        ("authorization", "Bearer right"),
        ("authorization", "Bearer viewer"),
    ];
    let reply = client.send(Method::GET, LIST, &twice, Body::empty()).await;
    reply.problem(401, "unauthorized");
    let path = format!("{LIST}/decode/versions/1.0.0");
    client
        .put(&path, "\0asm")
        .await
        .problem(401, "unauthorized");
    let client = client.bearing("right");
    client.get(&path).await.problem(404, "not-found");
}

#[tokio::test]
async fn what_cannot_be_found_out_is_unavailable() {
    let client = Client::guarded().bearing("far");
    client.get(LIST).await.problem(503, "unavailable");
}

#[tokio::test]
async fn probes_and_the_description_need_no_token() {
    let client = Client::guarded();
    for path in ["/livez", "/readyz", "/openapi.json", "/docs"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_guard_no_token_is_needed() {
    let client = Client::new();
    assert_eq!(client.get(LIST).await.status, 200);
    assert_eq!(client.bearing("any").get(LIST).await.status, 200);
}

const ROLLBACK: &str = "/api/v1/namespaces/default/pipelines/p/rollback";

#[tokio::test]
async fn development_mode_is_not_open_to_web_pages() {
    let client = Client::new();
    let ask = async |method: &Method, path: &str, headers: &[(&str, &str)]| {
        client
            .send(method.clone(), path, headers, Body::empty())
            .await
    };
    for (method, path) in [
        (Method::POST, ROLLBACK),
        (Method::GET, LIST),
        (Method::GET, "/metrics"),
        (
            Method::POST,
            "/api/v1/namespaces/default/pipelines/p/invoke",
        ),
    ] {
        for headers in [
            // A page that asks this machine by its address.
            &[
                ("host", "127.0.0.1:8081"),
                ("origin", "https://evil.example"),
            ][..],
            &[
                ("host", "127.0.0.1:8081"),
                ("origin", "http://127.0.0.1:3000"),
            ],
            &[
                ("host", "127.0.0.1:8081"),
                ("origin", "http://localhost:8081"),
            ],
            &[("host", "127.0.0.1:8081"), ("origin", "null")],
            &[("host", "127.0.0.1:8081"), ("origin", "127.0.0.1:8081")],
            &[("origin", "http://127.0.0.1:8081")],
            &[
                ("host", "127.0.0.1:8081"),
                ("origin", "http://127.0.0.1:8081"),
                ("origin", "http://evil.example"),
            ],
            // A page whose own name was made to lead to this machine.
            &[
                ("host", "evil.example:8081"),
                ("origin", "http://evil.example:8081"),
            ],
            &[("host", "evil.example:8081")],
            &[("host", "localhost"), ("host", "evil.example")],
            // What is no token of ours changes nothing.
            &[
                ("host", "evil.example"),
                ("authorization", "Bearer anything"),
            ],
        ] {
            let refused = ask(&method, path, headers).await;
            let problem = refused.problem(403, "forbidden");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.starts_with("development mode takes"), "{detail}");
            let hint = problem["errors"][0]["hint"].as_str().unwrap();
            assert!(hint.contains("admin_token"), "{hint}");
        }
    }
    let line = ask(&Method::GET, "http://evil.example/api/v1/models", &[]).await;
    line.problem(403, "forbidden");
    for own in [
        &[
            ("host", "127.0.0.1:8081"),
            ("origin", "http://127.0.0.1:8081"),
        ][..],
        &[
            ("host", "localhost:8081"),
            ("origin", "http://localhost:8081"),
        ],
        &[("host", "[::1]:8081"), ("origin", "https://[::1]:8081")],
        &[("host", "localhost")],
        &[],
    ] {
        assert_eq!(ask(&Method::GET, LIST, own).await.status, 200, "{own:?}");
    }
    for open in ["/livez", "/readyz", "/docs", "/openapi.json"] {
        let linked = [("host", "127.0.0.1:8081"), ("origin", "https://example")];
        assert_eq!(ask(&Method::GET, open, &linked).await.status, 200, "{open}");
    }
    // Who has a token has what no page has.
    let client = Client::guarded().bearing("right");
    let headers = [
        ("host", "stepwell.example"),
        ("origin", "https://console.example"),
    ];
    let reply = client
        .send(Method::GET, LIST, &headers, Body::empty())
        .await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_refusal_is_told_to_the_gate_and_says_nothing_of_others() {
    let client = Client::guarded().bearing("deployer/own");
    let there = client.get(LIST).await;
    let missing = client.get("/api/v1/namespaces/none/plugins").await;
    there.problem(403, "forbidden");
    assert_eq!(there.body, missing.body, "whether it exists is not told");
    assert!(
        there
            .header("www-authenticate")
            .contains("insufficient_scope")
    );
    let detail = there.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("deployer in namespace own") && !detail.contains("default"),
        "{detail}"
    );
    let refused = client.gate.refused.lock().unwrap().clone();
    assert_eq!(refused.len(), 2);
    let (who, operation, subject) = &refused[0];
    assert_eq!(
        (who.as_str(), *operation, subject.as_str()),
        (
            "deployer/own",
            "list_plugins",
            "GET /api/v1/namespaces/default/plugins"
        )
    );
}

#[tokio::test]
async fn namespaces_are_made_shown_changed_and_deleted() {
    let client = Client::new();
    let path = "/api/v1/namespaces/team-a";
    let missing = client.get(path).await;
    missing.problem(404, "not-found");
    let text = String::from_utf8_lossy(&missing.body).into_owned();
    assert!(text.contains("stepwell namespace set team-a"), "{text}");

    let quotas = json!({"quotas": {
        "plugins": 3, "bytes": "1GiB", "runs_per_second": 50, "concurrent_runs": 4, "cpu_seconds_per_minute": 1.5,
    }});
    let made = client.put(path, quotas.to_string()).await;
    assert_eq!(made.status, 201);
    let expected = json!({
        "plugins": 3, "bytes": 1 << 30, "runs_per_second": 50, "concurrent_runs": 4, "cpu_seconds_per_minute": 1.5,
    });
    assert_eq!(made.json()["quotas"], expected);
    assert_eq!(client.get(path).await.json()["quotas"], expected);
    let listed = client.get("/api/v1/namespaces").await.json();
    assert_eq!(listed["items"][0]["name"], "team-a");

    for body in [
        "",
        "{}",
        "{\"quotas\": {}}",
        "{\"quotas\": {\"bytes\": null}}",
    ] {
        let changed = client.put(path, body).await;
        assert_eq!(
            (changed.status.as_u16(), &changed.json()["quotas"]),
            (200, &json!({}))
        );
    }
    for body in [
        "[]",
        "{",
        "{\"quota\": {}}",
        "{\"quotas\": {\"plugin\": 1}}",
        "{\"quotas\": {\"plugins\": -1}}",
        "{\"quotas\": {\"bytes\": \"64\"}}",
        "{\"quotas\": {\"bytes\": \"64MB\"}}",
        "{\"quotas\": {\"runs_per_second\": 4294967296}}",
        "{\"quotas\": {\"cpu_seconds_per_minute\": -1}}",
        "{\"quotas\": {\"cpu_seconds_per_minute\": 1e10}}",
    ] {
        client.put(path, body).await.problem(400, "bad-request");
    }
    let unknown = client.put("/api/v1/namespaces/Team_A", "").await;
    unknown.problem(422, "invalid-name");
    assert_eq!(client.delete(path).await.status, 204);
    client.delete(path).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_confined_token_sees_its_own_namespace_only() {
    let client = Client::guarded().bearing("viewer/default");
    let listed = client.get("/api/v1/namespaces").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["name"], "default");
    let after = client.get("/api/v1/namespaces?cursor=default").await.json();
    assert_eq!(after["items"], json!([]));
}

#[tokio::test]
async fn tokens_are_made_as_asked_or_refused() {
    let client = Client::guarded().bearing("right");
    let path = "/api/v1/tokens";
    let body = json!({"role": "deployer", "namespace": "default", "expires": "90d", "name": "ci"});
    let made = client.post(path, body.to_string()).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.header("cache-control"), "no-store");
    let reply = made.json();
    assert_eq!(
        [
            &reply["token"],
            &reply["role"],
            &reply["namespace"],
            &reply["created_by"],
            &reply["name"]
        ],
        ["sw_secret", "deployer", "default", "admin_token", "ci"]
    );
    assert!(reply["expires_at"].is_string() && reply["last_used_at"].is_null());
    let listed = client.get(path).await;
    assert_eq!(listed.json()["items"].as_array().unwrap().len(), 1);
    assert!(!String::from_utf8_lossy(&listed.body).contains("sw_secret"));
    assert_eq!(client.get("/api/v1/tokens/t1").await.status, 200);
    assert_eq!(client.delete("/api/v1/tokens/t1").await.status, 204);
    client
        .delete("/api/v1/tokens/t1")
        .await
        .problem(404, "not-found");

    client.post(path, "{\"role\": \"operator\"}").await;
    let operator = client.fake.made.lock().unwrap()[0].clone();
    assert_eq!(
        (operator.role, operator.name.as_str(), operator.namespace),
        (Role::Operator, "operator", None::<Name>)
    );
    for wrong in [
        json!({}),
        json!({"role": "root"}),
        json!({"role": "operator", "namespace": "default"}),
        json!({"role": "viewer", "namespace": "No Name"}),
        json!({"role": "viewer", "expires": "90"}),
        json!({"role": "viewer", "expires": "0d"}),
        json!({"role": "viewer", "expires": "200000d"}),
        json!({"role": "viewer", "expires": 90}),
        json!({"role": "viewer", "name": ""}),
        json!({"role": "viewer", "name": "a\nb"}),
        json!({"role": "viewer", "name": "n".repeat(101)}),
        json!({"role": "viewer", "scope": "all"}),
    ] {
        let reply = client.post(path, wrong.to_string()).await;
        reply.problem(400, "bad-request");
    }
}

#[tokio::test]
async fn the_audit_log_is_asked_for_what_the_caller_may_see() {
    let client = Client::guarded().bearing("right");
    assert_eq!(client.get("/api/v1/audit").await.status, 200);
    let path = "/api/v1/audit?namespace=other&limit=3&cursor=9&since=2026-01-31T12:00:00Z";
    assert_eq!(client.get(path).await.status, 200);
    assert_eq!(client.get("/api/v1/audit?since=24h").await.status, 200);
    for wrong in [
        "since=yesterday",
        "since=5",
        "namespace=X",
        "limit=a",
        "who=me",
    ] {
        let reply = client.get(&format!("/api/v1/audit?{wrong}")).await;
        reply.problem(400, "bad-request");
    }
    let asked = client.fake.audited.lock().unwrap().clone();
    assert_eq!(asked.len(), 3);
    assert_eq!((&asked[0].namespace, asked[0].since), (&None, None));
    assert_eq!(asked[1].namespace, Some("other".parse().unwrap()));
    assert_eq!(
        (asked[1].page.limit, asked[1].page.cursor.as_deref()),
        (3, Some("9"))
    );
    assert_eq!(asked[1].since.unwrap().year(), 2026);
    assert!(asked[2].since.is_some());

    let client = Client::guarded().bearing("deployer/own");
    for path in ["/api/v1/audit", "/api/v1/audit?namespace=own"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let other = client.get("/api/v1/audit?namespace=other").await;
    other.problem(403, "forbidden");
    let asked = client.fake.audited.lock().unwrap().clone();
    let own = Some("own".parse().unwrap());
    assert!(asked.len() == 2 && asked.iter().all(|query| query.namespace == own));
}
