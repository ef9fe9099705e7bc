use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::guarded::{Guarded, tail};
use crate::{cache_dir, free_port, wait_for};

/// The release that `deploy/setup.sh` fetches.
const VERSION: &str = "4.1.1";

/// An Apache Kafka broker (one node, KRaft).
pub struct Kafka {
    port: u16,
    controller_port: u16,
    directory: TempDir,
    process: Option<Guarded>,
}

impl Kafka {
    /// Formats a new log directory and starts the broker.
    pub fn start() -> Result<Self> {
        let mut kafka = Self {
            port: free_port()?,
            controller_port: free_port()?,
            directory: TempDir::new()?,
            process: None,
        };
        kafka.format()?;
        kafka.restart()?;
        Ok(kafka)
    }

    /// `127.0.0.1:PORT`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stops the broker.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the broker again on the same port, with the data it had.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let log = self.directory.path().join("kafka.log");
        let mut command = java()?;
        let logging = self.directory.path().join("log4j2.properties");
        command.extend([
            format!("-Dlog4j2.configurationFile={}", logging.display()),
            "kafka.Kafka".to_owned(),
            self.properties().display().to_string(),
        ]);
        let mut process = Guarded::start(&command, "TERM", &log)?;
        wait_for("Apache Kafka", Duration::from_secs(90), || {
            let started = std::fs::read_to_string(&log)
                .is_ok_and(|text| text.contains("Kafka Server started"));
            !process.is_running()
                || (started && TcpStream::connect(("127.0.0.1", self.port)).is_ok())
        })
        .and_then(|()| {
            ensure!(process.is_running(), "Apache Kafka ended at once");
            Ok(())
        })
        .with_context(|| tail(&log))?;
        self.process = Some(process);
        Ok(())
    }

    fn properties(&self) -> PathBuf {
        self.directory.path().join("server.properties")
    }

    fn format(&self) -> Result<()> {
        let (port, controller) = (self.port, self.controller_port);
        let logs = self.directory.path().join("logs");
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
             log.dirs={logs}\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             auto.create.topics.enable=false\n",
            logs = logs.display(),
        );
        std::fs::write(self.properties(), properties)?;
        std::fs::write(self.directory.path().join("log4j2.properties"), LOG4J)?;
        // Any 16 bytes in URL-safe base64 are an id; each broker is alone, so they may share one.
        let mut command = java()?;
        command.extend(
            [
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "c3RlcHdlbGwta2Fma2EtMQ",
                "--standalone",
                "-c",
            ]
            .map(str::to_owned),
        );
        command.push(self.properties().display().to_string());
        let (program, arguments) = command.split_first().context("java")?;
        let output = Command::new(program)
            .args(arguments)
            .output()
            .context("java is not installed")?;
        ensure!(
            output.status.success(),
            "formatting Kafka's log directory: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Kafka says on its log when it is ready, so it must have one. (Properties: the YAML reader is not among its jars.)
const LOG4J: &str = "appender.stdout.type=Console\n\
    appender.stdout.name=stdout\n\
    appender.stdout.layout.type=PatternLayout\n\
    appender.stdout.layout.pattern=%d %p %m (%c)%n\n\
    rootLogger.level=INFO\n\
    rootLogger.appenderRef.stdout.ref=stdout\n";

fn java() -> Result<Vec<String>> {
    let home = cache_dir().join(format!("kafka-{VERSION}"));
    ensure!(
        home.join("complete").exists(),
        "Apache Kafka is not in {}: run deploy/setup.sh kafka",
        home.display()
    );
    Ok([
        "java",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        &home.join("libs/*").display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec())
}
