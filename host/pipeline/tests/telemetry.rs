#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! The metrics and spans of a run, read by a recorder and a subscriber of the test's own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use stepwell_core::{
    Call, ErrorKind, Event, Grants, Name, RunId, StepError, StepScope, TraceContext,
};
use stepwell_pipeline::{Deployed, DeployedStep, Deployment, Dispatcher, Retry, RunRequest, Step};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};

/// Fails as often as its event says.
struct Flaky(AtomicU64);

#[async_trait]
impl Step for Flaky {
    async fn call(&self, _: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        let failures: u64 = std::str::from_utf8(&event.data).unwrap().parse().unwrap();
        if self.0.fetch_add(1, Ordering::SeqCst) < failures {
            return Err(StepError::new(ErrorKind::Unavailable, "not there"));
        }
        self.0.store(0, Ordering::SeqCst);
        Ok(vec![event])
    }
}

fn deployment() -> Arc<Deployment> {
    let name: Name = "digit-reader".parse().unwrap();
    let scope = StepScope {
        namespace: Name::default_namespace(),
        pipeline: name.clone(),
        revision: 7,
        step: "decode".parse().unwrap(),
        plugin: "decode-image@1.0.0".into(),
        digest: None,
        grants: Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    };
    let step = DeployedStep {
        scope: Arc::new(scope),
        step: Arc::new(Flaky(AtomicU64::new(0))),
        timeout: None,
        retry: Some(Retry {
            attempts: 2,
            backoff: Duration::from_millis(1),
            errors: vec![ErrorKind::Unavailable],
        }),
    };
    Arc::new(Deployment {
        namespace: Name::default_namespace(),
        name,
        revision: 7,
        triggers: Vec::new(),
        body: Deployed::Steps(vec![step]),
    })
}

fn request(deployment: &Arc<Deployment>, failures: &str) -> RunRequest {
    RunRequest {
        deployment: deployment.clone(),
        run: RunId::new(),
        trigger: "kafka",
        event: Event {
            id: "1".into(),
            source: "/test".into(),
            r#type: "test".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            extensions: Vec::new(),
            data: failures.to_owned().into(),
        },
        deadline: Instant::now() + Duration::from_secs(60),
        trace: TraceContext::from_headers(
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            None,
        ),
    }
}

/// Tracing caches for the whole process who listens, so a run without a subscriber must not begin while one is set up.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// Sums by `name{label=value,…}`; of a histogram, the number of values.
#[derive(Default)]
struct Sums(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

struct Sum(Arc<AtomicU64>);

impl CounterFn for Sum {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::SeqCst);
    }
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Sum {
    fn increment(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn decrement(&self, _: f64) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
    fn set(&self, _: f64) {}
}

impl HistogramFn for Sum {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Sums {
    fn sum(&self, key: &Key) -> Arc<Sum> {
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Sum(self.0.lock().unwrap().entry(name).or_default().clone()))
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.sum(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.sum(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.sum(key))
    }
}

#[test]
fn runs_steps_and_errors_are_counted() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let sums = Sums::default();
    metrics::with_local_recorder(&sums, || {
        block_on(async {
            let dispatcher = Dispatcher::new(1);
            let deployment = deployment();
            for failures in ["0", "0", "1", "9"] {
                let permit = dispatcher
                    .admit(&stepwell_core::Name::default_namespace())
                    .unwrap();
                dispatcher.run(permit, request(&deployment, failures)).await;
            }
        });
    });
    let found: Vec<String> = sums
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|(name, sum)| format!("{name} {}", sum.load(Ordering::SeqCst)))
        .collect();
    let labels = "namespace=default,pipeline=digit-reader";
    assert_eq!(
        found,
        [
            format!("stepwell_run_seconds{{{labels}}} 4"),
            "stepwell_runs_in_flight{} 0".to_owned(),
            format!("stepwell_runs_total{{{labels},outcome=delivered}} 3"),
            format!("stepwell_runs_total{{{labels},outcome=unavailable}} 1"),
            format!("stepwell_step_errors_total{{{labels},step=decode,kind=unavailable}} 3"),
            format!("stepwell_step_seconds{{{labels},step=decode}} 4"),
        ]
    );
}

/// Every span and event as one line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("stepwell") && *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        let mut lines = self.0.lock().unwrap();
        lines.push(fields.0);
        Id::from_u64(lines.len() as u64)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

static PARENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn hook(span: &tracing::Span, trace: &TraceContext) {
    assert_eq!(span.metadata().unwrap().name(), "run");
    PARENTS
        .lock()
        .unwrap()
        .push(trace.traceparent.clone().unwrap());
}

#[test]
fn each_run_has_a_span_with_its_parent_and_each_step_a_child() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = Lines::default();
    let deployment = deployment();
    let request = request(&deployment, "9");
    let run = request.run;
    tracing::subscriber::with_default(lines.clone(), || {
        block_on(async {
            let dispatcher = Dispatcher::with(1, Some(hook), None);
            dispatcher
                .run(
                    dispatcher
                        .admit(&stepwell_core::Name::default_namespace())
                        .unwrap(),
                    request,
                )
                .await;
        });
    });
    assert_eq!(
        *lines.0.lock().unwrap(),
        [
            format!(
                "run namespace=default pipeline=digit-reader revision=7 run_id={run} trigger=\"kafka\""
            ),
            "step step=decode plugin=decode-image@1.0.0".to_owned(),
            format!(
                "WARN message=run failed run_id={run} step=\"decode\" plugin=\"decode-image@1.0.0\" kind=unavailable error=\"not there\""
            ),
        ]
    );
    assert_eq!(
        *PARENTS.lock().unwrap(),
        ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
    );
}

#[test]
fn a_pipeline_that_always_fails_does_not_fill_the_log() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = Lines::default();
    let deployment = deployment();
    tracing::subscriber::with_default(lines.clone(), || {
        block_on(async {
            let dispatcher = Dispatcher::new(1);
            for _ in 0..200 {
                let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
                dispatcher.run(permit, request(&deployment, "9")).await;
            }
        });
    });
    let lines = lines.0.lock().unwrap();
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    // On a slow machine, the 200 runs may take more than one stretch of five seconds.
    let told = count("WARN message=failed runs: too many for the log");
    assert!((1..=4).contains(&told), "{lines:?}");
    let whole = count("WARN message=run failed");
    assert!((50..=50 * (told + 1)).contains(&whole), "{whole}");
    assert!(whole < 200, "{whole}");
}
