//! Clients that do not take what they are sent.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stepwell_http_trigger::{HttpTrigger, ServeConfig};
use stepwell_pipeline::{Deployed, Dispatcher};
use stepwell_test_hits::hits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::sockets::{Server, impatient};
use super::{deployment, function, post, send, spec, step, steps, trigger};

const PATIENCE: Duration = Duration::from_millis(500);

/// Answers with as many bytes as the path says.
fn bytes() -> Deployed {
    function(|request| {
        Box::pin(async move {
            let length = request.uri().path().rsplit('/').next().unwrap();
            let body = Full::new(Bytes::from(vec![7; length.parse().unwrap()]));
            Ok(Response::new(
                body.map_err(|never| match never {}).boxed_unsync(),
            ))
        })
    })
}

async fn server(body: Deployed) -> Server {
    let config = ServeConfig {
        write_timeout: PATIENCE,
        ..ServeConfig::default()
    };
    Server::start(
        trigger(&[deployment(spec("", "/{*rest}"), 1, body)]),
        config,
    )
    .await
}

/// A client that is sent so much of each response, and more when it has read that.
async fn http2(server: &Server, window: u32) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    // Otherwise its word that it has read something waits for an acknowledgement.
    stream.set_nodelay(true).unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.unwrap();
    // It answers pings, as every client does.
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str) -> Response<hyper::body::Incoming> {
    let request = Request::get(format!("http://x{path}")).body(Full::default());
    sender.send_request(request.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
    let server = server(bytes()).await;
    let mut sender = http2(&server, 20_000).await;
    for length in [2_000_000, 30_000] {
        let path = format!("/{length}");
        let stalled = get(&mut sender, &path).await;
        let slow = get(&mut sender, &path).await;
        let slow = tokio::spawn(async move {
            let (mut body, mut read) = (slow.into_body(), 0);
            let started = Instant::now();
            while let Some(frame) = body.frame().await {
                read += frame.unwrap().data_ref().map_or(0, Bytes::len);
                let over = started.elapsed() > 3 * PATIENCE;
                let pause = if over { Duration::ZERO } else { PATIENCE / 50 };
                tokio::time::sleep(pause).await;
            }
            read
        });
        tokio::time::sleep(4 * PATIENCE).await;
        let whole = stalled.into_body().collect().await;
        // The last piece of one that is short was handed over by then.
        assert_eq!(whole.is_err(), length == 2_000_000, "{length}");
        assert_eq!(slow.await.unwrap(), length);
    }
    let next = get(&mut sender, "/5").await.collect().await;
    assert_eq!(next.unwrap().to_bytes(), &[7; 5][..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_the_function_is_not_given_up() {
    let pauses = function(|_| {
        Box::pin(async {
            let frames = futures::stream::iter(["a", "b"]).then(|text| async move {
                tokio::time::sleep(3 * PATIENCE).await;
                Ok(Frame::data(Bytes::from(text)))
            });
            Ok(Response::new(
                StreamBody::new(Box::pin(frames)).boxed_unsync(),
            ))
        })
    });
    let server = server(pauses).await;
    let mut sender = http2(&server, 1_000).await;
    let body = get(&mut sender, "/x").await.collect().await;
    assert_eq!(body.unwrap().to_bytes(), "ab");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_with_nothing_but_what_its_client_does_not_take_ends() {
    let routes = [deployment(spec("", "/{*rest}"), 1, bytes())];
    let server = Server::start(trigger(&routes), impatient()).await;
    // All of it was handed over, and half of it is still in the host's buffers.
    let mut sender = http2(&server, 500).await;
    let untaken = get(&mut sender, "/1000").await;
    // The listener has one place.
    let mut next = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET /3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    next.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = next.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(read.is_ok() && answer.starts_with(b"HTTP/1.1 200"));
    assert!(untaken.into_body().collect().await.is_err());
}

#[tokio::test]
async fn replies_that_nobody_takes_leave_no_room_for_more() {
    let large = step(|mut event| {
        event.data = Bytes::from(vec![0; 50_000]);
        Ok(vec![event])
    });
    let trigger = HttpTrigger::new(Dispatcher::new(8)).with_body_bytes(120_000);
    let route = deployment(spec("POST", "/p"), 1, steps(vec![large]));
    trigger.apply(&[route]);
    let trigger = Arc::new(trigger);
    let ask = || async {
        let body = Full::<Bytes>::default().map_err(|never: Infallible| match never {});
        trigger.handle(post("/p").body(body).unwrap()).await
    };
    // A run that has ended is answered; the one after it finds no room.
    let untaken = [ask().await, ask().await, ask().await];
    assert!(untaken.iter().all(|reply| reply.status() == 200));
    let before = hits("replies");
    let refused = send(&trigger, post("/p"), "").await;
    refused.assert_problem(429, "busy");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(hits("replies") > before);
    // One that was handed over is still there.
    let [mut first, ..] = untaken;
    let frame = first.body_mut().frame().await.unwrap().unwrap();
    drop(first);
    let refused = send(&trigger, post("/p"), "").await;
    refused.assert_problem(429, "busy");
    assert_eq!(frame.into_data().unwrap().len(), 50_000);
    assert_eq!(send(&trigger, post("/p"), "").await.status, 200);
}
