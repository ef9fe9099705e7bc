//! A step that sends the HTTP request which its event holds: `METHOD URL`, headers, an empty line, a body. The URL is taken apart
//! without a look at it, so that what a guest may write reaches the host. The event's type says what is done with the answer.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingResponse, Method, OutgoingBody,
    OutgoingRequest, Scheme,
};
use wasip2::io::streams::StreamError;

wit_bindgen::generate!({
    path: "../../../wit/pipeline",
    world: "stepwell:pipeline/step",
    generate_all,
});

use exports::stepwell::pipeline::handler::{Error, Event, Guest};

struct Fetcher;
export!(Fetcher);

impl Guest for Fetcher {
    fn process(input: Event) -> Result<Vec<Event>, Error> {
        let text = String::from_utf8_lossy(&input.data).into_owned();
        let (what, argument) = input.type_.split_once(':').unwrap_or((&input.type_, ""));
        let reply = match what {
            "fetch" => fetch(&text),
            // Whoever is sent elsewhere asks there.
            "follow" => send(&text).and_then(|response| match header(&response, "location") {
                Some(location) => fetch(&format!("GET {location}")),
                None => Err("nowhere to go".into()),
            }),
            // The answers are not looked at until all requests are under way.
            "many" => {
                let begun: Vec<_> = (0..argument.parse().unwrap_or(0))
                    .map(|_| begin(&text, true))
                    .collect();
                let ends: Vec<_> = begun.into_iter().map(|it| it.and_then(answer)).collect();
                let answered = ends.iter().filter(|end| end.is_ok()).count();
                let refused = ends.into_iter().find_map(Result::err).unwrap_or_default();
                Ok(format!("{answered} answered {refused}"))
            }
            // Nobody ever reads the answer.
            "unread" => send(&text).map(|response| {
                let status = response.status();
                std::mem::forget(response);
                format!("{status}")
            }),
            // The request's body has no end.
            "unfinished" => begin(&text, false)
                .and_then(answer)
                .map(|_| "answered".into()),
            other => Err(format!("no such behaviour: {other}")),
        };
        let data = reply.unwrap_or_else(|error| error).into_bytes();
        Ok(vec![Event { data, ..input }])
    }
}

fn fetch(text: &str) -> Result<String, String> {
    let response = send(text)?;
    let status = response.status();
    let body = response.consume().map_err(|()| "no body")?;
    let stream = body.stream().map_err(|()| "no stream")?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(more) => bytes.extend(more),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => {
                let code = wasip2::http::types::http_error_code(&error);
                return Err(code.map_or("broken off".into(), |code| format!("{code:?}")));
            }
        }
    }
    Ok(format!("{status} {}", String::from_utf8_lossy(&bytes)))
}

fn send(text: &str) -> Result<IncomingResponse, String> {
    begin(text, true).and_then(answer)
}

/// Sends the request; without `finish` its body stays open.
fn begin(text: &str, finish: bool) -> Result<FutureIncomingResponse, String> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, url) = lines
        .next()
        .and_then(|line| line.split_once(' '))
        .ok_or("no request")?;
    let fields = Fields::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        // A line cannot hold a line end; a test that wants one writes it so.
        let value = value.replace("\\r\\n", "\r\n");
        fields
            .append(name, value.as_bytes())
            .map_err(|error| format!("{error:?}"))?;
    }
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    };
    let method = match method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "CONNECT" => Method::Connect,
        other => Method::Other(other.into()),
    };
    let request = OutgoingRequest::new(fields);
    request.set_method(&method).map_err(|()| "method refused")?;
    request
        .set_scheme(Some(&scheme))
        .map_err(|()| "scheme refused")?;
    request
        .set_authority(Some(authority))
        .map_err(|()| "authority refused")?;
    request
        .set_path_with_query(Some(path))
        .map_err(|()| "path refused")?;
    let sink = match finish && body.is_empty() {
        true => None,
        false => Some(request.body().map_err(|()| "no body")?),
    };
    let future = outgoing_handler::handle(request, None).map_err(shown)?;
    if let Some(sink) = sink {
        let stream = sink.write().map_err(|()| "no stream")?;
        for piece in body.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(piece).is_err() {
                break;
            }
        }
        drop(stream);
        if finish {
            OutgoingBody::finish(sink, None).map_err(shown)?;
        } else {
            std::mem::forget(sink);
        }
    }
    Ok(future)
}

fn answer(future: FutureIncomingResponse) -> Result<IncomingResponse, String> {
    future.subscribe().block();
    match future.get() {
        Some(Ok(Ok(response))) => Ok(response),
        Some(Ok(Err(code))) => Err(shown(code)),
        _ => Err("no answer".into()),
    }
}

fn shown(code: ErrorCode) -> String {
    format!("{code:?}")
}

fn header(response: &IncomingResponse, name: &str) -> Option<String> {
    let value = response.headers().get(name).into_iter().next()?;
    String::from_utf8(value).ok()
}
