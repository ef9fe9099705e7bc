//! What a step may do is what its grants say: nothing without one, and no more than is written.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Row as _};
use stepwell_tests::{Config, Host, Reply, send};

/// What `classify-digit` gives, as far as `record` reads it.
fn answer() -> String {
    json!({"digit": 3, "confidence": 0.9, "pixels": vec![0.5; 64]}).to_string()
}

fn scan() -> Value {
    json!({"id": "1", "label": 3, "pixels": vec![8; 64]})
}

/// A pipeline of one step at `/NAME`.
fn document(name: &str, plugin: &str, grants: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n\
         \x20 - {{id: only, plugin: {plugin}@1, limits: {{cpu: 1s, wall: 5s}}, grants: {grants}}}\n"
    )
}

async fn start() -> Host {
    let host = Host::start(&Config::digits()).await.unwrap();
    for plugin in ["record", "index-scans", "classify-digit"] {
        host.upload(plugin, "1.0.0", plugin).await.unwrap();
    }
    host.wait_for("models/digits", "ok").await.unwrap();
    host
}

async fn ask(host: &Host, name: &str, body: String) -> Reply {
    host.post(&format!("/{name}"), "application/json", body)
        .await
        .unwrap()
}

/// The messages of a refused document.
async fn refusal(host: &Host, plugin: &str, grants: &str) -> String {
    let reply = host
        .put_pipeline("refused", &document("refused", plugin, grants))
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-pipeline".into()),
        "{plugin} {grants}"
    );
    reply.json()["errors"].to_string()
}

#[tokio::test]
async fn an_import_without_a_grant_is_refused_at_apply() {
    let host = start().await;
    for (plugin, grants, missing) in [
        ("record", "{}", "wasi:keyvalue"),
        ("record", "{sql: {results: [read, write]}}", "wasi:keyvalue"),
        (
            "record",
            "{keyvalue: {cache: {binding: main-redis, actions: [read, write]}}}",
            "stepwell:sql",
        ),
        (
            "classify-digit",
            "{models: {digits: [infer]}}",
            "stepwell:vector",
        ),
        (
            "classify-digit",
            "{vectors: {scans: [query]}}",
            "stepwell:model",
        ),
    ] {
        let errors = refusal(&host, plugin, grants).await;
        assert!(errors.contains(missing), "{missing} in {errors}");
    }
    // And what would be granted for nothing: a kind that the plugin does not import, a binding or an action that is none.
    let whole = "keyvalue: {cache: {binding: main-redis, actions: [read, write]}}, sql: {results: [read, write]}";
    for (grants, wrong) in [
        (
            format!("{{{whole}, models: {{digits: [infer]}}}}"),
            "models",
        ),
        (
            format!("{{{whole}, vectors: {{scans: [query]}}}}"),
            "vectors",
        ),
        (whole.replace("main-redis", "nobody"), "nobody"),
        (whole.replace("results", "elsewhere"), "elsewhere"),
        (whole.replace("[read, write]", "[read, drop]"), "drop"),
    ] {
        let grants = if grants.starts_with('{') {
            grants
        } else {
            format!("{{{grants}}}")
        };
        let errors = refusal(&host, "record", &grants).await;
        assert!(errors.contains(wrong), "{wrong} in {errors}");
    }
    let list = host
        .get("/api/v1/namespaces/default/pipelines")
        .await
        .unwrap()
        .json();
    assert_eq!(list["items"], json!([]));
}

async fn results(host: &Host) -> Vec<i64> {
    let file = host.directory().join("data/sql/results.sqlite");
    if !file.exists() {
        return Vec::new();
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .read_only(true);
    let mut connection = options.connect().await.unwrap();
    let tables = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = 'results'")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    if tables.is_empty() {
        return Vec::new();
    }
    let rows = sqlx::query("SELECT digit FROM results")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    rows.iter().map(|row| row.get("digit")).collect()
}

