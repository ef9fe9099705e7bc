//! How callers reach the host and how it tells who they are: TLS on both listeners, tokens of HTTP triggers, CPU accounts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use stepwell_tests::{Config, Host, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Writes a certificate of its own for this machine; answers it as PEM.
fn certify(directory: &Path) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    std::fs::write(directory.join("own.pem"), &certificate).unwrap();
    std::fs::write(directory.join("own.key"), key.serialize_pem()).unwrap();
    certificate
}

fn trusting(pem: &str) -> Client {
    let certificate = Certificate::from_pem(pem.as_bytes()).unwrap();
    Client::builder()
        .no_proxy()
        .tls_certs_only([certificate])
        .build()
        .unwrap()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn both_listeners_speak_tls_and_take_new_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let first = certify(directory.path());
    let shown = directory.path().display();
    let host = Host::start(&Config {
        server: "admin_token = \"correct-horse-battery\"".to_owned(),
        sections: format!(
            "[server.tls]\ncertificate = \"{shown}/own.pem\"\nkey = \"{shown}/own.key\"\n"
        ),
    })
    .await
    .unwrap();
    assert!(host.data().starts_with("https://") && host.admin().starts_with("https://"));

    let livez = format!("{}/livez", host.admin());
    let status = async |client: &Client, url: &str| {
        Some(client.get(url).send().await.ok()?.status().as_u16())
    };
    assert_eq!(status(&trusting(&first), &livez).await, Some(200));
    assert_eq!(status(&trusting(&first), host.data()).await, Some(404));
    let plain = host.data().replace("https://", "http://");
    assert_eq!(status(&trusting(&first), &plain).await, Some(400));

    // The command line trusts what it is told to trust.
    let authority = directory.path().join("authority.pem");
    std::fs::write(&authority, &first).unwrap();
    let list = ["plugin", "list", "--token", "correct-horse-battery", "--ca"];
    let with = |file: &Path| {
        host.cli(&[&list[..], &[file.to_str().unwrap()]].concat())
            .unwrap()
    };
    let done = with(&authority);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let refused = host.cli(&list[..4]).unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--ca"));
    assert_eq!(
        with(&directory.path().join("nothing")).status.code(),
        Some(2)
    );

    let second = certify(directory.path());
    eventually("the new certificate is not in use", async || {
        status(&trusting(&second), &livez).await == Some(200)
            && status(&trusting(&second), host.data()).await == Some(404)
    })
    .await;
    assert_eq!(status(&trusting(&first), &livez).await, None);

    // A broken one is not taken, and is told of.
    std::fs::write(directory.path().join("own.pem"), "nothing").unwrap();
    let part = async || {
        let url = format!("{}/readyz", host.admin());
        let ready: Value = trusting(&second)
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let parts = ready["parts"].as_array().unwrap();
        parts
            .iter()
            .find(|part| part["name"] == "tls")
            .unwrap()
            .clone()
    };
    eventually("the broken one is not told of", async || {
        part().await["status"] == "degraded"
    })
    .await;
    assert!(!part().await.to_string().contains(&shown.to_string()));
    let third = certify(directory.path());
    eventually("the third one is not in use", async || {
        status(&trusting(&third), &livez).await == Some(200)
    })
    .await;

    let config = host.directory().join("stepwell.toml");
    let doctor = host
        .cli(&["doctor", "--json", "--config", config.to_str().unwrap()])
        .unwrap();
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(report.contains("certificate ([server.tls])"), "{report}");
}

/// How long a listener keeps the connection of a client that says this and nothing else.
async fn until_closed(address: &str, said: &[u8]) -> Option<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(50), stream.read_to_end(&mut answer));
    // However it is closed.
    let _ = read.await.ok()?;
    Some(began.elapsed())
}

