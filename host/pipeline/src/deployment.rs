use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use stepwell_core::{Call, ErrorKind, Event, Name, StepError, StepScope};

use crate::TriggerSpec;

/// A streaming HTTP body.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A node of a pipeline, ready to be called: a plugin, a model.
#[async_trait]
pub trait Step: Send + Sync {
    /// Processes one event. Called once for each event and attempt, from many tasks at once; it must be cancel-safe, since a
    /// step's timeout drops the call.
    async fn call(&self, call: &Call, event: Event) -> Result<Vec<Event>, StepError>;
}

/// A plugin that answers HTTP requests itself.
#[async_trait]
pub trait Function: Send + Sync {
    /// Answers one request; called once for each, from many tasks at once. The response's head decides success: an error is
    /// only what happened before it. A body of an exact size hint is there as a whole, and the run ends with its head; one that
    /// is still being written gives none. A guest that has not come to its end by then has a
    /// [`Lingering`](stepwell_core::Lingering) in the response's extensions.
    async fn handle(
        &self,
        call: &Call,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError>;
}

/// One revision of a pipeline, resolved and ready to run. Running events keep the one they started with.
pub struct Deployment {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline's name.
    pub name: Name,
    /// Its revision, from 1.
    pub revision: u64,
    /// What starts it.
    pub triggers: Vec<TriggerSpec>,
    /// What it does.
    pub body: Deployed,
}

/// What a deployment does with what its triggers bring.
pub enum Deployed {
    /// Events pass through these steps in order.
    Steps(Vec<DeployedStep>),
    /// Requests go to this function as they are.
    Function(DeployedFunction),
}

/// A step with everything that its calls share.
pub struct DeployedStep {
    /// Who it is and what it may do.
    pub scope: Arc<StepScope>,
    /// The code.
    pub step: Arc<dyn Step>,
    /// Time for the step with its retries.
    pub timeout: Option<Duration>,
    /// What happens when it errs; none: nothing is retried.
    pub retry: Option<Retry>,
}

/// An HTTP function with everything that its calls share.
pub struct DeployedFunction {
    /// Who it is and what it may do.
    pub scope: Arc<StepScope>,
    /// The code.
    pub function: Arc<dyn Function>,
}

/// How a step that errs is tried again, inside the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Calls in all, the first included.
    pub attempts: u32,
    /// The first pause; it doubles, with full jitter.
    pub backoff: Duration,
    /// The kinds of error that are retried.
    pub errors: Vec<ErrorKind>,
}
