//! The pipeline document, typed.

mod auth;
mod draft;
mod grants;
mod isolation;
mod json;
mod limits;
mod path;
mod step;
mod trigger;

use std::time::Duration;

use stepwell_core::{Grants, Isolation, Limits, Name, PluginRef};

pub(crate) use auth::{AUTHS, MAX_TEXT};
pub use draft::Draft;
pub(crate) use draft::StepDraft;
pub(crate) use grants::{MAX_GRANTS, MAX_ORIGINS};
pub(crate) use isolation::{MAX_CALLS, MAX_CONCURRENCY, MAX_IDLE, MIN_IDLE};
pub(crate) use limits::{MAX_ATTEMPTS, MAX_CPU, MAX_MEMORY, MAX_OUTPUT, MAX_TIME};
pub use path::{InvalidPath, PathPattern};
pub(crate) use trigger::METHODS;

use crate::{Retry, TriggerSpec};

/// A pipeline as its document says it, without any mistake that the document alone can show.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineSpec {
    /// The pipeline's name.
    pub name: Name,
    /// What it is for.
    pub description: Option<String>,
    /// What starts it.
    pub triggers: Vec<TriggerSpec>,
    /// What it does, in order.
    pub steps: Vec<StepSpec>,
}

/// One step of the document, with the document's defaults already applied.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSpec {
    /// Unique within the pipeline.
    pub id: Name,
    /// What it is.
    pub node: NodeSpec,
    /// What the guest reads through `wasi:config`.
    pub config: Vec<(String, String)>,
    /// What it may do.
    pub grants: Grants,
    /// What one call may use.
    pub limits: Limits,
    /// How the calls share instances.
    pub isolation: Isolation,
    /// Time for the step with its retries.
    pub timeout: Option<Duration>,
    /// What happens when it errs.
    pub retry: Option<Retry>,
}

/// The kinds of node that this host supports.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeSpec {
    /// A plugin.
    Plugin(PluginRef),
    /// Built-in inference.
    Model(ModelSpec),
}

/// A built-in model step: `data` is JSON, its reply replaces `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The operator's name for the model.
    pub binding: String,
    /// A version of it; none: what the binding says.
    pub version: Option<String>,
    /// Tensor and the JSON pointer of its value; empty: the members with the tensors' names.
    pub inputs: Vec<(String, String)>,
    /// Member of the reply and the tensor it comes from; empty: all, under their own names.
    pub outputs: Vec<(String, String)>,
}
