use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

/// What a host is started with: the text of its `stepwell.toml` beside what the harness sets itself.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Keys of `[server]` beside the addresses and the data directory.
    pub server: String,
    /// Every other section.
    pub sections: String,
}

impl Config {
    /// A configuration with these sections.
    pub fn with(sections: &str) -> Self {
        Self {
            server: String::new(),
            sections: sections.to_owned(),
        }
    }

    /// The bindings of the digit reader, all embedded.
    pub fn digits() -> Self {
        let models = repository().join("tests/models/saved");
        Self::with(&format!(
            "[models]\ndirectory = \"{}\"\n[bindings.models.digits]\nmodel = \"digits\"\n\
             [bindings.vectors.scans]\ndimension = 64\n[bindings.keyvalue.main-redis]\n[bindings.sql.results]\n",
            models.display()
        ))
    }
}

/// A host that runs as a process of its own; it is killed when this is dropped, and its data goes then too.
pub struct Host {
    directory: TempDir,
    /// Of the log.
    wanted: Option<String>,
    process: Option<Child>,
    http: reqwest::Client,
    data: String,
    admin: String,
    kafka: Option<String>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: reqwest::header::HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `code` of a problem.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// A header as text, empty when it is not there.
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }
}

impl Host {
    /// Starts a host with an empty data directory.
    pub async fn start(config: &Config) -> Result<Self> {
        Self::start_as(config, None).await
    }

    /// The same with `STEPWELL_LOG`.
    pub async fn start_logging(config: &Config, wanted: &str) -> Result<Self> {
        Self::start_as(config, Some(wanted)).await
    }

