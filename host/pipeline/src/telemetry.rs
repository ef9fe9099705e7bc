//! What the outside learns of runs: metrics, spans, and an observer.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, Histogram, Unit};
use stepwell_core::log_rate::LogRate;
use stepwell_core::{ErrorKind, RunId, StepError};

use crate::deployment::{Deployed, Deployment};

/// Told of every run that has ended, from the run's own task: it must return at once and never block.
pub trait RunObserver: Send + Sync {
    /// Called exactly once for each run.
    fn run_ended(&self, end: &RunEnd<'_>);
}

/// How a run ended.
#[derive(Clone, Copy)]
pub struct RunEnd<'a> {
    /// What ran.
    pub deployment: &'a Deployment,
    /// The run.
    pub run: RunId,
    /// `delivered`, `filtered` or the kind of the error.
    pub outcome: &'static str,
    /// What went wrong; its message is for the pipeline's owner.
    pub error: Option<&'a StepError>,
    /// Time from the start of the run.
    pub elapsed: Duration,
}

/// Registers what this crate's metrics mean; call it once, after the recorder is installed.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "stepwell_runs_total",
        "Runs that have ended, by pipeline and outcome"
    );
    metrics::describe_histogram!(
        "stepwell_run_seconds",
        Unit::Seconds,
        "Time from the start of a run to its outcome"
    );
    metrics::describe_histogram!(
        "stepwell_step_seconds",
        Unit::Seconds,
        "Time of a step for one event, retries included"
    );
    metrics::describe_counter!(
        "stepwell_step_errors_total",
        "Calls of a step that erred, by kind; retried ones count too"
    );
    metrics::describe_gauge!("stepwell_runs_in_flight", "Runs that are under way");
    metrics::describe_counter!(
        "stepwell_quota_refusals_total",
        "Runs that did not start, uploads and pipelines that were not stored, because their namespace had used up a quota, by its name"
    );
    metrics::describe_gauge!(
        "stepwell_guest_cpu_seconds_total",
        Unit::Seconds,
        "CPU time that a pipeline's guests have used"
    );
}

/// Metric handles of one deployment, resolved once.
pub(crate) struct RunMetrics {
    pub(crate) in_flight: Gauge,
    pub(crate) seconds: Histogram,
    pub(crate) steps: Vec<StepMetrics>,
    pub(crate) failures: LogRate,
    delivered: Counter,
    namespace: String,
    pipeline: String,
}

impl RunMetrics {
    fn new(deployment: &Deployment) -> Self {
        let namespace = deployment.namespace.to_string();
        let pipeline = deployment.name.to_string();
        let scopes = match &deployment.body {
            Deployed::Steps(steps) => steps.iter().map(|step| &step.scope).collect(),
            Deployed::Function(function) => vec![&function.scope],
        };
        let steps = scopes
            .into_iter()
            .map(|scope| StepMetrics {
                seconds: metrics::histogram!(
                    "stepwell_step_seconds",
                    "namespace" => namespace.clone(),
                    "pipeline" => pipeline.clone(),
                    "step" => scope.step.to_string(),
                ),
                namespace: namespace.clone(),
                pipeline: pipeline.clone(),
                step: scope.step.to_string(),
            })
            .collect();
        Self {
            in_flight: metrics::gauge!("stepwell_runs_in_flight"),
            seconds: metrics::histogram!(
                "stepwell_run_seconds",
                "namespace" => namespace.clone(),
                "pipeline" => pipeline.clone(),
            ),
            steps,
            failures: LogRate::default(),
            delivered: runs_total(&namespace, &pipeline, "delivered"),
            namespace,
            pipeline,
        }
    }

    pub(crate) fn ended(&self, outcome: &'static str, elapsed: Duration) {
        self.seconds.record(elapsed);
        if outcome == "delivered" {
            self.delivered.increment(1);
        } else {
            runs_total(&self.namespace, &self.pipeline, outcome).increment(1);
        }
    }
}

/// Metric handles of one step.
pub(crate) struct StepMetrics {
    pub(crate) seconds: Histogram,
    namespace: String,
    pipeline: String,
    step: String,
}

impl StepMetrics {
    pub(crate) fn erred(&self, kind: ErrorKind) {
        metrics::counter!(
            "stepwell_step_errors_total",
            "namespace" => self.namespace.clone(),
            "pipeline" => self.pipeline.clone(),
            "step" => self.step.clone(),
            "kind" => kind.as_str(),
        )
        .increment(1);
    }
}

fn runs_total(namespace: &str, pipeline: &str, outcome: &'static str) -> Counter {
    metrics::counter!(
        "stepwell_runs_total",
        "namespace" => namespace.to_owned(),
        "pipeline" => pipeline.to_owned(),
        "outcome" => outcome,
    )
}

/// The metric handles of every deployment that has run, found by the deployment's address.
#[derive(Default)]
pub(crate) struct MetricsCache(ArcSwap<HashMap<usize, Entry>>);

/// While the weak reference is held, the address belongs to this deployment alone.
#[derive(Clone)]
struct Entry {
    deployment: Weak<Deployment>,
    metrics: Arc<OnceLock<Arc<RunMetrics>>>,
}

impl MetricsCache {
    pub(crate) fn of(&self, deployment: &Arc<Deployment>) -> Arc<RunMetrics> {
        let address = Arc::as_ptr(deployment).addr();
        if let Some(entry) = self.0.load().get(&address) {
            return entry.metrics(deployment);
        }
        let entry = Entry {
            deployment: Arc::downgrade(deployment),
            metrics: Arc::default(),
        };
        self.0.rcu(|current| {
            let mut next: HashMap<usize, Entry> = current
                .iter()
                .filter(|(_, entry)| entry.deployment.strong_count() > 0)
                .map(|(address, entry)| (*address, entry.clone()))
                .collect();
            next.entry(address).or_insert_with(|| entry.clone());
            next
        });
        entry.metrics(deployment)
    }
}

impl MetricsCache {
    /// Drops what is of deployments that are gone; answers whether there were any.
    pub(crate) fn forget_unused(&self) -> bool {
        let is_gone = |entry: &Entry| entry.deployment.strong_count() == 0;
        if !self.0.load().values().any(is_gone) {
            return false;
        }
        self.0.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.retain(|_, entry| !is_gone(entry));
            next.shrink_to_fit();
            next
        });
        true
    }
}

impl Entry {
    fn metrics(&self, deployment: &Deployment) -> Arc<RunMetrics> {
        self.metrics
            .get_or_init(|| Arc::new(RunMetrics::new(deployment)))
            .clone()
    }
}
