//! How requests travel: headers, bodies, connections, TLS.

use bytes::Bytes;
use futures::StreamExt as _;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use stepwell_egress::EgressConfig;
use wasmtime_wasi_http::Error as HttpError;

use crate::server::{Certificate, Raw, Server};
use crate::{Names, body, call, egress, open, request, text, until};

#[tokio::test]
async fn connections_are_kept_within_a_namespace_and_never_shared_beyond() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&[]));
    let (origin, url) = (server.origin("127.0.0.1"), server.url("127.0.0.1", "/"));
    let mut first = call(&egress, "a", &[&origin]);
    let mut second = call(&egress, "a", &[&origin]);
    for _ in 0..5 {
        first.text(&url).await;
        second.text(&url).await;
    }
    assert_eq!(server.made(), 1);
    let mut neighbour = call(&egress, "b", &[&origin]);
    neighbour.text(&url).await;
    assert_eq!(server.made(), 2);
    // With the last step of a namespace its connections go.
    drop((first, second, neighbour));
    until("all connections are closed", || server.is_open() == 0).await;
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    for _ in 0..3 {
        assert_eq!(
            call.text(&server.url("127.0.0.1", "/close")).await,
            "closed"
        );
    }
    assert_eq!(server.made(), 3);
}

#[tokio::test]
async fn headers_of_the_connection_are_the_hosts_own() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&["api.example"]));
    let mut call = call(&egress, "a", &[&server.origin("api.example")]);
    let mut request = request("GET", &server.url("api.example", "/"));
    for (name, value) in [
        ("host", "evil.example"),
        ("host", "evil2.example"),
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        ("x-mine", "2"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    text(call.send(request).await.unwrap()).await;
    let expected = format!(
        "GET HTTP/1.1 /\nx-mine: 2\nhost: api.example:{}",
        server.port
    );
    assert_eq!(server.last(), expected);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    let pieces =
        futures::stream::iter(0..1000).map(|_| Ok(Frame::data(Bytes::from_static(&[b'x'; 1000]))));
    let request = request("POST", &server.url("127.0.0.1", "/"))
        .map(|_| StreamBody::new(pieces).boxed_unsync());
    assert_eq!(
        text(call.send(request).await.unwrap()).await.len(),
        1_000_000
    );

    // A guest that breaks off its body does not look as if it had ended.
    let pieces = futures::stream::iter([
        Ok(Frame::data(Bytes::from_static(b"begun"))),
        Err(HttpError::HttpProtocolError),
    ]);
    let request = crate::request("POST", &server.url("127.0.0.1", "/"))
        .map(|_| StreamBody::new(pieces).boxed_unsync());
    let error = call.send(request).await.map(drop).unwrap_err();
    assert!(matches!(error, HttpError::HttpProtocolError), "{error:?}");
}

#[tokio::test]
async fn trailers_are_sent_when_they_are_announced() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    for (announced, expected) in [(Some("x-sum"), r#"Some({"x-sum": "abc"})"#), (None, "None")] {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "abc".parse().unwrap());
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"body"))),
            Ok(Frame::trailers(trailers)),
        ];
        let mut request = request("POST", &server.url("127.0.0.1", "/trailers"))
            .map(|_| StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
        if let Some(announced) = announced {
            let headers = request.headers_mut();
            headers.insert("trailer", announced.parse().unwrap());
        }
        assert_eq!(text(call.send(request).await.unwrap()).await, expected);
    }
}

