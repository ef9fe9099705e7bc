//! The sections of `[server]` that say how callers reach the host and how it tells who they are.

use stepwell_core::Secret;
use stepwell_document::{At, Value};
use stepwell_http_trigger::usable_keys;
use stepwell_pipeline::{JwtHost, JwtIssuer};

use super::Reader;
use crate::input;
use crate::jwks::{MAX_BYTES, is_url};
use crate::tls::{TlsFiles, TlsMistake};

/// Characters of an `admin_token` that nobody guesses.
const LONG_TOKEN: usize = 16;

/// Characters of one that every request can carry.
const LONGEST_TOKEN: usize = 1024;

/// Origins that `trusted` may name.
const MAX_TRUSTED: usize = 100;

/// `[server.jwt]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct JwtConfig {
    /// The operator's issuer.
    pub(crate) issuer: Option<JwtIssuer>,
    /// Origins whose keys deployers may name though they are private or without TLS.
    pub(crate) trusted: Vec<String>,
}

impl JwtConfig {
    /// What of it matters to pipelines.
    pub(crate) fn host(&self) -> JwtHost {
        JwtHost {
            has_issuer: self.issuer.is_some(),
            trusted: self.trusted.clone(),
        }
    }
}

impl Reader<'_> {
    /// `[server.tls]` or `[server.admin_tls]`; the files are read, so that what is wrong with them is known at once.
    pub(super) fn tls(&self, at: &At<'_>, section: &'static str) -> Option<TlsFiles> {
        let mut map = at.mapping()?;
        let (certificate, key) = (map.required("certificate"), map.required("key"));
        map.finish();
        let (certificate, key) = (certificate?, key?);
        let files = TlsFiles {
            section,
            certificate: self.resolve(&certificate, certificate.string()?),
            key: self.resolve(&key, key.string()?),
        };
        match files.load() {
            Ok(_) => {}
            Err(TlsMistake::Certificate(reason)) => certificate.problem(reason),
            Err(TlsMistake::Key(reason)) => key.problem(reason),
        }
        Some(files)
    }

    /// `[server.admin_tls]`, which may be `false`: the admin listener is plain then, whatever the data listener is.
    pub(super) fn admin_tls(&self, at: &At<'_>, of_both: Option<&TlsFiles>) -> Option<TlsFiles> {
        match &at.node().value {
            Value::Boolean(false) => None,
            Value::Boolean(true) => {
                at.problem_with_hint(
                    "expected certificate and key, or false",
                    "leave it out: [server.tls] is for both listeners",
                );
                of_both.cloned()
            }
            _ => self.tls(at, "admin_tls"),
        }
    }

    pub(super) fn jwt(&self, at: &At<'_>) -> JwtConfig {
        let Some(mut map) = at.mapping() else {
            return JwtConfig::default();
        };
        let issuer = map.optional("issuer");
        let audience = map.optional("audience");
        let jwks = map.optional("jwks");
        let trusted = map.optional("trusted");
        map.finish();
        let trusted = trusted.map_or_else(Vec::new, |at| origins(&at));
        let issuer = match (issuer, audience, jwks) {
            (None, None, None) => None,
            (Some(issuer), Some(audience), Some(jwks)) => {
                let (issuer, audience) = (text(&issuer), text(&audience));
                let jwks = self.keys(&jwks);
                issuer.zip(audience).zip(jwks)
            }
            _ => {
                at.problem("issuer, audience and jwks go together");
                None
            }
        };
        let issuer = issuer.map(|((issuer, audience), jwks)| JwtIssuer {
            issuer,
            audience,
            jwks,
        });
        JwtConfig { issuer, trusted }
    }

    /// The first operator's token; one that no request can carry is a mistake, and one that can be guessed a warning.
    pub(super) fn admin_token(&self, at: &At<'_>) -> Option<Secret> {
        const HINT: &str = "make one with 'openssl rand -hex 32'";
        let token = self.secrets.read(at)?;
        let length = token.expose().chars().count();
        if length > LONGEST_TOKEN {
            let mistake =
                format!("the token has {length} characters; {LONGEST_TOKEN} are the most");
            at.problem_with_hint(mistake, HINT);
            return None;
        }
        if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            let mistake = "the token has spaces, or characters other than letters, digits and signs of ASCII, which requests cannot carry";
            at.problem_with_hint(mistake, HINT);
            return None;
        }
        if length < LONG_TOKEN {
            let warning = format!(
                "the token has {length} characters, and fewer than {LONG_TOKEN} can be guessed"
            );
            self.secrets.warning(at, warning, HINT);
        }
        Some(token)
    }

    /// A URL, or a file that holds keys.
    fn keys(&self, at: &At<'_>) -> Option<String> {
        let place = text(at)?;
        if is_url(&place) {
            if place.parse::<reqwest::Url>().is_err() {
                at.problem(format!("'{place}' is not a URL"));
            }
            return Some(place);
        }
        let path = self.resolve(at, &place);
        let usable = input::read(&path, MAX_BYTES as u64)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))
            .and_then(|text| usable_keys(&text).map_err(|error| error.to_string()));
        if let Err(error) = usable {
            at.problem_with_hint(error, "write the URL of a JSON Web Key Set, or such a file");
        }
        Some(path.display().to_string())
    }
}

fn text(at: &At<'_>) -> Option<String> {
    let text = at.string()?;
    if text.is_empty() {
        at.problem("this is empty");
        return None;
    }
    Some(text.to_owned())
}

/// `scheme://host[:port]`, as they stand at the beginning of URLs.
fn origins(at: &At<'_>) -> Vec<String> {
    let items = at.sequence().unwrap_or_default();
    if items.len() > MAX_TRUSTED {
        at.problem(format!("more than {MAX_TRUSTED} origins"));
    }
    items.iter().filter_map(origin).collect()
}

fn origin(at: &At<'_>) -> Option<String> {
    let text = at.string()?;
    let origin = text.trim_end_matches('/');
    let host = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"));
    if host.is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#', '@'])) {
        at.problem_with_hint(
            format!("'{text}' is not an origin"),
            "such as http://keys.internal:8080",
        );
        return None;
    }
    Some(origin.to_owned())
}
