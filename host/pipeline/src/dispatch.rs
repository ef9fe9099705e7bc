use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Once, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use stepwell_core::{
    Blame, Call, CpuAccount, ErrorKind, Event, Lingering, Name, Outcome, Quotas, RunId, StepError,
    TraceContext, within,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use crate::Body;
use crate::backlog::EventMemory;
use crate::body::{RunBody, is_whole, sweep};
use crate::deployment::{Deployed, DeployedFunction, Deployment};
use crate::quota::{Accounts, Counted, SOON};
use crate::run;
use crate::running::{RunTable, Running};
use crate::spans::{Mark, marked};
use crate::telemetry::{MetricsCache, RunEnd, RunMetrics, RunObserver};

/// Where every trigger hands its events, and the only place where runs start.
///
/// A caller that hangs up cannot stop a run that is half done.
#[derive(Clone)]
pub struct Dispatcher(Arc<Shared>);

pub(crate) struct Shared {
    permits: Arc<Semaphore>,
    accounts: Accounts,
    pub(crate) tasks: TaskTracker,
    pub(crate) running: RunTable,
    sweeper: Once,
    metrics: MetricsCache,
    span_hook: Option<SpanHook>,
    observer: Option<Arc<dyn RunObserver>>,
    event_memory: OnceLock<EventMemory>,
}

/// Called with each run's span as soon as it is made, before anything is recorded in it, with the trace it belongs to. Where there
/// is none, runs and steps make their spans only when something is logged in them.
pub type SpanHook = fn(&Span, &TraceContext);

/// The right to one run; it is given back when dropped.
pub struct Permit {
    counted: Counted,
    _permit: OwnedSemaphorePermit,
    _token: TaskTrackerToken,
}

/// Why a run cannot start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// As many runs are under way as the host allows.
    #[error("the host is busy")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The namespace has used up one of its quotas.
    #[error("the namespace's quota {quota} is used up")]
    Quota {
        /// Its name.
        quota: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// The host is shutting down.
    #[error("the host is shutting down")]
    ShuttingDown,
}

/// Everything that a run is started with.
pub struct RunRequest {
    /// The revision, fixed for the whole run.
    pub deployment: Arc<Deployment>,
    /// The run's id, made by the trigger.
    pub run: RunId,
    /// What started it: `http`, `kafka` or `invoke`.
    pub trigger: &'static str,
    /// The event, already size-capped.
    pub event: Event,
    /// When the whole run's time is up.
    pub deadline: Instant,
    /// The caller's trace.
    pub trace: TraceContext,
}

impl Dispatcher {
    /// A dispatcher that allows this many runs at once.
    pub fn new(concurrent_runs: usize) -> Self {
        Self::with(concurrent_runs, None, None)
    }

    /// The same with what the composition root hangs in: a hook that gives spans their parents, and an observer of runs.
    pub fn with(
        concurrent_runs: usize,
        span_hook: Option<SpanHook>,
        observer: Option<Arc<dyn RunObserver>>,
    ) -> Self {
        Self(Arc::new(Shared {
            permits: Arc::new(Semaphore::new(concurrent_runs.min(Semaphore::MAX_PERMITS))),
            accounts: Accounts::new(concurrent_runs),
            tasks: TaskTracker::new(),
            running: RunTable::default(),
            sweeper: Once::new(),
            metrics: MetricsCache::default(),
            span_hook,
            observer,
            event_memory: OnceLock::new(),
        }))
    }

    /// Where the memory comes from in which events wait between steps, beyond the little that each run has for nothing. Only the
    /// first call counts; without one, runs are bounded one by one.
    pub fn set_event_memory(&self, memory: EventMemory) {
        let _ = self.0.event_memory.set(memory);
    }

    /// A permit for one run of this namespace.
    ///
    /// A namespace without a quota of runs at once may hold three quarters of all permits while there are others, so that none
    /// keeps the others out.
    ///
    /// # Errors
    /// [`NotAdmitted`]: HTTP answers 429 or 503, Kafka pauses the partition.
    pub fn admit(&self, namespace: &Name) -> Result<Permit, NotAdmitted> {
        // Taken first: a drain waits for whoever was still admitted.
        let token = self.0.tasks.token();
        if self.0.permits.is_closed() {
            return Err(NotAdmitted::ShuttingDown);
        }
        let counted = self.0.accounts.enter(namespace)?;
        let permit = match self.0.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => {
                metrics::counter!("stepwell_limit_hits_total", "limit" => "concurrent_runs")
                    .increment(1);
                return Err(NotAdmitted::Busy { retry_after: SOON });
            }
            Err(TryAcquireError::Closed) => return Err(NotAdmitted::ShuttingDown),
        };
        counted.start(self.0.accounts.now())?;
        Ok(Permit {
            counted,
            _permit: permit,
            _token: token,
        })
    }

    /// Sets the quotas of all namespaces at once; those that are not named have none. What they have used stays counted.
    pub fn set_quotas(&self, quotas: HashMap<Name, Quotas>) {
        self.0.accounts.set(quotas);
    }

    /// The account to which the CPU time of a pipeline's guests is charged. It is the same for all revisions.
    pub fn cpu_account(&self, namespace: &Name, pipeline: &Name) -> Arc<CpuAccount> {
        self.0.accounts.cpu(namespace, pipeline)
    }

    /// Sets the gauges of what was used; called before metrics are rendered.
    pub fn record_use(&self) {
        self.0.accounts.record();
    }

    /// Whether no run is under way.
    pub fn is_idle(&self) -> bool {
        self.0.tasks.is_empty()
    }

    /// Drops the accounts of pipelines that are neither deployed nor run any more, and of namespaces that have none of them and
    /// are gone, and the metric handles of deployments that are gone; to be called now and then. Answers whether there were any.
    pub fn forget_unused(&self) -> bool {
        let accounts = self.0.accounts.forget_unused();
        self.0.metrics.forget_unused() | accounts
    }

    /// Whether there is such a namespace, as far as this knows: it has been told of it, or something of it is deployed or runs.
    pub fn knows(&self, namespace: &Name) -> bool {
        self.0.accounts.has(namespace)
    }

    /// Runs one event to its outcome, as a task of its own.
    pub async fn run(&self, permit: Permit, request: RunRequest) -> Outcome {
        let task = self.0.tasks.spawn(self.0.steps(permit, request));
        task.await.unwrap_or_else(|_| Outcome::Errored(stopped()))
    }

    /// Like [`Dispatcher::run`], but the caller's own task polls the run, which spares a task switch for each event. A caller
    /// that hangs up half way leaves it to a task of its own.
    pub async fn run_inline(&self, permit: Permit, request: RunRequest) -> Outcome {
        self.0.unstoppable(self.0.steps(permit, request)).await
    }

    /// Hands one HTTP request to a function, inside a run of its own (permit, span, metrics). The run ends with the
    /// response's body, or with its head if the body is there as a whole by then. Its permit is given back when the function's guest
    /// is gone too, which may be later.
    ///
    /// The caller's own task polls the function until the response's head is there; a caller that hangs up before leaves it
    /// to a task of its own.
    ///
    /// # Errors
    /// What happened before the response's head was there.
    pub async fn handle(
        &self,
        permit: Permit,
        deployment: Arc<Deployment>,
        run: RunId,
        request: http::Request<Body>,
        deadline: Instant,
        trace: TraceContext,
    ) -> Result<http::Response<Body>, StepError> {
        let shared = &self.0;
        shared
            .sweeper
            .call_once(|| drop(tokio::spawn(sweep(Arc::downgrade(shared)))));
        let run = self.0.start(permit, deployment, run, "http", &trace);
        let mark = run.mark();
        let answer = marked(mark, run.function(request, deadline));
        self.0.unstoppable(answer).await
    }

    /// Refuses new runs from now on.
    pub fn close(&self) {
        self.0.permits.close();
        self.0.tasks.close();
    }

    /// Refuses new runs and waits until every run has ended, at most until the deadline; answers the runs that have not, as
    /// `pipeline RUN_ID`.
    pub async fn drained(&self, deadline: Instant) -> Vec<String> {
        self.close();
        let ended = tokio::time::timeout_at(deadline.into(), self.0.tasks.wait()).await;
        if ended.is_ok() {
            return Vec::new();
        }
        let running = self.0.running.all();
        let mut names: Vec<String> = running
            .iter()
            .map(|run| format!("{} {}", run.deployment.name, run.id))
            .collect();
        names.sort();
        names
    }
}

