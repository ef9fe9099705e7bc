use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Caller;
use crate::body::BodyLimit;
use crate::error::Failures;
use crate::extract::{InNamespace, Named, PageQuery, Params, Revisioned};
use crate::router::Api;
use crate::{
    ApiError, Change, ErrorCode, Items, Pipeline, ProblemDetails, PutPipeline, Revision, etag,
};

const DOCUMENT: BodyLimit = BodyLimit {
    what: "the pipeline document",
    limit: 1 << 20,
    setting: None,
};
const ROLLBACK: BodyLimit = BodyLimit {
    what: "the body",
    limit: 64 << 10,
    setting: None,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ApplyQuery {
    /// Validate only: nothing is stored.
    #[serde(default)]
    dry_run: bool,
}

/// Applies a pipeline document.
///
/// A document that changes nothing makes no revision. Plugins asked for as `name@1` are pinned to an exact version.
#[utoipa::path(
    put,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}",
    tag = "pipelines",
    params(
        Named,
        ApplyQuery,
        ("if-match" = Option<String>, Header, description = "The entity tag of the revision that is to be replaced, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`: only if there is no such pipeline"),
    ),
    request_body(
        content((String = "application/yaml"), (Object = "application/json")),
        description = "The document; YAML unless the content type is `application/json`"
    ),
    responses(
        (status = 201, description = "Created", body = Pipeline, headers(("etag" = String))),
        (status = 200, description = "Changed, unchanged, or only validated", body = Pipeline, headers(("etag" = String))),
        (status = 403, description = "`quota-exceeded`: the namespace keeps as many pipelines as it may; or `forbidden`", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: somebody else changed the pipeline while its components were compiled", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 412, description = "`stale`", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported-encoding`", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "`invalid-pipeline`, with every mistake in `errors`", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn put_pipeline(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    to: Named,
    Params(query): Params<ApplyQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let expected = etag::expected(&head.headers)?;
    let bytes = DOCUMENT.read(&head.headers, body).await?;
    let source = String::from_utf8(bytes.into()).map_err(|error| {
        ApiError::new(
            ErrorCode::BadRequest,
            format!(
                "the document is not UTF-8 text from byte {} on",
                error.utf8_error().valid_up_to()
            ),
        )
    })?;
    let put = PutPipeline {
        source,
        json: is_json(&head.headers),
        dry_run: query.dry_run,
        expected,
    };
    let (change, revision) = api
        .management
        .put_pipeline(&by, &to.namespace, &to.name, put)
        .await?;
    changed(change, revision)
}

/// Lists pipelines.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/pipelines",
    tag = "pipelines",
    params(InNamespace, PageQuery),
    responses((status = 200, body = Items<Pipeline>), Failures)
)]
pub(crate) async fn list_pipelines(
    State(api): State<Arc<Api>>,
    at: InNamespace,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Pipeline>>, ApiError> {
    let page = query.page();
    let revisions = api.management.pipelines(&at.namespace, &page).await?;
    Ok(Json(listed(revisions)))
}

/// Shows a pipeline as it is now.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}",
    tag = "pipelines",
    params(
        Named,
        ("if-none-match" = Option<String>, Header, description = "The entity tag that the caller has"),
    ),
    responses(
        (status = 200, body = Pipeline, headers(("etag" = String))),
        (status = 304, description = "The caller has it"),
        Failures,
    )
)]
pub(crate) async fn show_pipeline(
    State(api): State<Arc<Api>>,
    at: Named,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let revision = api.management.pipeline(&at.namespace, &at.name).await?;
    let tag = etag::of_revision(revision.revision);
    if etag::is_known(&headers, &tag) {
        let tag = (header::ETAG, etag::header_value(&tag)?);
        return Ok((StatusCode::NOT_MODIFIED, [tag]).into_response());
    }
    shown(StatusCode::OK, pipeline(revision, None))
}

