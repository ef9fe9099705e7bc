use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use metrics::counter;
use stepwell_core::{Name, Principal, Right};
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Operation, ParameterIn};

use crate::local::only_local;
use crate::needs::Needs;
use crate::observe::AUTH_FAILURES;
use crate::openapi::Served;
use crate::router::Api;
use crate::{ApiError, ErrorCode};

/// No token that anybody was given is longer.
const LONGEST: usize = 4096;

/// Knows who bears which token.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Who sends a request with this token, or without one.
    ///
    /// # Errors
    /// [`NotAdmitted`]
    async fn admit(&self, token: Option<&str>) -> Result<Principal, NotAdmitted>;

    /// Told of a request by somebody known who has no right to it.
    async fn refused(&self, principal: &Principal, operation: &'static str, subject: String);

    /// How often the token of a reply that goes on is looked at again.
    fn again_after(&self) -> Duration {
        Duration::from_secs(15)
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It has no token.
    #[error("the request has no token: send it as 'authorization: Bearer TOKEN'")]
    Missing,
    /// What it has is no token.
    #[error("the token is not valid")]
    Malformed,
    /// Nobody was given that token, or it was revoked.
    #[error("the token is not valid")]
    Unknown,
    /// The token was valid once.
    #[error("the token has expired")]
    Expired,
    /// It cannot be found out.
    #[error("the catalog cannot be asked who bears the token")]
    Unavailable,
}

impl NotAdmitted {
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The operation whose query is the pipeline's, not the API's.
const PASSES_ON: &str = "invoke_pipeline";

/// What stands before one operation.
#[derive(Clone)]
pub(crate) struct Guard {
    api: Arc<Api>,
    operation: &'static str,
    needs: Needs,
    takes_query: bool,
}

impl Guard {
    pub(crate) fn new(api: &Arc<Api>, served: &Served, described: &Operation) -> Self {
        let mut parameters = described.parameters.iter().flatten();
        let takes_query = parameters
            .any(|one| matches!(one, RefOr::T(one) if one.parameter_in == ParameterIn::Query));
        Self {
            api: api.clone(),
            operation: served.id,
            needs: served.needs,
            takes_query: takes_query || served.id == PASSES_ON,
        }
    }

    /// Refuses parameters where none are described, since a `dry_run` that is not known there would do what it was meant to
    /// prevent. Operations that take some refuse the others themselves.
    fn check_query(&self, uri: &Uri) -> Result<(), ApiError> {
        let mut parameters = uri.query().unwrap_or_default().split('&');
        let Some(unknown) = parameters.find(|one| !self.takes_query && !one.is_empty()) else {
            return Ok(());
        };
        let name = unknown.split('=').next().unwrap_or_default();
        let shown: String = name.chars().take(100).collect();
        Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("there is no query parameter '{shown}': this operation takes none"),
        ))
    }
}

/// Who sends the request, for handlers of operations that need a token.
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, ApiError> {
        let principal = parts.extensions.get::<Principal>().cloned();
        principal
            .map(Self)
            .ok_or_else(|| ApiError::internal("an operation without a guard asks for its caller"))
    }
}

/// Lets a request pass whose sender may do what it asks for. Nothing of its body was read by then.
pub(crate) async fn admit(
    State(guard): State<Guard>,
    path: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if guard.needs == Needs::Nothing {
        guard.check_query(request.uri())?;
        return Ok(next.run(request).await);
    }
    let admitted = match bearer(request.headers()) {
        Ok(token) => guard.api.gate.admit(token).await,
        Err(why) => Err(why),
    };
    let principal = admitted.map_err(not_admitted)?;
    if principal.is_development() {
        only_local(request.uri(), request.headers()).inspect_err(|_| count("foreign"))?;
    }
    let namespace = path.ok().and_then(|path| {
        let (_, text) = path.iter().find(|(key, _)| *key == "ns")?;
        text.parse::<Name>().ok()
    });
    if !guard.needs.are_met_by(&principal, namespace.as_ref()) {
        count("forbidden");
        let path = request.uri().path().chars().take(200);
        let subject = format!("{} {}", request.method(), path.collect::<String>());
        guard
            .api
            .gate
            .refused(&principal, guard.operation, subject)
            .await;
        return Err(forbidden(&principal, guard.needs));
    }
    guard.check_query(request.uri())?;
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
}

