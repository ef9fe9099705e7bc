use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell_tests::{Host, guest};

use crate::support::{ADMIN, ask, get, guarded, namespace, pipeline, put, token};

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
