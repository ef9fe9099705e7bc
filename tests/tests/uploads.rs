//! Uploading: what is accepted, what is refused and how it is said, and that versions never change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use reqwest::{Method, StatusCode};
use stepwell_tests::{Config, Host, guest};

async fn host() -> Host {
    Host::start(&Config::default()).await.unwrap()
}

#[tokio::test]
async fn a_component_is_stored_and_described() {
    let host = host().await;
    let bytes = guest("hostile").unwrap();
    let reply = host
        .put_plugin("probe", "1.0.0", bytes.clone())
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::CREATED);
    let json = reply.json();
    assert_eq!(json["world"], "stepwell:pipeline/step@0.1.0");
    assert_eq!(json["size"], bytes.len());
    assert!(json["digest"].as_str().unwrap().starts_with("sha256:"));
    assert!(
        json["imports"]
            .as_array()
            .unwrap()
            .iter()
            .any(|import| import == "wasi:config/store@0.2.0-rc.1")
    );
    assert!(
        json["exports"]
            .as_array()
            .unwrap()
            .iter()
            .any(|export| export == "stepwell:pipeline/handler@0.1.0")
    );

    let again = host
        .put_plugin("probe", "1.0.0", bytes.clone())
        .await
        .unwrap();
    assert_eq!(again.status, StatusCode::OK);
    let other = host
        .put_plugin("probe", "1.0.0", guest("hostile-http").unwrap())
        .await
        .unwrap();
    assert_eq!(
        (other.status, other.code()),
        (StatusCode::CONFLICT, "version-exists".into())
    );

    let stored = host
        .get("/api/v1/namespaces/default/plugins/probe/versions/1.0.0/component")
        .await
        .unwrap();
    assert_eq!(stored.body, bytes);
}

#[tokio::test]
async fn what_is_no_plugin_is_refused_by_name() {
    let host = host().await;
    let whole = guest("hostile").unwrap();
    let cases: [(&str, Vec<u8>); 4] = [
        ("not-wasm", b"rubbish".to_vec()),
        ("core-module", b"\0asm\x01\0\0\0".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        // A component without any export.
        ("unknown-world", b"\0asm\x0d\0\x01\0".to_vec()),
    ];
    for (code, bytes) in cases {
        let reply = host.put_plugin("bad", "1.0.0", bytes).await.unwrap();
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned())
        );
        assert_eq!(reply.header("content-type"), "application/problem+json");
        assert!(
            reply.json()["errors"][0]["hint"].is_string(),
            "{code} says how to mend it"
        );
    }
    let list = host
        .get("/api/v1/namespaces/default/plugins")
        .await
        .unwrap()
        .json();
    assert_eq!(
        list["items"].as_array().unwrap().len(),
        0,
        "nothing of it was kept"
    );
}

#[tokio::test]
async fn a_component_over_the_limit_is_refused() {
    let host = Host::start(&Config::with("[limits]\ncomponent = \"64KiB\"\n"))
        .await
        .unwrap();
    let reply = host
        .put_plugin("big", "1.0.0", vec![0; 1 << 20])
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.code()),
        (StatusCode::PAYLOAD_TOO_LARGE, "too-large".into())
    );
}

#[tokio::test]
async fn names_and_versions_in_the_path_are_checked() {
    let host = host().await;
    for path in [
        "/api/v1/namespaces/default/plugins/Bad_Name/versions/1.0.0",
        "/api/v1/namespaces/default/plugins/good/versions/1",
        "/api/v1/namespaces/default/plugins/..%2f..%2fetc/versions/1.0.0",
    ] {
        let reply = host
            .admin_request(Method::PUT, path)
            .body("x")
            .send()
            .await
            .unwrap();
        assert!(
            reply.status().is_client_error(),
            "{path}: {}",
            reply.status()
        );
    }
    let other = host.get("/api/v1/namespaces/other/plugins").await.unwrap();
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_plugin_in_use_stays_and_one_that_is_not_goes() {
    let host = host().await;
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.upload("probe", "1.1.0", "hostile").await.unwrap();
    let document = "stepwell: 1\nname: uses\nsteps:\n  - {id: only, plugin: probe@1.0.0}\n";
    host.apply("uses", document).await.unwrap();
    let delete = |version: &str| {
        let path = format!("/api/v1/namespaces/default/plugins/probe/versions/{version}");
        host.admin_request(Method::DELETE, &path).send()
    };
    let refused = delete("1.0.0").await.unwrap();
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    let text = refused.text().await.unwrap();
    assert!(text.contains("in-use") && text.contains("uses"), "{text}");
    assert_eq!(
        delete("1.1.0").await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        delete("1.1.0").await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn of_many_uploads_of_one_version_one_wins() {
    let host = host().await;
    let (a, b) = (guest("hostile").unwrap(), guest("hostile-http").unwrap());
    let uploads = (0..12).map(|n| {
        host.put_plugin(
            "race",
            "1.0.0",
            if n % 2 == 0 { a.clone() } else { b.clone() },
        )
    });
    let replies = futures_join(uploads).await;
    let created = replies
        .iter()
        .filter(|status| **status == StatusCode::CREATED)
        .count();
    assert_eq!(created, 1, "{replies:?}");
    assert!(replies.contains(&StatusCode::CONFLICT));
    assert!(
        replies
            .iter()
            .all(|status| matches!(status.as_u16(), 200 | 201 | 409)),
        "{replies:?}"
    );
}

async fn futures_join<F: Future<Output = anyhow::Result<stepwell_tests::Reply>>>(
    all: impl Iterator<Item = F>,
) -> Vec<StatusCode> {
    futures::future::join_all(all)
        .await
        .into_iter()
        .map(|reply| reply.unwrap().status)
        .collect()
}
