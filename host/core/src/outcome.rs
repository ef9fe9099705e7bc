use crate::{ErrorKind, Event, StepError};

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every step did its part; these events are the reply. None: the run was filtered.
    Delivered(Vec<Event>),
    /// The event is at fault: running it again would end the same way.
    Rejected(StepError),
    /// Something else went wrong: running it again may help.
    Errored(StepError),
}

impl Outcome {
    /// The word for metrics and logs: `delivered`, `filtered`, or the kind of the error.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered(events) if events.is_empty() => "filtered",
            Self::Delivered(_) => "delivered",
            Self::Rejected(error) | Self::Errored(error) => error.kind.as_str(),
        }
    }
}

impl From<StepError> for Outcome {
    fn from(error: StepError) -> Self {
        match error.kind {
            ErrorKind::Invalid => Self::Rejected(error),
            _ => Self::Errored(error),
        }
    }
}
