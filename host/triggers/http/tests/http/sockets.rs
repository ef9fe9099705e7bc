use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use stepwell_http_trigger::{HttpTrigger, ServeConfig, serve};
use stepwell_pipeline::{Dispatcher, Step};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    deployment, function, inspect, one, slow_step, spec, step, steps, trigger, trigger_on,
};

/// A server on a port of its own.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(trigger: Arc<HttpTrigger>, config: ServeConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, trigger, config, shutdown.clone()));
        Self {
            address,
            shutdown,
            task,
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends bytes and reads what comes back until the server closes the connection or nothing comes for a while.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer, and close, before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer));
        let _ = read.await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Waits for a flag that another task raises.
async fn raised(flag: &AtomicBool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while !flag.load(Ordering::SeqCst) && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flag.load(Ordering::SeqCst)
}

/// A step that says that it has started, waits until it may go on, and says that it is done.
struct Gate {
    started: Arc<AtomicBool>,
    go: Arc<Notify>,
    done: Arc<AtomicBool>,
}

impl Gate {
    fn new() -> Self {
        Self {
            started: Arc::default(),
            go: Arc::default(),
            done: Arc::default(),
        }
    }

    fn step(&self) -> Arc<dyn Step> {
        let (started, go, done) = (self.started.clone(), self.go.clone(), self.done.clone());
        slow_step(move |event| {
            let (started, go, done) = (started.clone(), go.clone(), done.clone());
            Box::pin(async move {
                started.store(true, Ordering::SeqCst);
                go.notified().await;
                done.store(true, Ordering::SeqCst);
                Ok(vec![event])
            })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_a_socket() {
    let server = Server::start(one(inspect()), ServeConfig::default()).await;
    let client = client();
    for n in 0..3 {
        let sent = client
            .post(server.url("/p?x=1"))
            .header("ce-specversion", "1.0");
        let sent = sent
            .header("ce-id", n.to_string())
            .header("ce-source", "/s");
        let reply = sent.header("ce-type", "t").body("hi").send().await.unwrap();
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["ce-id"], n.to_string().as_str());
        assert!(reply.headers().contains_key("stepwell-run-id"));
        let event: serde_json::Value = reply.json().await.unwrap();
        assert_eq!(event["extensions"]["httpquery"], "x=1");
    }
    let reply = client.get(server.url("/p")).send().await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    assert!(reply.headers().contains_key("stepwell-run-id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_requests_are_refused_and_the_server_lives() {
    let server = Server::start(one(inspect()), ServeConfig::default()).await;
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    for (request, status) in [
        // Announced, and never sent.
        (
            "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n".to_owned(),
            "413",
        ),
        (
            format!(
                "POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}"
            ),
            "413",
        ),
        (
            format!(
                "POST /p HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
                "y".repeat(200_000)
            ),
            "431",
        ),
        (
            format!(
                "POST /p HTTP/1.1\r\nhost: x\r\n{}\r\n",
                "x: y\r\n".repeat(500)
            ),
            "431",
        ),
        (
            format!("POST /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(70_000)),
            "4",
        ),
        ("NONSENSE\r\n\r\n".to_owned(), "400"),
        (
            "POST /p HTTP/1.1\r\nhost: x\r\nce-id: a\r\n b\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"
                .to_owned(),
            "400",
        ),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        let shown: String = request.chars().take(60).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown}: {answer}"
        );
    }
    let reply = client()
        .post(server.url("/p"))
        .body("fine")
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_too_much_still_read_why() {
    let server = Server::start(one(inspect()), ServeConfig::default()).await;
    let client = client();
    for (path, status) in [("/p", 413), ("/nowhere", 404)] {
        for size in [2_000, 300_000, 12 << 20] {
            // More than the sockets' buffers hold, so that a reply to a closed connection would be lost.
            let reply = client.post(server.url(path)).body(vec![0; size]);
            let reply = reply.send().await.unwrap();
            assert_eq!(reply.status(), status, "{size}");
            let document: serde_json::Value = reply.json().await.unwrap();
            assert_eq!(document["status"], status);
            let chunk = |_| Ok::<_, std::io::Error>(vec![0_u8; 10_000]);
            let chunks: Vec<_> = (0..=size / 10_000).map(chunk).collect();
            let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
            let reply = client
                .post(server.url(path))
                .body(body)
                .send()
                .await
                .unwrap();
            assert_eq!(reply.status(), status, "{size} in chunks");
        }
    }
    // A client that asks first is told at once, and is not invited to send.
    let asks =
        "POST /p HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n";
    let answer = server.raw(asks.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_never_ends_is_given_up() {
    let config = ServeConfig {
        header_timeout: Duration::from_millis(100),
        ..ServeConfig::default()
    };
    let server = Server::start(one(inspect()), config).await;
    let started = Instant::now();
    let answer = server.raw(b"POST /p HTTP/1.1\r\nhost: x\r\n").await;
    assert!(started.elapsed() < Duration::from_secs(4), "{answer}");
}

/// A listener with one place, which its holder must lose soon.
pub(super) fn impatient() -> ServeConfig {
    ServeConfig {
        connections: 1,
        header_timeout: Duration::from_millis(100),
        write_timeout: Duration::from_millis(100),
        ..ServeConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_and_asks_nothing_is_given_up() {
    let server = Server::start(one(inspect()), impatient()).await;
    // Nothing; what may still become HTTP/2; and HTTP/2 without a request.
    for said in [
        &b""[..],
        b"PRI * HTTP",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let reply = client().post(server.url("/p")).body("x");
        let reply = reply.timeout(Duration::from_secs(10)).send().await;
        assert_eq!(reply.unwrap().status(), 200, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_used_outlasts_the_time_for_a_head() {
    let config = ServeConfig {
        header_timeout: Duration::from_millis(300),
        ..ServeConfig::default()
    };
    let server = Server::start(one(inspect()), config).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..6 {
        stream
            .write_all(b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut rest = [0; 4096];
        assert!(stream.read(&mut rest).await.unwrap() < rest.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_connection_that_asks_nothing_more_ends_with_its_last_answer() {
    let slow = function(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let body = Full::new(Bytes::from("slow")).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    let routes = [
        deployment(spec("", "/f/{*rest}"), 1, slow),
        deployment(spec("POST", "/p"), 1, steps(vec![inspect()])),
    ];
    let server = Server::start(trigger(&routes), impatient()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    // It answers pings, as every client does.
    tokio::spawn(connection);
    let request = Request::get("http://x/f/x").body(Full::new(Bytes::new()));
    let reply = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(reply.collect().await.unwrap().to_bytes(), "slow");
    let next = client().post(server.url("/p")).body("x");
    let next = next.timeout(Duration::from_secs(10)).send().await;
    assert_eq!(next.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_of_a_large_reply_is_given_up() {
    let large = function(|_| {
        Box::pin(async {
            let body = Full::new(Bytes::from(vec![0; 64 << 20])).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    let routes = [
        deployment(spec("", "/f/{*rest}"), 1, large),
        deployment(spec("POST", "/p"), 1, steps(vec![inspect()])),
    ];
    let server = Server::start(trigger(&routes), impatient()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /f/x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let reply = client().post(server.url("/p")).body("x");
    let reply = reply.timeout(Duration::from_secs(10)).send().await;
    assert_eq!(reply.unwrap().status(), 200);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_never_end_take_only_so_much_memory() {
    let trigger = HttpTrigger::new(Dispatcher::new(8)).with_body_bytes(2_000);
    let route = deployment(spec("POST", "/p"), 1, steps(vec![inspect()]));
    trigger.apply(&[route]);
    let server = Server::start(Arc::new(trigger), ServeConfig::default()).await;
    let begun = format!(
        "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{}",
        "x".repeat(999)
    );
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    let client = client();
    let chunks = |chunks: &[&'static str]| {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok::<_, std::io::Error>(*chunk))
            .collect();
        let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
        client.post(server.url("/p")).body(body).send()
    };
    let end = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        let reply = chunks(&["abc", "def"]).await.unwrap();
        if reply.status() != 200 {
            break reply;
        }
        assert!(Instant::now() < end, "the third has room");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let document: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(document["code"], "busy", "{document}");
    // What is small and there at once needs no room.
    let small = client.post(server.url("/p")).body("x").send().await;
    assert_eq!(small.unwrap().status(), 200);
    // Who goes away gives the room back.
    drop(stalled);
    while chunks(&["abc", "def"]).await.unwrap().status() != 200 {
        assert!(Instant::now() < end, "the room is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited_and_wait_for_their_turn() {
    let config = ServeConfig {
        connections: 1,
        ..ServeConfig::default()
    };
    let server = Server::start(one(inspect()), config).await;
    let idle = TcpStream::connect(server.address).await.unwrap();
    let url = server.url("/p");
    let waiting = tokio::spawn(async move { client().post(url).send().await.unwrap().status() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    drop(idle);
    assert_eq!(waiting.await.unwrap(), 200);
}

/// Asks on a connection, and whether an answer comes soon.
async fn asks(stream: &mut TcpStream, path: &str) -> bool {
    let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let mut answer = [0; 4096];
    let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut answer));
    matches!(read.await, Ok(Ok(1..))) && answer.starts_with(b"HTTP/1.1 200")
}

/// Whether a connection was closed, whatever came before.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_millis(100), stream.read_to_end(&mut rest));
    read.await.is_ok()
}

/// A function whose response never ends, and a pipeline that answers.
fn endless_or_not() -> Arc<HttpTrigger> {
    let endless = function(|_| {
        Box::pin(async {
            let some = http_body::Frame::data(Bytes::from_static(b"some"));
            let some = futures::stream::iter([Ok(some)]);
            let body = http_body_util::StreamBody::new(some.chain(futures::stream::pending()));
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    trigger(&[
        deployment(spec("", "/f/{*rest}"), 1, endless),
        deployment(spec("POST", "/p"), 1, steps(vec![inspect()])),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_places_are_taken_the_connection_goes_that_is_idle_longest() {
    let config = ServeConfig {
        connections: 3,
        ..ServeConfig::default()
    };
    let server = Server::start(endless_or_not(), config).await;
    let connect = async || TcpStream::connect(server.address).await.unwrap();
    let mut answered = connect().await;
    assert!(asks(&mut answered, "/f/x").await);
    let (mut first, mut second) = (connect().await, connect().await);
    for turn in 0..3 {
        let stream = if turn == 1 { &mut second } else { &mut first };
        assert!(asks(stream, "/p").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What only just asked may ask again; the second is idle for longer than the first.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut new = connect().await;
    assert!(asks(&mut new, "/p").await);
    assert!(is_closed(&mut second).await);
    assert!(asks(&mut first, "/p").await);
    assert!(!is_closed(&mut answered).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_under_way_is_ended_for_a_new_connection_only_where_that_is_wanted() {
    for displaces_busy in [false, true] {
        let config = ServeConfig {
            connections: 2,
            displaces_busy,
            ..ServeConfig::default()
        };
        let server = Server::start(endless_or_not(), config).await;
        let mut answered = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            assert!(asks(&mut stream, "/f/x").await);
            answered.push(stream);
        }
        let mut new = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(asks(&mut new, "/p").await, displaces_busy);
        assert_eq!(is_closed(&mut answered[0]).await, displaces_busy);
        assert!(!is_closed(&mut answered[1]).await);
        drop(answered);
        assert!(displaces_busy || !is_closed(&mut new).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_its_client_has_yet_to_take_is_under_way() {
    let large = function(|_| {
        Box::pin(async {
            let body = Full::new(Bytes::from(vec![0; 64 << 20])).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    let routes = [
        deployment(spec("", "/f/{*rest}"), 1, large),
        deployment(spec("POST", "/p"), 1, steps(vec![inspect()])),
    ];
    let config = ServeConfig {
        connections: 1,
        ..ServeConfig::default()
    };
    let server = Server::start(trigger(&routes), config).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let head = b"GET /f/x HTTP/1.1\r\nhost: x\r\n\r\n";
    slow.write_all(head).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let mut new = TcpStream::connect(server.address).await.unwrap();
    assert!(!asks(&mut new, "/p").await);
    // All of it comes.
    let mut left = 64_usize << 20;
    let mut part = vec![0; 1 << 20];
    while left > 0 {
        let read = slow.read(&mut part).await.unwrap();
        assert!(read > 0, "{left} bytes did not come");
        left = left.saturating_sub(read);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_does_not_stop_the_run() {
    let (first, second) = (Gate::new(), Gate::new());
    let both = steps(vec![first.step(), second.step()]);
    let trigger = trigger(&[deployment(spec("POST", "/p"), 1, both)]);
    let server = Server::start(trigger, ServeConfig::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    assert!(raised(&first.started).await);
    drop(stream);
    // The server has seen it: nothing but the run itself is left.
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.go.notify_one();
    assert!(raised(&second.started).await, "the run was cancelled");
    second.go.notify_one();
    assert!(raised(&second.done).await, "the run was cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_does_not_stop_a_function() {
    let gate = Gate::new();
    let (started, go, done) = (gate.started.clone(), gate.go.clone(), gate.done.clone());
    let waits = function(move |_| {
        let (started, go, done) = (started.clone(), go.clone(), done.clone());
        Box::pin(async move {
            started.store(true, Ordering::SeqCst);
            go.notified().await;
            done.store(true, Ordering::SeqCst);
            let body = Full::new(Bytes::new()).map_err(|never| match never {});
            Ok(Response::new(body.boxed_unsync()))
        })
    });
    let trigger = trigger(&[deployment(spec("", "/f/{*rest}"), 1, waits)]);
    let server = Server::start(trigger, ServeConfig::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /f/x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(raised(&gate.started).await);
    drop(stream);
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.go.notify_one();
    assert!(raised(&gate.done).await, "the function was cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_pipeline_is_applied_again_and_again_each_request_sees_one_revision() {
    let revision = |n: u64| {
        let mark = move || {
            slow_step(move |mut event| {
                Box::pin(async move {
                    tokio::task::yield_now().await;
                    let mut data = event.data.to_vec();
                    data.extend(format!("{n} ").into_bytes());
                    event.data = Bytes::from(data);
                    Ok(vec![event])
                })
            })
        };
        deployment(spec("POST", "/p"), n, steps(vec![mark(), mark(), mark()]))
    };
    let trigger = trigger_on(Dispatcher::new(1_024), &[revision(1)]);
    let server = Server::start(trigger.clone(), ServeConfig::default()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (url, stop, answered) = (server.url("/p"), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let client = client();
                let mut newest = 0;
                while !stop.load(Ordering::Relaxed) {
                    let reply = client.post(&url).send().await.unwrap();
                    assert_eq!(reply.status(), 200);
                    let text = reply.text().await.unwrap();
                    let seen: Vec<u64> = text
                        .split_whitespace()
                        .map(|n| n.parse().unwrap())
                        .collect();
                    assert_eq!(seen.len(), 3, "{text}");
                    assert!(seen.iter().all(|n| *n == seen[0]), "{text}");
                    assert!(seen[0] >= newest, "an older revision came back");
                    newest = seen[0];
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut applied = 1;
    while answered.load(Ordering::Relaxed) < 3_000 {
        applied += 1;
        trigger.apply(&[revision(applied)]);
        tokio::time::sleep(Duration::from_micros(200)).await;
        assert!(callers.iter().all(|caller| !caller.is_finished()));
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(applied > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_answers_what_was_begun_and_takes_nothing_new() {
    let gate = Gate::new();
    let server = Server::start(one(gate.step()), ServeConfig::default()).await;
    let idle = TcpStream::connect(server.address).await.unwrap();
    let url = server.url("/p");
    let begun = tokio::spawn(async move { client().post(url).body("x").send().await.unwrap() });
    assert!(raised(&gate.started).await);
    server.shutdown.cancel();
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(server.address).await.is_ok() {
        assert!(Instant::now() < end, "the listener is still open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!server.task.is_finished());
    gate.go.notify_one();
    assert_eq!(begun.await.unwrap().text().await.unwrap(), "x");
    drop(idle);
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_ever() {
    let gate = Gate::new();
    let config = ServeConfig {
        grace: Duration::from_millis(100),
        ..ServeConfig::default()
    };
    let server = Server::start(one(gate.step()), config).await;
    let url = server.url("/p");
    let begun = tokio::spawn(async move { client().post(url).send().await.is_err() });
    assert!(raised(&gate.started).await);
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
    assert!(begun.await.unwrap());
    // The run is the dispatcher's, and goes on.
    gate.go.notify_one();
    assert!(raised(&gate.done).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_with_prior_knowledge() {
    let server = Server::start(one(step(|event| Ok(vec![event]))), ServeConfig::default()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    for text in ["hi", "again"] {
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        let request = Request::post(server.url("/p")).body(body).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        assert_eq!(reply.status(), 200);
        assert!(reply.headers().contains_key("stepwell-run-id"));
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), text);
    }
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
    drop(sender);
    connection.abort();
}
