//! The stand-in is as good as what the vendor's own clients say of it: both live lines of the PyPI package run against it,
//! unmodified, each in a virtual environment of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use stepwell_test_pinecone::{API_KEY, Pinecone};

#[tokio::test(flavor = "multi_thread")]
async fn client_7_is_satisfied() {
    satisfied("7", "pinecone>=7.3,<8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_10_is_satisfied() {
    satisfied("10", "pinecone>=10,<11").await;
}

async fn satisfied(major: &'static str, requirement: &'static str) {
    let pinecone = Pinecone::start().await.unwrap();
    let url = pinecone.url();
    let output = tokio::task::spawn_blocking(move || {
        let python = environment(major, requirement);
        let script = Path::new("tests/vendor_client.py");
        Command::new("timeout")
            .arg("120")
            .arg(python)
            .arg(script)
            .args([url.as_str(), API_KEY])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.trim().starts_with(&format!("ok {major}.")),
        "pinecone {major}: {told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The interpreter of a virtual environment with this client: the one that `deploy/setup.sh pinecone` made, else a new one.
fn environment(major: &str, requirement: &str) -> PathBuf {
    let cache = std::env::var_os("STEPWELL_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/stepwell"),
        PathBuf::from,
    );
    let place = cache.join(format!("pinecone-venv-{major}"));
    let python = place.join("bin/python");
    let usable = |python: &Path| {
        Command::new(python)
            .args(["-c", "import pinecone"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if usable(&python) {
        return python;
    }
    std::fs::create_dir_all(&cache).unwrap();
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&place));
    run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        requirement,
    ]));
    assert!(
        usable(&python),
        "{} cannot import pinecone",
        python.display()
    );
    python
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(
        output.status.success(),
        "the vendor's client cannot be installed, and without it nothing says that the stand-in is right: {command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
