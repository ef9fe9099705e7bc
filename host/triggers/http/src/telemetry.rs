use std::time::Instant;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Unit};

/// Describes this crate's metrics; call it once, when the recorder is installed.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "stepwell_http_requests_total",
        "HTTP requests that were answered, by route and status"
    );
    metrics::describe_histogram!(
        "stepwell_http_request_seconds",
        Unit::Seconds,
        "time from a request's head to its response's head, by route"
    );
    metrics::describe_gauge!(
        "stepwell_http_requests_in_flight",
        "HTTP requests whose response has no head yet"
    );
    metrics::describe_gauge!(
        "stepwell_http_connections",
        "open connections of the data listener"
    );
    metrics::describe_gauge!(
        "stepwell_http_body_bytes",
        Unit::Bytes,
        "bytes of requests' bodies that pipelines of steps hold, or wait for the rest of"
    );
    metrics::describe_gauge!(
        "stepwell_http_reply_bytes",
        Unit::Bytes,
        "bytes of responses' bodies that wait for their clients to take them"
    );
    metrics::describe_gauge!(
        "stepwell_api_connections",
        "open connections of the admin listener"
    );
    metrics::describe_counter!(
        "stepwell_connections_given_up_total",
        "connections that were closed because their client said nothing or took nothing, or was idle when others came, by listener and reason"
    );
    metrics::describe_counter!(
        "stepwell_streams_given_up_total",
        "HTTP/2 streams that were reset because their client took nothing, by listener"
    );
    metrics::describe_counter!(
        "stepwell_http_auth_refusals_total",
        "HTTP requests that were refused for who calls, by pipeline and reason"
    );
    metrics::describe_counter!(
        "stepwell_http_jwks_fetches_total",
        "attempts to fetch an issuer's keys, by outcome"
    );
    metrics::describe_counter!(
        "stepwell_tls_handshakes_total",
        "TLS handshakes that are over, by listener and outcome"
    );
}

/// Metric handles of one route, resolved once.
pub(crate) struct RouteMetrics {
    namespace: String,
    pipeline: String,
    route: String,
    ok: Counter,
    seconds: Histogram,
    in_flight: Gauge,
}

impl RouteMetrics {
    /// Those of a route of a pipeline; of no route at all when the names are empty.
    pub(crate) fn new(namespace: &str, pipeline: &str, route: &str) -> Self {
        Self {
            ok: requests(namespace, pipeline, route, "200"),
            seconds: metrics::histogram!(
                "stepwell_http_request_seconds",
                "namespace" => namespace.to_owned(),
                "pipeline" => pipeline.to_owned(),
                "route" => route.to_owned(),
            ),
            in_flight: metrics::gauge!("stepwell_http_requests_in_flight"),
            namespace: namespace.to_owned(),
            pipeline: pipeline.to_owned(),
            route: route.to_owned(),
        }
    }

    /// A request that has arrived.
    pub(crate) fn begin(&self) -> Measured<'_> {
        self.in_flight.increment(1);
        Measured {
            metrics: self,
            started: Instant::now(),
        }
    }
}

fn requests(namespace: &str, pipeline: &str, route: &str, status: &'static str) -> Counter {
    metrics::counter!(
        "stepwell_http_requests_total",
        "namespace" => namespace.to_owned(),
        "pipeline" => pipeline.to_owned(),
        "route" => route.to_owned(),
        "status" => status,
    )
}

/// A request that is being answered.
pub(crate) struct Measured<'a> {
    metrics: &'a RouteMetrics,
    started: Instant,
}

impl Measured<'_> {
    pub(crate) fn answered(self, status: StatusCode) {
        let metrics = self.metrics;
        metrics.seconds.record(self.started.elapsed());
        if status == StatusCode::OK {
            metrics.ok.increment(1);
        } else {
            let (namespace, pipeline) = (&metrics.namespace, &metrics.pipeline);
            requests(namespace, pipeline, &metrics.route, label(status)).increment(1);
        }
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1);
    }
}

/// Plugins choose statuses as they like, so that only the ones we answer ourselves, or expect, have a label of their own.
fn label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        201 => "201",
        202 => "202",
        204 => "204",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        413 => "413",
        422 => "422",
        429 => "429",
        500 => "500",
        501 => "501",
        503 => "503",
        504 => "504",
        other => match other / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        },
    }
}
