//! What is served is what is described.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Method;
use serde_json::Value;

use crate::client::Client;

/// Every operation of the management API, as it is promised.
const PROMISED: [&str; 32] = [
    "DELETE /api/v1/namespaces/{ns}/pipelines/{name}",
    "DELETE /api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
    "DELETE /api/v1/namespaces/{ns}",
    "DELETE /api/v1/tokens/{id}",
    "GET /api/v1/audit",
    "GET /api/v1/bindings",
    "GET /api/v1/models",
    "GET /api/v1/models/{name}",
    "GET /api/v1/namespaces",
    "GET /api/v1/namespaces/{ns}",
    "GET /api/v1/namespaces/{ns}/logs",
    "GET /api/v1/namespaces/{ns}/pipelines",
    "GET /api/v1/namespaces/{ns}/pipelines/{name}",
    "GET /api/v1/namespaces/{ns}/pipelines/{name}/revisions",
    "GET /api/v1/namespaces/{ns}/pipelines/{name}/revisions/{n}",
    "GET /api/v1/namespaces/{ns}/plugins",
    "GET /api/v1/namespaces/{ns}/plugins/{name}",
    "GET /api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
    "GET /api/v1/namespaces/{ns}/plugins/{name}/versions/{version}/component",
    "GET /api/v1/tokens",
    "GET /api/v1/tokens/{id}",
    "GET /docs",
    "GET /livez",
    "GET /metrics",
    "GET /openapi.json",
    "GET /readyz",
    "POST /api/v1/namespaces/{ns}/pipelines/{name}/invoke",
    "POST /api/v1/namespaces/{ns}/pipelines/{name}/rollback",
    "POST /api/v1/tokens",
    "PUT /api/v1/namespaces/{ns}",
    "PUT /api/v1/namespaces/{ns}/pipelines/{name}",
    "PUT /api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
];

async fn document(client: &Client) -> Value {
    let reply = client.get("/openapi.json").await;
    assert_eq!(reply.status, 200);
    reply.json()
}

#[tokio::test]
async fn the_description_has_what_is_promised_and_nothing_else() {
    let document = document(&Client::new()).await;
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let promised: BTreeSet<String> = PROMISED.map(str::to_owned).into();
    assert_eq!(described, promised);
}

#[tokio::test]
async fn each_path_serves_the_methods_that_are_described_and_no_other() {
    let client = Client::new();
    let document = document(&client).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path
            .replace("{ns}", "default")
            .replace("{name}", "some")
            .replace("{version}", "1.0.0")
            .replace("{n}", "1");
        let mut described: BTreeSet<String> = item
            .as_object()
            .unwrap()
            .keys()
            .map(|method| method.to_uppercase())
            .collect();
        if described.contains("GET") {
            described.insert("HEAD".to_owned());
        }
        let refused = client.send(Method::PATCH, &url, &[], Body::empty()).await;
        refused.problem(405, "method-not-allowed");
        let allowed: BTreeSet<String> = refused
            .header("allow")
            .split(',')
            .map(str::to_owned)
            .collect();
        assert_eq!(allowed, described, "{path}");
        for method in &allowed {
            let headers = [("content-type", "text/plain")];
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let reply = client.send(method, &url, &headers, Body::empty()).await;
            assert_ne!(reply.status, 405, "{path}");
            // The thing is not there, but the route is.
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(!text.contains("there is no route"), "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn every_schema_that_is_referred_to_is_there() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value.as_str() {
                        Some(target) if name == "$ref" => {
                            found.insert(target);
                        }
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document(&Client::new()).await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 10, "{found:?}");
    for target in found {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{target}");
    }
    let codes = document
        .pointer("/components/schemas/ErrorCode/enum")
        .unwrap();
    for code in [
        "not-wasm",
        "version-exists",
        "invalid-pipeline",
        "too-large",
    ] {
        assert!(codes.as_array().unwrap().contains(&code.into()), "{code}");
    }
}

/// What the description says of roles is what happens: of every operation, with every role, here and elsewhere.
#[tokio::test]
async fn the_description_says_who_may_call_which_operation() {
    let document = document(&Client::guarded()).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path.replace("{ns}", "default").replace(['{', '}'], "");
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let described = operation["description"].as_str().unwrap();
            let security = operation.get("security");
            let roles: Vec<&str> = security
                .map(|security| security[0]["token"].as_array().unwrap())
                .into_iter()
                .flatten()
                .map(|role| role.as_str().unwrap())
                .collect();
            let ask = async |token: Option<&'static str>| {
                let client = Client::guarded();
                let client = match token {
                    Some(token) => client.bearing(token),
                    None => client,
                };
                let headers = [("content-type", "text/plain")];
                let reply = client.send(method.clone(), &url, &headers, Body::empty());
                reply.await.status.as_u16()
            };
            let anonymous = ask(None).await;
            if roles.is_empty() {
                assert!(described.contains("Needs no token"), "{path}");
                assert!(!path.starts_with("/api/") && anonymous == 200, "{path}");
                continue;
            }
            assert_eq!(anonymous, 401, "{method} {path}");
            for role in ["viewer", "invoker", "deployer", "operator"] {
                let status = ask(Some(role)).await;
                assert_eq!(
                    status != 403,
                    roles.contains(&role),
                    "{method} {path} {role}"
                );
            }
            assert!(roles.contains(&"operator"), "{path}");
            for (token, role) in [
                ("viewer/default", "viewer"),
                ("invoker/default", "invoker"),
                ("deployer/default", "deployer"),
                ("viewer/other", "viewer"),
                ("invoker/other", "invoker"),
                ("deployer/other", "deployer"),
            ] {
                let here = described.contains("in the namespace.") && token.ends_with("/default");
                let reaches = here || described.contains("in any namespace.");
                let may = reaches && roles.contains(&role);
                assert_eq!(
                    ask(Some(token)).await != 403,
                    may,
                    "{method} {path} {token}"
                );
            }
        }
    }
}

