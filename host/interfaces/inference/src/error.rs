use std::time::Duration;

use stepwell_core::{Blame, ErrorKind, StepError};

/// Why there is no inference. The messages are for guests and pipelines: no paths, no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// No such binding, version or signature.
    #[error("not found: {0}")]
    NotFound(String),
    /// The step may not do this.
    #[error("not granted: {0}")]
    NotGranted(String),
    /// The inputs or the wanted outputs do not fit the signature.
    #[error("invalid input: {0}")]
    InvalidInput(String),
    /// The model or libtensorflow is not there, or not yet.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Too many inferences are waiting.
    #[error("overloaded: too many inferences are waiting")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The time was up.
    #[error("deadline exceeded: the model did not answer in time")]
    DeadlineExceeded,
    /// The model failed; details are in the log.
    #[error("internal: {0}")]
    Internal(String),
}

impl InferError {
    /// The word for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NotGranted(_) => "not_granted",
            Self::InvalidInput(_) => "invalid_input",
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded { .. } => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal(_) => "internal",
        }
    }
}

/// What the error is for a pipeline's built-in `model` step.
impl From<InferError> for StepError {
    fn from(error: InferError) -> Self {
        let message = error.to_string();
        match error {
            InferError::InvalidInput(message) => Self::new(ErrorKind::Invalid, message),
            InferError::Unavailable(_) | InferError::Overloaded { .. } => {
                Self::new(ErrorKind::Unavailable, message)
            }
            InferError::DeadlineExceeded => {
                Self::new(ErrorKind::Timeout, message).blamed(Blame::Dependency)
            }
            InferError::NotFound(_) | InferError::NotGranted(_) | InferError::Internal(_) => {
                Self::new(ErrorKind::Failed, message).blamed(Blame::Dependency)
            }
        }
    }
}
