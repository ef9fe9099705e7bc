//! Pipelines: from a YAML document to a validated graph of steps, and from an event to an outcome.
//!
//! This crate knows no WebAssembly engine and no transport: steps are anything that implements [`Step`], and triggers hand
//! events to the [`Dispatcher`].

mod backlog;
mod body;
mod deploy;
mod deployment;
mod dispatch;
mod quota;
mod registry;
mod run;
mod running;
mod schema;
mod spans;
mod spec;
mod telemetry;
mod trigger;
mod validate;

pub use backlog::{EventMemory, Hold};
pub use deploy::{NotDeployable, PrepareError, Prepared, StepFactory, deploy};
pub use deployment::{
    Body, Deployed, DeployedFunction, DeployedStep, Deployment, Function, Retry, Step,
};
pub use dispatch::{Dispatcher, NotAdmitted, Permit, RunRequest, SpanHook};
pub use registry::Registry;
pub use schema::json_schema;
pub use spans::current_span;
pub use spec::{Draft, InvalidPath, ModelSpec, NodeSpec, PathPattern, PipelineSpec, StepSpec};
pub use telemetry::{RunEnd, RunObserver, describe_metrics};
pub use trigger::{
    HttpAuth, HttpTriggerSpec, JwtIssuer, KafkaTriggerSpec, Order, RunRetry, TriggerSpec,
};
pub use validate::{
    HostState, JwtHost, KafkaOwners, KnownPipeline, KnownPlugin, Pin, Subscriptions, Validated,
};
