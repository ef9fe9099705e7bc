//! What development mode takes for granted: that whoever reaches the listener is at this machine. Web pages of others reach it too,
//! by the browser of whoever is: they are told from the rest by what every browser says of its requests.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

use crate::{ApiError, ErrorCode};

/// Refuses a request that is not for this machine by its name, and one that a page of another origin makes.
///
/// The first is what a page sends whose own name was made to lead here; the second, what a page sends to an address that is this
/// machine's. A browser does not let a page choose either header.
pub(crate) fn only_local(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    // In HTTP/2, and where a client thinks that this is a proxy, the name is in the request's line.
    let line = uri.authority().map(Authority::as_str);
    let mut hosts: Vec<&str> = line.into_iter().collect();
    for host in headers.get_all(header::HOST) {
        let host = host.to_str().map_err(|_| foreign_host(host.as_bytes()))?;
        hosts.push(host);
    }
    if let Some(host) = hosts.iter().find(|host| !is_local(host)) {
        return Err(foreign_host(host.as_bytes()));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let own = |origin: &str| {
            let (scheme, authority) = origin.split_once("://").unwrap_or_default();
            matches!(scheme, "http" | "https")
                && !hosts.is_empty()
                && hosts
                    .iter()
                    .all(|host| host.eq_ignore_ascii_case(authority))
        };
        if !origin.to_str().is_ok_and(own) {
            return Err(refuse(format!(
                "development mode takes nothing from web pages of other origins, and this is from {}",
                shown(origin.as_bytes())
            )));
        }
    }
    Ok(())
}

/// Whether a `HOST` or `HOST:PORT` is this machine, without asking anybody.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

fn foreign_host(host: &[u8]) -> ApiError {
    refuse(format!(
        "development mode takes requests for 127.0.0.1, [::1] and localhost alone, and this is for {}",
        shown(host)
    ))
}

fn refuse(detail: String) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, detail).with_hint(
        "",
        "set [server] admin_token (STEPWELL_ADMIN_TOKEN), and send it as 'authorization: Bearer TOKEN'",
    )
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    format!("'{}'", text.chars().take(100).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_others_by_name() {
        for local in [
            "localhost",
            "LocalHost:8081",
            "127.0.0.1",
            "127.0.0.1:8081",
            "127.9.9.9:1",
            "[::1]:8081",
            "[::1]",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example:8081",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil@localhost",
            "10.0.0.1:8081",
            "[fd00::1]:8081",
            "0.0.0.0:8081",
            "localhost:8081/x",
            "2130706433",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