impl Shared {
    fn start(
        self: &Arc<Self>,
        permit: Permit,
        deployment: Arc<Deployment>,
        run: RunId,
        trigger: &'static str,
        trace: &TraceContext,
    ) -> Run {
        let metrics = self.metrics.of(&deployment);
        metrics.in_flight.increment(1);
        let running = Arc::new(Running::new(run, deployment, trigger));
        if let Some(hook) = self.span_hook {
            hook(running.span(), trace);
        }
        self.running.insert(running.clone());
        Run {
            running,
            metrics,
            started: Instant::now(),
            ended: false,
            shared: self.clone(),
            lingering: None,
            permit: Some(permit),
        }
    }

    fn steps(
        self: &Arc<Self>,
        permit: Permit,
        request: RunRequest,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let RunRequest {
            deployment,
            run,
            trigger,
            event,
            deadline,
            trace,
        } = request;
        let run = self.start(permit, deployment, run, trigger, &trace);
        marked(run.mark(), run.steps(event, deadline))
    }

    fn unstoppable<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Unstoppable<'_, T> {
        Unstoppable {
            future: Some(Box::pin(future)),
            tasks: &self.tasks,
        }
    }
}

/// A run under way, and what has to be given back when it is over.
pub(crate) struct Run {
    pub(crate) running: Arc<Running>,
    pub(crate) metrics: Arc<RunMetrics>,
    started: Instant,
    ended: bool,
    pub(crate) shared: Arc<Shared>,
    /// The guest, where it has not come to its end with the response's head.
    lingering: Option<Lingering>,
    /// There until the run is dropped.
    permit: Option<Permit>,
}