#[tokio::test]
async fn neither_listener_keeps_who_says_nothing() {
    let host = Host::start(&Config::default()).await.unwrap();
    let address = |url: &str| url.strip_prefix("http://").unwrap().to_owned();
    let (data, admin) = (address(host.data()), address(host.admin()));
    let half = b"GET /livez HTTP/1.1\r\nhost: x\r\n";
    let (a, b, c, d, e) = tokio::join!(
        until_closed(&data, b""),
        until_closed(&admin, b""),
        until_closed(&admin, b"PRI * HTTP"),
        until_closed(&admin, half),
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let metrics = host.get("/metrics").await.unwrap().body;
            String::from_utf8_lossy(&metrics).into_owned()
        },
    );
    for closed in [a, b, c, d] {
        let after = closed.unwrap();
        assert!(after > Duration::from_secs(20), "{after:?}");
    }
    // The one that asks is open too.
    assert!(e.contains("\nstepwell_api_connections 4"), "{e}");
    let metrics = host.get("/metrics").await.unwrap().body;
    let metrics = String::from_utf8_lossy(&metrics);
    let count = "stepwell_connections_given_up_total{listener=\"admin\",reason=\"silent\"}";
    let line = metrics
        .lines()
        .find(|line| line.starts_with(count))
        .unwrap();
    let closed: u32 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((2..=3).contains(&closed), "{line}");
}

#[tokio::test]
async fn the_kernel_looks_whether_the_other_end_of_a_connection_is_there() {
    let host = Host::start(&Config::default()).await.unwrap();
    for url in [host.data(), host.admin()] {
        let address = url.strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let port = |address: std::net::SocketAddr| format!(":{:04X}", address.port());
        let near = port(stream.peer_addr().unwrap());
        let far = port(stream.local_addr().unwrap());
        // The host's end: local and remote address, state, queues, and which timer runs; 02 is the one of SO_KEEPALIVE.
        eventually("no such timer runs", async || {
            let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
            connections.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields[1].ends_with(&near)
                    && fields[2].ends_with(&far)
                    && fields[5].starts_with("02:")
            })
        })
        .await;
    }
}

const PIPELINES: [(&str, &str); 3] = [("open", "none"), ("closed", "token"), ("issued", "jwt")];

#[tokio::test]
async fn routes_ask_who_calls_and_guests_are_charged() {
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_der(&pair.serialize_der());
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("a".to_owned());
    let keys = directory.path().join("keys.json");
    std::fs::write(&keys, json!({"keys": [jwk]}).to_string()).unwrap();
    let host = Host::start(&Config::with(&format!(
        "[server.jwt]\nissuer = \"https://issuer.example/\"\naudience = \"stepwell\"\njwks = \"{}\"\n",
        keys.display()
    )))
    .await
    .unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    for (name, auth) in PIPELINES {
        let document = format!(
            "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}, auth: {auth}}}\n\
             steps:\n  - {{id: only, plugin: probe@1, limits: {{cpu: 250ms, wall: 20s}}}}\n"
        );
        host.apply(name, &document).await.unwrap();
    }
    let call = async |name: &str, what: &str, token: Option<&str>| {
        let mut request = host
            .request(Method::POST, &format!("/{name}"))
            .header("ce-specversion", "1.0")
            .header("ce-id", "1")
            .header("ce-source", "/test")
            .header("ce-type", what.to_owned());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        send(request).await.unwrap()
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let issue = |audience: &str| {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("a".to_owned());
        let claims = json!({"iss": "https://issuer.example/", "aud": audience, "sub": "me", "exp": now + 600});
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    };
    let (good, other) = (issue("stepwell"), issue("other"));
    for (name, token, status) in [
        ("open", None, 200),
        ("closed", None, 401),
        ("closed", Some("guess"), 401),
        ("closed", Some(good.as_str()), 401),
        ("issued", None, 401),
        ("issued", Some(other.as_str()), 401),
        ("issued", Some(good.as_str()), 200),
    ] {
        let reply = call(name, "echo", token).await;
        assert_eq!(reply.status.as_u16(), status, "{name} {token:?}");
        assert_eq!(reply.header("www-authenticate").is_empty(), status == 200);
        assert_eq!(reply.header("stepwell-run-id").len(), 36);
    }
    // What guests use is on the account of their pipeline, whatever became of the run.
    assert_eq!(call("open", "spin", None).await.status.as_u16(), 500);
    let metrics = host.get("/metrics").await.unwrap();
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let used = |pipeline: &str| -> f64 {
        let name = format!(
            "stepwell_guest_cpu_seconds_total{{namespace=\"default\",pipeline=\"{pipeline}\"}} "
        );
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{name} in {text}"))
            .parse()
            .unwrap()
    };
    assert!(
        used("open") >= 0.2 && used("open") < 5.0,
        "{}",
        used("open")
    );
    assert!(used("closed") < 0.001, "{}", used("closed"));
    assert!(text.contains("stepwell_http_auth_refusals_total"), "{text}");
}
