//! Who calls: checked before a request's body is read and before a permit is taken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use stepwell_core::Name;
use stepwell_pipeline::{HttpAuth, JwtIssuer};

use crate::jwt::{JwtVerifier, Verdict};
use crate::keys::{KeyFetcher, KeySource, KeyTimes, Keys};
use crate::problem::Problem;
use crate::route::Route;

/// Tells a function who calls; the host alone sets it.
pub(crate) const SUBJECT: HeaderName = HeaderName::from_static("stepwell-auth-subject");

/// Bytes of a token.
const MAX_TOKEN: usize = 8 << 10;

/// Checks the host's own tokens.
///
/// Called for each request of a route with `auth: token`, from many tasks at once: it must not ask a database each time.
#[async_trait]
pub trait TokenVerifier: Send + Sync {
    /// Whose token this is, and what it may do in a namespace; none when it is not known, has expired or was revoked.
    async fn verify(&self, token: &str, namespace: &Name) -> Result<Option<Subject>, Unavailable>;
}

/// Somebody whose token is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Who it is, for the guest: 1 to 256 bytes without control characters.
    pub name: Arc<str>,
    /// Whether it may invoke pipelines of the namespace.
    pub may_invoke: bool,
}

/// Whether a token is good cannot be told at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("callers cannot be checked at the moment")]
pub struct Unavailable;

type Verifiers = HashMap<JwtIssuer, Arc<JwtVerifier>>;

/// Checks who calls.
pub struct Auth {
    tokens: Arc<dyn TokenVerifier>,
    operator: Option<Arc<JwtVerifier>>,
    /// Those that deployers name. Each namespace has its own, which it cannot make wait for another's.
    own: ArcSwap<HashMap<Name, Verifiers>>,
    fetcher: Arc<dyn KeyFetcher>,
    times: KeyTimes,
}

impl Auth {
    /// A check of tokens by this verifier, and of JSON Web Tokens of the operator's issuer and of those that deployers name.
    pub fn new(
        tokens: Arc<dyn TokenVerifier>,
        operator: Option<&JwtIssuer>,
        fetcher: Arc<dyn KeyFetcher>,
        times: KeyTimes,
    ) -> Self {
        let operator = operator.map(|issuer| {
            let source = KeySource::Operator(issuer.jwks.clone());
            let keys = Keys::new(source, fetcher.clone(), times);
            Arc::new(JwtVerifier::new(issuer, keys))
        });
        Self {
            tokens,
            operator,
            own: ArcSwap::default(),
            fetcher,
            times,
        }
    }

    /// Forgets the issuers that no route names any more, and fetches the keys of the others ahead of the first request.
    pub(crate) fn prepare(&self, issuers: &HashMap<Name, HashSet<JwtIssuer>>) {
        self.own.rcu(|own| {
            let mut own = HashMap::clone(own);
            own.retain(|namespace, verifiers| {
                let named = issuers.get(namespace);
                verifiers.retain(|issuer, _| named.is_some_and(|named| named.contains(issuer)));
                !verifiers.is_empty()
            });
            own
        });
        let own = issuers
            .iter()
            .flat_map(|(namespace, named)| named.iter().map(move |issuer| (namespace, issuer)))
            .map(|(namespace, issuer)| self.own(namespace, issuer));
        for verifier in own.chain(self.operator.clone()) {
            if verifier.keys.usable().is_none() {
                verifier.keys.refresh();
            }
        }
    }

    fn own(&self, namespace: &Name, issuer: &JwtIssuer) -> Arc<JwtVerifier> {
        let known = |own: &HashMap<Name, Verifiers>| own.get(namespace)?.get(issuer).cloned();
        if let Some(verifier) = known(&self.own.load()) {
            return verifier;
        }
        let source = KeySource::Deployer {
            namespace: namespace.clone(),
            url: issuer.jwks.clone(),
        };
        let keys = Keys::new(source, self.fetcher.clone(), self.times);
        let new = Arc::new(JwtVerifier::new(issuer, keys));
        self.own.rcu(|own| {
            let mut own = HashMap::clone(own);
            let verifiers = own.entry(namespace.clone()).or_default();
            verifiers
                .entry(issuer.clone())
                .or_insert_with(|| new.clone());
            own
        });
        known(&self.own.load()).unwrap_or(new)
    }

