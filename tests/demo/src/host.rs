//! The host from outside: started, found out where it is, spoken to by its command line, stopped.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::Services;
use crate::place::Place;

/// A cold Apache Kafka on two busy processors takes its time.
const START: Duration = Duration::from_secs(150);
/// Longer than the host's own grace period.
const STOP: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(20);

/// A running host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) data: String,
    pub(crate) admin: String,
    /// The broker's address.
    pub(crate) kafka: String,
}

/// The host's ready line.
#[derive(Deserialize)]
struct Ready {
    data: String,
    admin: String,
    kafka: Option<String>,
}

/// Why the command line failed.
#[derive(Deserialize)]
struct Failure {
    detail: String,
    #[serde(default)]
    errors: Vec<Mistake>,
}

#[derive(Deserialize)]
struct Mistake {
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        self.errors
            .iter()
            .try_for_each(|mistake| write!(f, "\n    {}", mistake.message))
    }
}

/// Starts the keeper, which starts services and host, in a session of its own, and waits for the host's ready line.
pub(crate) fn start(place: &Place, services: Services) -> Result<Host> {
    let stepwell = place.stepwell.display();
    ensure!(
        place.stepwell.exists(),
        "{stepwell} is missing: `make host` builds it"
    );
    let log = File::create(place.log())?;
    let mut keeper = Command::new(std::env::current_exe()?);
    keeper.arg("--keep").args([
        "--services",
        if services == Services::Real {
            "real"
        } else {
            "embedded"
        },
    ]);
    let mut keeper = keeper
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the demo's keeper")?;
    let ready = wait_until_ready(place, &mut keeper)?;
    let kafka = ready
        .kafka
        .map_or_else(|| configured_broker(&place.config()), Ok)?;
    Ok(Host {
        data: ready.data,
        admin: ready.admin,
        kafka,
    })
}

fn wait_until_ready(place: &Place, keeper: &mut Child) -> Result<Ready> {
    let end = Instant::now() + START;
    loop {
        let text = fs::read_to_string(place.ready()).unwrap_or_default();
        if let Some((line, _)) = text.split_once('\n') {
            return serde_json::from_str(line)
                .with_context(|| format!("the host's ready line is {line}"));
        }
        if let Some(status) = keeper.try_wait()? {
            bail!("it ended before it was ready: {status}");
        }
        if Instant::now() > end {
            bail!("not ready after {} s", START.as_secs());
        }
        sleep(TICK);
    }
}

fn configured_broker(config: &Path) -> Result<String> {
    let config: toml::Table = toml::from_str(&fs::read_to_string(config)?)?;
    let brokers = config
        .get("kafka")
        .and_then(|kafka| kafka.get("brokers"))
        .and_then(toml::Value::as_str);
    brokers
        .map(str::to_owned)
        .context("neither the ready line nor the configuration names a broker")
}

/// Stops what an earlier demo in this directory left running, and says whether there was something.
pub(crate) fn stop(place: &Place) -> Result<bool> {
    let keeper = stop_holder(&place.keeper_lock(), &place.keeper_pid())?;
    // A keeper that was killed leaves its host behind.
    let host = stop_holder(&place.host_lock(), &place.host_pid())?;
    Ok(keeper || host)
}

/// Stops the process that holds the lock. A process id alone may be somebody else's by now; while the lock is held, it is not.
fn stop_holder(lock: &Path, pid: &Path) -> Result<bool> {
    if !is_held(lock) {
        return Ok(false);
    }
    let holder = fs::read_to_string(pid)
        .ok()
        .and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
    let holder = holder.with_context(|| {
        format!(
            "{} is held, but {} names no process",
            lock.display(),
            pid.display()
        )
    })?;
    kill_process(holder, Signal::TERM).with_context(|| format!("cannot stop process {holder}"))?;
    let end = Instant::now() + STOP;
    while is_held(lock) {
        ensure!(Instant::now() < end, "process {holder} does not stop");
        sleep(TICK);
    }
    Ok(true)
}

fn is_held(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

impl Host {
    /// What to know when the usual ports are taken.
    pub(crate) fn remark(&self) -> Option<String> {
        let (data, admin) = (self.data.ends_with(":8080"), self.admin.ends_with(":8081"));
        let taken = match (data, admin) {
            (true, true) => return None,
            (false, true) => "port 8080 is",
            (true, false) => "port 8081 is",
            (false, false) => "ports 8080 and 8081 are",
        };
        Some(format!(
            "{taken} taken, so free ones serve; admin is {}",
            self.admin.trim_start_matches("http://")
        ))
    }

    /// Runs `stepwell` on this host and gives what it prints.
    pub(crate) fn cli(&self, place: &Place, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut command = command(place);
        command
            .args(["--json", "--url", &self.admin])
            .args(arguments);
        let output = command
            .output()
            .with_context(|| format!("cannot run {}", place.stepwell.display()))?;
        if !output.status.success() {
            let reason = serde_json::from_slice::<Failure>(&output.stdout).map_or_else(
                |_| String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                |failure| failure.to_string(),
            );
            bail!("`stepwell {}`: {reason}", arguments.join(" "));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`stepwell {}` printed no JSON", arguments.join(" ")))
    }
}

/// `stepwell`, without what the user's environment would have it do otherwise.
pub(crate) fn command(place: &Place) -> Command {
    let mut command = Command::new(&place.stepwell);
    for (name, _) in std::env::vars_os() {
        let is_setting = name
            .to_str()
            .is_some_and(|name| name.starts_with("STEPWELL_"));
        if is_setting && name != "STEPWELL_CACHE" && name != "STEPWELL_LOG" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}
