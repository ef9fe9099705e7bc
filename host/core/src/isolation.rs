use std::time::Duration;

/// How the calls of one step share instances of its plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Every call has an instance of its own.
    #[default]
    Fresh,
    /// Calls of the same deployed step follow each other in instances that are kept.
    Reuse(Reuse),
}

/// How long a kept instance lives. It also ends with the first trap, limit or timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// Calls that one instance answers, at least 1.
    pub max_calls: u32,
    /// Time that it may wait for its next call.
    pub idle: Duration,
    /// Calls that one instance answers at the same time, at least 1; more than 1 only where the component is async.
    pub concurrency: u32,
}

impl Default for Reuse {
    fn default() -> Self {
        Self {
            max_calls: 1000,
            idle: Duration::from_secs(30),
            concurrency: 1,
        }
    }
}
