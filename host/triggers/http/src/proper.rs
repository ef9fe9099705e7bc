//! What must hold of a request before anything is looked up for it.

use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Version};

use crate::problem::Problem;

/// Refuses requests that are not what they should be, or that ask for what the host does not do. Whoever stands before the host must
/// not take such a request for another than the guest does.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Problem> {
    let (method, version) = (request.method(), request.version());
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Problem::Unsupported(
            "this host takes neither CONNECT nor TRACE",
        ));
    }
    let headers = request.headers();
    if version < Version::HTTP_2 && !is_chunked_at_most(headers) {
        let message = "the request's body has a transfer coding other than 'chunked' alone";
        return Err(Problem::Unsupported(message));
    }
    let authority = request.uri().authority();
    if authority.is_some_and(|authority| !is_host(authority.as_str())) {
        return Err(malformed(
            "the request's authority is not HOST or HOST:PORT",
        ));
    }
    check_host(headers, version, authority)
}

fn check_host(
    headers: &HeaderMap,
    version: Version,
    authority: Option<&Authority>,
) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return match version {
            Version::HTTP_11 => Err(malformed("the request has no header 'host'")),
            _ => Ok(()),
        };
    };
    if hosts.next().is_some() {
        return Err(malformed("the request has more than one header 'host'"));
    }
    if !host.to_str().is_ok_and(is_host) {
        return Err(malformed("the header 'host' is not HOST or HOST:PORT"));
    }
    // In HTTP/1 the authority of the request's first line stands in place of the header, whatever that says.
    let other = |authority: &Authority| {
        !host
            .as_bytes()
            .eq_ignore_ascii_case(authority.as_str().as_bytes())
    };
    if version == Version::HTTP_2 && authority.is_some_and(other) {
        return Err(malformed(
            "the header 'host' is not the request's ':authority'",
        ));
    }
    Ok(())
}

fn malformed(message: &str) -> Problem {
    Problem::Malformed(message.to_owned())
}

/// Other codings are not undone, and a guest would take what they made for the body.
fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// `HOST` or `HOST:PORT`, where the host is a name or an address; in brackets, if it is one of IPv6.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_known = match address {
        Some(address) => {
            let is_of_address = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            !address.is_empty() && address.bytes().all(is_of_address)
        }
        None => !host.is_empty() && host.bytes().all(is_of_name),
    };
    is_known && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// RFC 3986, section 3.2.2: `reg-name`.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_or_without_a_port() {
        for host in [
            "a",
            "A-b.c_d:80",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:443",
            "a:",
            "%41",
        ] {
            assert!(is_host(host), "{host}");
        }
        for other in [
            "", ":80", "a/b@c d?", "u@a", "u:p@a", "a:b", "a:123456", "[", "[]", "[::1", "[a/b]",
            "::1", "a b", "a#b", "é",
        ] {
            assert!(!is_host(other), "{other}");
        }
    }
}
