//! The servers that are measured, each a process of its own on a free port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// What `wasmtime serve` is fastest with, found by measuring.
const BEST_FLAGS: [&str; 3] = [
    "-O",
    "pooling-allocator=y,pooling-pagemap-scan=y,pooling-memory-keep-resident=1048576,pooling-table-keep-resident=65536,\
     pooling-max-unused-warm-slots=1000,pooling-async-stack-keep-resident=65536",
    "--no-logging-prefix",
];
const START: Duration = Duration::from_secs(60);

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    process: Child,
    directory: Option<TempDir>,
}

/// Where the programs and the components are.
pub(crate) struct Programs {
    pub(crate) own: PathBuf,
    pub(crate) stepwell: PathBuf,
    pub(crate) wasmtime: PathBuf,
    guests: PathBuf,
}

impl Programs {
    /// Finds them where `make` puts them.
    pub(crate) fn find() -> Result<Self> {
        let own = std::env::current_exe()?;
        let cache = match std::env::var_os("STEPWELL_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?)
                .join(".cache/stepwell"),
        };
        let guests = std::env::var_os("STEPWELL_GUESTS");
        let programs = Self {
            stepwell: own.with_file_name("stepwell"),
            own,
            wasmtime: cache.join("bin/wasmtime"),
            guests: guests.map_or_else(|| cache.join("guest-target/stepwell"), PathBuf::from),
        };
        for path in [
            programs.stepwell.clone(),
            programs.wasmtime.clone(),
            programs.guest("hello-http"),
            programs.guest("echo"),
        ] {
            ensure!(
                path.is_file(),
                "{} is not there: 'make bench' builds it",
                path.display()
            );
        }
        Ok(programs)
    }

    /// The bytes of a component.
    pub(crate) fn component(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.guest(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    }

    fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(format!("{name}.wasm"))
    }

    pub(crate) async fn native(&self, hyper: bool) -> Result<Server> {
        let mut command = command(&self.own, &["native"]);
        if hyper {
            command.arg("--hyper");
        }
        Server::start(
            "the native server",
            command,
            |process| process.stdout.take(),
            serving,
        )
        .await
    }

    /// `wasmtime serve` with the component that the host serves too.
    pub(crate) async fn wasmtime_serve(&self, best: bool) -> Result<Server> {
        let mut command = command(&self.wasmtime, &["serve", "-Scli", "--addr", "127.0.0.1:0"]);
        if best {
            command.args(BEST_FLAGS);
        }
        command.arg(self.guest("hello-http"));
        Server::start(
            "wasmtime serve",
            command,
            |process| process.stderr.take(),
            serving,
        )
        .await
    }

    /// A host with defaults: the function at `/hello`, and pipelines of as many echoing steps at `/echo/N`; the same below
    /// `/reused` with instances that are reused.
    pub(crate) async fn host(&self, steps: &[usize]) -> Result<Server> {
        let directory = TempDir::new()?;
        let file = directory.path().join("stepwell.toml");
        let config = "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndata_dir = \"data\"\n";
        std::fs::write(&file, config)?;
        let mut command = command(&self.stepwell, &["serve", "--config"]);
        command.arg(&file).current_dir(directory.path());
        let mut admin = String::new();
        let ready = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            admin = line.get("admin")?.as_str()?.to_owned();
            line.get("data")?
                .as_str()?
                .strip_prefix("http://")?
                .parse()
                .ok()
        };
        let mut server =
            Server::start("the host", command, |process| process.stdout.take(), ready).await?;
        for plugin in ["hello-http", "echo"] {
            let component = self.guest(plugin);
            let component = component.to_str().context("a path that is no UTF-8")?;
            let push = [
                "plugin",
                "push",
                component,
                "--name",
                plugin,
                "--version",
                "1.0.0",
            ];
            self.ask_host(&admin, &push).await?;
        }
        let mut pipelines = Vec::new();
        for (isolation, below, prefix) in [("fresh", "", ""), ("reuse", "/reused", "reused-")] {
            let pipeline = |name: &str, method, path: &str, plugins: &[&str]| {
                let (name, path) = (format!("{prefix}{name}"), format!("{below}{path}"));
                document(&name, method, &path, plugins, isolation)
            };
            pipelines.push(pipeline("hello", "GET", "/hello", &["hello-http"]));
            pipelines.extend(steps.iter().map(|&count| {
                let (name, path) = (format!("echo-{count}"), format!("/echo/{count}"));
                pipeline(&name, "POST", &path, &vec!["echo"; count])
            }));
        }
        for pipeline in pipelines {
            let file = directory.path().join("pipeline.json");
            std::fs::write(&file, pipeline.to_string())?;
            let file = file.to_str().context("a path that is no UTF-8")?;
            self.ask_host(&admin, &["pipeline", "apply", file]).await?;
        }
        server.directory = Some(directory);
        Ok(server)
    }

    async fn ask_host(&self, admin: &str, arguments: &[&str]) -> Result<()> {
        let mut command = command(&self.stepwell, &["--url", admin]);
        let asked = said("stepwell", command.args(arguments)).await;
        asked.with_context(|| arguments.join(" "))?;
        Ok(())
    }
}