#[tokio::test]
async fn whoever_may_only_read_writes_nothing() {
    let host = start().await;
    let cache = |actions: &str| {
        format!("keyvalue: {{cache: {{binding: main-redis, actions: [{actions}]}}}}")
    };
    let sql = |actions: &str| format!("sql: {{results: [{actions}]}}");
    let apply = async |name: &str, keyvalue: &str, database: &str| {
        let grants = format!("{{{}, {}}}", cache(keyvalue), sql(database));
        host.apply(name, &document(name, "record", &grants))
            .await
            .unwrap();
    };
    apply("no-sql", "read, write", "read").await;
    let reply = ask(&host, "no-sql", answer()).await;
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "failed".into())
    );
    assert_eq!(results(&host).await, [0i64; 0], "no row was written");

    // With SQL written first, the key-value store is what refuses, and the owner's log says which permission is missing.
    apply("no-cache", "read", "read, write").await;
    let reply = ask(&host, "no-cache", answer()).await;
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "failed".into())
    );
    let logs = host
        .get("/api/v1/namespaces/default/logs?level=error")
        .await
        .unwrap();
    let lines = logs.json()["items"].as_array().unwrap().clone();
    let of = |pipeline: &str| {
        let line = lines
            .iter()
            .find(|line| line["pipeline"] == pipeline)
            .unwrap_or(&Value::Null);
        line["message"].as_str().unwrap_or_default().to_owned()
    };
    for pipeline in ["no-sql", "no-cache"] {
        let message = of(pipeline);
        assert!(
            message.contains("write") || message.contains("denied") || message.contains("grant"),
            "{pipeline}: '{message}'"
        );
    }

    // Counting is writing; what was answered last is read. Its keys are its own, so that it counts for nobody else.
    let grants = "{keyvalue: {cache: {binding: main-redis, actions: [write], prefix: \"mine:\"}}, sql: {results: [read, write]}}";
    let document = document("no-reading", "record", grants);
    host.apply("no-reading", &document).await.unwrap();
    let reply = ask(&host, "no-reading", answer()).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);

    // The same plugin, with the permissions; nothing of what came before was counted.
    apply("both", "read, write", "read, write").await;
    let reply = ask(&host, "both", answer()).await;
    assert_eq!(
        (reply.status, &reply.json()["seen"]),
        (StatusCode::OK, &json!(1))
    );
}

#[tokio::test]
async fn prefixes_keep_steps_apart() {
    let host = start().await;
    for (name, prefix) in [("left", "left:"), ("right", "right:")] {
        let grants = format!(
            "{{keyvalue: {{cache: {{binding: main-redis, actions: [read, write], prefix: \"{prefix}\"}}}}, sql: {{results: [read, write]}}}}"
        );
        host.apply(name, &document(name, "record", &grants))
            .await
            .unwrap();
    }
    for (name, seen) in [("left", 1), ("left", 2), ("right", 1), ("left", 3)] {
        assert_eq!(
            ask(&host, name, answer()).await.json()["seen"],
            seen,
            "{name}"
        );
    }
}

#[tokio::test]
async fn whoever_may_only_query_changes_no_index() {
    let host = start().await;
    let scans = json!({"scans": [scan()]}).to_string();
    let grants = |models: &str, vectors: &str| {
        format!("{{models: {{digits: [{models}]}}, vectors: {{scans: [{vectors}]}}}}")
    };
    for (name, models, vectors) in [
        ("query-only", "infer", "query"),
        ("no-infer", "describe", "upsert"),
    ] {
        host.apply(
            name,
            &document(name, "index-scans", &grants(models, vectors)),
        )
        .await
        .unwrap();
        let reply = ask(&host, name, scans.clone()).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::INTERNAL_SERVER_ERROR, "failed".into()),
            "{name}"
        );
    }
    host.apply(
        "reader",
        &document("reader", "classify-digit", &grants("infer", "query")),
    )
    .await
    .unwrap();
    let picture = json!({"pixels": vec![0.5; 64]}).to_string();
    assert_eq!(
        ask(&host, "reader", picture.clone()).await.json()["neighbours"],
        json!([]),
        "the index is empty still"
    );

    host.apply(
        "writer",
        &document("writer", "index-scans", &grants("infer", "upsert")),
    )
    .await
    .unwrap();
    let reply = ask(&host, "writer", scans).await;
    assert_eq!(
        (reply.status, &reply.json()["indexed"]),
        (StatusCode::OK, &json!(1))
    );
    let answer = ask(&host, "reader", picture.clone()).await.json();
    assert_eq!(answer["neighbours"][0]["id"], "1");

    host.apply(
        "no-query",
        &document("no-query", "classify-digit", &grants("infer", "upsert")),
    )
    .await
    .unwrap();
    assert_eq!(
        ask(&host, "no-query", picture).await.status,
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[tokio::test]
async fn nothing_of_the_machine_is_granted_to_anyone() {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    let document = "\
stepwell: 1
name: probe
triggers: [{http: {method: POST, path: /probe}}]
steps: [{id: only, plugin: probe@1, config: {mine: visible}}]
";
    host.apply("probe", document).await.unwrap();
    let ask = async |what: &str| {
        let request = host
            .request(Method::POST, "/probe")
            .header("ce-specversion", "1.0")
            .header("ce-id", "1")
            .header("ce-source", "/test")
            .header("ce-type", what);
        String::from_utf8(send(request).await.unwrap().body.to_vec()).unwrap()
    };
    // The test's own environment, which the host inherits, has at least PATH.
    assert!(std::env::var_os("PATH").is_some());
    let environment = ask("environment").await;
    assert!(
        !environment.contains("PATH=") && !environment.contains("STEPWELL"),
        "{environment}"
    );
    assert!(environment.ends_with("args 0"), "{environment}");
    assert_eq!(ask("config:mine").await, r#"Ok(Some("visible"))"#);
    assert_eq!(ask("config:PATH").await, "Ok(None)");
    assert!(ask("files").await.starts_with("Err("));
    assert!(ask("connect").await.starts_with("Err("));
    assert_eq!(ask("fetch").await, "ErrorCode::HttpRequestDenied");
}