/// Whether the sender of a request that needs no token may read in every namespace all the same.
pub(crate) async fn reads_everywhere(api: &Api, uri: &Uri, headers: &HeaderMap) -> bool {
    let Ok(token) = bearer(headers) else {
        return false;
    };
    let Ok(principal) = api.gate.admit(token).await else {
        return false;
    };
    let is_trusted = !principal.is_development() || only_local(uri, headers).is_ok();
    is_trusted && principal.may_everywhere(Right::Read)
}

/// What a reply that goes on shows of a namespace, until its caller may not read there any more: the token was revoked, or has
/// expired. While that cannot be found out, the reply goes on. None stands between the items each time that it was looked at.
pub(crate) fn while_admitted<T: Send + 'static>(
    api: &Api,
    headers: &HeaderMap,
    namespace: Name,
    items: BoxStream<'static, T>,
) -> impl Stream<Item = Option<T>> + Send + 'static {
    let gate = api.gate.clone();
    let token = bearer(headers).ok().flatten().map(str::to_owned);
    let time = gate.again_after();
    let mut looks = interval_at(Instant::now() + time, time);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = (items, looks);
    futures::stream::unfold(start, move |(mut items, mut looks)| {
        let (gate, token, namespace) = (gate.clone(), token.clone(), namespace.clone());
        async move {
            tokio::select! {
                // First: of a stream that always has a next item, too, the end must come.
                biased;
                _ = looks.tick() => match gate.admit(token.as_deref()).await {
                    Ok(principal) if principal.may(Right::Read, &namespace) => Some((None, (items, looks))),
                    Err(NotAdmitted::Unavailable) => Some((None, (items, looks))),
                    Ok(_) | Err(_) => None,
                },
                item = items.next() => Some((Some(item?), (items, looks))),
            }
        }
    })
}

/// The caller's own role and namespace, and what would do; nothing of what else there is.
fn forbidden(principal: &Principal, needs: Needs) -> ApiError {
    let has = match &principal.namespace {
        Some(namespace) => format!("the role {} in namespace {namespace}", principal.role),
        None => format!("the role {}", principal.role),
    };
    let roles = needs.roles().join(" or ");
    let place = match needs {
        Needs::Nothing | Needs::Somewhere(_) => "",
        Needs::Here(_) => " in the namespace of the path",
        Needs::Everywhere(_) => " in all namespaces",
    };
    ApiError::new(
        ErrorCode::Forbidden,
        format!("the token has {has}, and this needs {roles}{place}"),
    )
    .with_header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"stepwell\", error=\"insufficient_scope\""),
    )
}

fn not_admitted(why: NotAdmitted) -> ApiError {
    count(why.reason());
    let challenge = match why {
        NotAdmitted::Unavailable => return ApiError::new(ErrorCode::Unavailable, why.to_string()),
        NotAdmitted::Missing => "Bearer realm=\"stepwell\"",
        NotAdmitted::Malformed | NotAdmitted::Unknown | NotAdmitted::Expired => {
            "Bearer realm=\"stepwell\", error=\"invalid_token\""
        }
    };
    ApiError::new(ErrorCode::Unauthorized, why.to_string()).with_header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    )
}

/// The token of a request; none where there is no such header or it is of another scheme.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, NotAdmitted> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| NotAdmitted::Malformed)?;
    if values.next().is_some() || text.len() > LONGEST {
        return Err(NotAdmitted::Malformed);
    }
    let Some((scheme, token)) = text.split_once(' ') else {
        return Ok(None);
    };
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    let token = token.trim_matches(' ');
    Ok(Some(token).filter(|token| is_bearer && !token.is_empty()))
}

/// Counts a refusal, and says so in the log at most once a second: whoever tries tokens must not fill it.
fn count(reason: &'static str) {
    static LAST: AtomicI64 = AtomicI64::new(0);
    static UNSAID: AtomicU64 = AtomicU64::new(0);
    counter!(AUTH_FAILURES, "reason" => reason).increment(1);
    let now = OffsetDateTime::now_utc().unix_timestamp();
    if LAST.swap(now, Ordering::Relaxed) == now {
        UNSAID.fetch_add(1, Ordering::Relaxed);
    } else {
        let unsaid = UNSAID.swap(0, Ordering::Relaxed);
        tracing::warn!(reason, unsaid, "a management request was refused");
    }
}
