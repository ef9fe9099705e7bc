//! HTTP functions of WASI 0.3: the same as those of 0.2, and what only they can do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use stepwell_core::{Digest, ErrorKind, Limits, StepError};
use stepwell_engine::{Body, Engine, EngineConfig, LogStream, Plugin};
use tokio::sync::mpsc;

use crate::support::{Host, State, at_once, data, generous, guest, host, soon};

async fn service() -> (Host, Arc<Plugin<State>>) {
    let host = host();
    let plugin = host.plugin(guest("service.wasm")).await;
    (host, plugin)
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .uri(path)
        .header("host", "example.com")
        .body(body)
        .unwrap()
}

async fn get(
    host: &Host,
    plugin: &Plugin<State>,
    limits: Limits,
    path: &str,
) -> Result<Response<Body>, StepError> {
    let request = request(path, whole(""));
    plugin.handle(host.state(), limits, soon(), request).await
}

async fn text(host: &Host, plugin: &Plugin<State>, path: &str) -> String {
    let response = get(host, plugin, generous(), path).await.unwrap();
    read(response).await.unwrap()
}

async fn read(
    response: Response<Body>,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec())?)
}

async fn until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn requests_are_answered_as_by_a_function_of_wasi_0_2() {
    let (host, plugin) = service().await;
    assert_eq!(plugin.world().to_string(), "wasi:http/service@0.3.0");
    let response = at_once(|| get(&host, &plugin, generous(), "/"))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(5));
    assert_eq!(read(response).await.unwrap(), "hello");
    assert_eq!(
        text(&host, &plugin, "/about/a?b=c").await,
        r#"Method::Get Some(Scheme::Http) Some("example.com") /about/a?b=c"#
    );
    let response = get(&host, &plugin, generous(), "/none").await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    // HTTP/1.0 clients send no host.
    let nameless = Request::builder().uri("/about").body(whole("")).unwrap();
    let response = plugin
        .handle(host.state(), generous(), soon(), nameless)
        .await
        .unwrap();
    assert!(
        read(response)
            .await
            .unwrap()
            .ends_with(r#"Some("localhost") /about"#)
    );
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways() {
    let (host, plugin) = service().await;
    let (pieces, stream) = mpsc::channel::<Result<Frame<Bytes>, _>>(1);
    let body = StreamBody::new(futures::stream::unfold(stream, async |mut stream| {
        Some((stream.recv().await?, stream))
    }));
    let mut response = plugin
        .handle(
            host.state(),
            generous(),
            soon(),
            request("/echo", body.boxed_unsync()),
        )
        .await
        .unwrap();
    // Each piece comes back before the next one is sent.
    for piece in [&b"one"[..], &[7; 300_000], b"three"] {
        pieces
            .send(Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .await
            .unwrap();
        let mut back = Vec::new();
        while back.len() < piece.len() {
            let frame = response.body_mut().frame().await.unwrap().unwrap();
            back.extend_from_slice(&frame.into_data().unwrap());
        }
        assert_eq!(back, piece);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "abc".parse().unwrap());
    pieces.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(pieces);
    let rest = response.into_body().collect().await.unwrap();
    let trailers = rest.trailers().unwrap();
    assert_eq!(trailers["x-sum"], "abc");
    assert_eq!(trailers["x-bytes"], "300008");
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_an_error_in_the_guest() {
    let (host, plugin) = service().await;
    let (pieces, stream) = mpsc::channel::<Result<Frame<Bytes>, _>>(1);
    let body = StreamBody::new(futures::stream::unfold(stream, async |mut stream| {
        Some((stream.recv().await?, stream))
    }));
    let request = request("/echo", body.boxed_unsync());
    let mut response = plugin
        .handle(host.state(), generous(), soon(), request)
        .await
        .unwrap();
    pieces
        .send(Ok(Frame::data(Bytes::from_static(b"one"))))
        .await
        .unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one");
    pieces.send(Err("reset".into())).await.unwrap();
    assert!(read(response).await.is_err());
    until(|| {
        let line = (LogStream::Stdout, "cut off after 3".to_owned());
        host.lines.all().contains(&line)
    })
    .await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_holds_its_guest_back() {
    let (host, plugin) = service().await;
    let limits = Limits {
        output: u64::MAX,
        ..generous()
    };
    let mut response = get(&host, &plugin, limits, "/endless").await.unwrap();
    for _ in 0..100 {
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert!(!frame.into_data().unwrap().is_empty());
    }
    // The guest sees that its caller has hung up.
    drop(response);
    until(|| !host.lines.all().is_empty()).await;
    let (_, line) = host.lines.all().remove(0);
    let written: u32 = line
        .trim_start_matches("stopped after ")
        .trim_end_matches(" KiB")
        .parse()
        .unwrap();
    // What it wrote is what was read, and a little that lay between.
    assert!((1600..3200).contains(&written), "{line}");
}

#[tokio::test]
async fn too_much_output_ends_the_body_with_an_error() {
    let (host, plugin) = service().await;
    let limits = Limits {
        output: 200_000,
        ..generous()
    };
    let response = get(&host, &plugin, limits, "/big/200000").await.unwrap();
    assert_eq!(read(response).await.unwrap().len(), 200_000);
    let response = get(&host, &plugin, limits, "/endless").await.unwrap();
    let error = read(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.output"), "{error}");
    // Before the head is sent it fails as a whole.
    let limits = Limits {
        output: 1000,
        ..generous()
    };
    let error = get(&host, &plugin, limits, "/big/1001").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.output"), "{error}");
}

#[tokio::test]
async fn limits_hold_before_the_head_and_after_it() {
    let (host, plugin) = service().await;
    let limits = Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    };
    let error = get(&host, &plugin, limits, "/spin").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.cpu"), "{error}");
    let response = get(&host, &plugin, limits, "/spin-midway").await;
    let error = match response {
        Ok(response) => read(response).await.unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("limits.cpu"), "{error}");
    // Waiting costs no CPU.
    let response = get(&host, &plugin, limits, "/sleep/200").await.unwrap();
    assert_eq!(read(response).await.unwrap(), "1");

    let limits = Limits {
        wall: Duration::from_millis(100),
        ..generous()
    };
    let error = get(&host, &plugin, limits, "/sleep/60000")
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("limits.wall"), "{error}");
    let response = get(&host, &plugin, limits, "/stall").await.unwrap();
    let error = read(response).await.unwrap_err().to_string();
    assert!(error.contains("limits.wall"), "{error}");

    let error = get(&host, &plugin, generous(), "/allocate/100000000")
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.memory"), "{error}");
    for path in ["/handles/20000", "/streams/20000"] {
        let error = get(&host, &plugin, generous(), path).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit, "{path}: {error}");
        assert!(error.message.contains("resource handles"), "{error}");
    }
    for path in ["/handles/400", "/streams/400"] {
        assert_eq!(text(&host, &plugin, path).await, "400");
    }
}

#[tokio::test]
async fn what_goes_wrong_is_told_apart() {
    let (host, plugin) = service().await;
    let error = get(&host, &plugin, generous(), "/trap").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Trap);
    assert!(error.message.contains("unreachable"), "{error}");
    let error = get(&host, &plugin, generous(), "/exit").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Trap);
    assert!(error.message.contains("exit"), "{error}");
    let error = get(&host, &plugin, generous(), "/error").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("DestinationNotFound"), "{error}");
    let response = get(&host, &plugin, generous(), "/trap-midway")
        .await
        .unwrap();
    let error = read(response).await.unwrap_err().to_string();
    assert!(error.contains("unreachable"), "{error}");
    let response = get(&host, &plugin, generous(), "/unfinished").await;
    assert!(response.is_err() || read(response.unwrap()).await.is_err());
}

