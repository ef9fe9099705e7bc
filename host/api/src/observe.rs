use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use stepwell_core::RunId;
use tracing::Instrument;

const REQUESTS: &str = "stepwell_api_requests_total";
const SECONDS: &str = "stepwell_api_request_seconds";
pub(crate) const AUTH_FAILURES: &str = "stepwell_auth_failures_total";
const INVOKE: &str = "/api/v1/namespaces/{ns}/pipelines/{name}/invoke";
const RUN_ID: HeaderName = HeaderName::from_static("stepwell-run-id");

/// Describes this crate's metrics to the recorder; called once.
pub fn describe_metrics() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "Requests to the management API, by route, method and status"
    );
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "Time from a management request's head to its response's head, by route and method"
    );
    describe_counter!(
        AUTH_FAILURES,
        Unit::Count,
        "Management requests that were refused for their token, by reason"
    );
}

/// Gives each request a span and counts it.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method(request.method());
    // The pattern, not the path: callers must not be able to make up labels.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("api", method, route, status = tracing::field::Empty);
    let mut response = next.run(request).instrument(span.clone()).await;
    // Each reply of an invocation has a run's id, also when it was refused before a run began.
    if route == INVOKE
        && !response.headers().contains_key(RUN_ID)
        && let Ok(id) = HeaderValue::from_str(&RunId::new().to_string())
    {
        response.headers_mut().insert(RUN_ID, id);
    }
    let status = response.status().as_u16();
    span.record("status", status);
    span.in_scope(|| tracing::debug!("answered"));
    let labels = [("route", route), ("method", method.to_owned())];
    histogram!(SECONDS, &labels).record(started.elapsed());
    let [route, method] = labels;
    let labels = [route, method, ("status", status.to_string())];
    counter!(REQUESTS, &labels).increment(1);
    response
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