/// What a guest that goes on after its run still holds: the permit, and the place among those that a drain waits for and names.
struct Afterwards {
    shared: Arc<Shared>,
    run: RunId,
    _permit: Option<Permit>,
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        self.shared.running.remove(self.run);
    }
}

impl Run {
    /// How long until the run may make its next call, if its namespace has used up its quota of CPU time meanwhile.
    pub(crate) fn cpu_wait(&self) -> Option<Duration> {
        let counted = &self.permit.as_ref()?.counted;
        counted.cpu_wait(|| self.shared.accounts.now())
    }

    /// Waits until the namespace has CPU time again, at most until then.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], at once if there is none before.
    pub(crate) async fn wait_for_cpu(&self, deadline: Instant) -> Result<(), StepError> {
        if let Some(permit) = &self.permit {
            permit.counted.count_wait();
        }
        while let Some(wait) = self.cpu_wait() {
            if wait >= deadline.saturating_duration_since(Instant::now()) {
                let message = "the namespace has used up its quota cpu_seconds_per_minute, and has CPU time again only after the run's time is up; use less, or have an operator raise the quota";
                return Err(StepError::new(ErrorKind::Unavailable, message).blamed(Blame::Plugin));
            }
            // The quota may be raised meanwhile.
            tokio::time::sleep(wait.min(SOON)).await;
        }
        Ok(())
    }

    /// How the polls of this run are marked.
    fn mark(&self) -> Mark {
        Mark::run(&self.running, self.wants_spans())
    }

    pub(crate) fn wants_spans(&self) -> bool {
        self.shared.span_hook.is_some()
    }

    pub(crate) fn event_memory(&self) -> Option<&EventMemory> {
        self.shared.event_memory.get()
    }

    async fn steps(mut self, event: Event, deadline: Instant) -> Outcome {
        let result = match &self.running.deployment.body {
            Deployed::Steps(steps) => run::walk(steps, &self, event, deadline).await,
            Deployed::Function(function) => {
                let message = "this pipeline answers HTTP requests itself and takes no events";
                let error = StepError::new(ErrorKind::Failed, message);
                Err(error.at_step(function.scope.step.as_str()))
            }
        };
        let outcome = result.map_or_else(Outcome::from, Outcome::Delivered);
        let error = match &outcome {
            Outcome::Delivered(_) => None,
            Outcome::Rejected(error) | Outcome::Errored(error) => Some(error),
        };
        self.end(outcome.as_str(), error);
        outcome
    }

    async fn function(
        mut self,
        request: http::Request<Body>,
        deadline: Instant,
    ) -> Result<http::Response<Body>, StepError> {
        let mut result = match &self.running.deployment.body {
            Deployed::Function(function) => self.head(function, request, deadline).await,
            Deployed::Steps(_) => {
                let message = "this pipeline takes events and answers no HTTP requests itself";
                Err(StepError::new(ErrorKind::Failed, message))
            }
        };
        if let Ok(response) = &mut result {
            self.lingering = response.extensions_mut().remove();
        }
        match &result {
            Ok(response) if is_whole(response.body()) => self.end("delivered", None),
            Ok(_) => {
                return result.map(|response| {
                    response.map(|inner| RunBody::new(inner, self, deadline).boxed_unsync())
                });
            }
            Err(error) => self.end(error.kind.as_str(), Some(error)),
        }
        result
    }

