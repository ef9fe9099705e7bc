//! An HTTP function that remembers: it answers how many requests its instance has had.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wasip2::http::proxy::export!(Keepsake);

static REQUESTS: AtomicUsize = AtomicUsize::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

struct Keepsake;

impl wasip2::exports::http::incoming_handler::Guest for Keepsake {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let twice = BUSY.swap(true, Ordering::Relaxed);
        let requests = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.path_with_query().unwrap_or_default();
        let (what, argument) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path.trim_start_matches('/'), ""));
        let pause = || {
            let pause = argument.parse().expect("milliseconds");
            std::thread::sleep(Duration::from_millis(pause));
        };
        let reply = match twice {
            true => "two requests at once".to_owned(),
            false => requests.to_string(),
        };
        match what {
            // Under whatever prefix its pipeline has.
            _ if path.ends_with("/count") => answer(out, &reply),
            "before" => {
                pause();
                answer(out, &reply);
            }
            "after" => {
                answer(out, &reply);
                pause();
            }
            "midway" => {
                let response = OutgoingResponse::new(Fields::new());
                let body = response.body().expect("a body");
                ResponseOutparam::set(out, Ok(response));
                let sink = body.write().expect("a stream");
                sink.blocking_write_and_flush(reply.as_bytes())
                    .expect("a reader");
                pause();
                drop(sink);
                OutgoingBody::finish(body, None).expect("the end");
            }
            "keep-body" => {
                std::mem::forget(request.consume().expect("a body"));
                answer(out, &reply);
            }
            "trap" => std::arch::wasm32::unreachable(),
            "nothing" => {}
            _ => {
                let response = OutgoingResponse::new(Fields::new());
                response.set_status_code(404).expect("a status");
                ResponseOutparam::set(out, Ok(response));
            }
        }
        BUSY.store(false, Ordering::Relaxed);
    }
}

fn answer(out: ResponseOutparam, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("a body");
    ResponseOutparam::set(out, Ok(response));
    let sink = body.write().expect("a stream");
    sink.blocking_write_and_flush(text.as_bytes())
        .expect("a reader");
    drop(sink);
    OutgoingBody::finish(body, None).expect("the end");
}
