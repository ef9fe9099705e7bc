use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use stepwell_core::{Name, Role, parse_lifetime};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::auth::Caller;
use crate::body::BodyLimit;
use crate::error::Failures;
use crate::extract::{PageQuery, Params, TokenNamed};
use crate::router::Api;
use crate::{ApiError, ErrorCode, Items, ProblemDetails};

const BODY: BodyLimit = BodyLimit {
    what: "the body",
    limit: 64 << 10,
    setting: None,
};
/// Characters of a token's name.
const LONGEST_NAME: usize = 100;

const LONGEST_LIFE: Duration = Duration::from_secs(36_500 * 86_400);

/// A token, without its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// What it is shown and revoked by.
    #[schema(example = "t0123456789abcdef")]
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What its bearer may do: `viewer`, `invoker`, `deployer` or `operator`.
    #[schema(value_type = String, example = "deployer")]
    pub role: Role,
    /// Where; null: in every namespace.
    #[schema(value_type = Option<String>, example = "default")]
    pub namespace: Option<Name>,
    /// The id of the token that made it, or `admin_token`, or `development`.
    pub created_by: String,
    /// When it was made (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
    /// From when on it is not valid any more; null: it does not expire.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was last used, to a few minutes; null: never.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<OffsetDateTime>,
}

/// A token that was just made.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewlyMadeToken {
    /// Its value, which nobody can be shown again.
    #[schema(example = "sw_…")]
    pub token: String,
    /// What is known of it.
    #[serde(flatten)]
    pub made: Token,
}

/// A token to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Where; none: in every namespace.
    pub namespace: Option<Name>,
    /// From when on it is not valid any more.
    pub expires_at: Option<OffsetDateTime>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateToken {
    /// What its bearer may do: `viewer` reads, `invoker` runs pipelines, `deployer` does both and changes plugins and pipelines,
    /// `operator` does everything.
    #[schema(value_type = String, example = "deployer")]
    role: Role,
    /// Where; absent or null: in every namespace, those to come among them. Operators are not confined to one.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "default")]
    namespace: Option<Name>,
    /// How long it is valid, such as `90d` or `12h`; absent: until it is revoked.
    #[serde(default)]
    #[schema(example = "90d")]
    expires: Option<String>,
    /// What people call it, up to 100 characters; absent: its role.
    #[serde(default)]
    name: Option<String>,
}

impl CreateToken {
    fn checked(self) -> Result<NewToken, ApiError> {
        let refuse = |detail: String| ApiError::new(ErrorCode::BadRequest, detail);
        if self.role == Role::Operator && self.namespace.is_some() {
            return Err(refuse(
                "an operator is one in every namespace: leave out the namespace, or take the role deployer"
                    .to_owned(),
            ));
        }
        let name = self.name.unwrap_or_else(|| self.role.to_string());
        if name.is_empty() || name.chars().count() > LONGEST_NAME {
            return Err(refuse(format!(
                "a token's name has 1 to {LONGEST_NAME} characters"
            )));
        }
        if name.chars().any(char::is_control) {
            return Err(refuse(
                "a token's name has no control characters".to_owned(),
            ));
        }
        let expires_at = match self.expires.as_deref().map(parse_lifetime) {
            None => None,
            Some(Ok(time)) if !time.is_zero() && time <= LONGEST_LIFE => {
                Some(OffsetDateTime::now_utc() + time)
            }
            Some(Ok(_)) => {
                return Err(refuse("expires is a time from 1s to 36500d".to_owned()));
            }
            Some(Err(error)) => {
                let refused = refuse(format!("expires: {error}"));
                return Err(match &error.hint {
                    Some(hint) => refused.with_hint("/expires", hint.clone()),
                    None => refused,
                });
            }
        };
        Ok(NewToken {
            name,
            role: self.role,
            namespace: self.namespace,
            expires_at,
        })
    }
}

/// Makes a token.
///
/// The reply has its value, which is stored as a hash only and cannot be shown again. Tokens that are made do not end development
/// mode: a host on loopback without an `admin_token` asks for none.
#[utoipa::path(
    post,
    path = "/api/v1/tokens",
    tag = "access",
    request_body(content = CreateToken),
    responses(
        (status = 201, description = "Made", body = NewlyMadeToken),
        (status = 409, description = "`conflict`: there are too many", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn create_token(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    request: Request,
) -> Result<
    (
        StatusCode,
        [(HeaderName, HeaderValue); 1],
        Json<NewlyMadeToken>,
    ),
    ApiError,
> {
    let body: CreateToken = BODY.read_json(request, "{\"role\": \"viewer\"}").await?;
    let new = body.checked()?;
    let made = api.management.create_token(&by, &new).await?;
    let private = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok((StatusCode::CREATED, [private], Json(made)))
}

/// Lists tokens that were not revoked, without their values.
#[utoipa::path(
    get,
    path = "/api/v1/tokens",
    tag = "access",
    params(PageQuery),
    responses((status = 200, body = Items<Token>), Failures)
)]
pub(crate) async fn list_tokens(
    State(api): State<Arc<Api>>,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Token>>, ApiError> {
    Ok(Json(api.management.tokens(&query.page()).await?))
}

/// Shows a token, without its value.
#[utoipa::path(
    get,
    path = "/api/v1/tokens/{id}",
    tag = "access",
    params(TokenNamed),
    responses((status = 200, body = Token), Failures)
)]
pub(crate) async fn show_token(
    State(api): State<Arc<Api>>,
    at: TokenNamed,
) -> Result<Json<Token>, ApiError> {
    Ok(Json(api.management.token(&at.id).await?))
}

/// Revokes a token.
///
/// This host refuses it from now on, others that share the catalog as soon as they hear of it: usually at once, within
/// seconds where the notification got lost.
#[utoipa::path(
    delete,
    path = "/api/v1/tokens/{id}",
    tag = "access",
    params(TokenNamed),
    responses((status = 204, description = "Revoked"), Failures)
)]
pub(crate) async fn revoke_token(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: TokenNamed,
) -> Result<StatusCode, ApiError> {
    api.management.revoke_token(&by, &at.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
