use anyhow::Result;
use rustix::process::Signal as KernelSignal;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP: from when this exists on, none of them ends the process by itself.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone; none: the host was started so that it outlives it (`nohup`).
    hang_up: Option<Signal>,
}

impl StopSignals {
    pub(super) fn listen() -> Result<Self> {
        // Else a file that would be larger than the process may write (`ulimit -f`) ends the process without a word. Once it has
        // been listened for, such a write fails.
        drop(signal(SignalKind::from_raw(KernelSignal::XFSZ.as_raw()))?);
        let outlives = ignores(KernelSignal::HUP);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: (!outlives)
                .then(|| signal(SignalKind::hangup()))
                .transpose()?,
        })
    }

    pub(super) async fn next(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hang_up => {}
        }
    }
}

/// Whether the process was started with this signal ignored.
fn ignores(signal: KernelSignal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}
