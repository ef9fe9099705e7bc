use std::fmt;

use serde::Serialize;

/// Whose fault an error is, said at the point where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// The request or record.
    Caller,
    /// The guest code.
    Plugin,
    /// Stepwell itself.
    Host,
    /// A database, broker, model or other service.
    Dependency,
}

/// The class of a step's error: it decides retries, statuses and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// The event is at fault; never retried.
    Invalid,
    /// A dependency is at fault; retried, and spends no attempts of a Kafka record.
    Unavailable,
    /// Anything else that the plugin reports.
    Failed,
    /// The guest trapped.
    Trap,
    /// CPU, memory, output or another limit was exceeded.
    Limit,
    /// The step's, the call's or the run's time was up.
    Timeout,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Invalid,
        Self::Unavailable,
        Self::Failed,
        Self::Trap,
        Self::Limit,
        Self::Timeout,
    ];

    /// The word used in pipeline documents, replies, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
            Self::Trap => "trap",
            Self::Limit => "limit",
            Self::Timeout => "timeout",
        }
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a step did not deliver.
///
/// `message` is for whoever owns the pipeline: it goes to logs, to `stepwell logs` and to dead-letter headers. Callers of a
/// trigger see it only where [`StepError::public`] says so.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct StepError {
    /// The class.
    pub kind: ErrorKind,
    /// Whose fault it is.
    pub blame: Blame,
    /// What was attempted and what came of it; lower case, no full stop.
    pub message: String,
    /// The step that erred; set by the run.
    pub step: Option<String>,
    /// `name@version` of the plugin behind the step; set by the run.
    pub plugin: Option<String>,
    /// Where the guest was when it was stopped, if it was.
    pub fault: Option<Box<Fault>>,
}

/// Where a guest was when it was stopped: for whoever owns the plugin, never for callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What stopped it, in a word: the trap's kind, such as `unreachable-code-reached`, or the limit's name.
    pub kind: String,
    /// The functions that it was in, from the innermost on; their names are the guest's, made harmless and cut to length.
    pub backtrace: Vec<String>,
}

impl Fault {
    /// What stopped a guest, in a word, where nobody knows where it was.
    pub fn nowhere(kind: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            backtrace: Vec::new(),
        }
    }
}

impl StepError {
    /// An error of this kind, blamed on whoever usually causes it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let blame = match kind {
            ErrorKind::Invalid => Blame::Caller,
            ErrorKind::Unavailable => Blame::Dependency,
            ErrorKind::Failed | ErrorKind::Trap | ErrorKind::Limit | ErrorKind::Timeout => {
                Blame::Plugin
            }
        };
        Self {
            kind,
            blame,
            message: message.into(),
            step: None,
            plugin: None,
            fault: None,
        }
    }

    /// The same error, blamed on someone else.
    #[must_use]
    pub fn blamed(mut self, blame: Blame) -> Self {
        self.blame = blame;
        self
    }

    /// The same error, with the step it happened in (an inner step's name stays).
    #[must_use]
    pub fn at_step(mut self, step: &str) -> Self {
        self.step.get_or_insert_with(|| step.to_owned());
        self
    }

    /// The same error, with the plugin behind its step.
    #[must_use]
    pub fn of_plugin(mut self, plugin: &str) -> Self {
        self.plugin.get_or_insert_with(|| plugin.to_owned());
        self
    }

    /// The same error, with where the guest was.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    /// What a caller of a trigger may read: the plugin's own words about the event for `invalid`, and nothing internal otherwise.
    pub fn public(&self) -> &str {
        match self.kind {
            ErrorKind::Invalid => &self.message,
            ErrorKind::Unavailable => "a service that this pipeline needs is not available",
            ErrorKind::Timeout => "the run did not finish in time",
            ErrorKind::Failed | ErrorKind::Trap | ErrorKind::Limit => "the run failed",
        }
    }
}
