use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Where everything is that the demo needs and makes.
#[derive(Debug)]
pub(crate) struct Place {
    /// `demo-data` in the working directory.
    pub(crate) data: PathBuf,
    /// The repository.
    pub(crate) checkout: PathBuf,
    /// The built components.
    pub(crate) guests: PathBuf,
    /// The command line, built next to the demo.
    pub(crate) stepwell: PathBuf,
}

impl Place {
    pub(crate) fn here() -> Result<Self> {
        let guests = std::env::var_os("STEPWELL_GUESTS").map_or_else(
            || stepwell_test_services::cache_dir().join("guest-target/stepwell"),
            PathBuf::from,
        );
        Ok(Self {
            data: std::env::current_dir()
                .context("no working directory")?
                .join("demo-data"),
            checkout: stepwell_test_services::checkout()?,
            guests,
            stepwell: std::env::current_exe()?.with_file_name("stepwell"),
        })
    }

    /// Held by the keeper for as long as it lives; also the sign that the directory is the demo's.
    pub(crate) fn keeper_lock(&self) -> PathBuf {
        self.data.join("keeper.lock")
    }

    pub(crate) fn keeper_pid(&self) -> PathBuf {
        self.data.join("keeper.pid")
    }

    /// Held by the host itself for as long as it lives.
    pub(crate) fn host_lock(&self) -> PathBuf {
        self.data.join("data/host.lock")
    }

    pub(crate) fn host_pid(&self) -> PathBuf {
        self.data.join("host.pid")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.data.join("stepwell.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("host.log")
    }

    /// What the host says on stdout when it is ready.
    pub(crate) fn ready(&self) -> PathBuf {
        self.data.join("ready.json")
    }

    pub(crate) fn samples(&self) -> PathBuf {
        self.data.join("samples")
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.checkout.join("tests/models/saved")
    }

    pub(crate) fn scans(&self, file: &str) -> PathBuf {
        self.checkout.join("tests/models/digits").join(file)
    }

    /// Makes the directory anew; one that no demo made stays as it is.
    pub(crate) fn make_fresh(&self) -> Result<()> {
        if self.data.exists() {
            let is_empty = fs::read_dir(&self.data)?.next().is_none();
            let shown = self.data.display();
            ensure!(
                is_empty || self.keeper_lock().exists(),
                "{shown} is no demo's: move it away, or start elsewhere"
            );
            fs::remove_dir_all(&self.data).with_context(|| format!("cannot remove {shown}"))?;
        }
        fs::create_dir(&self.data)
            .with_context(|| format!("cannot make {}", self.data.display()))?;
        fs::write(self.keeper_lock(), "").context("cannot write in demo-data")
    }
}
