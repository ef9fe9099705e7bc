//! Logs, traces and metrics of the host itself.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use stepwell_core::TraceContext;
use stepwell_pipeline::SpanHook;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::lines::{Flush, Lines};
use crate::series::Series;
use crate::spans::SpansWhenLogged;

/// What must be flushed when the host stops.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
    every_span: bool,
    pub(crate) metrics: Arc<Series>,
    /// The last to go: dropping the rest may log.
    _flush: Flush,
}

/// Which log lines are wanted, in `tracing`'s own words (`info`, `stepwell=debug,sqlx=warn`).
const LOG_VARIABLE: &str = "STEPWELL_LOG";

/// What is logged where nobody says otherwise, and what is exported, whatever is logged.
const LOGGED: &str = "info,sqlx=warn,hyper=warn,tower=warn,tensorflow_sys_runtime=warn";

impl Telemetry {
    /// Starts logging to stderr (for people on a terminal, JSON elsewhere), tracing to `otlp_endpoint` if there is one, and counting.
    pub(crate) fn start(otlp_endpoint: Option<&str>, service_name: &str) -> Result<Self> {
        let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOGGED.into());
        // A filter such as `[run{pipeline=p}]=debug` has to see every span, and an exporter too.
        let every_span = otlp_endpoint.is_some() || filter.contains('[');
        let filter = log_filter(&filter)?;
        let for_people = std::io::stderr().is_terminal();
        let (stderr, flush) = Lines::to_stderr(!for_people).context("the log")?;
        stderr.take_panics();
        let lines = if for_people {
            tracing_subscriber::fmt::layer()
                .with_writer(stderr)
                .with_target(false)
                .boxed()
        } else {
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(stderr)
                .boxed()
        };
        let traces = otlp_endpoint
            .map(|endpoint| exporter(endpoint, service_name))
            .transpose()?;
        let export = match &traces {
            None => None,
            Some(provider) => {
                let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("stepwell"));
                Some(layer.with_filter(EnvFilter::try_new(LOGGED)?))
            }
        };
        // A quiet log must not end the traces.
        let (everywhere, lines) = if export.is_some() {
            (None, lines.with_filter(filter).boxed())
        } else {
            (Some(filter), lines)
        };
        let subscriber = tracing_subscriber::registry()
            .with(everywhere)
            .with(lines)
            .with(export);
        if every_span {
            subscriber.try_init()
        } else {
            SpansWhenLogged(subscriber).try_init()
        }
        .context("logging is already set up")?;
        let metrics = Arc::new(Series::default());
        metrics::set_global_recorder(metrics.clone())
            .ok()
            .context("metrics are already set up")?;
        Ok(Self {
            traces,
            every_span,
            metrics,
            _flush: flush,
        })
    }

    /// What makes every run's span, and puts it into its caller's trace; none: spans are made for the log alone, when something is
    /// logged.
    pub(crate) fn span_hook(&self) -> Option<SpanHook> {
        self.every_span.then_some(join_trace)
    }

    /// Sends what has not been sent yet.
    pub(crate) fn stop(self) {
        if let Some(provider) = self.traces
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// What is logged only when it is asked for by name. What the WASI library says of a guest's HTTP requests the guest is told too,
/// and could fill the host's log with it; the Kafka library calls every subscription that ends an error.
const UNASKED: [&str; 2] = ["wasmtime_wasi_http", "rdkafka::consumer::base_consumer"];

fn log_filter(text: &str) -> Result<EnvFilter> {
    let mut filter =
        EnvFilter::try_new(text).with_context(|| format!("{LOG_VARIABLE}='{text}'"))?;
    for target in UNASKED {
        let library = target.split("::").next().unwrap_or(target);
        if !text.contains(library) {
            let silence = format!("{target}=off").parse();
            filter = filter.add_directive(silence.context("the log's filter")?);
        }
    }
    Ok(filter)
}

fn exporter(endpoint: &str, service_name: &str) -> Result<SdkTracerProvider> {
    let base = endpoint.trim_end_matches('/');
    let url = if base.ends_with("/v1/traces") {
        base.to_owned()
    } else {
        format!("{base}/v1/traces")
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(url)
        .build()
        .context("[telemetry] otlp_endpoint")?;
    let resource = Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            stepwell_core::VERSION,
        ))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// The `traceparent` of a span, for requests that the host sends in its name; none where nothing is traced.
pub(crate) fn traceparent(span: &Span) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.remove("traceparent")
}

/// Makes a run's span part of its caller's trace.
fn join_trace(span: &Span, trace: &TraceContext) {
    let Some(traceparent) = &trace.traceparent else {
        return;
    };
    let mut headers = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
    headers.extend(
        trace
            .tracestate
            .clone()
            .map(|state| ("tracestate".to_owned(), state)),
    );
    // Without an exporter there is no trace to join, and that is no mistake.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(log_filter(filter).unwrap())
            .with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "wasmtime_wasi_http::p2::error", "of a guest");
            tracing::warn!(target: "stepwell", "of the host");
        });
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn guests_cannot_fill_the_log_with_requests_that_are_none() {
        for filter in ["info", "warn", "trace", "debug,sqlx=warn"] {
            let log = logged(filter);
            assert!(log.contains("of the host"), "{filter}: {log}");
            assert!(!log.contains("of a guest"), "{filter}: {log}");
        }
        assert!(logged("info,wasmtime_wasi_http=warn").contains("of a guest"));
        assert!(log_filter("stepwell=loud").is_err());
    }
}
