//! PostgreSQL or Redis goes away and comes back: clear errors meanwhile, no harm to what needs neither, no restart of the host.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use stepwell_test_services::{Postgres, Redis};
use stepwell_tests::{Config, Host, Reply, pgm, repository, scans};

fn config(postgres: &Postgres, redis: &Redis) -> Config {
    let models = repository().join("tests/models/saved");
    Config::with(&format!(
        "[catalog]\nurl = \"{postgres}\"\n[models]\ndirectory = \"{}\"\n[bindings.models.digits]\nmodel = \"digits\"\n\
         [bindings.vectors.scans]\ndimension = 64\n\
         [bindings.keyvalue.main-redis]\nbackend = \"redis\"\nurl = \"{}\"\n\
         [bindings.sql.results]\nbackend = \"postgres\"\nurl = \"{postgres}\"\n",
        models.display(),
        redis.url(),
        postgres = postgres.url(),
    ))
}

fn tagged(name: &str, tag: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}

/// The digit reader, which needs Redis and PostgreSQL, and `tagged`, which needs nothing.
async fn set_up(host: &Host) {
    for plugin in ["decode-image", "classify-digit", "record", "tagger"] {
        host.upload(plugin, "1.0.0", plugin).await.unwrap();
    }
    let digits =
        std::fs::read_to_string(repository().join("plugins/pipelines/digit-reader.yaml")).unwrap();
    host.apply("digit-reader", &digits).await.unwrap();
    host.apply("tagged", &tagged("tagged", "a")).await.unwrap();
    host.wait_for("models/digits", "ok").await.unwrap();
}

async fn read_digit(host: &Host) -> Reply {
    let picture = pgm(&scans("heldout").unwrap()[0].pixels);
    host.post("/digits/outage", "image/x-portable-graymap", picture)
        .await
        .unwrap()
}

/// `tagged` needs none of what is away.
async fn others_go_on(host: &Host, tag: &str) {
    let reply = host.post("/tagged", "text/plain", "").await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (StatusCode::OK, format!("{tag} ").as_bytes())
    );
}

