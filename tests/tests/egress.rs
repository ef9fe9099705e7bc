//! Outbound HTTP of guests, from end to end: what a grant opens, and what stays closed whatever a guest writes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use stepwell_tests::{Config, Host};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server on loopback that gives back the body or, without one, says what it was asked.
struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl Server {
    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, counted) = (tls.clone(), counted.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        counted.fetch_add(1, Ordering::SeqCst);
                        answer(request)
                    });
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => {
                                server.serve_connection(TokioIo::new(stream), service).await
                            }
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Self { port, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn asked(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn answer(
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = http::Response::builder();
    if let Some(location) = head.uri.path().strip_prefix("/redirect/") {
        response = response.status(302).header("location", location);
    }
    let body = match head.uri.path().strip_prefix("/bytes/") {
        Some(size) => vec![b'x'; size.parse().unwrap()].into(),
        None => body
            .collect()
            .await
            .map_or_else(|_| Bytes::from("broken off"), |body| body.to_bytes()),
    };
    let body = match body.is_empty() {
        true => Bytes::from(format!(
            "{:?} {} {}",
            head.version,
            head.method,
            head.uri.path()
        )),
        false => body,
    };
    Ok(response.body(Full::new(body)).unwrap())
}

/// A host with these grants for the pipeline at `/fetch`; the plugin can be applied again with others.
async fn start(egress: &str, grants: &[String]) -> Host {
    let host = Host::start(&Config::with(&format!("[egress]\n{egress}\n")))
        .await
        .unwrap();
    host.upload("fetcher", "1.0.0", "fetcher").await.unwrap();
    host.apply("fetch", &document(grants)).await.unwrap();
    host
}

fn document(grants: &[String]) -> String {
    let grants = match grants {
        [] => String::new(),
        _ => format!(", grants: {{http: {grants:?}}}"),
    };
    format!(
        "stepwell: 1\nname: fetch\ntriggers:\n  - http: {{method: POST, path: /fetch}}\nsteps:\n\
         \x20 - {{id: only, plugin: fetcher@1, limits: {{cpu: 5s, wall: 20s, output: 8MiB}}{grants}}}\n"
    )
}

async fn ask(host: &Host, what: &str, request: String) -> String {
    let reply = host.event("/fetch", "1", what, request).await.unwrap();
    String::from_utf8(reply.body.to_vec()).unwrap()
}

async fn fetch(host: &Host, request: String) -> String {
    ask(host, "fetch", request).await
}

const OPEN: &str = "private = [\"127.0.0.1/32\"]";

/// How many requests were refused for this.
async fn denied(host: &Host, reason: &str) -> f64 {
    let name = format!("stepwell_egress_denied_total{{reason=\"{reason}\"}}");
    host.metric(&name).await.unwrap()
}

#[tokio::test]
async fn a_granted_request_is_answered_and_an_ungranted_one_is_denied() {
    let server = Server::start(None).await;
    let host = start(OPEN, &[server.url("")]).await;
    let get = format!("GET {}", server.url("/x"));
    assert_eq!(fetch(&host, get.clone()).await, "200 HTTP/1.1 GET /x");
    // A body streams both ways.
    let body = "abcdefgh".repeat(40_000);
    let post = format!("POST {}\n\n{body}", server.url("/"));
    assert_eq!(fetch(&host, post).await, format!("200 {body}"));
    let metrics = host.get("/metrics").await.unwrap();
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(metrics.contains("stepwell_egress_requests_total{outcome=\"answered\"} 2"));

    host.apply("fetch", &document(&[])).await.unwrap();
    let denied = "ErrorCode::HttpRequestDenied";
    assert_eq!(fetch(&host, get.clone()).await, denied);
    host.apply("fetch", &document(&["https://api.example.com".into()]))
        .await
        .unwrap();
    assert_eq!(fetch(&host, get).await, denied);
    assert_eq!(crate::denied(&host, "not-granted").await, 2.0);
    assert_eq!(server.asked(), 2);
    let logs = host.get("/api/v1/namespaces/default/logs").await.unwrap();
    let logs = logs.json().to_string();
    for reason in [
        "was refused: the step has no http grant\"",
        "was refused: the step has no http grant for it\"",
    ] {
        assert!(logs.contains(reason), "{reason} in {logs}");
    }
}

#[tokio::test]
async fn private_addresses_are_closed_until_the_operator_opens_them() {
    let server = Server::start(None).await;
    let by_name = format!("http://localhost:{}", server.port);
    let grants = [
        server.url(""),
        by_name.clone(),
        "http://169.254.169.254".into(),
    ];
    let prohibited = "ErrorCode::DestinationIpProhibited";
    let host = start("", &grants).await;
    for url in &grants {
        assert_eq!(
            fetch(&host, format!("GET {url}/")).await,
            prohibited,
            "{url}"
        );
    }
    assert_eq!(server.asked(), 0);
    assert_eq!(denied(&host, "address").await, grants.len() as f64);
    let host = start(OPEN, &grants).await;
    assert_eq!(
        fetch(&host, format!("GET {by_name}/")).await,
        "200 HTTP/1.1 GET /"
    );
    assert_eq!(
        fetch(&host, "GET http://169.254.169.254/".into()).await,
        prohibited
    );
}

#[tokio::test]
async fn nothing_that_a_guest_writes_leads_elsewhere() {
    let (server, other) = (Server::start(None).await, Server::start(None).await);
    let port = server.port;
    let host = start(OPEN, &[server.url("")]).await;
    for url in [
        other.url("/"),
        format!("http://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}@127.0.0.1:{}/", other.port),
        format!("http://user:password@127.0.0.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f000001:{port}/"),
        format!("http://0177.0.0.1:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://127.0.0.1.:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://127.0.0.1:0{port}/"),
        format!("http://127.0.0.1:{port}0000/"),
        "http://127.0.0.1/".into(),
        format!("http://127.0.0.1:{port}#@127.0.0.1:{}/", other.port),
        format!("http://127.0.0.1:{port}\\@127.0.0.1:{}/", other.port),
        "http:///".into(),
        format!("ftp://127.0.0.1:{port}/"),
        format!("file://127.0.0.1:{port}/etc/passwd"),
    ] {
        let reply = fetch(&host, format!("GET {url}")).await;
        let refused = [
            "ErrorCode::HttpRequestDenied",
            "ErrorCode::HttpRequestUriInvalid",
            "ErrorCode::HttpProtocolError",
            "authority refused",
            "scheme refused",
        ];
        assert!(refused.contains(&reply.as_str()), "{url}: {reply}");
    }
    for method in ["CONNECT", "TRACE", "trace", "TRACK"] {
        let reply = fetch(&host, format!("{method} {}", server.url("/"))).await;
        assert_eq!(reply, "ErrorCode::HttpRequestMethodInvalid", "{method}");
    }
    for header in [
        "host: evil.example",
        "connection: close",
        "transfer-encoding: chunked",
        "upgrade: h2c",
    ] {
        let reply = fetch(&host, format!("GET {}\n{header}", server.url("/"))).await;
        assert_eq!(reply, "HeaderError::Forbidden", "{header}");
    }
    let reply = fetch(
        &host,
        format!("GET {}\nx: a\\r\\nhost: evil.example", server.url("/")),
    )
    .await;
    assert_eq!(reply, "HeaderError::InvalidSyntax");
    assert_eq!((server.asked(), other.asked()), (0, 0));
    assert_eq!(denied(&host, "method").await, 4.0);
    for reason in ["url", "not-granted"] {
        assert!(denied(&host, reason).await >= 1.0, "{reason}");
    }

    // A redirect leads nowhere by itself, and a guest that follows it is checked again.
    let redirect = format!(
        "GET {}",
        server.url(&format!("/redirect/{}", other.url("/")))
    );
    assert!(fetch(&host, redirect.clone()).await.starts_with("302 "));
    assert_eq!(
        ask(&host, "follow", redirect).await,
        "ErrorCode::HttpRequestDenied"
    );
    let inside = format!(
        "GET {}",
        server.url(&format!("/redirect/{}", server.url("/in")))
    );
    assert_eq!(ask(&host, "follow", inside).await, "200 HTTP/1.1 GET /in");
    assert_eq!(other.asked(), 0);
}

#[tokio::test]
async fn the_admin_listener_is_out_of_reach() {
    let host = start("private = [\"127.0.0.0/8\"]", &[]).await;
    let (admin, data) = (host.admin().to_owned(), host.data().to_owned());
    host.apply("fetch", &document(&[admin.clone(), data.clone()]))
        .await
        .unwrap();
    let reply = fetch(&host, format!("GET {admin}/livez")).await;
    assert_eq!(reply, "ErrorCode::DestinationIpProhibited");
    let reply = fetch(&host, format!("GET {data}/nowhere")).await;
    assert!(reply.starts_with("404 "), "{reply}");
}

#[tokio::test]
async fn https_trusts_the_operators_authority() {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = Server::start(Some(TlsAcceptor::from(Arc::new(tls)))).await;
    let origin = format!("https://localhost:{}", server.port);
    let get = format!("GET {origin}/x");

    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let trusting = format!("{OPEN}\nca = \"{}\"", ca.display());
    let host = start(&trusting, std::slice::from_ref(&origin)).await;
    assert_eq!(fetch(&host, get.clone()).await, "200 HTTP/2.0 GET /x");
    let host = start(OPEN, &[origin]).await;
    assert_eq!(fetch(&host, get).await, "ErrorCode::TlsCertificateError");
}

#[tokio::test]
async fn limits_hold_and_what_a_call_leaves_is_closed() {
    let server = Server::start(None).await;
    let limits = format!(
        "{OPEN}\nresponse_bytes = \"100KiB\"\nrequests_per_call = 4\nrequests_per_namespace = 4\nfirst_byte_timeout = \"2s\""
    );
    let host = start(&limits, &[server.url("")]).await;
    let reply = fetch(&host, format!("GET {}", server.url("/bytes/200000"))).await;
    assert_eq!(reply, "broken off");
    let logs = host.get("/api/v1/namespaces/default/logs").await.unwrap();
    let logs = logs.json().to_string();
    assert!(logs.contains("[egress] response_bytes"), "{logs}");
    let reply = fetch(&host, format!("GET {}", server.url("/bytes/100000"))).await;
    assert_eq!(reply.len(), "200 ".len() + 100_000);
    let many = format!("GET {}", server.url("/"));
    let reply = ask(&host, "many:10", many.clone()).await;
    assert_eq!(reply, "4 answered ErrorCode::ConnectionLimitReached");
    assert_eq!(denied(&host, "limit").await, 6.0);
    let cut_off = "stepwell_egress_responses_cut_off_total";
    assert_eq!(host.metric(cut_off).await.unwrap(), 1.0);
    // Whatever calls leave half done ends with them: their places are free again.
    for _ in 0..6 {
        let unread = format!("GET {}", server.url("/bytes/1000000"));
        assert_eq!(ask(&host, "unread", unread).await, "200");
    }
    let unfinished = format!("POST {}", server.url("/"));
    let reply = ask(&host, "unfinished", unfinished).await;
    assert_eq!(reply, "ErrorCode::HttpResponseTimeout");
    assert!(ask(&host, "many:4", many).await.starts_with("4 answered"));
}
