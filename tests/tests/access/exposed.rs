use reqwest::{Method, StatusCode};
use stepwell_tests::{Host, cli, send};

use crate::support::{ADMIN, guarded};

#[tokio::test]
async fn the_admin_listener_asks_for_the_token() {
    let host = Host::start(&guarded()).await.unwrap();
    let ask = |path: &'static str, token: Option<&'static str>| {
        let request = host.admin_request(Method::GET, path);
        send(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    };
    for path in [
        "/api/v1/namespaces/default/plugins",
        "/api/v1/bindings",
        "/api/v1/models",
        "/metrics",
    ] {
        for token in [None, Some("wrong"), Some("correct-horse-batter"), Some("")] {
            let reply = ask(path, token).await.unwrap();
            assert_eq!(
                (reply.status, reply.code()),
                (StatusCode::UNAUTHORIZED, "unauthorized".into()),
                "{path} {token:?}"
            );
            assert!(reply.header("www-authenticate").starts_with("Bearer"));
        }
        assert_eq!(
            ask(path, Some(ADMIN)).await.unwrap().status,
            StatusCode::OK,
            "{path}"
        );
    }
    for path in ["/livez", "/readyz", "/openapi.json"] {
        assert_eq!(
            ask(path, None).await.unwrap().status,
            StatusCode::OK,
            "{path}"
        );
    }
    let refused = host.cli(&["plugin", "list"]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let listed = host.cli(&["plugin", "list", "--token", ADMIN]).unwrap();
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    assert!(!host.log().contains(ADMIN));
}

#[test]
fn no_token_no_address_that_others_reach() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let refused = cli(
        "http://127.0.0.1:1",
        path,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "0.0.0.0:0",
        ],
    )
    .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("admin_token") && error.contains("0.0.0.0:0"),
        "{error}"
    );
    assert!(refused.stdout.is_empty());
}
