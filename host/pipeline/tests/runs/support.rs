use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use stepwell_core::{
    Call, ErrorKind, Event, Grants, Name, Outcome, RunId, StepError, StepScope, TraceContext,
};
use stepwell_pipeline::{
    Deployed, DeployedStep, Deployment, Dispatcher, RunEnd, RunObserver, RunRequest, Step,
};
use tokio::sync::Notify;

pub(crate) type Reply = Result<Vec<Event>, StepError>;
pub(crate) type Code =
    dyn Fn(Call, Event) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

pub(crate) struct Fake(pub(crate) Box<Code>);

#[async_trait]
impl Step for Fake {
    async fn call(&self, call: &Call, event: Event) -> Reply {
        (self.0)(call.clone(), event).await
    }
}

pub(crate) fn scope(id: &str) -> Arc<StepScope> {
    Arc::new(StepScope {
        namespace: Name::default_namespace(),
        pipeline: "p".parse().unwrap(),
        revision: 3,
        step: id.parse().unwrap(),
        plugin: format!("{id}@1.0.0"),
        digest: None,
        grants: Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    })
}

pub(crate) fn step<F: Future<Output = Reply> + Send + 'static>(
    id: &str,
    code: impl Fn(Call, Event) -> F + Send + Sync + 'static,
) -> DeployedStep {
    DeployedStep {
        scope: scope(id),
        step: Arc::new(Fake(Box::new(move |call, event| {
            Box::pin(code(call, event))
        }))),
        timeout: None,
        retry: None,
    }
}

/// Adds `suffix` to the data.
pub(crate) fn append(id: &str, suffix: &'static str) -> DeployedStep {
    step(id, move |_, mut event| async move {
        event.data = [event.data.as_ref(), suffix.as_bytes()].concat().into();
        Ok(vec![event])
    })
}

/// Returns the event this many times, each with its number appended.
pub(crate) fn times(id: &str, count: usize) -> DeployedStep {
    step(id, move |_, event| async move {
        let numbered = |number: usize| {
            let mut event = event.clone();
            event.data = [event.data.as_ref(), number.to_string().as_bytes()]
                .concat()
                .into();
            event
        };
        Ok((0..count).map(numbered).collect())
    })
}

pub(crate) fn failing(
    id: &str,
    kind: ErrorKind,
    times: usize,
    calls: &Arc<AtomicUsize>,
) -> DeployedStep {
    let calls = calls.clone();
    step(id, move |_, event| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move {
            if call < times {
                Err(StepError::new(kind, format!("failure {call}")))
            } else {
                Ok(vec![event])
            }
        }
    })
}

pub(crate) fn deployment(steps: Vec<DeployedStep>) -> Arc<Deployment> {
    Arc::new(Deployment {
        namespace: Name::default_namespace(),
        name: "p".parse().unwrap(),
        revision: 3,
        triggers: Vec::new(),
        body: Deployed::Steps(steps),
    })
}

pub(crate) fn event(data: &str) -> Event {
    Event {
        id: "1".into(),
        source: "/test".into(),
        r#type: "test".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        extensions: Vec::new(),
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

pub(crate) fn request(deployment: &Arc<Deployment>, within: Duration) -> RunRequest {
    RunRequest {
        deployment: deployment.clone(),
        run: RunId::new(),
        trigger: "http",
        event: event("x"),
        deadline: Instant::now() + within,
        trace: TraceContext::default(),
    }
}

pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) async fn run(steps: Vec<DeployedStep>, within: Duration) -> Outcome {
    let dispatcher = Dispatcher::new(10);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    dispatcher
        .run(permit, request(&deployment(steps), within))
        .await
}

pub(crate) fn delivered(outcome: Outcome) -> Vec<String> {
    match outcome {
        Outcome::Delivered(events) => events
            .into_iter()
            .map(|event| String::from_utf8(event.data.to_vec()).unwrap())
            .collect(),
        other => panic!("not delivered: {other:?}"),
    }
}

pub(crate) fn errored(outcome: Outcome) -> StepError {
    match outcome {
        Outcome::Errored(error) => error,
        other => panic!("not errored: {other:?}"),
    }
}

/// A step that says when it has begun, waits to be let go, and says that it is done.
pub(crate) fn gated(begun: &Arc<Notify>, go: &Arc<Notify>, done: &Arc<Notify>) -> DeployedStep {
    let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
    step("gated", move |_, event| {
        let (begun, go, done) = (begun.clone(), go.clone(), done.clone());
        async move {
            begun.notify_one();
            go.notified().await;
            done.notify_one();
            Ok(vec![event])
        }
    })
}

#[derive(Default)]
pub(crate) struct Ends(pub(crate) Mutex<Vec<(RunId, &'static str, Option<String>)>>);

impl RunObserver for Ends {
    fn run_ended(&self, end: &RunEnd<'_>) {
        let error = end.error.map(|error| {
            let step = error.step.as_deref().unwrap_or("-");
            format!("{step}: {}", error.message)
        });
        self.0.lock().unwrap().push((end.run, end.outcome, error));
    }
}
