//! Answers HTTP requests itself: a component of the world `wasi:http/proxy`, made without the Stepwell SDK.

/// What a request asked for, as the answer says it.
#[cfg(any(test, target_family = "wasm"))]
fn greeting(method: &str, path_with_query: &str) -> serde_json::Value {
    let (path, query) = path_with_query
        .split_once('?')
        .unwrap_or((path_with_query, ""));
    serde_json::json!({"hello": "from a wasi:http component", "method": method, "path": path, "query": query})
}

#[cfg(target_family = "wasm")]
mod component {
    use std::io::Write;

    use wasip2::exports::http::incoming_handler::Guest;
    use wasip2::http::types::{
        ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse,
        ResponseOutparam,
    };

    struct Hello;
    wasip2::http::proxy::export!(Hello);

    impl Guest for Hello {
        fn handle(request: IncomingRequest, out: ResponseOutparam) {
            let method = match request.method() {
                Method::Other(name) => name,
                known => format!("{known:?}")
                    .trim_start_matches("Method::")
                    .to_ascii_uppercase(),
            };
            let path = request.path_with_query().unwrap_or_default();
            let body = super::greeting(&method, &path).to_string();
            if let Err(error) = answer(out, &body) {
                eprintln!("cannot answer: {error}");
            }
        }
    }

    fn answer(out: ResponseOutparam, text: &str) -> Result<(), Box<dyn std::error::Error>> {
        let headers =
            Fields::from_list(&[("content-type".to_owned(), b"application/json".to_vec())])?;
        let response = OutgoingResponse::new(headers);
        let body = response.body().map_err(|()| "the body is taken")?;
        ResponseOutparam::set(out, Ok(response));
        let mut stream = body.write().map_err(|()| "the body's stream is taken")?;
        stream.write_all(text.as_bytes())?;
        stream.flush()?;
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|error: ErrorCode| error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_what_was_asked() {
        let answer = greeting("GET", "/hello/world?name=Ada&x=?");
        assert_eq!(answer["method"], "GET");
        assert_eq!(answer["path"], "/hello/world");
        assert_eq!(answer["query"], "name=Ada&x=?");
        assert_eq!(greeting("PUT", "/hello")["query"], "");
    }
}
