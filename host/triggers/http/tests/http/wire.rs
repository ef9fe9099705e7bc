//! What goes over the wire, and what does when one side of it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stepwell_http_trigger::ServeConfig;
use stepwell_pipeline::{Body, Deployed, Dispatcher};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::sockets::Server;
use super::{deployment, function, spec, step, steps, trigger_on};

const LONG: Duration = Duration::from_secs(30);

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A server of one pipeline at every path, whose only permits are these.
async fn server(body: Deployed, permits: usize) -> (Server, Dispatcher) {
    let dispatcher = Dispatcher::new(permits);
    let trigger = trigger_on(
        dispatcher.clone(),
        &[deployment(spec("", "/{*rest}"), 1, body)],
    );
    (
        Server::start(trigger, ServeConfig::default()).await,
        dispatcher,
    )
}

/// No run is left, so that every permit has come back.
async fn assert_idle(dispatcher: &Dispatcher) {
    let left = dispatcher.drained(Instant::now() + LONG).await;
    assert_eq!(left, Vec::<String>::new());
}

/// Answers with the request's body and trailers.
fn mirror() -> Deployed {
    function(|request| {
        Box::pin(async move {
            let body = request.into_body().collect().await;
            let Ok(body) = body else {
                return Ok(Response::new(whole("the body broke off")));
            };
            let trailers = body.trailers().cloned().unwrap_or_default();
            let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)];
            let body = StreamBody::new(futures::stream::iter(frames.map(Ok)));
            Ok(Response::new(body.boxed_unsync()))
        })
    })
}

/// Answers with the names of the request's trailers.
fn trailer_names() -> Deployed {
    function(|request| {
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            let names: Vec<_> = trailers.keys().map(ToString::to_string).collect();
            Ok(Response::new(whole(names.join(" "))))
        })
    })
}

async fn http2<B>(server: &Server) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static,
{
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways() {
    let (names, _) = server(trailer_names(), 4).await;
    let (server, dispatcher) = server(mirror(), 4).await;
    let mut sender = http2(&server).await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from(42))]);
    // Who calls is not for the caller to say, in front of the body or behind it.
    let mut sent = trailers.clone();
    for name in ["stepwell-auth-subject", "authorization", "cookie"] {
        sent.insert(name, HeaderValue::from_static("root"));
    }
    let frames = [
        Frame::data(Bytes::from_static(b"hi")),
        Frame::trailers(sent),
    ];
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, std::io::Error>)));
    let request = Request::post(server.url("/x")).body(body).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    let body = reply.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "hi");

    // The same over HTTP/1.1.
    let chunked = "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                   2\r\nhi\r\n0\r\nx-sum: 42\r\nstepwell-auth-subject: root\r\nauthorization: q\r\n\r\n";
    let answer = names.raw(chunked.as_bytes()).await;
    assert!(answer.ends_with("\r\n\r\nx-sum"), "{answer}");

    // HTTP/1.1 has them in chunked bodies; a response may only have those that it announces, to clients that want them.
    let chunked = "POST /x HTTP/1.1\r\nhost: x\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\
                   trailer: x-sum\r\nconnection: close\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n";
    let answer = server.raw(chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n2\r\nhi\r\n0\r\n\r\n"), "{answer}");
    assert_idle(&dispatcher).await;
}

/// Answers without reading what it is sent.
fn deaf() -> Deployed {
    function(|_| Box::pin(async { Ok(Response::new(whole("no"))) }))
}

