use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A service's process behind a small shell that stops it when our end of a pipe closes: so it never outlives us, even when
/// we are killed.
pub(crate) struct Guarded {
    guard: Child,
}

const GUARD: &str = r#"
signal=$1; log=$2; shift 2
"$@" >"$log" 2>&1 </dev/null &
service=$!
# The service may end first; then the read below is of no use, and `wait` returns.
{ cat >/dev/null; kill -"$signal" "$service" 2>/dev/null; sleep 5; kill -KILL "$service" 2>/dev/null; } <&3 >/dev/null 2>&1 &
watcher=$!
wait "$service"; code=$?
while kill -0 "$service" 2>/dev/null; do wait "$service"; code=$?; done
kill "$watcher" 2>/dev/null
exit $code
"#;

impl Guarded {
    /// Starts `command` (a program and its arguments); `signal` is what stops it in good order.
    pub(crate) fn start(command: &[String], signal: &str, log: &Path) -> Result<Self> {
        let guard = Command::new("bash")
            .arg("-c")
            .arg(format!("exec 3<&0; {GUARD}"))
            .arg("service")
            .arg(signal)
            .arg(log)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.join(" ")))?;
        Ok(Self { guard })
    }

    /// Whether the service still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.guard.try_wait(), Ok(None))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The last lines of a service's log, for error messages.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(15);
    lines
        .into_iter()
        .skip(skipped)
        .collect::<Vec<_>>()
        .join("\n")
}
