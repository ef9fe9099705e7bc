//! Requests in, responses out: with steps that are plain closures, in process and over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod auth;
mod events;
mod functions;
mod invoke;
mod jwt;
mod proper;
mod quotas;
mod sockets;
mod statuses;
mod taken;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use stepwell_core::{Call, ErrorKind, Event, Grants, StepError, StepScope};
use stepwell_http_trigger::HttpTrigger;
use stepwell_pipeline::{
    Body, Deployed, DeployedFunction, DeployedStep, Deployment, Dispatcher, Function, HttpAuth,
    HttpTriggerSpec, Step, TriggerSpec,
};

type Answer = Result<Vec<Event>, StepError>;

/// A step that is a closure.
struct Closure<F>(F);

#[async_trait]
impl<F> Step for Closure<F>
where
    F: Fn(Event) -> BoxFuture<'static, Answer> + Send + Sync,
{
    async fn call(&self, _: &Call, event: Event) -> Answer {
        (self.0)(event).await
    }
}

/// A step that answers at once.
fn step(answer: impl Fn(Event) -> Answer + Send + Sync + 'static) -> Arc<dyn Step> {
    slow_step(move |event| {
        let answer = answer(event);
        Box::pin(async move { answer })
    })
}

fn slow_step(
    answer: impl Fn(Event) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
) -> Arc<dyn Step> {
    Arc::new(Closure(answer))
}

/// A step that answers with what it was given, as JSON.
fn inspect() -> Arc<dyn Step> {
    step(|mut event| {
        let extensions: serde_json::Map<String, Value> = event
            .extensions
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let seen = json!({
            "id": event.id, "source": event.source, "type": event.r#type,
            "subject": event.subject, "time": event.time,
            "datacontenttype": event.datacontenttype, "extensions": extensions,
            "data": String::from_utf8_lossy(&event.data),
        });
        event.data = Bytes::from(seen.to_string());
        event.datacontenttype = Some("application/json".to_owned());
        Ok(vec![event])
    })
}

struct Responder<F>(F);

#[async_trait]
impl<F> Function for Responder<F>
where
    F: Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Body>, StepError>> + Send + Sync,
{
    async fn handle(&self, _: &Call, request: Request<Body>) -> Result<Response<Body>, StepError> {
        (self.0)(request).await
    }
}

fn scope(step: &str) -> Arc<StepScope> {
    Arc::new(StepScope {
        namespace: "default".parse().unwrap(),
        pipeline: "p".parse().unwrap(),
        revision: 1,
        step: step.parse().unwrap(),
        plugin: "plugin@1.0.0".to_owned(),
        digest: None,
        grants: Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    })
}

fn spec(method: &str, path: &str) -> HttpTriggerSpec {
    HttpTriggerSpec {
        method: (!method.is_empty()).then(|| method.to_owned()),
        path: path.to_owned(),
        max_body: 1_000,
        timeout: Duration::from_secs(20),
        auth: HttpAuth::None,
    }
}

fn deployment(spec: HttpTriggerSpec, revision: u64, body: Deployed) -> Arc<Deployment> {
    Arc::new(Deployment {
        namespace: "default".parse().unwrap(),
        name: "p".parse().unwrap(),
        revision,
        triggers: vec![TriggerSpec::Http(spec)],
        body,
    })
}

fn steps(steps: Vec<Arc<dyn Step>>) -> Deployed {
    let steps = steps
        .into_iter()
        .enumerate()
        .map(|(index, step)| DeployedStep {
            scope: scope(&format!("step-{index}")),
            step,
            timeout: None,
            retry: None,
        });
    Deployed::Steps(steps.collect())
}

fn function(
    answer: impl Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Body>, StepError>>
    + Send
    + Sync
    + 'static,
) -> Deployed {
    Deployed::Function(DeployedFunction {
        scope: scope("function"),
        function: Arc::new(Responder(answer)),
    })
}

fn trigger(deployments: &[Arc<Deployment>]) -> Arc<HttpTrigger> {
    trigger_on(Dispatcher::new(64), deployments)
}

fn trigger_on(dispatcher: Dispatcher, deployments: &[Arc<Deployment>]) -> Arc<HttpTrigger> {
    let trigger = HttpTrigger::new(dispatcher);
    trigger.apply(deployments);
    Arc::new(trigger)
}

/// A trigger with `POST /p`, answered by one step.
fn one(step: Arc<dyn Step>) -> Arc<HttpTrigger> {
    trigger(&[deployment(spec("POST", "/p"), 1, steps(vec![step]))])
}

/// A response that was read to its end.
struct Reply {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts that this is a problem of this status and code, with the run's id and nothing internal.
    fn assert_problem(&self, status: u16, code: &str) -> Value {
        let document = self.json();
        assert_eq!(self.status, status, "{document}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(document["status"], status);
        assert_eq!(document["code"], code);
        assert_eq!(document["type"], "about:blank");
        assert!(document["title"].is_string() && document["detail"].is_string());
        let run = document["run_id"].as_str().unwrap();
        assert_eq!(run.len(), 36);
        assert_eq!(self.header("stepwell-run-id"), Some(run));
        assert!(!document.to_string().contains("internal"), "{document}");
        document
    }
}

async fn send(trigger: &HttpTrigger, request: http::request::Builder, body: &'static str) -> Reply {
    let request = request
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap();
    Reply::of(trigger.handle(request).await).await
}

fn post(path: &str) -> http::request::Builder {
    Request::post(path)
}

fn error(kind: ErrorKind) -> StepError {
    StepError::new(kind, "internal: /etc/stepwell, password hunter2")
}