/// A problem document without addresses and without what a driver said.
fn is_plain_problem(reply: &Reply, code: &str) {
    let text = String::from_utf8_lossy(&reply.body);
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::SERVICE_UNAVAILABLE, code.to_owned()),
        "{text}"
    );
    assert_eq!(reply.header("content-type"), "application/problem+json");
    for secret in [
        "127.0.0.1",
        "postgres://",
        "redis://",
        "os error",
        "stepwell@",
        "refused (",
        "src/",
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

/// Every part that is not `ok`, with its reason; none of these names an address.
async fn not_ok(host: &Host) -> Vec<String> {
    // What was seen of a dependency serves for 2 s.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let ready = host.get("/readyz").await.unwrap();
    assert_eq!(
        ready.status,
        StatusCode::OK,
        "a host that serves something is ready"
    );
    let ready = ready.json();
    let parts = ready["parts"].as_array().unwrap();
    let bad: Vec<&Value> = parts.iter().filter(|part| part["status"] != "ok").collect();
    assert_eq!(ready["status"] == "ok", bad.is_empty(), "{ready}");
    for part in &bad {
        let reason = part["reason"].as_str().unwrap_or_default();
        assert!(
            !reason.is_empty() && !reason.contains("127.0.0.1") && !reason.contains("://"),
            "{part}"
        );
    }
    bad.iter()
        .map(|part| part["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(40);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_goes_away_and_comes_back() {
    let (mut postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let host = Host::start(&config(&postgres, &redis)).await.unwrap();
    set_up(&host).await;
    let pid = host.pid();
    let before = read_digit(&host).await;
    assert_eq!(
        before.status,
        StatusCode::OK,
        "{}",
        String::from_utf8_lossy(&before.body)
    );
    assert!(not_ok(&host).await.is_empty());

    postgres.stop();
    is_plain_problem(&read_digit(&host).await, "unavailable");
    others_go_on(&host, "a").await;
    assert_eq!(not_ok(&host).await, ["catalog", "sql/results"]);
    for path in ["plugins", "pipelines", "pipelines/tagged"] {
        let reply = host
            .get(&format!("/api/v1/namespaces/default/{path}"))
            .await
            .unwrap();
        is_plain_problem(&reply, "unavailable");
    }
    let applied = host
        .put_pipeline("tagged", &tagged("tagged", "b"))
        .await
        .unwrap();
    is_plain_problem(&applied, "unavailable");
    let uploaded = host
        .put_plugin("late", "1.0.0", stepwell_tests::guest("tagger").unwrap())
        .await
        .unwrap();
    is_plain_problem(&uploaded, "unavailable");
    // Invoking needs the pipeline, not the catalog.
    let path = "/api/v1/namespaces/default/pipelines/tagged/invoke";
    let invoked = host
        .admin_request(Method::POST, path)
        .body("")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (invoked.status(), &invoked.bytes().await.unwrap()[..]),
        (StatusCode::OK, &b"a "[..])
    );
    others_go_on(&host, "a").await;

    postgres.restart().unwrap();
    host.wait_for("catalog", "ok").await.unwrap();
    host.wait_for("sql/results", "ok").await.unwrap();
    eventually("the digit reader answers again", async || {
        read_digit(&host).await.status == StatusCode::OK
    })
    .await;
    // What was refused was not done by halves.
    let current = host
        .get("/api/v1/namespaces/default/pipelines/tagged")
        .await
        .unwrap()
        .json();
    assert_eq!(current["revision"], 1);
    host.apply("tagged", &tagged("tagged", "c")).await.unwrap();
    others_go_on(&host, "c").await;
    assert!(not_ok(&host).await.is_empty());
    assert_eq!(host.pid(), pid, "it is the same process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_goes_away_and_comes_back() {
    let (postgres, mut redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let host = Host::start(&config(&postgres, &redis)).await.unwrap();
    set_up(&host).await;
    assert_eq!(read_digit(&host).await.json()["seen"], 1);

    redis.stop();
    is_plain_problem(&read_digit(&host).await, "unavailable");
    assert_eq!(not_ok(&host).await, ["keyvalue/main-redis"]);
    others_go_on(&host, "a").await;
    // The catalog is well: applying goes on.
    host.apply("tagged", &tagged("tagged", "b")).await.unwrap();
    others_go_on(&host, "b").await;

    redis.restart().unwrap();
    host.wait_for("keyvalue/main-redis", "ok").await.unwrap();
    let mut seen = Value::Null;
    eventually("the digit reader answers again", async || {
        let reply = read_digit(&host).await;
        seen = reply.json()["seen"].clone();
        reply.status == StatusCode::OK
    })
    .await;
    assert!(
        seen.as_u64().unwrap() >= 2,
        "it counts on from what Redis kept: {seen}"
    );
    assert!(not_ok(&host).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_starts_without_its_catalog_and_recovers() {
    let (mut postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let mut host = Host::start(&config(&postgres, &redis)).await.unwrap();
    set_up(&host).await;
    assert_eq!(host.stop().unwrap(), 0);

    // It knows nothing yet, and says so instead of failing.
    postgres.stop();
    host.restart().await.unwrap();
    assert!(not_ok(&host).await.contains(&"catalog".to_owned()));
    is_plain_problem(
        &host
            .get("/api/v1/namespaces/default/pipelines")
            .await
            .unwrap(),
        "unavailable",
    );
    is_plain_problem(
        &host.post("/tagged", "text/plain", "").await.unwrap(),
        "unavailable",
    );

    postgres.restart().unwrap();
    eventually("the pipelines are back", async || {
        host.post("/tagged", "text/plain", "").await.unwrap().status == StatusCode::OK
    })
    .await;
    host.wait_for("models/digits", "ok").await.unwrap();
    eventually("the digit reader answers", async || {
        read_digit(&host).await.status == StatusCode::OK
    })
    .await;
    eventually("the API answers", async || {
        let pipelines = host.get("/api/v1/namespaces/default/pipelines").await;
        pipelines.unwrap().status == StatusCode::OK
    })
    .await;
    host.apply("tagged", &tagged("tagged", "z")).await.unwrap();
    others_go_on(&host, "z").await;
    assert!(not_ok(&host).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_share_a_catalog_see_each_others_changes() {
    let postgres = Postgres::start().unwrap();
    let config = Config::with(&format!("[catalog]\nurl = \"{}\"\n", postgres.url()));
    let (a, b) = tokio::join!(Host::start(&config), Host::start(&config));
    let (a, b) = (a.unwrap(), b.unwrap());
    a.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let answers = async |host: &Host, tag: &str| {
        let reply = host.post("/tagged", "text/plain", "").await.unwrap();
        reply.status == StatusCode::OK && reply.body == format!("{tag} ")
    };
    a.apply("tagged", &tagged("tagged", "a")).await.unwrap();
    eventually("b serves what a was given", async || answers(&b, "a").await).await;
    b.apply("tagged", &tagged("tagged", "b")).await.unwrap();
    assert!(
        answers(&b, "b").await,
        "an apply is in force when it is acknowledged"
    );
    eventually("a serves what b was given", async || answers(&a, "b").await).await;

    // Both at once: each apply is a revision of its own, and both end with the same.
    let (a_ref, b_ref) = (&a, &b);
    let applies = (0..20).map(|n| async move {
        let host = if n % 2 == 0 { a_ref } else { b_ref };
        let reply = host
            .put_pipeline("tagged", &tagged("tagged", &format!("n{n}")))
            .await
            .unwrap();
        assert_eq!(
            reply.status,
            StatusCode::OK,
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        reply.json()["revision"].as_u64().unwrap()
    });
    let mut revisions = futures::future::join_all(applies).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (3..=22).collect::<Vec<_>>());
    let path = "/api/v1/namespaces/default/pipelines/tagged";
    let current = a.get(path).await.unwrap().json();
    assert_eq!(current, b.get(path).await.unwrap().json());
    let tag = current["document"]["steps"][0]["config"]["tag"]
        .as_str()
        .unwrap();
    eventually("both serve the last revision", async || {
        answers(&a, tag).await && answers(&b, tag).await
    })
    .await;

    let gone = a.admin_request(Method::DELETE, path).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    eventually("b has dropped it", async || {
        b.post("/tagged", "text/plain", "").await.unwrap().status == StatusCode::NOT_FOUND
    })
    .await;
}
