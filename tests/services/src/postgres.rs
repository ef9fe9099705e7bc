use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::guarded::{Guarded, tail};
use crate::{free_port, wait_for};

/// A PostgreSQL server with one database, `stepwell`, and a superuser of the same name.
pub struct Postgres {
    port: u16,
    directory: TempDir,
    process: Option<Guarded>,
}

impl Postgres {
    /// Makes a new cluster and starts it.
    pub fn start() -> Result<Self> {
        let directory = TempDir::new()?;
        let mut postgres = Self {
            port: free_port()?,
            directory,
            process: None,
        };
        postgres.init()?;
        postgres.restart()?;
        postgres.create_database("stepwell")?;
        Ok(postgres)
    }

    /// `postgres://stepwell@127.0.0.1:PORT/stepwell`.
    pub fn url(&self) -> String {
        self.url_of("stepwell")
    }

    /// The address of another database of this server.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://stepwell@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes another, empty database; tests that share a server each take their own.
    pub fn create_database(&self, name: &str) -> Result<String> {
        self.psql(&format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.url_of(name))
    }

    /// Runs one statement as the superuser, in the database `postgres`.
    pub fn psql(&self, statement: &str) -> Result<()> {
        let output = Command::new(binary("psql")?)
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .arg(self.url_of("postgres"))
            .output()?;
        ensure!(
            output.status.success(),
            "psql: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Stops the server at once, breaking its connections.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the server again on the same port, with the data it had.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let log = self.directory.path().join("postgres.log");
        let port = self.port.to_string();
        let command = self.as_postgres(&[
            &binary("postgres")?.display().to_string(),
            "-D",
            &self.data().display().to_string(),
            "-p",
            &port,
            "-k",
            "",
            "-h",
            "127.0.0.1",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=200",
        ]);
        // SIGINT is the fast shutdown: connections are ended, not waited for.
        let mut process = Guarded::start(&command, "INT", &log)?;
        let ready = binary("pg_isready")?;
        wait_for("PostgreSQL", Duration::from_secs(60), || {
            !process.is_running()
                || Command::new(&ready)
                    .args(["-q", "-h", "127.0.0.1", "-p", &port])
                    .status()
                    .is_ok_and(|status| status.success())
        })
        .and_then(|()| {
            ensure!(process.is_running(), "PostgreSQL ended at once");
            Ok(())
        })
        .with_context(|| tail(&log))?;
        self.process = Some(process);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn init(&self) -> Result<()> {
        std::fs::create_dir(self.data())?;
        if is_root() {
            for path in [self.directory.path().to_owned(), self.data()] {
                let status = Command::new("chown").arg("postgres").arg(&path).status()?;
                ensure!(status.success(), "chown postgres {}", path.display());
            }
        }
        let command = self.as_postgres(&[
            &binary("initdb")?.display().to_string(),
            "-D",
            &self.data().display().to_string(),
            "-U",
            "stepwell",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        let (program, arguments) = command.split_first().context("initdb")?;
        let output = Command::new(program)
            .args(arguments)
            .current_dir("/")
            .output()?;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// PostgreSQL refuses to run as root.
    fn as_postgres(&self, command: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        if is_root() {
            all.extend(
                [
                    "setpriv",
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--clear-groups",
                ]
                .map(str::to_owned),
            );
        }
        all.extend(command.iter().map(|word| (*word).to_owned()));
        all
    }
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

/// A program of the newest PostgreSQL that is installed.
fn binary(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .or_else(|| {
            std::env::split_paths(&std::env::var_os("PATH")?)
                .map(|directory| directory.join(name))
                .find(|path| path.exists())
        })
        .with_context(|| {
            format!("PostgreSQL's {name} is not installed: run deploy/setup.sh services")
        })
}