/// A mistyped or misplaced `dry_run` does nothing.
#[tokio::test]
async fn unknown_query_parameters_are_refused_everywhere() {
    let client = Client::new();
    let document = document(&client).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path
            .replace("{ns}", "default")
            .replace("{name}", "half-plus-two")
            .replace("{version}", "1.0.0")
            .replace("{n}", "1")
            .replace("{id}", "t0");
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let headers = [("content-type", "text/plain")];
            let url = format!("{url}?nonsense=1");
            let reply = client.send(method, &url, &headers, Body::empty()).await;
            if operation["operationId"] == "invoke_pipeline" {
                assert_ne!(reply.status, 400, "its query is the pipeline's");
                continue;
            }
            let problem = reply.problem(400, "bad-request");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("nonsense"), "{url}: {detail}");
        }
    }
    let pipeline = "/api/v1/namespaces/default/pipelines/p";
    let put = client.put(pipeline, "{}").await;
    assert_eq!(put.status, 201);
    let deleted = client.delete(&format!("{pipeline}?dry_run=true")).await;
    deleted.problem(400, "bad-request");
    assert_eq!(client.get(&format!("{pipeline}?")).await.status, 200);
    // Without a token nobody is told which parameters there are.
    let guarded = Client::guarded();
    let refused = guarded.get("/api/v1/tokens?nonsense=1").await;
    refused.problem(401, "unauthorized");
}

#[tokio::test]
async fn the_page_and_all_that_it_loads_come_from_here() {
    let client = Client::new();
    let page = client.get("/docs").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(html.contains("<base href=\"/docs/\" />"));
    assert!(!html.contains("http://") && !html.contains("https://"));
    let loaded: Vec<&str> = ["src=\"", "href=\""]
        .iter()
        .flat_map(|start| html.split(start).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .filter(|target| *target != "/docs/")
        .collect();
    assert!(loaded.len() >= 5, "{loaded:?}");
    for target in loaded {
        let path = format!("/docs/{}", target.trim_start_matches("./"));
        let asset = client.get(&path).await;
        assert_eq!(asset.status, 200, "{path}");
        assert!(!asset.body.is_empty());
    }
    let script = client.get("/docs/swagger-initializer.js").await;
    let script = String::from_utf8(script.body.to_vec()).unwrap();
    assert!(script.contains("/openapi.json"));
    client.get("/docs/none.js").await.problem(404, "not-found");
    client.get("/docs/%ff").await.problem(404, "not-found");
    client
        .get("/docs/../Cargo.toml")
        .await
        .problem(404, "not-found");
}

#[tokio::test]
async fn unknown_paths_are_problems_too() {
    let client = Client::new();
    for path in ["/", "/api", "/api/v2/models", "/api/v1/models/", "/%00"] {
        let reply = client.get(path).await;
        reply.problem(404, "not-found");
    }
}
