use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, Name, Right, parse_lifetime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Caller;
use crate::error::Failures;
use crate::extract::{Limit, Params, any_count, given, limit};
use crate::router::Api;
use crate::{ApiError, ErrorCode, Items, Page};

/// A record of who did what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Grows with time.
    pub id: u64,
    /// When (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: OffsetDateTime,
    /// The id of the token, or `admin_token`, `development`, or `host` for the host itself.
    pub who: String,
    /// The token's name.
    pub name: String,
    /// What was done: `plugin.put`, `plugin.delete`, `pipeline.apply`, `pipeline.rollback`, `pipeline.delete`, `namespace.set`,
    /// `namespace.delete`, `token.create` or `token.revoke`; of a refused request, the operation that it asked for.
    #[schema(example = "plugin.put")]
    pub action: String,
    /// Where it was done, of a refused request the token's own; null: in no single namespace.
    #[schema(value_type = Option<String>, example = "default")]
    pub namespace: Option<Name>,
    /// To what; of a refused request, its method and path; of a document that was refused for what it wants of other namespaces,
    /// what that is.
    #[schema(example = "plugin decode-image@1.0.0")]
    pub subject: String,
    /// Of the component.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// Of the pipeline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revision: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of something that was audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Done,
    /// The token had no right to it.
    Refused,
}

/// Which records are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditQuery {
    /// Those of this namespace; none: all.
    pub namespace: Option<Name>,
    /// Those that are not older.
    pub since: Option<OffsetDateTime>,
    /// Which part of them.
    pub page: Page,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditParams {
    /// Records of this namespace; for a token that is confined to one, only that one.
    #[serde(default, deserialize_with = "given")]
    #[param(value_type = Option<String>)]
    namespace: Option<Name>,
    /// Records that are not older: a time (RFC 3339), or how long ago, such as `24h`.
    #[serde(default, deserialize_with = "given")]
    since: Option<String>,
    /// At most this many items, 1–500; 100 if it is not given.
    #[serde(default, deserialize_with = "given")]
    #[param(schema_with = any_count)]
    limit: Option<Limit>,
    /// The `next_cursor` of the part before.
    #[serde(default, deserialize_with = "given")]
    cursor: Option<String>,
}

/// Shows who did what, the newest first.
#[utoipa::path(
    get,
    path = "/api/v1/audit",
    tag = "access",
    params(AuditParams),
    responses((status = 200, body = Items<AuditRecord>), Failures)
)]
pub(crate) async fn show_audit(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    Params(query): Params<AuditParams>,
) -> Result<Json<Items<AuditRecord>>, ApiError> {
    let namespace = match query.namespace {
        Some(wanted) if by.may(Right::Change, &wanted) => Some(wanted),
        Some(_) => {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                "the token has no role in that namespace",
            ));
        }
        None => by.namespace,
    };
    let query = AuditQuery {
        namespace,
        since: query.since.as_deref().map(since).transpose()?,
        page: Page {
            limit: limit(query.limit),
            cursor: query.cursor,
        },
    };
    Ok(Json(api.management.audit(&query).await?))
}

fn since(text: &str) -> Result<OffsetDateTime, ApiError> {
    let ago = |time| {
        let time = time::Duration::try_from(time).ok()?;
        OffsetDateTime::now_utc().checked_sub(time)
    };
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .or_else(|| parse_lifetime(text).ok().and_then(ago))
        .ok_or_else(|| {
            ApiError::new(
                ErrorCode::BadRequest,
                "since is a time such as 2026-01-31T12:00:00Z, or how long ago, such as 24h",
            )
        })
}
