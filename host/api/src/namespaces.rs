use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use stepwell_core::{Name, Quotas, parse_size};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::auth::Caller;
use crate::body::BodyLimit;
use crate::error::Failures;
use crate::extract::{InNamespace, NamespaceNamed, PageQuery, Params};
use crate::router::Api;
use crate::{ApiError, ErrorCode, Items, ProblemDetails};

const BODY: BodyLimit = BodyLimit {
    what: "the body",
    limit: 64 << 10,
    setting: None,
};

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Namespace {
    /// Its name.
    #[schema(value_type = String, example = "team-a")]
    pub name: Name,
    /// What it may use.
    pub quotas: NamespaceQuotas,
    /// What it keeps.
    pub usage: Usage,
    /// When it was made (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// What a namespace may use. A quota that is absent or null is none: as much as there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamespaceQuotas {
    /// Plugin versions that it may keep.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plugins: Option<u64>,
    /// Bytes of all components that it keeps: a number of bytes, or a size such as `1GiB`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        default,
        deserialize_with = "size"
    )]
    #[schema(value_type = Option<Size>)]
    pub bytes: Option<u64>,
    /// Pipelines that it may keep; none: as many as the host allows one namespace (`limits.pipelines`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pipelines: Option<u64>,
    /// Runs that may start in a second, on each host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(format = "uint32", minimum = 0, maximum = 4_294_967_295_u32)]
    pub runs_per_second: Option<u32>,
    /// Runs at once, on each host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(format = "uint32", minimum = 0, maximum = 4_294_967_295_u32)]
    pub concurrent_runs: Option<u32>,
    /// Seconds of CPU time that its guests may use in a minute, on each host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    pub cpu_seconds_per_minute: Option<f64>,
}

/// What a namespace keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Plugin versions.
    pub plugins: u64,
    /// Bytes of all of their components.
    pub bytes: u64,
    /// Pipelines.
    pub pipelines: u64,
    /// Tokens that are confined to it.
    pub tokens: u64,
}

/// A number of bytes, or a size such as `1GiB`.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Size {
    Bytes(u64),
    Text(String),
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutNamespace {
    /// What it may use.
    #[serde(default, deserialize_with = "object")]
    quotas: NamespaceQuotas,
}

impl NamespaceQuotas {
    /// The longest CPU time of a minute that is told from none.
    const MOST_SECONDS: f64 = 1e9;

    /// The largest number that the catalog can keep.
    const MOST: u64 = i64::MAX as u64;

    fn checked(&self) -> Result<Quotas, ApiError> {
        if self.plugins.max(self.bytes).max(self.pipelines) > Some(Self::MOST) {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!(
                    "quotas: plugins, bytes and pipelines are {} at most",
                    Self::MOST
                ),
            ));
        }
        let cpu_per_minute = match self.cpu_seconds_per_minute {
            None => None,
            Some(seconds) if (0.0..=Self::MOST_SECONDS).contains(&seconds) => {
                Some(Duration::from_millis((seconds * 1e3).round() as u64))
            }
            Some(_) => {
                return Err(ApiError::new(
                    ErrorCode::BadRequest,
                    "cpu_seconds_per_minute is a number from 0 to 1000000000",
                ));
            }
        };
        Ok(Quotas {
            plugins: self.plugins,
            bytes: self.bytes,
            pipelines: self.pipelines,
            runs_per_second: self.runs_per_second,
            concurrent_runs: self.concurrent_runs,
            cpu_per_minute,
        })
    }
}

impl From<Quotas> for NamespaceQuotas {
    fn from(quotas: Quotas) -> Self {
        Self {
            plugins: quotas.plugins,
            bytes: quotas.bytes,
            pipelines: quotas.pipelines,
            runs_per_second: quotas.runs_per_second,
            concurrent_runs: quotas.concurrent_runs,
            cpu_seconds_per_minute: quotas.cpu_per_minute.map(|time| time.as_secs_f64()),
        }
    }
}

/// Lists the namespaces that the token has a role in.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces",
    tag = "access",
    params(PageQuery),
    responses((status = 200, body = Items<Namespace>), Failures)
)]
pub(crate) async fn list_namespaces(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Namespace>>, ApiError> {
    let page = query.page();
    let Some(own) = &by.namespace else {
        return Ok(Json(api.management.namespaces(&page).await?));
    };
    let is_wanted = page
        .cursor
        .as_deref()
        .is_none_or(|last| own.as_str() > last);
    let mut items = Vec::new();
    if is_wanted {
        items.push(api.management.namespace(own).await?);
    }
    Ok(Json(Items {
        items,
        next_cursor: None,
    }))
}

/// Shows a namespace: its quotas, and what it keeps.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}",
    tag = "access",
    params(InNamespace),
    responses((status = 200, body = Namespace), Failures)
)]
pub(crate) async fn show_namespace(
    State(api): State<Arc<Api>>,
    at: InNamespace,
) -> Result<Json<Namespace>, ApiError> {
    Ok(Json(api.management.namespace(&at.namespace).await?))
}

/// Makes a namespace, or gives one other quotas.
///
/// The quotas are replaced as a whole: one that is absent is none. Quotas of runs and CPU time hold on each host by itself.
#[utoipa::path(
    put,
    path = "/api/v1/namespaces/{ns}",
    tag = "access",
    params(NamespaceNamed),
    request_body(content = Option<PutNamespace>, description = "None: no quotas"),
    responses(
        (status = 201, description = "Made", body = Namespace),
        (status = 200, description = "It was there, and has these quotas now", body = Namespace),
        (status = 422, description = "`invalid-name`", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn put_namespace(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    to: NamespaceNamed,
    request: Request,
) -> Result<(StatusCode, Json<Namespace>), ApiError> {
    let body: PutNamespace = BODY
        .read_json(request, "{\"quotas\": {\"plugins\": 100}}")
        .await?;
    let quotas = body.quotas.checked()?;
    let (is_new, namespace) = api.management.put_namespace(&by, &to.name, &quotas).await?;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(namespace)))
}

/// Deletes a namespace that holds nothing.
#[utoipa::path(
    delete,
    path = "/api/v1/namespaces/{ns}",
    tag = "access",
    params(NamespaceNamed),
    responses(
        (status = 204, description = "Deleted"),
        (status = 409, description = "`in-use`: it has plugins, pipelines or tokens, or is `default`", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn delete_namespace(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: NamespaceNamed,
) -> Result<StatusCode, ApiError> {
    api.management.delete_namespace(&by, &at.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An object and nothing else: derived code takes a list of the fields' values too.
fn object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let members = serde_json::Map::deserialize(deserializer)?;
    T::deserialize(serde_json::Value::Object(members)).map_err(serde::de::Error::custom)
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<Size>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Size::Text(text)) => parse_size(&text)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}