    async fn check(
        &self,
        auth: &HttpAuth,
        namespace: &Name,
        token: &str,
    ) -> Result<Option<Arc<str>>, Refusal> {
        let verifier = match auth {
            HttpAuth::None => return Ok(None),
            HttpAuth::Token => {
                return match self.tokens.verify(token, namespace).await? {
                    Some(subject) if subject.may_invoke => Ok(Some(subject.name)),
                    Some(_) => Err(Refusal::Forbidden),
                    None => Err(Refusal::Bad("the token is not valid")),
                };
            }
            HttpAuth::Jwt => self.operator.clone().ok_or(Unavailable)?,
            HttpAuth::OwnJwt(issuer) => self.own(namespace, issuer),
        };
        match verifier.verify(token).await? {
            Verdict::Good(subject) => Ok(subject),
            Verdict::Bad(why) => Err(Refusal::Bad(why)),
        }
    }
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this route asks for a token: send it as 'authorization: Bearer TOKEN'")]
    Missing,
    #[error("the header 'authorization' is not 'Bearer TOKEN'")]
    Malformed,
    #[error("{0}")]
    Bad(&'static str),
    #[error("the token is valid, and its bearer may not call this route")]
    Forbidden,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Bad(_) => "invalid",
            Self::Forbidden => "forbidden",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// The header `WWW-Authenticate` (RFC 6750).
    pub(crate) fn challenge(self) -> Option<HeaderValue> {
        let text = match self {
            Self::Missing => return Some(HeaderValue::from_static("Bearer realm=\"stepwell\"")),
            Self::Malformed => "Bearer realm=\"stepwell\", error=\"invalid_request\"".to_owned(),
            Self::Bad(why) => format!(
                "Bearer realm=\"stepwell\", error=\"invalid_token\", error_description=\"{why}\""
            ),
            Self::Forbidden => "Bearer realm=\"stepwell\", error=\"insufficient_scope\"".to_owned(),
            Self::Unavailable(_) => return None,
        };
        HeaderValue::try_from(text).ok()
    }
}

/// Checks who calls a route, and answers the subject if there is one. A token that was checked goes no further: the guest is
/// told who calls, and cannot use the token elsewhere.
pub(crate) async fn caller(
    auth: Option<&Auth>,
    route: &Route,
    headers: &mut HeaderMap,
) -> Result<Option<Arc<str>>, Problem> {
    // On a route that asks for nothing too: a function that has several must not mistake a caller's words for the host's.
    headers.remove(SUBJECT);
    if route.auth == HttpAuth::None {
        return Ok(None);
    }
    let namespace = &route.deployment.namespace;
    let checked = match (auth, bearer(headers)) {
        // In a box of its own: requests of routes that ask for nothing do not carry its state about.
        (Some(auth), Ok(token)) => Box::pin(auth.check(&route.auth, namespace, token)).await,
        (None, _) => Err(Unavailable.into()),
        (_, Err(refusal)) => Err(refusal),
    };
    let subject = checked.map_err(|refusal| {
        metrics::counter!(
            "stepwell_http_auth_refusals_total",
            "namespace" => namespace.to_string(),
            "pipeline" => route.deployment.name.to_string(),
            "reason" => refusal.label(),
        )
        .increment(1);
        Problem::Refused(refusal)
    })?;
    headers.remove(AUTHORIZATION);
    let shown = subject.as_deref().map(str::as_bytes);
    if let Some(Ok(value)) = shown.map(HeaderValue::from_bytes) {
        headers.insert(SUBJECT, value);
    }
    Ok(subject)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(Refusal::Missing),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(Refusal::Malformed),
    };
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .ok_or(Refusal::Malformed)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains(' ') {
        return Err(Refusal::Malformed);
    }
    if token.len() > MAX_TOKEN {
        return Err(Refusal::Bad("the token is too long"));
    }
    Ok(token)
}
