use reqwest::{Method, StatusCode};
use serde_json::json;
use stepwell_tests::{Config, Host, guest, send};

use crate::support::{ADMIN, ask, get, guarded, namespace, pipeline, put, token};

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
