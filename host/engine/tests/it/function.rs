//! HTTP functions: heads, streams, and bodies that do not end as they should.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use stepwell_core::{ErrorKind, Limits, Lingering, StepError};
use stepwell_engine::{Body, Plugin};

use crate::support::{Host, State, at_once, generous, guest, host, soon};

async fn function() -> (Host, Arc<Plugin<State>>) {
    let host = host();
    let plugin = host.plugin(guest("hostile-http.wasm")).await;
    (host, plugin)
}

async fn get(
    host: &Host,
    plugin: &Plugin<State>,
    limits: Limits,
    path: &str,
) -> Result<Response<Body>, StepError> {
    send(host, plugin, limits, path, Bytes::new()).await
}

async fn send(
    host: &Host,
    plugin: &Plugin<State>,
    limits: Limits,
    path: &str,
    body: Bytes,
) -> Result<Response<Body>, StepError> {
    let body = Full::new(body)
        .map_err(|never| match never {})
        .boxed_unsync();
    let request = Request::builder()
        .uri(path)
        .header("host", "example.com")
        .body(body)
        .unwrap();
    plugin.handle(host.state(), limits, soon(), request).await
}

async fn whole(
    response: Response<Body>,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(response.into_body().collect().await?.to_bytes())
}

#[tokio::test]
async fn a_short_body_comes_in_one_frame_with_its_length() {
    let (host, plugin) = function().await;
    assert_eq!(plugin.world().to_string(), "wasi:http/proxy@0.2.12");
    let get = async |path| at_once(|| get(&host, &plugin, generous(), path)).await;
    let mut response = get("/").await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(5));
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "hello");
    let response = get("/big/40000").await.unwrap();
    assert_eq!(
        http_body::Body::size_hint(response.body()).exact(),
        Some(40_000)
    );
    let response = get("/none").await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(0));
}