/// Deletes a pipeline with its revisions.
#[utoipa::path(
    delete,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}",
    tag = "pipelines",
    params(
        Named,
        ("if-match" = Option<String>, Header, description = "The entity tag of the revision that is to be deleted"),
    ),
    responses(
        (status = 204, description = "Deleted; runs that have started go on"),
        (status = 412, description = "`stale`", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn delete_pipeline(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: Named,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let expected = etag::expected(&headers)?;
    api.management
        .delete_pipeline(&by, &at.namespace, &at.name, expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the revisions of a pipeline, the newest first.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}/revisions",
    tag = "pipelines",
    params(Named, PageQuery),
    responses((status = 200, body = Items<Pipeline>), Failures)
)]
pub(crate) async fn list_pipeline_revisions(
    State(api): State<Arc<Api>>,
    at: Named,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Pipeline>>, ApiError> {
    let page = query.page();
    let revisions = api
        .management
        .pipeline_revisions(&at.namespace, &at.name, &page)
        .await?;
    Ok(Json(listed(revisions)))
}

/// Shows a revision of a pipeline.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}/revisions/{n}",
    tag = "pipelines",
    params(Revisioned),
    responses((status = 200, body = Pipeline), Failures)
)]
pub(crate) async fn show_pipeline_revision(
    State(api): State<Arc<Api>>,
    at: Revisioned,
) -> Result<Response, ApiError> {
    let revision = api
        .management
        .pipeline_revision(&at.namespace, &at.name, at.revision)
        .await?;
    shown(StatusCode::OK, pipeline(revision, None))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// The revision to go back to; none: the one before the current.
    revision: Option<u64>,
}

/// Makes a new revision of an old one.
///
/// A host keeps the newest revisions of a pipeline (`limits.revisions`): one that is older than those is not found.
#[utoipa::path(
    post,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}/rollback",
    tag = "pipelines",
    params(
        Named,
        ("if-match" = Option<String>, Header, description = "The entity tag of the revision that is to be replaced"),
    ),
    request_body(content = Option<Rollback>, description = "None: the revision before the current"),
    responses(
        (status = 200, body = Pipeline, headers(("etag" = String))),
        (status = 409, description = "`plugin-gone`: the revision needs a plugin version that was deleted, or deleted and pushed again with other bytes; or `conflict`: somebody else changed the pipeline while its components were compiled", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 412, description = "`stale`", body = ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn rollback_pipeline(
    State(api): State<Arc<Api>>,
    Caller(by): Caller,
    at: Named,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let expected = etag::expected(&head.headers)?;
    let bytes = ROLLBACK.read(&head.headers, body).await?;
    // No body and `null` both say nothing.
    let rollback = if bytes.trim_ascii().is_empty() {
        None
    } else {
        serde_json::from_slice::<Option<Rollback>>(&bytes).map_err(|error| {
            ApiError::new(
                ErrorCode::BadRequest,
                format!("the body is not of the form {{\"revision\": 1}}: {error}"),
            )
        })?
    }
    .unwrap_or_default();
    let (change, revision) = api
        .management
        .rollback_pipeline(&by, &at.namespace, &at.name, rollback.revision, expected)
        .await?;
    changed(change, revision)
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn changed(change: Change, revision: Revision) -> Result<Response, ApiError> {
    let status = match change {
        Change::Created => StatusCode::CREATED,
        Change::Changed | Change::Unchanged | Change::Validated => StatusCode::OK,
    };
    shown(status, pipeline(revision, Some(change)))
}

fn shown(status: StatusCode, pipeline: Pipeline) -> Result<Response, ApiError> {
    let tag = etag::header_value(&pipeline.etag)?;
    let is_stored = pipeline.change != Some(Change::Validated);
    let mut response = (status, Json(pipeline)).into_response();
    if is_stored {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

fn listed(revisions: Items<Revision>) -> Items<Pipeline> {
    Items {
        items: revisions
            .items
            .into_iter()
            .map(|revision| Pipeline {
                source: None,
                ..pipeline(revision, None)
            })
            .collect(),
        next_cursor: revisions.next_cursor,
    }
}

fn pipeline(revision: Revision, change: Option<Change>) -> Pipeline {
    Pipeline {
        etag: etag::of_revision(revision.revision),
        name: revision.name,
        revision: revision.revision,
        change,
        document: revision.document,
        source: Some(revision.source),
        steps: revision.steps,
        created_at: revision.created_at,
    }
}
