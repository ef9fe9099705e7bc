//! An HTTP function that does what the path says.

use std::time::Duration;

use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

wasip2::http::proxy::export!(Hostile);

struct Hostile;

impl wasip2::exports::http::incoming_handler::Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (what, argument) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path.trim_start_matches('/'), ""));
        let number = || argument.parse::<usize>().expect("a number");
        match what {
            "" => finish(start(out), b"hello"),
            "about" => {
                let about = format!(
                    "{:?} {:?} {:?} {path}",
                    request.method(),
                    request.scheme(),
                    request.authority()
                );
                finish(start(out), about.as_bytes());
            }
            "echo" => {
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
            "trailers" => {
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
            "big" => finish(start(out), &vec![b'x'; number()]),
            "spin" => loop {
                std::hint::black_box(());
            },
            "nothing" => {}
            "stall" => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, b"begun");
                std::thread::sleep(Duration::from_secs(3600));
            }
            "unfinished" => {
                let body = start(out);
                write(&body.write().expect("a stream"), b"begun");
                drop(body);
            }
            "trap-early" => {
                let body = start(out);
                write(&body.write().expect("a stream"), b"begun");
                std::arch::wasm32::unreachable();
            }
            "trap-midway" => {
                let body = start(out);
                let sink = body.write().expect("a stream");
                write(&sink, &[b'x'; 256 << 10]);
                std::arch::wasm32::unreachable();
            }
            "trap-late" => {
                finish(start(out), b"hello");
                std::arch::wasm32::unreachable();
            }
            "linger" => {
                finish(start(out), b"hello");
                std::thread::sleep(Duration::from_millis(number() as u64));
                println!("lingered");
            }
            _ => {
                let response = OutgoingResponse::new(Fields::new());
                response.set_status_code(404).expect("a status");
                ResponseOutparam::set(out, Ok(response));
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
