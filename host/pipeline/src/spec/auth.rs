//! `auth` of an HTTP trigger.

use http::Uri;
use stepwell_document::{At, Value};

use crate::{HttpAuth, JwtIssuer};

/// The words that stand for themselves.
pub(crate) const AUTHS: [&str; 3] = ["none", "token", "jwt"];

/// Bytes of an issuer, an audience or a URL.
pub(crate) const MAX_TEXT: usize = 1024;

pub(super) fn read_auth(at: &At<'_>) -> Option<HttpAuth> {
    if !matches!(at.node().value, Value::Mapping(_)) {
        return Some(match at.one_of(&AUTHS)? {
            "token" => HttpAuth::Token,
            "jwt" => HttpAuth::Jwt,
            _ => HttpAuth::None,
        });
    }
    let mut map = at.mapping()?;
    let issuer = map.required("jwt").and_then(|at| read_issuer(&at));
    map.finish();
    issuer.map(HttpAuth::OwnJwt)
}

fn read_issuer(at: &At<'_>) -> Option<JwtIssuer> {
    let mut map = at.mapping()?;
    let issuer = map.required("issuer").and_then(|at| text(&at));
    let audience = map.required("audience").and_then(|at| text(&at));
    let jwks = map.required("jwks").and_then(|at| url(&at));
    map.finish();
    Some(JwtIssuer {
        issuer: issuer?,
        audience: audience?,
        jwks: jwks?,
    })
}

fn text(at: &At<'_>) -> Option<String> {
    let text = at.string()?;
    if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        at.problem(format!(
            "expected 1 to {MAX_TEXT} bytes without control characters"
        ));
        return None;
    }
    Some(text.to_owned())
}

/// `http://` is taken here; whether it will do is for the host to say.
fn url(at: &At<'_>) -> Option<String> {
    let url = text(at)?;
    let good = (url.starts_with("https://") || url.starts_with("http://"))
        && !url.contains('#')
        && url.parse::<Uri>().is_ok_and(|uri| {
            uri.authority()
                .is_some_and(|authority| !authority.as_str().contains('@'))
        });
    if !good {
        at.problem_with_hint(
            "expected the URL of a JSON Web Key Set",
            "such as https://issuer.example/.well-known/jwks.json",
        );
        return None;
    }
    Some(url)
}
