//! A WASI 0.3 HTTP function that does what the path says.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use wasip3::cli::{environment, stdout};
use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::filesystem::preopens;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
use wasip3::wit_bindgen::StreamResult;
use wasip3::{spawn_local, wit_future, wit_stream};

wasip3::http::service::export!(Service);

struct Service;

/// Calls that this instance has seen.
static CALLS: AtomicU32 = AtomicU32::new(0);

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.get_path_with_query().unwrap_or_default();
        let (what, argument) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path.trim_start_matches('/'), ""));
        let number = || argument.parse::<u64>().expect("a number");
        match what {
            "" => text("hello"),
            "about" => {
                let (method, scheme) = (request.get_method(), request.get_scheme());
                let authority = request.get_authority();
                text(&format!("{method:?} {scheme:?} {authority:?} {path}"))
            }
            "count" => text(&calls.to_string()),
            "echo" => echo(request),
            "sleep" => {
                monotonic_clock::wait_for(number() * 1_000_000).await;
                text(&format!("{calls}"))
            }
            "big" => text(&"x".repeat(number() as usize)),
            "endless" => endless(),
            "spin" => loop {
                std::hint::black_box(());
            },
            "trap" => std::arch::wasm32::unreachable(),
            "exit" => std::process::exit(3),
            "error" => Err(ErrorCode::DestinationNotFound),
            "error-text" => {
                let text = "\u{1}".repeat(number() as usize);
                Err(ErrorCode::InternalError(Some(text)))
            }
            // More and less than is announced.
            "overlong" => announce(
                "5",
                b"helloHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
            ),
            "short" => announce("100", b"hello"),
            // Requests that are nothing but long words.
            "requests" => {
                let word = "x".repeat(number() as usize);
                let (_, trailers) = wit_future::new(|| Ok(None));
                let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
                let taken = [
                    request.set_method(&Method::Other(word.clone())).is_ok(),
                    request.set_authority(Some(&word)).is_ok(),
                    request
                        .set_path_with_query(Some(&format!("/{word}")))
                        .is_ok(),
                ];
                text(&format!("{taken:?}"))
            }
            // Headers of 100 KiB, so many times.
            "fields" => {
                let value = vec![b'x'; 100 << 10];
                let held: Vec<Fields> = (0..number())
                    .map(|_| {
                        let fields = Fields::new();
                        fields.append("x-long", &value).expect("a header");
                        fields
                    })
                    .collect();
                text(&held.len().to_string())
            }
            // The same one after the other.
            "fields-gone" => {
                let value = vec![b'x'; 100 << 10];
                for _ in 0..number() {
                    Fields::new().append("x-long", &value).expect("a header");
                }
                text("gone")
            }
            "allocate" => text(&vec![1u8; number() as usize].len().to_string()),
            "handles" => {
                let held: Vec<Fields> = (0..number()).map(|_| Fields::new()).collect();
                text(&held.len().to_string())
            }
            "streams" => {
                let held: Vec<_> = (0..number()).map(|_| wit_stream::new::<u8>()).collect();
                text(&held.len().to_string())
            }
            "stall" => begin(async |_| monotonic_clock::wait_for(3_600_000_000_000).await),
            "spin-midway" => begin(async |_| {
                loop {
                    std::hint::black_box(());
                }
            }),
            "trap-midway" => begin(async |_| {
                monotonic_clock::wait_for(1_000_000).await;
                std::arch::wasm32::unreachable()
            }),
            "unfinished" => {
                let (mut sink, body) = wit_stream::new();
                let (trailers, of_trailers) =
                    wit_future::new(|| Err(ErrorCode::ConnectionTerminated));
                let (response, _sent) = Response::new(Fields::new(), Some(body), of_trailers);
                spawn_local(async move {
                    sink.write_all(b"begun".to_vec()).await;
                    drop((sink, trailers));
                });
                Ok(response)
            }
            "linger" => {
                let millis = number();
                spawn_local(async move {
                    monotonic_clock::wait_for(millis * 1_000_000).await;
                    println!("lingered");
                });
                text("hello")
            }
            "linger-spin" => {
                let millis = number();
                spawn_local(async move {
                    monotonic_clock::wait_for(millis * 1_000_000).await;
                    loop {
                        std::hint::black_box(());
                    }
                });
                text("hello")
            }
            // Leaves the instance's other calls their turns.
            "spin-beside" => {
                spawn_local(async {
                    loop {
                        let began = monotonic_clock::now();
                        while monotonic_clock::now() < began + 5_000_000 {}
                        monotonic_clock::wait_for(1).await;
                    }
                });
                text("hello")
            }
            "log" => log(argument).await,
            "flood" => {
                for _ in 0..number() {
                    println!("{}", "x".repeat(1000));
                }
                text("logged")
            }
            "environment" => {
                let mut of_std: Vec<_> = std::env::vars().collect();
                let mut own = environment::get_environment();
                of_std.sort();
                own.sort();
                let arguments = environment::get_arguments();
                text(&format!("{own:?} {} {arguments:?}", own == of_std))
            }
            "files" => {
                let opened = std::fs::read("/etc/passwd").is_ok();
                text(&format!("{} {opened}", preopens::get_directories().len()))
            }
            "socket" => text(&connect().await),
            "fetch" => fetch(argument).await,
            "clock" => {
                let seconds = system_clock::now().seconds;
                let std = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("a time")
                    .as_secs();
                text(&format!("{}", (seconds - std as i64).abs() <= 1))
            }
            _ => {
                let (_, trailers) = wit_future::new(|| Ok(None));
                let (response, _sent) = Response::new(Fields::new(), None, trailers);
                response.set_status_code(404).expect("a status");
                Ok(response)
            }
        }
    }
}

