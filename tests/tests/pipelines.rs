//! Applying pipelines: every mistake at once, revisions, rollback, and requests that see exactly one revision.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use stepwell_test_services::Postgres;
use stepwell_tests::{Config, Host};

/// A pipeline of steps that each put their `tag` into the reply.
fn tagged(tag: &str) -> String {
    format!(
        "stepwell: 1\nname: tagged\ntriggers:\n  - http: {{method: POST, path: /tagged}}\nsteps:\n\
         \x20 - {{id: first, plugin: probe@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}

async fn ask(host: &Host, what: &str) -> stepwell_tests::Reply {
    let request = host
        .request(Method::POST, "/tagged")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", what);
    let response = request.send().await.unwrap();
    stepwell_tests::Reply {
        status: response.status(),
        headers: response.headers().clone(),
        body: response.bytes().await.unwrap(),
    }
}

#[tokio::test]
async fn every_mistake_is_reported_with_its_place() {
    let host = Host::start(&Config::digits()).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.upload("classify-digit", "1.0.0", "classify-digit")
        .await
        .unwrap();
    host.apply("tagged", &tagged("x")).await.unwrap();
    let document = "\
stepwell: 1
name: wrong
triggers:
  - http: {method: POST, path: /tagged}
  - http: {method: POST, path: /v2/models}
  - kafka: {topics: [a], group: g, dead_letter: a}
steps:
  - id: one
    plugin: nobody@1
  - id: two
    plugin: probe@1
    limits: {cpu: 100}
    grants: {sql: {results: [read]}}
  - id: three
    plugin: classify-digit@1
    grants: {models: {unknown: [infer]}}
  - id: four
    parallel: {a: []}
";
    let reply = host.put_pipeline("wrong", document).await.unwrap();
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-pipeline".into())
    );
    let errors = reply.json()["errors"].as_array().unwrap().clone();
    let at = |line: u64, part: &str| {
        errors
            .iter()
            .any(|error| error["line"] == line && error["message"].as_str().unwrap().contains(part))
    };
    for (line, part) in [
        (4, "tagged"),
        (5, "/v2"),
        (6, "dead"),
        (9, "nobody"),
        (12, "100"),
        (13, "sql"),
        (16, "unknown"),
        (18, "parallel"),
    ] {
        assert!(at(line, part), "line {line}: {part} in {errors:#?}");
    }
    // An import that needs a grant and has none.
    assert!(
        errors.iter().any(|error| error["message"]
            .as_str()
            .unwrap()
            .contains("stepwell:vector/index")),
        "{errors:#?}"
    );
    assert_eq!(
        host.get("/api/v1/namespaces/default/pipelines/wrong")
            .await
            .unwrap()
            .status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_revision_whose_plugin_is_gone_says_so() {
    let host = Host::start(&Config::default()).await.unwrap();
    let document = |version: &str| tagged("x").replace("probe@1", &format!("probe@{version}"));
    for version in ["1.0.0", "1.1.0"] {
        host.upload("probe", version, "hostile").await.unwrap();
        host.apply("tagged", &document(version)).await.unwrap();
    }
    let path = "/api/v1/namespaces/default/pipelines/tagged";
    let roll_back = async || {
        let request = host.admin_request(Method::POST, &format!("{path}/rollback"));
        let request = request.json(&serde_json::json!({"revision": 1}));
        stepwell_tests::send(request).await.unwrap()
    };
    let version = "/api/v1/namespaces/default/plugins/probe/versions/1.0.0";
    let deleted = host.admin_request(Method::DELETE, version).send().await;
    assert_eq!(deleted.unwrap().status(), StatusCode::NO_CONTENT);
    let gone = roll_back().await;
    assert_eq!(
        (gone.status, gone.code()),
        (StatusCode::CONFLICT, "plugin-gone".into()),
        "{:?}",
        gone.body
    );
    assert!(
        gone.json()["detail"]
            .as_str()
            .unwrap()
            .contains("probe@1.0.0 of step first"),
        "{:?}",
        gone.body
    );
    // Pushed again it is another component, and not the one that the revision ran.
    host.upload("probe", "1.0.0", "tagger").await.unwrap();
    let other = roll_back().await;
    assert_eq!(
        (other.status, other.code()),
        (StatusCode::CONFLICT, "plugin-gone".into()),
        "{:?}",
        other.body
    );
    assert_eq!(host.get(path).await.unwrap().json()["revision"], 2);
    // With the old bytes it is the old version again.
    let deleted = host.admin_request(Method::DELETE, version).send().await;
    assert_eq!(deleted.unwrap().status(), StatusCode::NO_CONTENT);
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    let back = roll_back().await;
    assert_eq!(back.status, StatusCode::OK, "{:?}", back.body);
    assert_eq!(back.json()["steps"][0]["version"], "1.0.0");
}

#[tokio::test]
async fn a_change_whose_plugin_is_deleted_while_it_is_made_says_what_it_lacks() {
    let postgres = Arc::new(Postgres::start().unwrap());
    let url = postgres.url_of("postgres");
    let config = Config::with(&format!("[catalog]\nurl = \"{url}\"\n"));
    let first = Host::start(&config).await.unwrap();
    first.upload("probe", "1.0.0", "echo").await.unwrap();
    // It has not compiled it, so it has to read its bytes.
    let second = Host::start(&config).await.unwrap();
    // The document is found to be right, and what its pipeline was before is asked for last.
    let statement = "BEGIN; LOCK TABLE pipelines IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); \
                     DELETE FROM plugin_versions; DELETE FROM blobs; \
                     UPDATE catalog_state SET generation = generation + 1; COMMIT";
    let locked = postgres.clone();
    let deleted = tokio::task::spawn_blocking(move || locked.psql(statement));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lacks = second.put_pipeline("tagged", &tagged("x")).await.unwrap();
    deleted.await.unwrap().unwrap();
    assert_eq!(
        (lacks.status, lacks.code()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-pipeline".into()),
        "{:?}",
        lacks.body
    );
    let message = lacks.json()["errors"][0]["message"].to_string();
    assert!(message.contains("probe"), "{message}");
}

#[tokio::test]
async fn a_host_keeps_so_many_revisions_and_pipelines() {
    let limits = Config::with("[limits]\nrevisions = 2\npipelines = 2\n");
    let host = Host::start(&limits).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    for tag in ["a", "b", "c"] {
        host.apply("tagged", &tagged(tag)).await.unwrap();
    }
    let path = "/api/v1/namespaces/default/pipelines/tagged";
    let listed = host.get(&format!("{path}/revisions")).await.unwrap().json();
    let numbers: Vec<_> = listed["items"].as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 2, "{listed}");
    let request = host.admin_request(Method::POST, &format!("{path}/rollback"));
    let request = request.json(&serde_json::json!({"revision": 1}));
    let old = stepwell_tests::send(request).await.unwrap();
    assert_eq!(old.status, StatusCode::NOT_FOUND);
    let detail = old.json()["detail"].to_string();
    assert!(detail.contains("the oldest that is kept is 2"), "{detail}");
    let back = host.admin_request(Method::POST, &format!("{path}/rollback"));
    let back = stepwell_tests::send(back).await.unwrap();
    assert_eq!(
        (back.status, &back.json()["revision"]),
        (StatusCode::OK, &4.into())
    );
    assert_eq!(ask(&host, "config:tag").await.body, r#"Ok(Some("b"))"#);

    let other = |name: &str| tagged("x").replace("tagged", name);
    host.apply("other", &other("other")).await.unwrap();
    let third = host.put_pipeline("third", &other("third")).await.unwrap();
    assert_eq!(
        (third.status, third.code()),
        (StatusCode::FORBIDDEN, "quota-exceeded".into())
    );
    let set = host.cli(&["namespace", "set", "default", "--pipelines", "3"]);
    assert!(set.unwrap().status.success());
    host.apply("third", &other("third")).await.unwrap();
    let shown = host.get("/api/v1/namespaces/default").await.unwrap().json();
    assert_eq!(shown["quotas"]["pipelines"], 3, "{shown}");
    assert_eq!(shown["usage"]["pipelines"], 3, "{shown}");
    let metrics = host.get("/metrics").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(
        metrics.lines().any(|line| {
            line.starts_with("stepwell_quota_refusals_total{")
                && line.contains("quota=\"pipelines\"")
                && line.ends_with(" 1")
        }),
        "the refusal is counted"
    );
    // What a cursor cannot be is the caller's mistake.
    for list in ["pipelines", "plugins"] {
        let path = format!("/api/v1/namespaces/default/{list}?cursor=%00");
        let refused = host.get(&path).await.unwrap();
        assert_eq!(
            (refused.status, refused.code()),
            (StatusCode::BAD_REQUEST, "bad-request".into()),
            "{list}"
        );
    }
}

#[tokio::test]
async fn revisions_are_kept_rolled_back_and_guarded() {
    let host = Host::start(&Config::default()).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    let first = host.put_pipeline("tagged", &tagged("a")).await.unwrap();
    assert_eq!(
        (first.status, first.json()["revision"].as_u64()),
        (StatusCode::CREATED, Some(1))
    );
    let same = host.put_pipeline("tagged", &tagged("a")).await.unwrap();
    assert_eq!(
        (same.status, same.json()["revision"].as_u64()),
        (StatusCode::OK, Some(1))
    );
    let second = host.put_pipeline("tagged", &tagged("b")).await.unwrap();
    assert_eq!(second.json()["revision"], 2);
    assert_eq!(ask(&host, "config:tag").await.body, r#"Ok(Some("b"))"#);

    let path = "/api/v1/namespaces/default/pipelines/tagged";
    let stale = host
        .admin_request(Method::PUT, path)
        .header("if-match", first.json()["etag"].as_str().unwrap())
        .body(tagged("c"))
        .send()
        .await
        .unwrap();
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);

    let dry = host
        .admin_request(Method::PUT, &format!("{path}?dry_run=true"))
        .body(tagged("d"))
        .send()
        .await
        .unwrap();
    assert_eq!(dry.status(), StatusCode::OK);
    assert_eq!(
        host.get(path).await.unwrap().json()["revision"],
        2,
        "a dry run stores nothing"
    );

    let back = host
        .admin_request(Method::POST, &format!("{path}/rollback"))
        .send()
        .await
        .unwrap();
    assert_eq!(back.status(), StatusCode::OK);
    assert_eq!(host.get(path).await.unwrap().json()["revision"], 3);
    assert_eq!(ask(&host, "config:tag").await.body, r#"Ok(Some("a"))"#);

    // What `@1` resolved to stays pinned until the next apply.
    host.upload("probe", "1.5.0", "hostile").await.unwrap();
    assert_eq!(
        host.get(path).await.unwrap().json()["steps"][0]["version"],
        "1.0.0"
    );
    host.apply("tagged", &tagged("a")).await.unwrap();
    assert_eq!(
        host.get(path).await.unwrap().json()["steps"][0]["version"],
        "1.5.0"
    );

    let gone = host
        .admin_request(Method::DELETE, path)
        .send()
        .await
        .unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(ask(&host, "echo").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_see_one_revision_each_while_everything_changes() {
    let host = Arc::new(Host::start(&Config::default()).await.unwrap());
    // Three steps that append their tags: a run on two revisions would show two.
    let document = |tag: u32| {
        format!(
            "stepwell: 1\nname: tagged\ntriggers:\n  - http: {{method: POST, path: /tagged}}\nsteps:\n\
             \x20 - {{id: one, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n\
             \x20 - {{id: two, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n\
             \x20 - {{id: three, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
        )
    };
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    host.apply("tagged", &document(0)).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU32::new(0));
    let callers: Vec<_> = (0..32)
        .map(|_| {
            let (host, done, answered) = (host.clone(), done.clone(), answered.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let reply = host.post("/tagged", "text/plain", "").await.unwrap();
                    let text = String::from_utf8(reply.body.to_vec()).unwrap();
                    assert_eq!(reply.status, StatusCode::OK, "{text}");
                    let tags: Vec<&str> = text.split_whitespace().collect();
                    assert_eq!(tags.len(), 3, "{text}");
                    assert!(
                        tags.iter().all(|tag| *tag == tags[0]),
                        "more than one revision: {text}"
                    );
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for n in 1..=30 {
        host.apply("tagged", &document(n)).await.unwrap();
        host.upload("other", &format!("1.0.{n}"), "hostile")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    while answered.load(Ordering::Relaxed) < 3000 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}
