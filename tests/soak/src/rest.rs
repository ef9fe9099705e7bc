use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use stepwell_tests::Host;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::Soak;
use crate::findings::Findings;

/// Lets the tasks through, or holds them all back.
#[derive(Default)]
pub(crate) struct Gate(RwLock<()>);

impl Gate {
    pub(crate) async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().await
    }

    async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().await
    }
}

/// The host when nobody asks it for anything.
pub(crate) struct Rest {
    resident: u64,
    descriptors: usize,
    threads: u64,
}

/// Gauges that are nothing when nothing is under way.
const QUIET: [&str; 6] = [
    "stepwell_runs_in_flight",
    "stepwell_guest_calls_active",
    "stepwell_http_requests_in_flight",
    "stepwell_pool_stacks_active",
    "stepwell_model_queued_requests",
    "stepwell_kafka_queued",
];

/// Time for what was begun to end: the longest that a guest or a response may take, and a little.
const SETTLE: Duration = Duration::from_secs(40);

/// How much more memory the last rest may hold than the first, beside a tenth.
const SLACK: u64 = 24 << 20;

impl Rest {
    /// Holds everybody back until nothing is under way, and looks.
    pub(crate) async fn take(soak: &Soak, host: &Host) -> Result<Self> {
        let _closed = soak.gate.close().await;
        let end = Instant::now() + SETTLE;
        loop {
            let metrics = host.get("/metrics").await?;
            let metrics = String::from_utf8_lossy(&metrics.body);
            let busy = busy(&metrics);
            if busy.is_empty() {
                break;
            }
            if Instant::now() > end {
                soak.findings.wrong(format!(
                    "still under way after {SETTLE:?} of rest: {busy:?}"
                ));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let pid = host.pid().context("the host does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |key: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Ok(Self {
            resident: number("VmRSS:").context("VmRSS")? << 10,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads:").context("Threads")?,
        })
    }

    /// What all rests together say. The first half of them warms everything up: slots for instances above all.
    pub(crate) fn judge(rests: &[Self], findings: &Findings) {
        let (Some(first), Some(last)) = (rests.get(rests.len() / 2), rests.last()) else {
            return;
        };
        if last.resident > first.resident + first.resident / 10 + SLACK {
            findings.wrong(format!(
                "memory grew from {} to {} MiB",
                first.resident >> 20,
                last.resident >> 20
            ));
        }
        if last.descriptors > first.descriptors + 50 {
            findings.wrong(format!(
                "open files grew from {} to {}",
                first.descriptors, last.descriptors
            ));
        }
    }
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resident,
            descriptors,
            threads,
        } = self;
        write!(
            f,
            "at rest: {} MiB resident, {descriptors} open files, {threads} threads",
            resident >> 20
        )
    }
}

/// The gauges of [`QUIET`] that are not zero.
fn busy(metrics: &str) -> Vec<&str> {
    metrics
        .lines()
        .filter(|line| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let value = line.rsplit(' ').next().unwrap_or_default();
            QUIET.contains(&name) && value.parse::<f64>().is_ok_and(|value| value != 0.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_found_in_the_metrics() {
        let metrics = "# HELP x\nstepwell_runs_in_flight{pipeline=\"a\"} 1\nstepwell_runs_in_flight{pipeline=\"b\"} 0\n\
                       stepwell_http_connections 3\n";
        assert_eq!(busy(metrics), ["stepwell_runs_in_flight{pipeline=\"a\"} 1"]);
    }

    #[test]
    fn memory_that_grows_is_a_finding_and_warming_up_is_none() {
        let rest = |mib: u64| Rest {
            resident: mib << 20,
            descriptors: 10,
            threads: 4,
        };
        let findings = Findings::default();
        Rest::judge(&[rest(50), rest(90), rest(92), rest(95)], &findings);
        assert_eq!(findings.report(), 0);
        Rest::judge(&[rest(50), rest(90), rest(150), rest(200)], &findings);
        assert_eq!(findings.report(), 1);
    }
}
