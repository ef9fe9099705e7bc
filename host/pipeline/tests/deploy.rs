#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! From a document to a deployment that runs, with a factory of fakes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use stepwell_core::{
    Action, BindingKind, Call, Digest, Event, Isolation, Limits, Name, Outcome, Reuse, RunId,
    StepError, StepScope, TraceContext,
};
use stepwell_pipeline::{
    Body, Deployed, Deployment, Dispatcher, Draft, Function, ModelSpec, NotDeployable, Pin,
    PrepareError, Prepared, RunRequest, Step, StepFactory, deploy,
};

#[derive(Default)]
struct Fakes {
    made: Mutex<Vec<(String, Limits, Isolation)>>,
}

struct Echo;

#[async_trait]
impl Step for Echo {
    async fn call(&self, _: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        Ok(vec![event])
    }
}

#[async_trait]
impl Function for Echo {
    async fn handle(
        &self,
        _: &Call,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError> {
        Ok(http::Response::new(request.into_body()))
    }
}

/// A model step that says what it was made of.
struct Told(ModelSpec);

#[async_trait]
impl Step for Told {
    async fn call(&self, call: &Call, mut event: Event) -> Result<Vec<Event>, StepError> {
        let granted = call
            .grant(BindingKind::Models, &self.0.binding, Action::Infer)
            .is_ok();
        let refused = call
            .grant(BindingKind::Models, "other", Action::Infer)
            .is_err();
        assert!(granted && refused);
        event.data = format!(
            "{:?} {:?} {:?}",
            self.0.version, self.0.inputs, self.0.outputs
        )
        .into();
        Ok(vec![event])
    }
}

#[async_trait]
impl StepFactory for Fakes {
    async fn plugin(
        &self,
        scope: &Arc<StepScope>,
        limits: Limits,
        isolation: Isolation,
        pin: &Pin,
    ) -> Result<Prepared, PrepareError> {
        let label = format!(
            "{} {} r{} {}",
            scope.step,
            scope.plugin,
            scope.revision,
            pin.digest == Digest::of(b"x")
        );
        self.made.lock().unwrap().push((label, limits, isolation));
        match pin.plugin.as_str() {
            "missing" => Err("the component is gone".into()),
            "function" => Ok(Prepared::Function(Arc::new(Echo))),
            _ => Ok(Prepared::Step(Arc::new(Echo))),
        }
    }

    async fn model(
        &self,
        scope: &Arc<StepScope>,
        model: &ModelSpec,
    ) -> Result<Arc<dyn Step>, PrepareError> {
        assert_eq!(scope.plugin, format!("model {}", model.binding));
        Ok(Arc::new(Told(model.clone())))
    }
}

fn pin(step: &str, plugin: &str) -> Pin {
    Pin {
        step: step.parse().unwrap(),
        plugin: plugin.parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        digest: Digest::of(b"x"),
    }
}

async fn deployed(steps: &str, pins: &[Pin], fakes: &Fakes) -> Result<Deployment, NotDeployable> {
    let text = format!("{{stepwell: 1, name: p, steps: {steps}}}");
    let spec = Draft::parse(&text).finish().unwrap();
    deploy(&Name::default_namespace(), 4, &spec, pins, fakes).await
}

async fn run(deployment: Deployment, data: &str) -> Result<Event, StepError> {
    let dispatcher = Dispatcher::new(1);
    let request = RunRequest {
        deployment: Arc::new(deployment),
        run: RunId::new(),
        trigger: "invoke",
        event: Event {
            id: "1".into(),
            source: "/test".into(),
            r#type: "test".into(),
            subject: Some("s".into()),
            time: None,
            datacontenttype: Some("text/plain".into()),
            extensions: Vec::new(),
            data: data.to_owned().into(),
        },
        deadline: Instant::now() + Duration::from_secs(60),
        trace: TraceContext::default(),
    };
    match dispatcher
        .run(
            dispatcher.admit(&Name::default_namespace()).unwrap(),
            request,
        )
        .await
    {
        Outcome::Delivered(mut events) => Ok(events.remove(0)),
        Outcome::Rejected(error) | Outcome::Errored(error) => Err(error),
    }
}

#[tokio::test]
async fn a_deployment_has_what_its_document_says() {
    let fakes = Fakes::default();
    let steps = "[{id: a, plugin: x@1, config: {k: v}, limits: {cpu: 7ms}}, {id: b, plugin: y@1, isolation: {reuse: {max_calls: 9}}, timeout: 3s, retry: {attempts: 2}}]";
    let deployment = deployed(steps, &[pin("a", "x"), pin("b", "y")], &fakes)
        .await
        .unwrap();
    let limits = Limits {
        cpu: Duration::from_millis(7),
        ..Limits::default()
    };
    let reuse = Reuse {
        max_calls: 9,
        ..Reuse::default()
    };
    let made = fakes.made.lock().unwrap().clone();
    assert_eq!(
        made,
        [
            ("a x@1.0.0 r4 true".to_owned(), limits, Isolation::Fresh),
            (
                "b y@1.0.0 r4 true".to_owned(),
                Limits::default(),
                Isolation::Reuse(reuse)
            )
        ]
    );
    assert_eq!((deployment.name.as_str(), deployment.revision), ("p", 4));
    let Deployed::Steps(steps) = &deployment.body else {
        panic!()
    };
    assert_eq!(steps[0].scope.config, [("k".to_owned(), "v".to_owned())]);
    assert_eq!(steps[1].timeout, Some(Duration::from_secs(3)));
    assert_eq!(steps[1].retry.as_ref().unwrap().attempts, 2);
    assert_eq!(run(deployment, "hi").await.unwrap().data, "hi");
}

#[tokio::test]
async fn a_deployment_that_cannot_be_says_which_step() {
    let fakes = Fakes::default();
    let shown = async |steps, pins: &[Pin]| {
        deployed(steps, pins, &fakes)
            .await
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        shown("[{id: a, plugin: x@1}]", &[]).await,
        "step 'a' has no pinned plugin version"
    );
    let missing = shown("[{id: a, plugin: missing@1}]", &[pin("a", "missing")]).await;
    assert_eq!(
        missing,
        "step 'a' cannot be prepared: the component is gone"
    );
    let pins = [pin("a", "x"), pin("b", "function")];
    let crowd = shown("[{id: a, plugin: x@1}, {id: b, plugin: function@1}]", &pins).await;
    assert_eq!(
        crowd,
        "step 'b' answers HTTP requests itself and is not the only step"
    );
    let alone = deployed("[{id: b, plugin: function@1}]", &pins, &fakes)
        .await
        .unwrap();
    assert!(matches!(alone.body, Deployed::Function(_)));
}

#[tokio::test]
async fn a_model_step_is_made_of_its_document_and_granted_its_model() {
    let step = "{id: m, model: double@2, inputs: {x: /a/1}, outputs: {answer: y}}";
    let deployment = deployed(&format!("[{step}]"), &[], &Fakes::default())
        .await
        .unwrap();
    let event = run(deployment, "").await.unwrap();
    assert_eq!(event.data, r#"Some("2") [("x", "/a/1")] [("answer", "y")]"#);
}
