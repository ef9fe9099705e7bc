use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use stepwell_http_trigger::{HandshakeLimits, ServeConfig, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::sockets::{Server, impatient};
use super::{deployment, function, inspect, one, spec, trigger};

/// A certificate for localhost, which is its own authority.
struct Identity {
    certified: CertifiedKey,
    pem: String,
}

fn identity() -> Identity {
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let signing = ring::sign::any_supported_type(&der).unwrap();
    Identity {
        certified: CertifiedKey::new(vec![certificate.der().clone()], signing),
        pem: certificate.pem(),
    }
}

fn tls(identity: &Identity, limits: HandshakeLimits) -> Arc<Tls> {
    Arc::new(Tls::new("data", identity.certified.clone(), limits).unwrap())
}

fn config(tls: &Arc<Tls>) -> ServeConfig {
    ServeConfig {
        tls: Some(tls.clone()),
        ..ServeConfig::default()
    }
}

async fn connect(
    server: &Server,
    identity: &Identity,
    alpn: &[&str],
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.certified.cert[0].clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

const GET: &[u8] =
    b"POST /p HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_after_the_handshake_is_given_up() {
    let identity = identity();
    let tls = tls(&identity, HandshakeLimits::default());
    let config = ServeConfig {
        tls: Some(tls),
        ..impatient()
    };
    let server = Server::start(one(inspect()), config).await;
    let version = &rustls::version::TLS13;
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let silent = connect(&server, &identity, alpn, version).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(10), async {
            let mut next = connect(&server, &identity, &["http/1.1"], version)
                .await
                .unwrap();
            next.write_all(GET).await.unwrap();
            let mut answer = String::new();
            next.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let answer = next.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{alpn:?}: {answer}");
        drop(silent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_and_both_versions_are_spoken() {
    let identity = identity();
    let tls = tls(&identity, HandshakeLimits::default());
    let server = Server::start(one(inspect()), config(&tls)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream = connect(&server, &identity, &["http/1.1"], version)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.write_all(GET).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        let stream = connect(&server, &identity, &["h2", "http/1.1"], version)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::post("https://localhost/p").body(Full::new(Bytes::new()));
        let reply = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(reply.status(), 200);
    }
    let https = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(reqwest::Certificate::from_pem(identity.pem.as_bytes()))
        .resolve("localhost", server.address)
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/p", server.address.port());
    assert_eq!(https.post(&url).send().await.unwrap().status(), 200);
    let stranger = reqwest::Client::builder().no_proxy();
    let other = super::tls::identity();
    let stranger = stranger
        .tls_certs_only(reqwest::Certificate::from_pem(other.pem.as_bytes()))
        .resolve("localhost", server.address);
    assert!(stranger.build().unwrap().post(&url).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_sees_that_it_was_called_over_tls() {
    let reflect = function(|request| {
        Box::pin(async move {
            let body = Full::new(Bytes::from(request.uri().to_string()));
            Ok(Response::new(
                body.map_err(|never| match never {}).boxed_unsync(),
            ))
        })
    });
    let identity = identity();
    let tls = tls(&identity, HandshakeLimits::default());
    let trigger = trigger(&[deployment(spec("", "/p"), 1, reflect)]);
    let server = Server::start(trigger, config(&tls)).await;
    let mut stream = connect(&server, &identity, &[], &rustls::version::TLS13)
        .await
        .unwrap();
    stream.write_all(GET).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("https://localhost/p"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_no_tls_is_told_or_closed() {
    let identity = identity();
    let tls = tls(&identity, HandshakeLimits::default());
    let server = Server::start(one(inspect()), config(&tls)).await;
    let answer = server.raw(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.ends_with("https and not http"),
        "{answer}"
    );
    for garbage in [
        &[0_u8; 3_000][..],
        &[22, 3, 1, 0xff, 0xff, 0, 0],
        b"\x16\x03\x01\x00\x05hello",
    ] {
        let began = Instant::now();
        server.raw(garbage).await;
        assert!(began.elapsed() < Duration::from_secs(11));
    }
    assert!(
        connect(&server, &identity, &[], &rustls::version::TLS13)
            .await
            .is_ok()
    );
    // No protocol in common.
    assert!(
        connect(&server, &identity, &["spdy/3"], &rustls::version::TLS13)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_hold_nothing() {
    let identity = identity();
    // Long enough that nothing but displacement helps.
    let limits = HandshakeLimits {
        timeout: Duration::from_secs(600),
        at_once: 4,
    };
    let tls = tls(&identity, limits);
    let server = Server::start(one(inspect()), config(&tls)).await;
    let mut silent = Vec::new();
    for n in 0..20 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        if n % 2 == 1 {
            // The beginning of a hello, and no more.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        silent.push(stream);
    }
    for _ in 0..3 {
        let stream = connect(&server, &identity, &[], &rustls::version::TLS13);
        let stream = tokio::time::timeout(Duration::from_secs(10), stream).await;
        stream.expect("the silent ones hold it up").unwrap();
    }
    // The first was displaced: its connection is closed.
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(10), silent[0].read(&mut byte)).await;
    assert!(matches!(closed.unwrap(), Ok(0) | Err(_)));
    // Those that are left do not keep the host from stopping.
    let began = Instant::now();
    server.shutdown.cancel();
    server.task.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_has_its_time() {
    let identity = identity();
    let limits = HandshakeLimits {
        timeout: Duration::from_millis(100),
        ..HandshakeLimits::default()
    };
    let server = Server::start(one(inspect()), config(&tls(&identity, limits))).await;
    let began = Instant::now();
    assert_eq!(server.raw(&[22, 3, 1]).await, "");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_while_connections_go_on() {
    let (old, new) = (identity(), identity());
    let tls = tls(&old, HandshakeLimits::default());
    let server = Server::start(one(inspect()), config(&tls)).await;
    let version = &rustls::version::TLS13;
    let mut stream = connect(&server, &old, &[], version).await.unwrap();
    tls.replace(new.certified.clone());
    assert!(connect(&server, &old, &[], version).await.is_err());
    assert!(connect(&server, &new, &[], version).await.is_ok());
    stream.write_all(GET).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