#[tokio::test]
async fn the_guest_sees_the_request() {
    let (host, plugin) = function().await;
    let response = get(&host, &plugin, generous(), "/about/a?b=c")
        .await
        .unwrap();
    let text = String::from_utf8(whole(response).await.unwrap().to_vec()).unwrap();
    assert_eq!(
        text,
        r#"Method::Get Some(Scheme::Http) Some("example.com") /about/a?b=c"#
    );
    // HTTP/1.0 clients send no host.
    let body = Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed_unsync();
    let request = Request::builder().uri("/about").body(body).unwrap();
    let response = plugin
        .handle(host.state(), generous(), soon(), request)
        .await
        .unwrap();
    assert!(
        whole(response)
            .await
            .unwrap()
            .ends_with(br#"Some("localhost") /about"#)
    );
    // It need not look at all of it.
    let sent = Bytes::from(vec![b'x'; 900_000]);
    let response = send(&host, &plugin, generous(), "/deaf", sent)
        .await
        .unwrap();
    assert_eq!(whole(response).await.unwrap(), "what?");
}

#[tokio::test]
async fn forged_headers_are_refused() {
    let (host, plugin) = function().await;
    let response = get(&host, &plugin, generous(), "/headers").await.unwrap();
    let names: Vec<&str> = response
        .headers()
        .keys()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(names, ["x-good"]);
    assert_eq!(whole(response).await.unwrap(), "0");
}

#[tokio::test]
async fn writing_where_there_is_no_room_is_a_trap() {
    let (host, plugin) = function().await;
    let outcome = get(&host, &plugin, generous(), "/blast").await;
    let error = match outcome {
        Err(error) => error.to_string(),
        Ok(response) => whole(response).await.unwrap_err().to_string(),
    };
    assert!(error.contains("budget"), "{error}");
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let (host, plugin) = function().await;
    let bytes: Bytes = (0..900_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let response = send(&host, &plugin, generous(), "/echo", bytes.clone())
        .await
        .unwrap();
    assert_eq!(whole(response).await.unwrap(), bytes);
}

/// What `/trailers` makes of a body of these frames.
async fn streamed(
    frames: Vec<Result<Frame<Bytes>, &'static str>>,
) -> Result<Response<Body>, StepError> {
    let (host, plugin) = function().await;
    let frames = frames.into_iter().map(|frame| frame.map_err(Into::into));
    let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    let request = Request::builder()
        .method("POST")
        .uri("/trailers")
        .header("host", "example.com")
        .body(body)
        .unwrap();
    plugin
        .handle(host.state(), generous(), soon(), request)
        .await
}

#[tokio::test]
async fn trailers_reach_the_guest_and_come_back() {
    let name = HeaderName::from_static("x-sum");
    let trailers = HeaderMap::from_iter([(name, HeaderValue::from(42))]);
    let data = || Ok(Frame::data(Bytes::from_static(b"half")));
    let frames = vec![data(), data(), Ok(Frame::trailers(trailers.clone()))];
    let answer = streamed(frames)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert_eq!(answer.trailers(), Some(&trailers));
    assert_eq!(answer.to_bytes(), "8");

    let answer = at_once(|| streamed(vec![data()])).await.unwrap();
    // Without trailers it is there as a whole.
    assert_eq!(http_body::Body::size_hint(answer.body()).exact(), Some(1));
    assert_eq!(whole(answer).await.unwrap(), "4");
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_no_whole_one_for_the_guest() {
    let frames = vec![
        Ok(Frame::data(Bytes::from_static(b"half"))),
        Err("the client hung up"),
    ];
    let error = streamed(frames).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Trap, "{error}");
    assert!(!error.message.contains("hung up"), "{error}");
}

#[tokio::test]
async fn a_body_over_the_output_limit_ends_with_an_error() {
    let (host, plugin) = function().await;
    let limits = Limits {
        output: 200_000,
        ..generous()
    };
    let response = get(&host, &plugin, limits, "/big/200000").await.unwrap();
    assert_eq!(whole(response).await.unwrap().len(), 200_000);
    let response = get(&host, &plugin, limits, "/big/200001").await.unwrap();
    let error = whole(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.output"), "{error}");
    let response = get(&host, &plugin, limits, "/endless").await.unwrap();
    let error = whole(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.output"), "{error}");
    // Before the head is sent it fails as a whole.
    let limits = Limits {
        output: 1000,
        ..generous()
    };
    let error = at_once(|| get(&host, &plugin, limits, "/big/1001"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
}

#[tokio::test]
async fn without_a_head_there_is_an_error() {
    let (host, plugin) = function().await;
    let limits = Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    };
    let error = get(&host, &plugin, limits, "/spin").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.cpu"), "{error}");
    let error = get(&host, &plugin, generous(), "/nothing")
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(
        error.message.contains("without setting a response"),
        "{error}"
    );
}

#[tokio::test]
async fn a_bad_end_soon_after_the_head_is_never_taken_for_the_bodys_end() {
    let (host, plugin) = function().await;
    for (path, kind) in [
        ("/trap-early", ErrorKind::Trap),
        ("/unfinished", ErrorKind::Failed),
        ("/trap-late", ErrorKind::Trap),
    ] {
        // Mostly the head has not left by then. In the slow lane, and so after the spinning below, it may have.
        match get(&host, &plugin, generous(), path).await {
            Err(error) => assert_eq!(error.kind, kind, "{path}"),
            Ok(response) => match whole(response).await {
                Err(_) => {}
                Ok(body) => assert_eq!((path, body.as_ref()), ("/trap-late", &b"hello"[..])),
            },
        }
        let limits = Limits {
            cpu: Duration::from_millis(20),
            ..generous()
        };
        get(&host, &plugin, limits, "/spin").await.unwrap_err();
    }
}

#[tokio::test]
async fn a_head_comes_while_the_guest_still_works_and_a_cut_body_ends_with_an_error() {
    let (host, plugin) = function().await;
    let limits = Limits {
        wall: Duration::from_millis(300),
        ..generous()
    };
    let mut response = get(&host, &plugin, limits, "/stall").await.unwrap();
    assert_eq!(
        response
            .body_mut()
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "begun"
    );
    let error = response
        .body_mut()
        .frame()
        .await
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(error.contains("limits.wall"), "{error}");

    let response = get(&host, &plugin, generous(), "/trap-midway")
        .await
        .unwrap();
    let error = whole(response).await.unwrap_err().to_string();
    assert!(error.contains("trapped"), "{error}");
}

#[tokio::test]
async fn what_happens_after_a_complete_response_does_not_spoil_it() {
    let (host, plugin) = function().await;
    let response = get(&host, &plugin, generous(), "/linger/100")
        .await
        .unwrap();
    assert_eq!(whole(response).await.unwrap(), "hello");
    // The guest goes on after its response.
    for _ in 0..100 {
        if host.lines.all().iter().any(|(_, line)| line == "lingered") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the guest was stopped with its response");
}

#[tokio::test]
async fn a_guest_that_outlives_its_response_keeps_what_it_is_given() {
    let (host, plugin) = function().await;
    for path in ["/linger/300", "/linger-streamed/300"] {
        let mut response = get(&host, &plugin, generous(), path).await.unwrap();
        let lingering: Lingering = response.extensions_mut().remove().unwrap();
        let kept = Arc::new(());
        lingering.keep(kept.clone());
        assert_eq!(whole(response).await.unwrap(), "hello");
        let logged = || host.lines.all().iter().any(|(_, line)| line == "lingered");
        assert!(!logged() && Arc::strong_count(&kept) == 2, "{path}");
        for _ in 0..100 {
            if Arc::strong_count(&kept) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(logged() && Arc::strong_count(&kept) == 1, "{path}");
        host.lines.clear();
    }
}

#[tokio::test]
async fn a_response_that_is_not_whole_says_until_when_it_can_be_read() {
    let (host, plugin) = function().await;
    let limits = Limits {
        wall: Duration::from_millis(300),
        ..generous()
    };
    let started = Instant::now();
    let mut response = get(&host, &plugin, limits, "/big/500000").await.unwrap();
    let lingering: Lingering = response.extensions_mut().remove().unwrap();
    let time = lingering.until() - started;
    assert!(time >= limits.wall && time < limits.wall * 10, "{time:?}");
    let kept = Arc::new(());
    lingering.keep(kept.clone());
    tokio::time::sleep(2 * limits.wall).await;
    assert_eq!(Arc::strong_count(&kept), 2, "nobody has told it to go");
    // The guest goes with a response that was not read in its time.
    drop(response);
    assert_eq!(Arc::strong_count(&kept), 1);

    let response = at_once(|| get(&host, &plugin, generous(), "/big/5")).await;
    assert!(response.is_ok());
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_never_taken_for_whole() {
    let (host, plugin) = function().await;
    for (path, complaint) in [
        ("/overlong", "more than the 5 bytes"),
        ("/short", "5 bytes where its content-length announces 100"),
    ] {
        let at_end = format!("{path}/0");
        let error = at_once(|| get(&host, &plugin, generous(), &at_end))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Failed);
        assert!(error.message.contains(complaint), "{error}");
        // The head is out before the rest is written.
        let response = get(&host, &plugin, generous(), &format!("{path}/200"))
            .await
            .unwrap();
        let mut body = response.into_body();
        let begun = body.frame().await.unwrap().unwrap();
        assert_eq!(begun.into_data().unwrap(), "hello");
        let error = body.frame().await.unwrap().unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
        assert!(body.frame().await.is_none());
    }
    // The answer to a HEAD speaks of a body that does not come.
    let request = Request::head("/short/0")
        .header("host", "example.com")
        .body(
            Full::default()
                .map_err(|never| match never {})
                .boxed_unsync(),
        )
        .unwrap();
    let response = plugin
        .handle(host.state(), generous(), soon(), request)
        .await
        .unwrap();
    assert_eq!(response.headers()["content-length"], "100");
}

#[tokio::test]
async fn a_guests_error_code_is_a_short_and_harmless_word() {
    let (host, plugin) = function().await;
    let error = get(&host, &plugin, generous(), "/error/4000000")
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("InternalError"), "{error}");
    assert!(error.message.len() < 400, "{} bytes", error.message.len());
    assert!(!error.message.contains(char::is_control), "{error}");
}

#[tokio::test]
async fn what_requests_and_headers_hold_is_bounded() {
    let (host, plugin) = function().await;
    let text = async |path: &str| {
        let response = get(&host, &plugin, generous(), path).await.unwrap();
        String::from_utf8(whole(response).await.unwrap().to_vec()).unwrap()
    };
    assert_eq!(text("/requests/8000").await, "[true, true, true]");
    assert_eq!(text("/requests/9000").await, "[false, false, true]");
    assert_eq!(text("/requests/1000000").await, "[false, false, false]");
    assert_eq!(text("/fields/50").await, "50");
    // Together as much as the guest may have of its own memory.
    let limits = Limits {
        memory: 8 << 20,
        ..generous()
    };
    let response = get(&host, &plugin, limits, "/fields/75").await.unwrap();
    whole(response).await.unwrap();
    let error = get(&host, &plugin, limits, "/fields/85").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit, "{error}");
    assert!(error.message.contains("limits.memory"), "{error}");
    // What is gone counts no more.
    let response = get(&host, &plugin, limits, "/fields-gone/500")
        .await
        .unwrap();
    whole(response).await.unwrap();
}

#[tokio::test]
async fn a_step_takes_no_request_and_a_function_no_event() {
    let (host, function) = function().await;
    let step = host.plugin(guest("hostile.wasm")).await;
    let error = host.call(&function, generous(), "echo").await.unwrap_err();
    assert!(error.message.contains("wasi:http/proxy"), "{error}");
    let error = get(&host, &step, generous(), "/").await.unwrap_err();
    assert!(error.message.contains("stepwell:pipeline/step"), "{error}");
}

/// Each behaviour of the function, and the test that is about it: one that is in its list and not here does not compile.
mod covered {
    use super::{
        a_bad_end_soon_after_the_head_is_never_taken_for_the_bodys_end as unfinished,
        a_bad_end_soon_after_the_head_is_never_taken_for_the_bodys_end as trap_early,
        a_bad_end_soon_after_the_head_is_never_taken_for_the_bodys_end as trap_late,
        a_body_of_another_length_than_announced_is_never_taken_for_whole as overlong,
        a_body_of_another_length_than_announced_is_never_taken_for_whole as short,
        a_body_over_the_output_limit_ends_with_an_error as big,
        a_body_over_the_output_limit_ends_with_an_error as endless,
        a_guest_that_outlives_its_response_keeps_what_it_is_given as linger_streamed,
        a_guests_error_code_is_a_short_and_harmless_word as error,
        a_head_comes_while_the_guest_still_works_and_a_cut_body_ends_with_an_error as stall,
        a_head_comes_while_the_guest_still_works_and_a_cut_body_ends_with_an_error as trap_midway,
        a_short_body_comes_in_one_frame_with_its_length as hello,
        forged_headers_are_refused as headers, the_guest_sees_the_request as about,
        the_guest_sees_the_request as echo, the_guest_sees_the_request as deaf,
        trailers_reach_the_guest_and_come_back as trailers,
        what_happens_after_a_complete_response_does_not_spoil_it as linger,
        what_requests_and_headers_hold_is_bounded as requests,
        what_requests_and_headers_hold_is_bounded as fields,
        what_requests_and_headers_hold_is_bounded as fields_gone,
        without_a_head_there_is_an_error as nothing, without_a_head_there_is_an_error as spin,
        writing_where_there_is_no_room_is_a_trap as blast,
    };

    macro_rules! cases {
        ($($name:ident)*) => { $(const _: fn() = $name;)* };
    }
    include!("../../../../tests/guests/hostile-http/cases.rs");
}