/// A whole response.
fn text(text: &str) -> Result<Response, ErrorCode> {
    let (mut sink, body) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
    let bytes = text.as_bytes().to_vec();
    spawn_local(async move {
        sink.write_all(bytes).await;
    });
    Ok(response)
}

/// A response that says how long its body is, whatever comes then.
fn announce(length: &str, bytes: &'static [u8]) -> Result<Response, ErrorCode> {
    let length = length.as_bytes().to_vec();
    let fields = Fields::from_list(&[("content-length".to_owned(), length)]).expect("headers");
    let (mut sink, body) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(fields, Some(body), trailers);
    spawn_local(async move {
        let (one, two) = bytes.split_at(5);
        sink.write_all(one.to_vec()).await;
        sink.write_all(two.to_vec()).await;
    });
    Ok(response)
}

/// A response whose body begins, and then this happens.
fn begin(then: impl AsyncFnOnce(&Cell<u32>) + 'static) -> Result<Response, ErrorCode> {
    let (mut sink, body) = wit_stream::new();
    let (trailers, of_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), of_trailers);
    spawn_local(async move {
        sink.write_all(b"begun".to_vec()).await;
        then(&Cell::new(0)).await;
        drop((sink, trailers));
    });
    Ok(response)
}

/// The request's body piece by piece, then its trailers and one more.
fn echo(request: Request) -> Result<Response, ErrorCode> {
    let (_, done) = wit_future::new(|| Ok(()));
    let (mut from, of_request) = Request::consume_body(request, done);
    let (mut sink, body) = wit_stream::new();
    let (trailers, of_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), of_trailers);
    spawn_local(async move {
        let mut total = 0;
        loop {
            let (result, bytes) = from.read(Vec::with_capacity(16 << 10)).await;
            total += bytes.len();
            if !sink.write_all(bytes).await.is_empty() {
                return;
            }
            if matches!(result, StreamResult::Dropped) {
                break;
            }
        }
        drop(sink);
        let mut entries = match of_request.await {
            Ok(Some(trailers)) => trailers.copy_all(),
            Ok(None) => Vec::new(),
            // The body was cut off.
            Err(error) => {
                println!("cut off after {total}");
                let _ = trailers.write(Err(error)).await;
                return;
            }
        };
        entries.push(("x-bytes".to_owned(), total.to_string().into_bytes()));
        let entries = Fields::from_list(&entries).expect("trailers");
        let _ = trailers.write(Ok(Some(entries))).await;
    });
    Ok(response)
}

/// A body that ends when nobody reads it any more.
fn endless() -> Result<Response, ErrorCode> {
    let (mut sink, body) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
    spawn_local(async move {
        let mut written = 0;
        while sink.write_all(vec![b'x'; 16 << 10]).await.is_empty() {
            written += 16;
        }
        println!("stopped after {written} KiB");
    });
    Ok(response)
}

/// Both ways to stdout: the standard library's, which is WASI 0.2, and WASI 0.3's own.
async fn log(line: &str) -> Result<Response, ErrorCode> {
    println!("0.2 {line}");
    let (mut sink, lines) = wit_stream::new();
    let written = stdout::write_via_stream(lines);
    sink.write_all(format!("0.3 {line}\n").into_bytes()).await;
    drop(sink);
    written.await.expect("a stream that takes everything");
    text("logged")
}

async fn connect() -> String {
    let socket = match TcpSocket::create(IpAddressFamily::Ipv4) {
        Ok(socket) => socket,
        Err(error) => return format!("{error:?}"),
    };
    let address = Ipv4SocketAddress {
        port: 80,
        address: (127, 0, 0, 1),
    };
    let connected = socket.connect(IpSocketAddress::Ipv4(address)).await;
    format!("{connected:?}")
}

async fn fetch(authority: &str) -> Result<Response, ErrorCode> {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request
        .set_authority(Some(authority))
        .expect("an authority");
    request.set_path_with_query(Some("/")).expect("a path");
    match client::send(request).await {
        Ok(response) => text(&response.get_status_code().to_string()),
        Err(error) => text(&format!("{error:?}")),
    }
}
