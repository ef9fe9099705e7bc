use std::time::Duration;

/// What one namespace may use; none: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Plugin versions that it may keep.
    pub plugins: Option<u64>,
    /// Bytes of all components that it keeps.
    pub bytes: Option<u64>,
    /// Pipelines that it may keep; none: as many as the catalog's limit says.
    pub pipelines: Option<u64>,
    /// Runs that may start in a second, on each host.
    pub runs_per_second: Option<u32>,
    /// Runs at once, on each host.
    pub concurrent_runs: Option<u32>,
    /// CPU time that its guests may use in a minute, on each host.
    pub cpu_per_minute: Option<Duration>,
}
