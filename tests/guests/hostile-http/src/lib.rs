//! An HTTP function that does what the path says.

use std::time::Duration;

use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

wasip2::http::proxy::export!(Hostile);

struct Hostile;

/// Makes an enumeration of the cases, so that none can be here that is not in the list.
macro_rules! cases {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types)]
        enum Case { $($name,)* }

        impl Case {
            fn named(name: &str) -> Option<Self> {
                match name.replace('-', "_").as_str() {
                    "" => Some(Self::hello),
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}
include!("../cases.rs");

impl wasip2::exports::http::incoming_handler::Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (what, argument) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path.trim_start_matches('/'), ""));
        let number = || argument.parse::<usize>().expect("a number");
        let Some(case) = Case::named(what) else {
            let response = OutgoingResponse::new(Fields::new());
            response.set_status_code(404).expect("a status");
            return ResponseOutparam::set(out, Ok(response));
        };
        match case {
            Case::hello => finish(start(out), b"hello"),
            Case::about => {
                let about = format!(
                    "{:?} {:?} {:?} {path}",
                    request.method(),
                    request.scheme(),
                    request.authority()
                );
                finish(start(out), about.as_bytes());
            }
            Case::echo => {
                let incoming = request.consume().expect("a body");
                let stream = incoming.stream().expect("its stream");
                let body = start(out);
                let sink = body.write().expect("a stream");
                while let Some(bytes) = read(&stream) {
                    write(&sink, &bytes);
                }
                drop(sink);
                OutgoingBody::finish(body, None).expect("the end");
            }
            // Answers with the length of the request's body, and with its trailers.
            Case::trailers => {
                let incoming = request.consume().expect("a body");
                let stream = incoming.stream().expect("its stream");
                let mut length = 0;
                while let Some(bytes) = read(&stream) {
                    length += bytes.len();
                }
                drop(stream);
                let trailers = IncomingBody::finish(incoming);
                trailers.subscribe().block();
                let trailers = trailers.get().expect("an outcome").expect("the first look");
                let trailers = trailers.expect("a whole body").map(|trailers| {
                    Fields::from_list(&trailers.entries()).expect("allowed trailers")
                });
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, length.to_string().as_bytes());
                drop(sink);
                OutgoingBody::finish(body, trailers).expect("the end");
            }
            Case::big => finish(start(out), &vec![b'x'; number()]),
            Case::spin => loop {
                std::hint::black_box(());
            },
            Case::nothing => {}
            Case::stall => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, b"begun");
                std::thread::sleep(Duration::from_secs(3600));
            }
            Case::unfinished => {
                let body = start(out);
                write(&body.write().expect("a stream"), b"begun");
                drop(body);
            }
            Case::trap_early => {
                let body = start(out);
                write(&body.write().expect("a stream"), b"begun");
                std::arch::wasm32::unreachable();
            }
            Case::trap_midway => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, &[b'x'; 256 << 10]);
                std::arch::wasm32::unreachable();
            }
            Case::trap_late => {
                finish(start(out), b"hello");
                std::arch::wasm32::unreachable();
            }
            Case::linger => {
                finish(start(out), b"hello");
                std::thread::sleep(Duration::from_millis(number() as u64));
                println!("lingered");
            }
            Case::endless => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                while sink.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
            }
            // Writes whether or not there is room.
            Case::blast => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                while sink.write(&[b'x'; 4096]).is_ok() {}
            }
            Case::headers => {
                let fields = Fields::new();
                let forged = ["a\r\nset-cookie: b", "a\nb", "a\rb", "a\0b"];
                let taken = forged
                    .iter()
                    .filter(|value| fields.append("x-mine", value.as_bytes()).is_ok())
                    .count()
                    + [
                        "x\r\nset-cookie",
                        "x y",
                        "",
                        "connection",
                        "transfer-encoding",
                    ]
                    .iter()
                    .filter(|name| fields.append(name, b"a").is_ok())
                    .count();
                fields.append("x-good", b"yes").expect("a header");
                let response = OutgoingResponse::new(fields);
                let body = response.body().expect("a body");
                ResponseOutparam::set(out, Ok(response));
                finish(body, taken.to_string().as_bytes());
            }
            // More than is announced, after so many milliseconds, and nobody says that this was all.
            Case::overlong => {
                let body = announce(out, "5");
                let sink = body.write().expect("a stream");
                write(&sink, b"hello");
                std::thread::sleep(Duration::from_millis(number() as u64));
                let more = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
                let _ = sink.check_write();
                let _ = sink.write(more);
                std::mem::forget((sink, body));
            }
            // Less than is announced, so the beginning of what comes next would be taken for the rest.
            Case::short => {
                let body = announce(out, "100");
                let sink = body.write().expect("a stream");
                write(&sink, b"hello");
                std::thread::sleep(Duration::from_millis(number() as u64));
                std::mem::forget((sink, body));
            }
            Case::error => {
                let code = ErrorCode::InternalError(Some("\u{1}".repeat(number())));
                ResponseOutparam::set(out, Err(code));
            }
            // Goes on after a body that was not there as a whole with its head.
            Case::linger_streamed => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, b"hel");
                std::thread::sleep(Duration::from_millis(50));
                write(&sink, b"lo");
                drop(sink);
                OutgoingBody::finish(body, None).expect("the end");
                std::thread::sleep(Duration::from_millis(number() as u64));
                println!("lingered");
            }
            // Requests that are nothing but long words.
            Case::requests => {
                let word = "x".repeat(number());
                let request = OutgoingRequest::new(Fields::new());
                let taken = [
                    request.set_method(&Method::Other(word.clone())).is_ok(),
                    request.set_authority(Some(&word)).is_ok(),
                    request
                        .set_path_with_query(Some(&format!("/{word}")))
                        .is_ok(),
                ];
                finish(start(out), format!("{taken:?}").as_bytes());
            }
            // Headers of 100 KiB, so many times.
            Case::fields => {
                let value = vec![b'x'; 100 << 10];
                let held: Vec<Fields> = (0..number())
                    .map(|_| {
                        let fields = Fields::new();
                        fields.append("x-long", &value).expect("a header");
                        fields
                    })
                    .collect();
                finish(start(out), held.len().to_string().as_bytes());
            }
            // The same one after the other.
            Case::fields_gone => {
                let value = vec![b'x'; 100 << 10];
                for _ in 0..number() {
                    Fields::new().append("x-long", &value).expect("a header");
                }
                finish(start(out), b"gone");
            }
            // Answers without ever reading what it was sent.
            Case::deaf => {
                let _incoming = request.consume().expect("a body");
                finish(start(out), b"what?");
            }
        }
    }
}

fn start(out: ResponseOutparam) -> OutgoingBody {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("a body");
    ResponseOutparam::set(out, Ok(response));
    body
}

/// A response that says how long its body will be.
fn announce(out: ResponseOutparam, length: &str) -> OutgoingBody {
    let length = length.as_bytes().to_vec();
    let fields = Fields::from_list(&[("content-length".to_owned(), length)]).expect("headers");
    let response = OutgoingResponse::new(fields);
    let body = response.body().expect("a body");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn finish(body: OutgoingBody, bytes: &[u8]) {
    let sink = body.write().expect("a stream");
    write(&sink, bytes);
    drop(sink);
    OutgoingBody::finish(body, None).expect("the end");
}

fn write(sink: &OutputStream, bytes: &[u8]) {
    for chunk in bytes.chunks(4096) {
        // The caller may be gone.
        if sink.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
}

fn read(stream: &InputStream) -> Option<Vec<u8>> {
    match stream.blocking_read(64 << 10) {
        Ok(bytes) => Some(bytes),
        Err(StreamError::Closed) => None,
        Err(error) => panic!("{error:?}"),
    }
}
