use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::guarded::{Guarded, tail};
use crate::{free_port, wait_for};

/// A Redis server.
pub struct Redis {
    port: u16,
    directory: TempDir,
    process: Option<Guarded>,
}

impl Redis {
    /// Starts a server with nothing in it.
    pub fn start() -> Result<Self> {
        let mut redis = Self {
            port: free_port()?,
            directory: TempDir::new()?,
            process: None,
        };
        redis.restart()?;
        Ok(redis)
    }

    /// `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Stops the server; connections break, the port stays reserved by convention only.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the server again on the same port, with the data it had.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let log = self.directory.path().join("redis.log");
        let command: Vec<String> = [
            "redis-server",
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--dir",
            &self.directory.path().display().to_string(),
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut process = Guarded::start(&command, "TERM", &log)?;
        wait_for(
            "redis-server (installed by deploy/setup.sh)",
            Duration::from_secs(20),
            || !process.is_running() || self.serves(),
        )
        .and_then(|()| {
            anyhow::ensure!(process.is_running(), "redis-server ended at once");
            Ok(())
        })
        .with_context(|| tail(&log))?;
        self.process = Some(process);
        Ok(())
    }

    /// A server listens before it has loaded its data, and answers with an error until then.
    fn serves(&self) -> bool {
        let ask = || {
            let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
            connection.set_read_timeout(Some(Duration::from_secs(1)))?;
            connection.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            connection.read_exact(&mut answer)?;
            std::io::Result::Ok(answer == *b"+PONG")
        };
        ask().unwrap_or(false)
    }
}
