use http::{HeaderMap, HeaderName, header};

/// What concerns one connection and not the request. Most of it a guest cannot even set; what it can, or what comes with headers
/// that it hands on, ends here. `Trailer` is of the message: fields after a body are sent when it names them.
const OF_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("http2-settings"),
];

/// Takes out of a request what belongs to the connection, and whatever the `Connection` header names.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let of_proxies = headers
        .keys()
        .filter(|name| name.as_str().starts_with("proxy-"))
        .cloned();
    let all: Vec<HeaderName> = named
        .into_iter()
        .chain(of_proxies)
        .chain(OF_CONNECTION)
        .collect();
    for name in all {
        headers.remove(name);
    }
    // The one value that means the same on every connection.
    let trailers = |value: &http::HeaderValue| value.as_bytes() == b"trailers";
    if !headers.get_all(header::TE).iter().all(trailers) {
        headers.remove(header::TE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_requests_own_is_sent() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Secret"),
            ("connection", "close"),
            ("x-secret", "1"),
            ("x-mine", "2"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("proxy-anything", "x"),
            ("te", "gzip"),
            ("trailer", "x-mine"),
            ("content-length", "5"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        strip(&mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["authorization", "content-length", "trailer", "x-mine"]
        );
    }

    #[test]
    fn trailers_may_be_asked_for() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TE, "trailers".parse().unwrap());
        strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
