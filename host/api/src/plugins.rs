use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::auth::Caller;
use crate::body::BodyLimit;
use crate::error::Failures;
use crate::extract::{InNamespace, Named, PageQuery, Params, Versioned};
use crate::router::Api;
use crate::{ApiError, Items, Plugin, PluginVersion, etag};

/// Stores a plugin version.
///
/// The component is validated and compiled before it is stored. Versions are immutable: the same bytes again change nothing.
#[utoipa::path(
    put,
    path = "/api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
    tag = "plugins",
    params(Versioned),
    request_body(content = inline(Binary), content_type = "application/wasm", description = "The component's bytes"),
    responses(
        (status = 201, description = "Stored", body = PluginVersion),
        (status = 200, description = "It was there with the same bytes", body = PluginVersion),
        (status = 403, description = "`quota-exceeded`: the namespace has no room, or `forbidden`", body = crate::ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "`version-exists`: it is there with other bytes", body = crate::ProblemDetails, content_type = "application/problem+json"),
        (status = 413, description = "`too-large`", body = crate::ProblemDetails, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported-encoding`", body = crate::ProblemDetails, content_type = "application/problem+json"),
        (status = 503, description = "`busy`: too much is being uploaded or compiled; `Retry-After` says when to try again", body = crate::ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "The component cannot be accepted; `code` says why", body = crate::ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn put_plugin_version(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    to: Versioned,
    request: Request,
) -> Result<(StatusCode, Json<PluginVersion>), ApiError> {
    let limit = BodyLimit {
        what: "the component",
        limit: api.component_limit,
        setting: Some("limits.component"),
    };
    let (head, body) = request.into_parts();
    let mut upload = api.uploads.begin(&by);
    let component = limit.read_upload(&head.headers, body, &mut upload).await?;
    // Held until the component is stored: so long its bytes are in memory.
    let _room = upload.has_come();
    let put = api
        .management
        .put_plugin_version(&by, &to.namespace, &to.name, &to.version, component)
        .await?;
    let status = if put.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(put.version)))
}

/// Lists plugins with their versions.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/plugins",
    tag = "plugins",
    params(InNamespace, PageQuery),
    responses((status = 200, body = Items<Plugin>), Failures)
)]
pub(crate) async fn list_plugins(
    State(api): State<Arc<Api>>,
    at: InNamespace,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Plugin>>, ApiError> {
    let plugins = api.management.plugins(&at.namespace, &query.page()).await?;
    Ok(Json(plugins))
}

/// Shows a plugin with its versions.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/plugins/{name}",
    tag = "plugins",
    params(Named),
    responses((status = 200, body = Plugin), Failures)
)]
pub(crate) async fn show_plugin(
    State(api): State<Arc<Api>>,
    at: Named,
) -> Result<Json<Plugin>, ApiError> {
    Ok(Json(api.management.plugin(&at.namespace, &at.name).await?))
}

/// Shows a plugin version.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
    tag = "plugins",
    params(Versioned),
    responses((status = 200, body = PluginVersion), Failures)
)]
pub(crate) async fn show_plugin_version(
    State(api): State<Arc<Api>>,
    at: Versioned,
) -> Result<Json<PluginVersion>, ApiError> {
    let version = api
        .management
        .plugin_version(&at.namespace, &at.name, &at.version)
        .await?;
    Ok(Json(version))
}

/// Deletes a plugin version.
#[utoipa::path(
    delete,
    path = "/api/v1/namespaces/{ns}/plugins/{name}/versions/{version}",
    tag = "plugins",
    params(Versioned),
    responses(
        (status = 204, description = "Deleted"),
        (status = 409, description = "`in-use`: a pipeline uses it", body = crate::ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn delete_plugin_version(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: Versioned,
) -> Result<StatusCode, ApiError> {
    api.management
        .delete_plugin_version(&by, &at.namespace, &at.name, &at.version)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answers the bytes of a plugin version.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/plugins/{name}/versions/{version}/component",
    tag = "plugins",
    params(Versioned),
    responses(
        (status = 200, description = "The component; its entity tag is its digest", body = inline(Binary), content_type = "application/wasm"),
        (status = 304, description = "The caller has it"),
        (status = 503, description = "`busy`: too much is being downloaded; `Retry-After` says when to try again", body = crate::ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn get_component(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: Versioned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (namespace, name, version) = (&at.namespace, &at.name, &at.version);
    let digest = api
        .management
        .plugin_version(namespace, name, version)
        .await?
        .digest;
    let tag = format!("\"{digest}\"");
    let tag_header = (header::ETAG, etag::header_value(&tag)?);
    if etag::is_known(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [tag_header]).into_response());
    }
    // Held until the last byte is sent: so long they are in memory.
    let place = api.downloads.place(&by).await?;
    let component = api.management.component(namespace, name, version).await?;
    let component = place.send(component);
    let content_type = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/wasm"),
    );
    Ok(([content_type, tag_header], Body::new(component)).into_response())
}

/// A body of bytes, for the description.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) struct Binary(Vec<u8>);
