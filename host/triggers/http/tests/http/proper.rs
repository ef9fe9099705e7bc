//! Requests that are refused before a route is looked for, each beside one that is not.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stepwell_http_trigger::ServeConfig;
use stepwell_pipeline::Deployed;
use tokio::net::TcpStream;

use super::sockets::Server;
use super::{deployment, function, spec, trigger};

/// Answers with the method and the address as a function sees them, and reads no body.
fn reflect() -> Deployed {
    function(|request| {
        Box::pin(async move {
            let seen = format!("{} {}", request.method(), request.uri());
            let body = Full::new(Bytes::from(seen)).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    })
}

async fn server() -> Server {
    let routes = [deployment(spec("", "/{*rest}"), 1, reflect())];
    Server::start(trigger(&routes), ServeConfig::default()).await
}

async fn http2(server: &Server) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request and another behind it; the answers, and whether the second came.
async fn first_of_two(server: &Server, request: &str) -> (String, bool) {
    let next = "GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answers = server.raw(format!("{request}{next}").as_bytes()).await;
    let went_on = answers.contains("GET /next");
    (answers, went_on)
}

fn assert_refused(answers: &str, status: &str, code: &str) {
    assert!(
        answers.starts_with(&format!("HTTP/1.1 {status}")),
        "{answers}"
    );
    let code = format!("\"code\":\"{code}\"");
    assert!(answers.contains(&code), "{answers}");
    assert!(
        answers.contains("content-type: application/problem+json"),
        "{answers}"
    );
    assert!(answers.contains("connection: close"), "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_host_must_be_one_host() {
    let server = server().await;
    for hosts in [
        "",
        "host: a\r\nhost: b\r\n",
        "host: a/b@c d?\r\n",
        "host: u:p@a\r\n",
        "host:\r\n",
    ] {
        let request = format!("GET /x HTTP/1.1\r\n{hosts}\r\n");
        let (answers, went_on) = first_of_two(&server, &request).await;
        assert_refused(&answers, "400", "malformed");
        assert!(!went_on, "{answers}");
    }
    for hosts in ["host: a\r\n", "host: a:80\r\n", "host: [::1]:80\r\n"] {
        let request = format!("GET /x HTTP/1.1\r\n{hosts}\r\n");
        let (answers, went_on) = first_of_two(&server, &request).await;
        assert!(answers.contains("\r\n\r\nGET /x"), "{answers}");
        assert!(went_on, "{answers}");
    }
    let request = "GET http://u:p@a/x HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_refused(&first_of_two(&server, request).await.0, "400", "malformed");
    // HTTP/1.0 did not have it.
    let answer = server.raw(b"GET /x HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("GET /x"), "{answer}");

    let mut sender = http2(&server).await;
    for (host, status) in [("y", 400), ("X", 200)] {
        let request = Request::get("http://x/p").header("host", host);
        let request = request.body(Full::default()).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        assert_eq!(reply.status(), status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_sees_the_scheme_of_the_connection_and_not_the_callers_word() {
    let server = server().await;
    for scheme in ["https", "http", "ftp"] {
        let request =
            format!("GET {scheme}://evil/x HTTP/1.1\r\nhost: evil\r\nconnection: close\r\n\r\n");
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.ends_with("GET http://evil/x"), "{answer}");
    }
    let mut sender = http2(&server).await;
    for scheme in ["https", "http"] {
        let request = Request::get(format!("{scheme}://evil/x")).body(Full::default());
        let reply = sender.send_request(request.unwrap()).await.unwrap();
        let seen = reply.collect().await.unwrap().to_bytes();
        assert_eq!(seen, "GET http://evil/x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_and_trace_are_not_for_routes_of_any_method() {
    let server = server().await;
    for line in ["CONNECT evil:443", "CONNECT /x", "TRACE /x"] {
        let request = format!("{line} HTTP/1.1\r\nhost: evil\r\n\r\n");
        let (answers, went_on) = first_of_two(&server, &request).await;
        assert_refused(&answers, "501", "unsupported");
        assert!(!went_on, "{answers}");
    }
    let (answers, _) = first_of_two(&server, "PURGE /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answers.contains("PURGE /x"), "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_transfer_coding_but_chunked_is_taken() {
    let server = server().await;
    let request = |codings: &str| {
        format!("POST /x HTTP/1.1\r\nhost: a\r\n{codings}\r\n3\r\nabc\r\n0\r\n\r\n")
    };
    for codings in [
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
    ] {
        let (answers, went_on) = first_of_two(&server, &request(codings)).await;
        assert_refused(&answers, "501", "unsupported");
        assert!(!went_on, "{answers}");
    }
    for codings in [
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding: Chunked\r\n",
    ] {
        let (answers, _) = first_of_two(&server, &request(codings)).await;
        assert!(answers.contains("POST /x"), "{answers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_leaves_a_body_unread_says_that_the_connection_closes() {
    let mut route = spec("POST", "/p");
    route.max_body = 10;
    let routes = [deployment(route, 1, super::steps(vec![super::inspect()]))];
    let server = Server::start(trigger(&routes), ServeConfig::default()).await;
    for (line, status) in [("POST /p", 413), ("POST /nowhere", 404), ("PUT /p", 405)] {
        // Who asks first is not invited to send, and what follows could be the body as well as the next request.
        for (expect, closes) in [("expect: 100-continue\r\n", true), ("", false)] {
            let body = if closes { "" } else { "01234567890123456789" };
            let request = format!(
                "{line} HTTP/1.1\r\nhost: x\r\n{expect}content-length: 20\r\n\r\n{body}\
                 GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            );
            let answers = server.raw(request.as_bytes()).await;
            let first = answers.split("\r\n\r\n").next().unwrap();
            assert!(
                first.starts_with(&format!("HTTP/1.1 {status}")),
                "{answers}"
            );
            assert_eq!(first.contains("connection: close"), closes, "{answers}");
            let count = answers.matches("HTTP/1.1 ").count();
            assert_eq!(count, if closes { 1 } else { 2 }, "{answers}");
        }
    }
}
