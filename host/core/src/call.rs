use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use crate::{Action, BindingKind, Denied, Digest, Grant, Grants, Name};

/// The id of one event's passage through one pipeline: the key into logs and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RunId(Uuid);

impl RunId {
    /// A new id; ids sort by the time they were made.
    #[allow(
        clippy::new_without_default,
        reason = "every id is different, so there is no default one"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is the same for every call of one deployed step: who it is and what it may do. It lives as long as the
/// pipeline revision.
#[derive(Debug)]
pub struct StepScope {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline's name.
    pub pipeline: Name,
    /// The pipeline's revision.
    pub revision: u64,
    /// The step's id within the pipeline.
    pub step: Name,
    /// `name@version` of the plugin.
    pub plugin: String,
    /// The digest of its component; none: a built-in step.
    pub digest: Option<Digest>,
    /// What the step may do.
    pub grants: Grants,
    /// The step's `config`, in the order of the document.
    pub config: Vec<(String, String)>,
}

/// One call of one step: what every host function may need to know of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    /// The deployed step.
    pub scope: Arc<StepScope>,
    /// The run that this call is part of.
    pub run: RunId,
    /// When the call's time is up, whatever it is doing.
    pub deadline: Instant,
}

impl Call {
    /// The grant that allows `action` on what the guest calls `name`.
    ///
    /// # Errors
    /// [`Denied`], which says nothing about whether such a binding exists.
    pub fn grant(&self, kind: BindingKind, name: &str, action: Action) -> Result<&Grant, Denied> {
        self.scope.grants.check(kind, name, action)
    }

    /// The time left, zero when there is none.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