#[tokio::test]
async fn an_instance_is_fresh_each_time() {
    let (host, plugin) = service().await;
    for _ in 0..3 {
        assert_eq!(text(&host, &plugin, "/count").await, "1");
    }
}

#[tokio::test]
async fn a_guest_may_go_on_after_its_response() {
    let (host, plugin) = service().await;
    assert_eq!(text(&host, &plugin, "/linger/20").await, "hello");
    until(|| {
        let line = (LogStream::Stdout, "lingered".to_owned());
        host.lines.all().contains(&line)
    })
    .await;
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_never_taken_for_whole() {
    let (host, plugin) = service().await;
    for path in ["/overlong", "/short"] {
        match get(&host, &plugin, generous(), path).await {
            Err(error) => assert_eq!(error.kind, ErrorKind::Failed, "{path}"),
            // What was announced is there, and the rest was never taken.
            Ok(response) if path == "/overlong" => match read(response).await {
                Ok(body) => assert_eq!(body, "hello"),
                Err(error) => assert!(error.to_string().contains("body"), "{error}"),
            },
            Ok(response) => {
                read(response).await.unwrap_err();
            }
        }
    }
}

#[tokio::test]
async fn a_guests_error_code_is_a_short_and_harmless_word() {
    let (host, plugin) = service().await;
    let error = get(&host, &plugin, generous(), "/error-text/4000000")
        .await
        .unwrap_err();
    assert!(error.message.contains("InternalError"), "{error}");
    assert!(error.message.len() < 400, "{} bytes", error.message.len());
    assert!(!error.message.contains(char::is_control), "{error}");
}

#[tokio::test]
async fn what_requests_and_headers_hold_is_bounded() {
    let (host, plugin) = service().await;
    for (path, expected) in [
        ("/requests/8000", "[true, true, true]"),
        ("/requests/9000", "[false, false, true]"),
        ("/requests/1000000", "[false, false, false]"),
        ("/fields/50", "50"),
    ] {
        assert_eq!(text(&host, &plugin, path).await, expected, "{path}");
    }
    // Together as much as the guest may have of its own memory.
    let limits = Limits {
        memory: 8 << 20,
        ..generous()
    };
    let response = get(&host, &plugin, limits, "/fields/75").await.unwrap();
    read(response).await.unwrap();
    let error = get(&host, &plugin, limits, "/fields/85").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit, "{error}");
    assert!(error.message.contains("limits.memory"), "{error}");
    // What is gone counts no more.
    let response = get(&host, &plugin, limits, "/fields-gone/500")
        .await
        .unwrap();
    read(response).await.unwrap();
}

