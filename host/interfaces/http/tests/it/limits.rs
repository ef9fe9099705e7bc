//! What is bounded: requests, connections, bytes, time, and what a dropped call leaves behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody};
use stepwell_egress::EgressConfig;
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody};

use crate::server::{Raw, Server};
use crate::{Names, call, call_until, egress, open, request, text, until};

/// A head, and a body that does not come.
const STALLED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";

fn after(time: u64) -> Option<RequestOptions> {
    let time = Some(Duration::from_millis(time));
    Some(RequestOptions {
        connect_timeout: time,
        first_byte_timeout: time,
        between_bytes_timeout: time,
    })
}

#[tokio::test]
async fn requests_under_way_are_counted_per_call_namespace_and_host() {
    let server = Server::start().await;
    let origin = server.origin("127.0.0.1");
    let url = server.url("127.0.0.1", "/bytes/100000");
    let busy = |error: &HttpError| matches!(error, HttpError::ConnectionLimitReached);
    let limited = |call, namespace, host| {
        let config = EgressConfig {
            requests_per_call: call,
            requests_per_namespace: namespace,
            requests: host,
            ..open()
        };
        egress(config, &Names::loopback(&[]))
    };

    let per_call = limited(2, 100, 100);
    let mut guest = call(&per_call, "a", &[&origin]);
    let (one, two) = (
        guest.get(&url).await.unwrap(),
        guest.get(&url).await.unwrap(),
    );
    assert!(busy(&guest.error(&url).await));
    assert!(
        guest.noted().contains("requests_per_call of 2"),
        "{}",
        guest.noted()
    );
    let mut other = call(&per_call, "a", &[&origin]);
    other.text(&url).await;
    drop(one);
    guest.text(&url).await;
    text(two).await;

    let per_namespace = limited(100, 1, 100);
    let mut guest = call(&per_namespace, "a", &[&origin]);
    let held = guest.get(&url).await.unwrap();
    assert!(busy(
        &call(&per_namespace, "a", &[&origin]).error(&url).await
    ));
    call(&per_namespace, "b", &[&origin]).text(&url).await;
    drop(held);

    let per_host = limited(100, 100, 1);
    let mut guest = call(&per_host, "a", &[&origin]);
    let held = guest.get(&url).await.unwrap();
    assert!(busy(&call(&per_host, "b", &[&origin]).error(&url).await));
    drop(held);
    call(&per_host, "b", &[&origin]).text(&url).await;
}

#[tokio::test]
async fn idle_connections_make_room_and_busy_ones_do_not() {
    let (one, two) = (Server::start().await, Server::start().await);
    let config = EgressConfig {
        connections: 1,
        ..open()
    };
    let egress = egress(config, &Names::loopback(&[]));
    let origins = [one.origin("127.0.0.1"), two.origin("127.0.0.1")];
    let mut guest = call(&egress, "a", &[&origins[0], &origins[1]]);
    for _ in 0..3 {
        guest.text(&one.url("127.0.0.1", "/")).await;
        guest.text(&two.url("127.0.0.1", "/")).await;
    }
    let held = guest
        .get(&one.url("127.0.0.1", "/bytes/1000000"))
        .await
        .unwrap();
    let waiting = guest.begin(request("GET", &two.url("127.0.0.1", "/")), after(300));
    let error = waiting.await.map(drop).unwrap_err();
    assert!(
        matches!(error, HttpError::ConnectionLimitReached),
        "{error:?}"
    );
    drop(held);
    guest.text(&two.url("127.0.0.1", "/")).await;
}

#[tokio::test]
async fn a_call_receives_so_many_bytes_and_no_more() {
    let server = Server::start().await;
    let config = EgressConfig {
        response_bytes: 100_000,
        ..open()
    };
    let egress = egress(config, &Names::loopback(&[]));
    let mut guest = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    assert_eq!(
        guest
            .text(&server.url("127.0.0.1", "/bytes/60000"))
            .await
            .len(),
        60_000
    );
    let response = guest
        .get(&server.url("127.0.0.1", "/bytes/60000"))
        .await
        .unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert!(
        matches!(error, HttpError::HttpResponseBodySize(Some(100_000))),
        "{error:?}"
    );
    let note = guest.noted();
    assert!(
        note.contains("broke off") && note.contains("[egress] response_bytes"),
        "{note}"
    );
    // It is the call's, not the step's.
    let mut next = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    assert_eq!(
        next.text(&server.url("127.0.0.1", "/bytes/60000"))
            .await
            .len(),
        60_000
    );
}