#[tokio::test]
async fn https_trusts_the_operators_authority_and_speaks_http2() {
    let certificate = Certificate::of(&["api.example"]);
    let server = Server::tls(&certificate).await;
    let names = Names::loopback(&["api.example", "other.example"]);
    let url = |host: &str| format!("https://{host}:{}/x", server.port);
    let origins =
        ["api.example", "other.example"].map(|host| format!("https://{host}:{}", server.port));
    let origins = [origins[0].as_str(), origins[1].as_str()];
    let config = EgressConfig {
        ca: vec![certificate.ca.clone()],
        ..open()
    };
    let trusting = egress(config, &names);
    let mut guest = call(&trusting, "a", &origins);
    let mut parallel = Vec::new();
    assert_eq!(guest.text(&url("api.example")).await, "GET /x");
    for _ in 0..10 {
        parallel.push(guest.begin(
            request("POST", &url("api.example")).map(|_| body("hello")),
            None,
        ));
    }
    for answer in futures::future::join_all(parallel).await {
        assert_eq!(text(answer.unwrap()).await, "hello");
    }
    assert!(
        server
            .last()
            .starts_with("POST HTTP/2.0 https://api.example"),
        "{}",
        server.last()
    );
    assert!(!server.last().contains("\nhost:"), "{}", server.last());
    assert_eq!(server.made(), 1, "one connection carries all");

    let error = guest.error(&url("other.example")).await;
    assert!(matches!(error, HttpError::TlsCertificateError), "{error:?}");
    let strict = egress(open(), &names);
    let mut guest = call(&strict, "a", &origins);
    let error = guest.error(&url("api.example")).await;
    assert!(matches!(error, HttpError::TlsCertificateError), "{error:?}");
    let plain = Server::start().await;
    let mut guest = call(
        &strict,
        "a",
        &[&format!("https://api.example:{}", plain.port)],
    );
    let error = guest
        .error(&format!("https://api.example:{}/", plain.port))
        .await;
    assert!(matches!(error, HttpError::TlsProtocolError), "{error:?}");
}

#[tokio::test]
async fn what_does_not_answer_as_it_should_has_its_own_error() {
    let egress = egress(open(), &Names::loopback(&[]));
    // The limit is a buffer's, which may have grown to twice that when it is looked at.
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(1_000_000));
    type Expected = fn(&HttpError) -> bool;
    let cases: [(&str, Expected); 5] = [
        (long.leak(), |e| {
            matches!(e, HttpError::HttpResponseHeaderSectionSize(None))
        }),
        ("", |e| matches!(e, HttpError::HttpResponseTimeout)),
        ("220 smtp ready\r\n", |e| {
            matches!(e, HttpError::HttpProtocolError)
        }),
        ("HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n", |e| {
            matches!(e, HttpError::HttpProtocolError)
        }),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n",
            |e| {
                matches!(
                    e,
                    HttpError::HttpProtocolError | HttpError::ConnectionReadTimeout
                )
            },
        ),
    ];
    for (answer, expected) in cases {
        let raw = Raw::start(answer, false).await;
        let mut call = call(&egress, "a", &[&raw.origin()]);
        let options = wasmtime_wasi_http::RequestOptions {
            first_byte_timeout: Some(std::time::Duration::from_millis(300)),
            between_bytes_timeout: Some(std::time::Duration::from_millis(300)),
            ..Default::default()
        };
        let error = match call.begin(request("GET", &raw.url()), Some(options)).await {
            Ok(response) => response.into_body().collect().await.map(drop).unwrap_err(),
            Err(error) => error,
        };
        let begin: String = answer.chars().take(100).collect();
        assert!(expected(&error), "{begin:?}: {error:?}");
        until("the connection is closed", || raw.ended() == 1).await;
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let mut call = call(
        &egress,
        "a",
        &[&format!("http://127.0.0.1:{port}"), "http://nobody.example"],
    );
    let error = call.error(&format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(error, HttpError::ConnectionRefused), "{error:?}");
    let error = call.error("http://nobody.example/").await;
    assert!(matches!(error, HttpError::DnsError { .. }), "{error:?}");
}

#[tokio::test]
async fn requests_are_part_of_their_runs_trace() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let server = Server::start().await;
    let config = EgressConfig {
        trace: Some(|_| Some(PARENT.to_owned())),
        ..open()
    };
    let egress = egress(config, &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    call.text(&server.url("127.0.0.1", "/")).await;
    let traced = format!("traceparent: {PARENT}");
    assert!(server.last().contains(&traced), "{}", server.last());
    // A guest that traces by itself goes on as it has begun.
    let mut request = request("GET", &server.url("127.0.0.1", "/"));
    let own = PARENT.replace('b', "c");
    request
        .headers_mut()
        .insert("traceparent", own.parse().unwrap());
    text(call.send(request).await.unwrap()).await;
    assert!(server.last().contains(&own) && !server.last().contains(PARENT));
}