#[tokio::test]
async fn both_kinds_of_stdout_are_logged_within_one_allowance() {
    let (host, plugin) = service().await;
    assert_eq!(text(&host, &plugin, "/log/line").await, "logged");
    assert_eq!(
        host.lines.all(),
        [
            (LogStream::Stdout, "0.2 line".to_owned()),
            (LogStream::Stdout, "0.3 line".to_owned())
        ]
    );
    assert_eq!(text(&host, &plugin, "/flood/1000").await, "logged");
    let lines = host.lines.all();
    assert!(lines.len() < 100, "{}", lines.len());
    assert!(lines.iter().any(|(_, line)| line.contains("truncated")));
}

#[tokio::test]
async fn a_guest_sees_its_configuration_and_nothing_of_the_machine() {
    let (host, plugin) = service().await;
    assert_eq!(
        text(&host, &plugin, "/environment").await,
        r#"[("neighbours", "5")] true []"#
    );
    assert_eq!(text(&host, &plugin, "/files").await, "0 false");
    let socket = text(&host, &plugin, "/socket").await;
    assert!(socket.contains("AccessDenied"), "{socket}");
    let fetched = text(&host, &plugin, "/fetch/127.0.0.1:1").await;
    assert!(fetched.contains("HttpRequestDenied"), "{fetched}");
    assert_eq!(text(&host, &plugin, "/clock").await, "true");
}

#[tokio::test]
async fn neighbours_progress_beside_spinning_ones() {
    let (host, plugin) = service().await;
    let limits = Limits {
        cpu: Duration::from_secs(2),
        ..generous()
    };
    let spinning = get(&host, &plugin, limits, "/spin");
    let others = async {
        for _ in 0..10 {
            assert_eq!(text(&host, &plugin, "/").await, "hello");
        }
    };
    tokio::select! {
        outcome = spinning => panic!("the spinning one ended first: {outcome:?}"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_step_may_import_wasi_0_3_beside_0_2() {
    let host = host();
    let plugin = host.plugin(guest("clocks.wasm")).await;
    assert_eq!(plugin.world().to_string(), "stepwell:pipeline/step@0.1.0");
    let slept: u64 = data(&host.call(&plugin, generous(), "").await.unwrap())
        .parse()
        .unwrap();
    assert!((20..20_000).contains(&slept), "{slept}");
}

#[tokio::test]
async fn the_next_process_finds_the_flavour_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let engine = || {
        let mut config = EngineConfig::new(dir.path());
        config.instances = 10;
        Engine::<State>::new(config, |_| Ok(())).unwrap()
    };
    let bytes = Bytes::from(guest("service.wasm"));
    let digest = Digest::of(&bytes);
    let report = engine()
        .compile("default", digest, bytes.clone())
        .await
        .unwrap();
    assert!(!report.cached);
    let engine = engine();
    let never = async { Err::<Bytes, _>("the bytes must not be needed") };
    let plugin = engine.load(digest, never).await.unwrap();
    assert_eq!(plugin.world().to_string(), "wasi:http/service@0.3.0");
    engine.forget(&digest);
    drop(plugin);
    assert!(
        !engine
            .compile("default", digest, bytes)
            .await
            .unwrap()
            .cached
    );
}