    async fn start_as(config: &Config, wanted: Option<&str>) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = TempDir::new()?;
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndata_dir = \"data\"\n{}\n{}",
            config.server, config.sections
        );
        std::fs::write(directory.path().join("stepwell.toml"), text)?;
        let mut host = Self {
            directory,
            wanted: wanted.map(str::to_owned),
            process: None,
            http: reqwest::Client::builder().no_proxy().build()?,
            data: String::new(),
            admin: String::new(),
            kafka: None,
        };
        host.restart().await?;
        Ok(host)
    }

    /// Starts the host again on the data that it left; the addresses may be others.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut process = Command::new(stepwell()?)
            .arg("serve")
            .arg("--config")
            .arg(self.directory.path().join("stepwell.toml"))
            .envs(self.wanted.iter().map(|wanted| ("STEPWELL_LOG", wanted)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = process.stdout.take().context("stdout")?;
        self.process = Some(process);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Value =
            serde_json::from_str(&line).with_context(|| format!("not ready: {}", self.log()))?;
        ensure!(ready["event"] == "ready", "{line}");
        let address = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        (self.data, self.admin) = (address("data"), address("admin"));
        self.kafka = ready["kafka"].as_str().map(str::to_owned);
        Ok(())
    }

    /// SIGKILL: nothing is written, nothing is said.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, then the exit code.
    pub fn stop(&mut self) -> Result<i32> {
        self.terminate()?;
        self.wait()
    }

    /// The exit code, once the host has ended by itself or by a signal that was sent.
    pub fn wait(&mut self) -> Result<i32> {
        let mut process = self.process.take().context("it does not run")?;
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if let Some(status) = process.try_wait()? {
                return status.code().context("it was killed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = process.kill();
        let _ = process.wait();
        bail!("it did not stop: {}", self.log())
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) -> Result<()> {
        signal(self.process.as_ref().context("it does not run")?, "TERM")
    }

    /// The id of the running process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The address of the data listener.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// The embedded broker.
    pub fn kafka(&self) -> &str {
        self.kafka.as_deref().unwrap_or_default()
    }

    /// Where the host keeps everything.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("host.log")
    }

    /// Whether the host logs this, if need be in a moment: it writes its lines by and by.
    pub async fn logs(&self, part: &str) -> bool {
        for _ in 0..100 {
            if self.log().contains(part) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// What the host has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A request for the data listener.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.data))
    }

    /// A request for the admin listener.
    pub fn admin_request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.admin))
    }

    /// Posts to the data listener.
    pub async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Reply> {
        send(
            self.request(Method::POST, path)
                .header("content-type", content_type)
                .body(body),
        )
        .await
    }

    /// Posts a CloudEvent (binary mode) to the data listener.
    pub async fn event(
        &self,
        path: &str,
        id: &str,
        kind: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Reply> {
        let request = self
            .request(Method::POST, path)
            .header("ce-specversion", "1.0");
        let request = request
            .header("ce-source", "/test")
            .header("ce-id", id)
            .header("ce-type", kind);
        send(request.body(body)).await
    }

    /// Asks the admin listener.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        send(self.admin_request(Method::GET, path)).await
    }

    /// Uploads a component.
    pub async fn put_plugin(&self, name: &str, version: &str, bytes: Vec<u8>) -> Result<Reply> {
        let path = format!("/api/v1/namespaces/default/plugins/{name}/versions/{version}");
        send(self.admin_request(Method::PUT, &path).body(bytes)).await
    }

    /// Applies a pipeline document.
    pub async fn put_pipeline(&self, name: &str, document: &str) -> Result<Reply> {
        let path = format!("/api/v1/namespaces/default/pipelines/{name}");
        send(
            self.admin_request(Method::PUT, &path)
                .body(document.to_owned()),
        )
        .await
    }

    /// Uploads a guest and fails if it is not accepted.
    pub async fn upload(&self, name: &str, version: &str, guest_name: &str) -> Result<()> {
        let reply = self.put_plugin(name, version, guest(guest_name)?).await?;
        ensure!(
            reply.status.is_success(),
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        Ok(())
    }

    /// Applies a pipeline and fails if it is not accepted.
    pub async fn apply(&self, name: &str, document: &str) -> Result<()> {
        let reply = self.put_pipeline(name, document).await?;
        ensure!(
            reply.status.is_success(),
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        Ok(())
    }

    /// The sum of a metric's series; 0 when there are none.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.get("/metrics").await?;
        let mut sum = 0.0;
        for line in String::from_utf8_lossy(&metrics.body).lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            if let Some((_, value)) = rest
                .rsplit_once(' ')
                .filter(|_| rest.starts_with([' ', '{']))
            {
                sum += value.parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// The status of one part in `/readyz`; empty when it is not named.
    pub async fn part(&self, name: &str) -> Result<String> {
        let ready = self.get("/readyz").await?.json();
        let parts = ready["parts"].as_array().cloned().unwrap_or_default();
        let part = parts.iter().find(|part| part["name"] == name);
        Ok(part
            .map(|part| part["status"].as_str().unwrap_or_default().to_owned())
            .unwrap_or_default())
    }

    /// Waits until a part has this status.
    pub async fn wait_for(&self, part: &str, status: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.part(part).await? != status {
            ensure!(
                Instant::now() < end,
                "{part} is not {status}: {}",
                String::from_utf8_lossy(&self.get("/readyz").await?.body)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Runs the command line against this host.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        cli(&self.admin, self.directory.path(), arguments)
    }

    /// Uploads the digit reader's plugins, applies its pipelines and fills its index with the training scans.
    pub async fn set_up_digits(&self) -> Result<()> {
        for plugin in ["decode-image", "classify-digit", "record", "index-scans"] {
            self.upload(plugin, "1.0.0", plugin).await?;
        }
        for name in ["digit-reader", "index-scans"] {
            let document = std::fs::read_to_string(
                repository().join(format!("plugins/pipelines/{name}.yaml")),
            )?;
            self.apply(name, &document).await?;
        }
        self.wait_for("models/digits", "ok").await?;
        for batch in crate::scans("train")?.chunks(200) {
            let scans: Vec<Value> = batch
                .iter()
                .map(|scan| serde_json::json!({"id": scan.id, "label": scan.label, "pixels": scan.pixels}))
                .collect();
            let body = serde_json::json!({"scans": scans}).to_string();
            let reply = self.post("/scans", "application/json", body).await?;
            ensure!(
                reply.status.is_success(),
                "{}",
                String::from_utf8_lossy(&reply.body)
            );
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the host's last words:");
            for line in tail.iter().rev() {
                eprintln!("  {}", line.chars().take(400).collect::<String>());
            }
        }
        self.kill();
    }
}

/// Sends a request and reads the answer to its end.
pub async fn send(request: RequestBuilder) -> Result<Reply> {
    let response = request.send().await?;
    Ok(Reply {
        status: response.status(),
        headers: response.headers().clone(),
        body: response.bytes().await?,
    })
}

fn signal(process: &Child, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(process.id().to_string())
        .status()?;
    ensure!(status.success(), "kill -{name}");
    Ok(())
}

/// Runs the command line against a host, in a directory.
pub fn cli(url: &str, directory: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(stepwell()?)
        .args(arguments)
        .env("STEPWELL_URL", url)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()?)
}

/// The top of the checkout.
pub fn repository() -> PathBuf {
    stepwell_test_services::checkout().unwrap_or_default()
}

/// The host's program, built beside the tests.
pub fn stepwell() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own
        .ancestors()
        .map(|directory| directory.join("stepwell"))
        .find(|path| path.is_file());
    path.context("the host is not built: run 'make host' first ('make test' does)")
}

/// The bytes of a component that `make guests` has built.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let directory = std::env::var_os("STEPWELL_GUESTS").map_or_else(
        || stepwell_test_services::cache_dir().join("guest-target/stepwell"),
        PathBuf::from,
    );
    let path = directory.join(format!("{name}.wasm"));
    std::fs::read(&path).with_context(|| {
        format!(
            "{} is not there: run 'make guests' first ('make test' does)",
            path.display()
        )
    })
}