#[tokio::test]
async fn nothing_waits_longer_than_it_may() {
    let (silent, stalled) = (
        Raw::start("", false).await,
        Raw::start(STALLED, false).await,
    );
    let config = EgressConfig {
        connect_timeout: Duration::from_millis(300),
        first_byte_timeout: Duration::from_millis(300),
        between_bytes_timeout: Duration::from_millis(300),
        ..open()
    };
    let egress = egress(config, &Names::loopback(&[]));
    let origins = ["http://never.example", &silent.origin(), &stalled.origin()];
    let mut guest = call(&egress, "a", &origins);
    // A guest may wait shorter than the operator says, not longer.
    for options in [None, after(100), after(1_000_000)] {
        let mut get = async |url: &str| guest.begin(request("GET", url), options).await;
        let error = get("http://never.example/").await.map(drop).unwrap_err();
        assert!(matches!(error, HttpError::DnsTimeout), "{error:?}");
        let error = get(&silent.url()).await.map(drop).unwrap_err();
        assert!(matches!(error, HttpError::HttpResponseTimeout), "{error:?}");
        let response = get(&stalled.url()).await.unwrap();
        let error = response.into_body().collect().await.unwrap_err();
        assert!(
            matches!(error, HttpError::ConnectionReadTimeout),
            "{error:?}"
        );
    }
    until("the connections are closed", || {
        silent.ended() == 3 && stalled.ended() == 3
    })
    .await;
}

#[tokio::test]
async fn nothing_outlasts_the_calls_deadline() {
    let silent = Raw::start("", false).await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut guest = call_until(
        &egress,
        "a",
        &[&silent.origin()],
        Duration::from_millis(300),
    );
    let error = guest.error(&silent.url()).await;
    assert!(matches!(error, HttpError::HttpResponseTimeout), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_does_not_read_makes_nobody_buffer() {
    let endless = Raw::start("HTTP/1.1 200 OK\r\n\r\n", true).await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut guest = call(&egress, "a", &[&endless.origin()]);
    let response = guest.get(&endless.url()).await.unwrap();
    // The sender comes to a stop as soon as the sockets' own buffers are full.
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = endless.written.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        assert!(now < 64 << 20, "{now} bytes were taken");
        before = now;
    }
    drop(response);
    until("the connection is closed", || endless.ended() == 1).await;
}

/// A body that never comes to its end.
fn endless() -> WasiBody {
    StreamBody::new(futures::stream::pending()).boxed_unsync()
}

#[tokio::test]
async fn what_is_dropped_is_closed() {
    let (silent, stalled) = (
        Raw::start("", false).await,
        Raw::start(STALLED, false).await,
    );
    let egress = egress(open(), &Names::loopback(&[]));
    let mut guest = call(&egress, "a", &[&silent.origin(), &stalled.origin()]);
    // While the response is waited for; while the request's body is; and while the response's body is.
    for (server, body) in [(&silent, crate::body("")), (&silent, endless())] {
        let ended = server.ended();
        let waiting = guest.begin(request("POST", &server.url()).map(|_| body), None);
        let waited = tokio::time::timeout(Duration::from_millis(200), waiting).await;
        assert!(waited.is_err(), "no response can come");
        until("the connection is closed", || server.ended() == ended + 1).await;
    }
    let response = guest.get(&stalled.url()).await.unwrap();
    drop(response);
    until("the connection is closed", || stalled.ended() == 1).await;
    // An answer that comes before the request's end, and a guest that never ends it.
    let request = request("POST", &stalled.url()).map(|_| endless());
    let response = guest.send(request).await.unwrap();
    drop(response);
    until("the connection is closed", || stalled.ended() == 2).await;
}
