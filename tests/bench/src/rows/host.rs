use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::client::Client;
use crate::load::Measured;
use crate::servers::{Programs, command, said};

/// A host with defaults and a data directory of its own, which outlives restarts. It is killed when this is dropped.
pub(super) struct Host {
    directory: TempDir,
    process: Option<Child>,
    pub(super) data: SocketAddr,
    pub(super) admin: SocketAddr,
    /// From the start of the process to its line that it is ready.
    pub(super) started_in: Duration,
}

const START: Duration = Duration::from_secs(120);

impl Host {
    pub(super) async fn start(programs: &Programs) -> Result<Self> {
        let directory = TempDir::new()?;
        let config = "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndata_dir = \"data\"\n";
        std::fs::write(directory.path().join("stepwell.toml"), config)?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut host = Self {
            directory,
            process: None,
            data: nowhere,
            admin: nowhere,
            started_in: Duration::ZERO,
        };
        host.restart(programs).await?;
        Ok(host)
    }

    /// Stops it in order, and starts it on what it left.
    pub(super) async fn restart(&mut self, programs: &Programs) -> Result<()> {
        self.stop().await?;
        let mut command = command(&programs.stepwell, &["serve", "--config", "stepwell.toml"]);
        command
            .current_dir(self.directory.path())
            .env("STEPWELL_LOG", "error")
            .stderr(std::process::Stdio::inherit());
        let began = Instant::now();
        let mut process = command.spawn().context("cannot start the host")?;
        let stdout = process.stdout.take().context("no pipe")?;
        let mut line = String::new();
        let reading = async { BufReader::new(stdout).read_line(&mut line).await };
        tokio::time::timeout(START, reading)
            .await
            .context("the host is not ready")??;
        self.started_in = began.elapsed();
        let ready: Value = serde_json::from_str(&line).context("the host did not start")?;
        self.data = address(&ready, "data")?;
        self.admin = address(&ready, "admin")?;
        self.process = Some(process);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let id = process.id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.context("it has ended")?, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(START, process.wait()).await??;
        ensure!(status.success(), "the host stopped with {status}");
        Ok(())
    }

    pub(super) async fn admin(&self) -> Result<Client> {
        Client::connect(self.admin).await
    }

    pub(super) async fn caller(&self) -> Result<Client> {
        Client::connect(self.data).await
    }

    /// So many requests a second of 256 bytes, which are expected back, at fixed times.
    pub(super) async fn load(
        &self,
        programs: &Programs,
        path: &str,
        rate: f64,
        seconds: f64,
    ) -> Result<Measured> {
        load(programs, self.data, path, rate, seconds).await
    }

    /// Bytes of memory that are resident, in MiB.
    pub(super) fn resident(&self) -> Result<f64> {
        let process = self.process.as_ref().and_then(Child::id);
        resident(process.context("the host has ended")?)
    }

    /// Waits until all that is deployed is ready to be called.
    pub(super) async fn settled(&self) -> Result<()> {
        let mut admin = self.admin().await?;
        let mut before = Vec::new();
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = std::fs::read(self.stat()?)?;
            let now = now.rsplit(|byte| *byte == b')').next().unwrap_or_default();
            // Processor time, user and system: none was used since the last look.
            let used: Vec<u8> = now
                .split(|byte| *byte == b' ')
                .skip(12)
                .take(2)
                .flatten()
                .copied()
                .collect();
            if used == before {
                admin.must("GET", "/readyz", b"").await?;
                return Ok(());
            }
            before = used;
        }
        anyhow::bail!("the host does not come to rest")
    }

    fn stat(&self) -> Result<std::path::PathBuf> {
        let id = self.process.as_ref().and_then(Child::id);
        Ok(Path::new("/proc")
            .join(id.context("the host has ended")?.to_string())
            .join("stat"))
    }
}

/// The same of any server.
pub(super) async fn load(
    programs: &Programs,
    address: SocketAddr,
    path: &str,
    rate: f64,
    seconds: f64,
) -> Result<Measured> {
    let mut command = command(&programs.own, &["load", "--path", path, "--body", "256"]);
    command
        .args(["--address", &address.to_string(), "--connections", "16"])
        .args(["--seconds", &seconds.to_string()])
        .args(["--rate", &rate.to_string()]);
    Ok(serde_json::from_slice(&said("load", &mut command).await?)?)
}

/// Uploads a component and deploys it at a path.
pub(super) async fn deploy(
    admin: &mut Client,
    namespace: &str,
    name: &str,
    method: &str,
    path: &str,
    component: &[u8],
) -> Result<()> {
    let plugin = format!("/api/v1/namespaces/{namespace}/plugins/{name}/versions/1.0.0");
    admin.must("PUT", &plugin, component).await?;
    let document = serde_json::json!({
        "stepwell": 1,
        "name": name,
        "triggers": [{"http": {"method": method, "path": path}}],
        "steps": [{"id": "only", "plugin": format!("{name}@1")}],
    });
    let pipeline = format!("/api/v1/namespaces/{namespace}/pipelines/{name}");
    admin
        .must("PUT", &pipeline, document.to_string().as_bytes())
        .await?;
    Ok(())
}

/// The same component with another digest: a custom section is added that nobody reads.
pub(super) fn variant(component: &[u8], number: usize) -> Vec<u8> {
    let name = format!("{number:08x}");
    let mut bytes = component.to_vec();
    bytes.extend([0, 9, 8]);
    bytes.extend(name.as_bytes());
    bytes
}

/// Resident memory of a process, in MiB.
pub(super) fn resident(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .context("no VmRSS")?;
    Ok(kilobytes / 1024.0)
}

fn address(ready: &Value, key: &str) -> Result<SocketAddr> {
    let text = ready.get(key).and_then(Value::as_str);
    let text = text.and_then(|text| text.strip_prefix("http://"));
    Ok(text.context("no address")?.parse()?)
}