/// Answers bit by bit, and reads nothing.
fn deaf_and_slow() -> Deployed {
    function(|_| {
        Box::pin(async {
            let bits = futures::stream::iter(["n", "o"]).then(|bit| async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(Frame::data(Bytes::from_static(bit.as_bytes())))
            });
            Ok(Response::new(StreamBody::new(bits).boxed_unsync()))
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_cannot_go_on_is_said_to_close() {
    let asks = "expect: 100-continue\r\n";
    for (body, expect, sent, closes) in [
        (deaf(), "", "half", true),
        (deaf(), asks, "", true),
        (deaf(), "", "all of it", false),
        (mirror(), "", "all of it", false),
    ] {
        let (server, _) = server(body, 1).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request =
            format!("POST /x HTTP/1.1\r\nhost: x\r\n{expect}content-length: 9\r\n\r\n{sent}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert_eq!(answer.contains("connection: close"), closes, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_reads_costs_neither_the_answer_nor_the_connection() {
    let reads_all = function(|request| {
        Box::pin(async move {
            let _ = request.into_body().collect().await;
            Ok(Response::new(whole("read")))
        })
    });
    const LENGTH: usize = 4 << 20;
    let data = "x".repeat(LENGTH);
    let known = format!("content-length: {LENGTH}\r\n\r\n{data}");
    let chunked = format!("transfer-encoding: chunked\r\n\r\n{LENGTH:x}\r\n{data}\r\n0\r\n\r\n");
    for (answers, max_body, body, status) in [
        (deaf(), 8 << 20, &known, 200),
        (deaf(), 8 << 20, &chunked, 200),
        (deaf_and_slow(), 8 << 20, &known, 200),
        (deaf_and_slow(), 8 << 20, &chunked, 200),
        (reads_all, 1 << 20, &chunked, 413),
    ] {
        let mut spec = spec("", "/{*rest}");
        spec.max_body = max_body;
        let trigger = trigger_on(Dispatcher::new(4), &[deployment(spec, 1, answers)]);
        let server = Server::start(trigger, ServeConfig::default()).await;
        let requests = format!(
            "POST /x HTTP/1.1\r\nhost: x\r\n{body}GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        );
        let answers = server.raw(requests.as_bytes()).await;
        let first = format!("HTTP/1.1 {status} ");
        assert!(answers.starts_with(&first), "{answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_aborted_begins_no_run_and_keeps_no_permit() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let counting = steps(vec![step(move |event| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(vec![event])
    })]);
    for body in [mirror(), counting] {
        let (server, dispatcher) = server(body, 1).await;
        for head in [
            "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
            "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stream);
        }
        let end = Instant::now() + LONG;
        while dispatcher
            .admit(&stepwell_core::Name::default_namespace())
            .is_err()
        {
            assert!(Instant::now() < end, "an aborted body keeps its permit");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let fine =
            "POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfine";
        let answer = server.raw(fine.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("fine"), "{answer}");
        assert_idle(&dispatcher).await;
    }
    assert_eq!(
        calls.load(Ordering::SeqCst),
        1,
        "only the whole event was run"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_holds_the_function_back() {
    const FRAME: usize = 64 << 10;
    const FRAMES: usize = 2_000;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let large = function(move |_| {
        let counted = counted.clone();
        let frames = futures::stream::iter(0..FRAMES).map(move |n| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![n as u8; FRAME])))
        });
        Box::pin(async move { Ok(Response::new(StreamBody::new(frames).boxed_unsync())) })
    });
    let (server, dispatcher) = server(large, 1).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // It fills the buffers on the way, and then waits.
    let mut seen = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = made.load(Ordering::SeqCst);
        if now > 0 && now == seen {
            break;
        }
        seen = now;
    }
    assert!(seen < FRAMES / 2, "{seen} of {FRAMES} frames were made");
    assert!(
        dispatcher
            .admit(&stepwell_core::Name::default_namespace())
            .is_err(),
        "the run is not over"
    );
    let mut received = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            length => received += length,
        }
    }
    assert!(received > FRAME * FRAMES, "{received} bytes");
    assert_eq!(made.load(Ordering::SeqCst), FRAMES);
    assert_idle(&dispatcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_within_a_stream_leaves_no_run() {
    let slow = function(|_| {
        let frames = futures::stream::iter(0..20).then(|_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        let body = StreamBody::new(Box::pin(frames));
        Box::pin(async move { Ok(Response::new(body.boxed_unsync())) })
    });
    let (server, dispatcher) = server(slow, 1).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /x HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 10];
    stream.read_exact(&mut first).await.unwrap();
    drop(stream);
    assert_idle(&dispatcher).await;

    // The same over HTTP/2, where the client resets the stream and stays.
    let dispatcher = Dispatcher::new(1);
    drop(server);
    let endless = function(|_| {
        let frames =
            futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 999]))));
        let body = StreamBody::new(frames.take(100_000));
        Box::pin(async move { Ok(Response::new(body.boxed_unsync())) })
    });
    let trigger = trigger_on(
        dispatcher.clone(),
        &[deployment(spec("", "/{*rest}"), 1, endless)],
    );
    let server = Server::start(trigger, ServeConfig::default()).await;
    let mut sender = http2(&server).await;
    let request = Request::get(server.url("/x")).body(whole("")).unwrap();
    let mut reply = sender.send_request(request).await.unwrap();
    reply.body_mut().frame().await.unwrap().unwrap();
    drop(reply);
    assert_idle(&dispatcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_without_a_body_leave_the_connection_in_order() {
    let by_path = function(|request| {
        Box::pin(async move {
            let status: u16 = request.uri().path()[1..].parse().unwrap();
            let mut response = Response::new(whole("twelve bytes"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        })
    });
    let (server, dispatcher) = server(by_path, 1).await;
    for (method, status, body) in [
        ("HEAD", 200, ""),
        ("GET", 204, ""),
        ("GET", 304, ""),
        ("HEAD", 304, ""),
        ("GET", 200, "twelve bytes"),
        ("GET", 599, "twelve bytes"),
    ] {
        let first = format!("{method} /{status} HTTP/1.1\r\nhost: x\r\n\r\n");
        let second = "GET /222 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = server.raw((first + second).as_bytes()).await;
        let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(head.contains("stepwell-run-id: "), "{answer}");
        // What follows at once is the second response.
        let second = rest
            .strip_prefix(body)
            .unwrap_or_else(|| panic!("{method} {answer}"));
        assert!(second.starts_with("HTTP/1.1 222"), "{method} {answer}");
        assert!(
            second.ends_with("\r\n\r\ntwelve bytes"),
            "{method} {answer}"
        );
        if method == "HEAD" && status == 200 {
            assert!(head.contains("content-length: 12"), "{answer}");
        }
        if status == 204 {
            assert!(!head.contains("content-length"), "{answer}");
        }
    }
    // An interim response is none.
    for status in [100, 101, 103] {
        let request = format!("GET /{status} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(answer.contains("\"code\":\"failed\""), "{answer}");
    }
    assert_idle(&dispatcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    // Each has the only permit: the one before it has given it back by then.
    let (server, dispatcher) = server(mirror(), 1).await;
    let mut requests = String::new();
    for n in 0..50 {
        requests += &format!("POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{n:03}");
    }
    requests += "POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nend";
    let answer = server.raw(requests.as_bytes()).await;
    let bodies: Vec<&str> = answer
        .split("\r\n")
        .filter(|line| line.len() == 3 && !line.contains(':'))
        .collect();
    let expected: Vec<String> = (0..50)
        .map(|n| format!("{n:03}"))
        .chain(["end".into()])
        .collect();
    assert_eq!(bodies, expected, "{answer}");
    assert_idle(&dispatcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_one_connection() {
    let (server, dispatcher) = server(mirror(), 256).await;
    let sender = http2(&server).await;
    let streams = (0..1_000_usize).map(|n| {
        let mut sender = sender.clone();
        let size = n % 1_000;
        let request = Request::post(server.url("/x"))
            .body(whole(vec![n as u8; size]))
            .unwrap();
        async move {
            sender.ready().await.unwrap();
            let reply = sender.send_request(request).await.unwrap();
            assert_eq!(reply.status(), 200, "{n}");
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            assert!(body.len() == size && body.iter().all(|byte| *byte == n as u8));
        }
    });
    // As many at once as the server takes.
    let answered = futures::stream::iter(streams).buffer_unordered(200);
    assert_eq!(answered.count().await, 1_000);
    assert_idle(&dispatcher).await;
}
