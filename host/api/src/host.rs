use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State as AxumState};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use stepwell_core::Name;
use utoipa::IntoParams;

use crate::auth::{Caller, reads_everywhere, while_admitted};
use crate::error::Failures;
use crate::extract::{
    InNamespace, Limit, ModelNamed, Named, PageQuery, Params, any_count, given, limit,
};
use crate::router::Api;
use crate::{ApiError, Binding, Items, LogLevel, LogLine, LogQuery, Model, Readiness, State};

/// Runs a pipeline.
///
/// The body is what an HTTP trigger would get, and the reply is its reply. Every reply has the header `stepwell-run-id`.
#[utoipa::path(
    post,
    path = "/api/v1/namespaces/{ns}/pipelines/{name}/invoke",
    tag = "pipelines",
    params(Named),
    request_body(content = inline(crate::plugins::Binary), content_type = "application/octet-stream", description = "Data of any content type, or a CloudEvent"),
    responses(
        (status = 200, description = "The data of the event that came out, or a JSON array or CloudEvents batch of several"),
        (status = 204, description = "No event came out"),
        (status = 422, description = "The event was at fault", body = crate::ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn invoke_pipeline(
    AxumState(api): AxumState<Arc<Api>>,
    at: Named,
    request: Request,
) -> Response {
    api.management
        .invoke(&at.namespace, &at.name, request)
        .await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogsQuery {
    /// Lines of this pipeline.
    #[serde(default, deserialize_with = "given")]
    #[param(value_type = Option<String>, pattern = "^[a-z][a-z0-9-]{0,62}$")]
    pipeline: Option<Name>,
    /// Lines of this step.
    #[serde(default, deserialize_with = "given")]
    #[param(value_type = Option<String>, pattern = "^[a-z][a-z0-9-]{0,62}$")]
    step: Option<Name>,
    /// Lines that are at least this serious.
    #[serde(default, deserialize_with = "given")]
    level: Option<LogLevel>,
    /// Go on with each new line as it is written.
    #[serde(default, deserialize_with = "given")]
    follow: Option<bool>,
    /// At most this many lines that are there already, 1–500; 100 if it is not given.
    #[serde(default, deserialize_with = "given")]
    #[param(schema_with = any_count)]
    limit: Option<Limit>,
}

/// Callers that may follow logs at once: each keeps a connection.
pub(crate) const FOLLOWERS: u64 = 256;

/// Shows log lines, the newest last.
///
/// What is followed ends when the token is revoked or has expired. A blank line comes every 15 s.
#[utoipa::path(
    get,
    path = "/api/v1/namespaces/{ns}/logs",
    tag = "host",
    params(InNamespace, LogsQuery),
    responses(
        (status = 200, description = "A list, or with `follow` one JSON object a line", content(
            (Items<LogLine> = "application/json"), (LogLine = "application/x-ndjson"),
        )),
        (status = 503, description = "`busy`: too many follow logs; `Retry-After` says when to try again", body = crate::ProblemDetails, content_type = "application/problem+json"),
        Failures,
    )
)]
pub(crate) async fn show_logs(
    AxumState(api): AxumState<Arc<Api>>,
    Caller(by): Caller,
    at: InNamespace,
    Params(query): Params<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wanted = LogQuery {
        pipeline: query.pipeline,
        step: query.step,
        level: query.level,
        limit: limit(query.limit),
    };
    if query.follow != Some(true) {
        let lines = api.management.logs(&at.namespace, &wanted).await?;
        return Ok(Json(lines).into_response());
    }
    let mut follower = api.followers.hold(&by);
    if follower.take(1).is_err() {
        metrics::counter!("stepwell_limit_hits_total", "limit" => "followers").increment(1);
        return Err(ApiError::busy(format!(
            "{FOLLOWERS} callers follow logs, as many as the host serves at once (three quarters of them those of one namespace); this limit is the host's own and has no setting"
        )));
    }
    let lines = api.management.follow_logs(&at.namespace, &wanted).await?;
    let lines = while_admitted(&api, &headers, at.namespace, lines);
    let lines = lines.map(move |line| {
        let _follows = &follower;
        let mut text = match line {
            Some(line) => serde_json::to_vec(&line)?,
            // A blank line, so that a connection whose other end is gone shows it.
            None => Vec::new(),
        };
        text.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(text))
    });
    let content_type = HeaderValue::from_static("application/x-ndjson");
    Ok((
        [(header::CONTENT_TYPE, content_type)],
        Body::from_stream(lines),
    )
        .into_response())
}

/// Lists models.
#[utoipa::path(
    get,
    path = "/api/v1/models",
    tag = "host",
    params(PageQuery),
    responses((status = 200, body = Items<Model>), Failures)
)]
pub(crate) async fn list_models(
    AxumState(api): AxumState<Arc<Api>>,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Model>>, ApiError> {
    Ok(Json(api.management.models(&query.page()).await?))
}

/// Shows a model.
#[utoipa::path(
    get,
    path = "/api/v1/models/{name}",
    tag = "host",
    params(ModelNamed),
    responses((status = 200, body = Model), Failures)
)]
pub(crate) async fn show_model(
    AxumState(api): AxumState<Arc<Api>>,
    at: ModelNamed,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(api.management.model(&at.name).await?))
}

/// Lists the bindings that pipelines may use in at least one of the caller's namespaces, without their addresses and credentials.
#[utoipa::path(
    get,
    path = "/api/v1/bindings",
    tag = "host",
    params(PageQuery),
    responses((status = 200, body = Items<Binding>), Failures)
)]
pub(crate) async fn list_bindings(
    AxumState(api): AxumState<Arc<Api>>,
    Caller(by): Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<Items<Binding>>, ApiError> {
    Ok(Json(api.management.bindings(&by, &query.page()).await?))
}

/// Says that the process is alive.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "host",
    responses((status = 200, body = Readiness), Failures)
)]
pub(crate) async fn livez() -> Json<Readiness> {
    Json(Readiness {
        status: State::Ok,
        parts: Vec::new(),
    })
}

/// Says whether the host can take work, part by part.
///
/// Pipelines and subscriptions are named to whoever may read in all namespaces, and counted for everybody else.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "host",
    responses(
        (status = 200, description = "It can, if perhaps degraded", body = Readiness),
        (status = 503, description = "It cannot", body = Readiness),
        Failures,
    )
)]
pub(crate) async fn readyz(
    AxumState(api): AxumState<Arc<Api>>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, Json<Readiness>) {
    let with_names = reads_everywhere(&api, &uri, &headers).await;
    let readiness = api.management.readiness(with_names).await;
    let status = match readiness.status {
        State::Down => StatusCode::SERVICE_UNAVAILABLE,
        State::Ok | State::Degraded => StatusCode::OK,
    };
    (status, Json(readiness))
}

/// Shows the host's metrics.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "host",
    responses((status = 200, description = "Prometheus' text format", body = String), Failures)
)]
pub(crate) async fn show_metrics(AxumState(api): AxumState<Arc<Api>>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let metrics = api.management.metrics();
    ([(header::CONTENT_TYPE, content_type)], metrics).into_response()
}
