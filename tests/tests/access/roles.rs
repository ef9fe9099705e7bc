use reqwest::{Method, StatusCode};
use serde_json::json;
use stepwell_tests::{Host, send};

use crate::support::{ADMIN, ask, get, guarded, namespace, token};

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
