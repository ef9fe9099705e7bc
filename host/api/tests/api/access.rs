use axum::body::Body;
use axum::http::Method;

use crate::fake::Client;

const LIST: &str = "/api/v1/namespaces/default/plugins";

#[tokio::test]
async fn the_token_opens_what_it_guards() {
    let client = Client::with_token(Some("right")).bearing("right");
    for path in [LIST, "/api/v1/models", "/metrics"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let client = Client::with_token(Some("right"));
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
    let client = Client::with_token(Some("right"));
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
    for wrong in [
        "Bearer wrong",
        "Bearer right2",
        "Bearer righ",
        "Bearer",
        "Bearer ",
        "Basic right",
        "right",
        "Bearer\tright",
    ] {
        let headers = [("authorization", wrong)];
        let reply = client
            .send(Method::GET, LIST, &headers, Body::empty())
            .await;
        reply.problem(401, "unauthorized");
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
    }
    let path = format!("{LIST}/decode/versions/1.0.0");
    client
        .put(&path, "\0asm")
        .await
        .problem(401, "unauthorized");
    let client = client.bearing("right");
    client.get(&path).await.problem(404, "not-found");
}

#[tokio::test]
async fn probes_and_the_description_need_no_token() {
    let client = Client::with_token(Some("right"));
    for path in ["/livez", "/readyz", "/openapi.json", "/docs"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_configured_token_none_is_needed() {
    let client = Client::new();
    assert_eq!(client.get(LIST).await.status, 200);
    assert_eq!(client.bearing("any").get(LIST).await.status, 200);
}
