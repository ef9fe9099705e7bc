//! Applying pipelines: every mistake at once, revisions, rollback, and requests that see exactly one revision.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
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