    async fn head(
        &self,
        function: &DeployedFunction,
        request: http::Request<Body>,
        deadline: Instant,
    ) -> Result<http::Response<Body>, StepError> {
        let scope = &function.scope;
        let call = Call {
            scope: scope.clone(),
            run: self.running.id,
            deadline,
        };
        let mark = Mark::step(&self.running, scope, self.wants_spans());
        let answer = marked(mark, run::caught(function.function.handle(&call, request)));
        let result = within(run::alarm(deadline), answer)
            .await
            .unwrap_or_else(|| Err(StepError::new(ErrorKind::Timeout, "the run's time was up")))
            .map_err(|error| error.at_step(scope.step.as_str()).of_plugin(&scope.plugin));
        if let Some(metrics) = self.metrics.steps.first() {
            metrics.seconds.record(self.started.elapsed());
            if let Err(error) = &result {
                metrics.erred(error.kind);
            }
        }
        result
    }

    /// The function failed after its response's head had been sent.
    pub(crate) fn function_failed(&mut self, error: StepError) {
        let error = match &self.running.deployment.body {
            Deployed::Function(DeployedFunction { scope, .. }) => {
                error.at_step(scope.step.as_str()).of_plugin(&scope.plugin)
            }
            Deployed::Steps(_) => error,
        };
        if let Some(metrics) = self.metrics.steps.first() {
            metrics.erred(error.kind);
        }
        self.end(error.kind.as_str(), Some(&error));
    }

    /// When the time of a guest is up that its response's head has not ended.
    pub(crate) fn guest_until(&self) -> Option<Instant> {
        self.lingering.as_ref().map(Lingering::until)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Says how the run ended; only the first call counts.
    pub(crate) fn end(&mut self, outcome: &'static str, error: Option<&StepError>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let elapsed = self.started.elapsed();
        if let Some(error) = error {
            self.log(error);
        }
        self.metrics.ended(outcome, elapsed);
        if let Some(observer) = &self.shared.observer {
            observer.run_ended(&RunEnd {
                deployment: &self.running.deployment,
                run: self.running.id,
                outcome,
                error,
                elapsed,
            });
        }
    }

    /// Logs a failure, unless those of this deployment come too fast.
    fn log(&self, error: &StepError) {
        let Deployment {
            namespace, name, ..
        } = &*self.running.deployment;
        let line = self.metrics.failures.next(Instant::now());
        if let Some(left_out) = line.left_out("failed runs", "stepwell_runs_total") {
            tracing::warn!(%namespace, pipeline = %name, "{left_out}");
        }
        if !line.is_whole() {
            return;
        }
        let (run_id, step) = (self.running.id, error.step.as_deref());
        let StepError { kind, message, .. } = error;
        let plugin = error.plugin.as_deref();
        let trap = error.fault.as_ref().map(|fault| fault.kind.as_str());
        let backtrace = error
            .fault
            .as_ref()
            .map(|fault| fault.backtrace.join(" < "));
        self.running.span().in_scope(|| {
            if *kind == ErrorKind::Invalid {
                tracing::info!(%run_id, step, %kind, error = message, "run rejected its event");
            } else {
                tracing::warn!(%run_id, step, plugin, %kind, trap, backtrace, error = message, "run failed");
            }
        });
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end(ErrorKind::Failed.as_str(), Some(&stopped()));
        self.metrics.in_flight.decrement(1);
        match self.lingering.take() {
            Some(lingering) => lingering.keep(Afterwards {
                shared: self.shared.clone(),
                run: self.running.id,
                _permit: self.permit.take(),
            }),
            None => self.shared.running.remove(self.running.id),
        }
    }
}

fn stopped() -> StepError {
    let message = "the host stopped before the run had ended";
    StepError::new(ErrorKind::Failed, message).blamed(Blame::Host)
}

/// A future that a tracked task finishes if whoever polls it goes away.
struct Unstoppable<'a, T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: &'a TaskTracker,
}

impl<T: Send + 'static> Future for Unstoppable<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let result = std::task::ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(result)
    }
}

impl<T: Send + 'static> Drop for Unstoppable<'_, T> {
    fn drop(&mut self) {
        if let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) {
            self.tasks.spawn_on(future, &runtime);
        }
    }
}
