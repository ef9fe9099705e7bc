//! What the host itself fetches from URLs that deployers wrote.

use std::time::Duration;

use stepwell_egress::{EgressConfig, EgressError, FetchError};

use crate::server::{Certificate, Raw, Server};
use crate::{Names, egress, open};

const TIME: Duration = Duration::from_secs(20);

#[tokio::test]
async fn documents_come_over_https_or_from_an_opened_network() {
    let certificate = Certificate::of(&["id.example"]);
    let (secure, plain) = (Server::tls(&certificate).await, Server::start().await);
    let config = EgressConfig {
        ca: vec![certificate.ca.clone()],
        ..open()
    };
    let names = Names::of(&[
        ("id.example", &[&["127.0.0.1"]]),
        ("public.example", &[&["192.0.2.1", "8.8.8.8"]]),
        ("metadata.example", &[&["169.254.169.254"]]),
    ]);
    let client = egress(config, &names).client();
    let url = format!("https://id.example:{}/keys", secure.port);
    assert_eq!(client.get(&url, 100, TIME).await.unwrap(), "GET /keys");
    let url = plain.url("127.0.0.1", "/keys");
    assert_eq!(client.get(&url, 100, TIME).await.unwrap(), "GET /keys");

    let refused = |error: FetchError| match error {
        FetchError::Egress(error) => error,
        other => panic!("{other:?}"),
    };
    for url in [
        "http://public.example/",
        "https://metadata.example/",
        "http://[::1]/",
    ] {
        let error = refused(client.get(url, 100, TIME).await.unwrap_err());
        assert!(matches!(error, EgressError::Prohibited), "{url}: {error:?}");
    }
    for url in [
        "ftp://id.example/",
        "/keys",
        "https://a@id.example/",
        "https://127.1/",
        "",
    ] {
        let error = refused(client.get(url, 100, TIME).await.unwrap_err());
        assert!(matches!(error, EgressError::Uri(_)), "{url}: {error:?}");
    }
    let closed = egress(EgressConfig::default(), &names).client();
    let error = refused(closed.get(&url, 100, TIME).await.unwrap_err());
    assert!(matches!(error, EgressError::Prohibited), "{error:?}");
}

#[tokio::test]
async fn documents_are_small_there_and_in_time() {
    let server = Server::start().await;
    let client = egress(open(), &Names::loopback(&[])).client();
    let get = async |path: &str| client.get(&server.url("127.0.0.1", path), 1000, TIME).await;
    assert_eq!(get("/bytes/1000").await.unwrap().len(), 1000);
    assert!(matches!(
        get("/bytes/1001").await,
        Err(FetchError::TooLarge(1000))
    ));
    let redirect = format!("/redirect/{}", server.url("127.0.0.1", "/"));
    assert!(matches!(get(&redirect).await, Err(FetchError::Status(status)) if status == 302));
    let silent = Raw::start("", false).await;
    let error = client
        .get(&silent.url(), 10, Duration::from_millis(200))
        .await;
    assert!(matches!(error, Err(FetchError::Timeout)));
}
