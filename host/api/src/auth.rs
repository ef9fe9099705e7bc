use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use metrics::counter;
use stepwell_core::{Name, Principal};
use time::OffsetDateTime;

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

/// What stands before one operation.
#[derive(Clone)]
pub(crate) struct Guard {
    api: Arc<Api>,
    operation: &'static str,
    needs: Needs,
}

impl Guard {
    pub(crate) fn new(api: &Arc<Api>, served: &Served) -> Self {
        Self {
            api: api.clone(),
            operation: served.id,
            needs: served.needs,
        }
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
        return Ok(next.run(request).await);
    }
    let admitted = match bearer(request.headers()) {
        Ok(token) => guard.api.gate.admit(token).await,
        Err(why) => Err(why),
    };
    let principal = admitted.map_err(not_admitted)?;
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
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
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
