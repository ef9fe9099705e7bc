use std::time::Duration;

/// What one guest call may use. All are on for every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time that the guest itself may execute; waiting for a host function costs nothing.
    pub cpu: Duration,
    /// Time from the start of the call to its end.
    pub wall: Duration,
    /// Bytes of all linear memories of the call together.
    pub memory: u64,
    /// Bytes of all events that the call returns.
    pub output: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu: Duration::from_millis(100),
            wall: Duration::from_secs(1),
            memory: 64 << 20,
            output: 1 << 20,
        }
    }
}
