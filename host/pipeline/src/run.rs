//! One event's walk through the steps of a deployment.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use rand::Rng as _;
use stepwell_core::{Blame, Call, ErrorKind, Event, StepError, show_duration, within};
use tokio::task::{Unconstrained, yield_now};
use tokio::time::Sleep;

use crate::backlog::{Backlog, exceeded};
use crate::deployment::{DeployedStep, Retry};
use crate::dispatch::Run;
use crate::spans::{Mark, marked};
use crate::telemetry::StepMetrics;

/// Step calls that one run may make, so that a step that returns many events cannot keep the host busy for ever.
pub(crate) const MAX_CALLS: usize = 10_000;

/// Calls that a run makes without giving way to others, as nearly all runs have no more; and those that it makes at a time from
/// then on.
const FEW: usize = 8;
const AT_ONCE: usize = 4;

/// The longest pause between two attempts of a step.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Takes one event through the steps: each event that a step returns goes through all that follows before its next sibling
/// does, so at any time only one step's output waits at each place.
pub(crate) async fn walk(
    steps: &[DeployedStep],
    run: &Run,
    event: Event,
    deadline: Instant,
) -> Result<Vec<Event>, StepError> {
    let mut backlog = Backlog::new(&run.running.deployment.namespace, run.event_memory());
    let mut calls = 0_usize;
    let mut in_hand = Some((0, event));
    loop {
        let Some((position, event)) = in_hand.take() else {
            in_hand = backlog.next();
            if in_hand.is_none() {
                return Ok(backlog.into_delivered());
            }
            continue;
        };
        let metrics = run.metrics.steps.get(position);
        let (Some(step), Some(step_metrics)) = (steps.get(position), metrics) else {
            let last = steps.last();
            backlog.deliver(event).map_err(|error| match last {
                Some(last) => of(last, error),
                None => error,
            })?;
            continue;
        };
        let of_step = |error| of(step, error);
        // Calls that never wait would keep the thread for as long as there are any.
        if calls > FEW && calls.is_multiple_of(AT_ONCE) {
            yield_now().await;
        }
        calls += 1;
        if calls > MAX_CALLS {
            let message = format!(
                "the run made more than {MAX_CALLS} calls: its steps return too many events; this limit is the host's own and has no setting"
            );
            return Err(of_step(exceeded("run_calls", message)));
        }
        // Whoever was admitted has CPU time for one call.
        if calls > 1 && run.cpu_wait().is_some() {
            let wait = Box::pin(run.wait_for_cpu(deadline));
            wait.await.map_err(of_step)?;
        }
        let mark = Mark::step(&run.running, &step.scope, run.wants_spans());
        let outputs = marked(mark, process(step, step_metrics, run, event, deadline))
            .await
            .map_err(of_step)?;
        let mut outputs = outputs.into_iter();
        in_hand = outputs.next().map(|event| (position + 1, event));
        if outputs.len() > 0 {
            backlog.wait(position + 1, outputs).map_err(of_step)?;
        }
    }
}

/// The error with its step, and the plugin behind that.
fn of(step: &DeployedStep, error: StepError) -> StepError {
    let scope = &step.scope;
    error.at_step(scope.step.as_str()).of_plugin(&scope.plugin)
}

/// One event in one step, with its retries, within the step's timeout and the run's deadline.
async fn process(
    step: &DeployedStep,
    metrics: &StepMetrics,
    run: &Run,
    event: Event,
    run_deadline: Instant,
) -> Result<Vec<Event>, StepError> {
    let started = Instant::now();
    let own_deadline = step
        .timeout
        .and_then(|timeout| started.checked_add(timeout));
    let deadline = own_deadline.map_or(run_deadline, |own| own.min(run_deadline));
    let call = Call {
        scope: step.scope.clone(),
        run: run.running.id,
        deadline,
    };
    let result = within(alarm(deadline), attempts(step, metrics, run, &call, event)).await;
    metrics.seconds.record(started.elapsed());
    result.unwrap_or_else(|| {
        metrics.erred(ErrorKind::Timeout);
        let message = match step.timeout {
            Some(timeout) if deadline < run_deadline => {
                format!("the step's timeout of {} was up", show_duration(timeout))
            }
            _ => "the run's time was up".to_owned(),
        };
        Err(StepError::new(ErrorKind::Timeout, message))
    })
}

async fn attempts(
    step: &DeployedStep,
    metrics: &StepMetrics,
    run: &Run,
    call: &Call,
    event: Event,
) -> Result<Vec<Event>, StepError> {
    let mut attempt = 1;
    if let Some(retry) = &step.retry {
        while attempt < retry.attempts {
            let error = match attempt_once(step, metrics, call, event.clone()).await {
                Err(error) if retry.errors.contains(&error.kind) => error,
                result => return result,
            };
            let pause = pause(retry, attempt);
            if pause >= call.remaining() {
                return Err(error);
            }
            tracing::debug!(run_id = %call.run, attempt, kind = %error.kind, error = %error.message, "step is tried again");
            tokio::time::sleep(pause).await;
            if run.cpu_wait().is_some() {
                Box::pin(run.wait_for_cpu(call.deadline)).await?;
            }
            attempt += 1;
        }
    }
    attempt_once(step, metrics, call, event).await
}

async fn attempt_once(
    step: &DeployedStep,
    metrics: &StepMetrics,
    call: &Call,
    event: Event,
) -> Result<Vec<Event>, StepError> {
    let result = caught(step.step.call(call, event)).await;
    if let Err(error) = &result {
        metrics.erred(error.kind);
    }
    result
}

/// Rings at a deadline, whatever of its budget the task has used up by then.
pub(crate) fn alarm(deadline: Instant) -> impl FnOnce() -> Unconstrained<Sleep> {
    move || tokio::task::unconstrained(tokio::time::sleep_until(deadline.into()))
}

/// A panic in the host's own code becomes an error of the run, so that nobody waits for a run that is gone.
pub(crate) async fn caught<T>(
    call: impl Future<Output = Result<T, StepError>>,
) -> Result<T, StepError> {
    AssertUnwindSafe(call)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| {
            let reason = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(
                reason,
                "the host panicked inside a step; this is a bug in the host"
            );
            Err(
                StepError::new(ErrorKind::Failed, "the host failed inside this step")
                    .blamed(Blame::Host),
            )
        })
}

/// Full jitter: anything between nothing and the doubled backoff.
fn pause(retry: &Retry, attempt: u32) -> Duration {
    let factor = 2_u32.saturating_pow(attempt.saturating_sub(1));
    let most = retry.backoff.saturating_mul(factor).min(MAX_BACKOFF);
    most.mul_f64(rand::rng().random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds() {
        let retry = Retry {
            attempts: 100,
            backoff: Duration::from_millis(50),
            errors: ErrorKind::ALL.to_vec(),
        };
        for attempt in [1, 2, 3, 10, 99] {
            let most = Duration::from_millis(50) * 2_u32.saturating_pow(attempt - 1).min(600);
            for _ in 0..100 {
                assert!(pause(&retry, attempt) <= most.min(MAX_BACKOFF));
            }
        }
        let longest = (0..200).map(|_| pause(&retry, 99)).max().unwrap();
        assert!(longest > Duration::from_secs(10), "{longest:?}");
    }
}
