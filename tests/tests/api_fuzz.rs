//! The management API against its own description: a fuzzer reads `/openapi.json`, asks for what it allows and for what it does
//! not, and compares every answer with it. `tests/api-fuzz` says how.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::process::Command;

use stepwell_test_services::cache_dir;
use stepwell_tests::{Config, Host, guest, repository};

const TOKEN: &str = "the-fuzzers-token";

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_it_is_described() {
    let program = cache_dir().join("schemathesis-venv-4.32.5/bin/schemathesis");
    assert!(
        program.is_file(),
        "schemathesis is not there: run 'deploy/setup.sh schemathesis' first ('make test' does)"
    );
    let host = Host::start(&Config {
        server: format!("admin_token = \"{TOKEN}\""),
        ..Config::default()
    })
    .await
    .unwrap();
    // Something to read, change and delete.
    let component = host.directory().join("echo.wasm");
    std::fs::write(&component, guest("echo").unwrap()).unwrap();
    let document = host.directory().join("fuzzed.yaml");
    let text = "stepwell: 1\nname: fuzzed\ntriggers: [{http: {method: POST, path: /fuzzed}}]\nsteps: [{id: only, plugin: echo@1}]\n";
    std::fs::write(&document, text).unwrap();
    let push = [
        "plugin",
        "push",
        "echo.wasm",
        "--name",
        "echo",
        "--version",
        "1.0.0",
        "--token",
        TOKEN,
    ];
    let apply = ["pipeline", "apply", "fuzzed.yaml", "--token", TOKEN];
    for arguments in [&push[..], &apply[..]] {
        let output = host.cli(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    let ours = repository().join("tests/api-fuzz");
    let output = Command::new(program)
        .arg("--config-file")
        .arg(ours.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", host.admin()))
        .args(["--checks", "all", "--phases", "examples,coverage,fuzzing"])
        .args(["--seed", "1", "--workers", "2", "--no-color"])
        .args(["--warnings", "off"])
        .env("STEPWELL_ADMIN_URL", host.admin())
        .env("STEPWELL_ADMIN_TOKEN", TOKEN)
        .env("STEPWELL_FUZZ_HOOKS", ours.join("hooks.py"))
        .current_dir(host.directory())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("test cases") || said.contains("Test cases"),
        "{said}"
    );
}