/// What a program writes to its stdout, if it succeeds.
pub(crate) async fn said(name: &str, command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {error}");
    Ok(output.stdout)
}

/// A pipeline's document; YAML takes JSON as it is.
fn document(name: &str, method: &str, path: &str, plugins: &[&str], isolation: &str) -> Value {
    let steps: Vec<Value> = plugins
        .iter()
        .enumerate()
        .map(|(index, plugin)| serde_json::json!({"id": format!("step-{index}"), "plugin": format!("{plugin}@1")}))
        .collect();
    let http = serde_json::json!({"method": method, "path": path});
    serde_json::json!({
        "stepwell": 1,
        "name": name,
        "triggers": [{"http": http}],
        "defaults": {"isolation": isolation},
        "steps": steps
    })
}

/// A program that ends with this one.
pub(crate) fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The address in "Serving HTTP on http://ADDRESS/".
fn serving(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("Serving HTTP on http://")?;
    address.trim_end_matches('/').parse().ok()
}

impl Server {
    /// Starts a program and waits for the line that says its address.
    async fn start<R: AsyncRead + Unpin + Send + 'static>(
        name: &str,
        mut command: Command,
        output: impl FnOnce(&mut Child) -> Option<R>,
        address: impl FnMut(&str) -> Option<SocketAddr>,
    ) -> Result<Self> {
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let output = output(&mut process).context("no pipe")?;
        // Whatever else a server says must neither fill its pipe nor be lost when it does not start.
        let other = (
            process.stdout.take().map(drain),
            process.stderr.take().map(drain),
        );
        let mut lines = BufReader::new(output).lines();
        let mut address = address;
        let mut said = String::new();
        let starting = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = address(&line) {
                    return anyhow::Ok(Some(address));
                }
                said.push_str(&line);
                said.push('\n');
            }
            Ok(None)
        };
        match tokio::time::timeout(START, starting).await {
            Ok(Ok(Some(address))) => {
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                Ok(Self {
                    address,
                    process,
                    directory: None,
                })
            }
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) => {
                for said_there in [other.0, other.1].into_iter().flatten() {
                    said.push_str(&said_there.await.unwrap_or_default());
                }
                bail!("{name} ended before it was ready: {said}")
            }
            Err(_) => bail!("{name} is not ready after {START:?}"),
        }
    }

    /// Processor time that the server has used.
    pub(crate) fn processor_seconds(&self) -> Result<f64> {
        let id = self.process.id().context("a server has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        // Linux's own unit here is 10 ms, whatever the kernel's is.
        Ok(ticks as f64 / 100.0)
    }

    pub(crate) fn process_id(&self) -> Result<u32> {
        self.process.id().context("a server has ended")
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.process.kill().await?;
        if let Some(directory) = self.directory {
            directory.close()?;
        }
        Ok(())
    }
}

/// Reads a stream to its end and keeps its beginning.
fn drain(stream: impl AsyncRead + Unpin + Send + 'static) -> JoinHandle<String> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        let mut kept = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            if kept.len() < 4096 {
                kept.push_str(&line);
                kept.push('\n');
            }
        }
        kept
    })
}
