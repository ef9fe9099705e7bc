use std::process::Output;

use serde_json::Value;
use stepwell_tests::{Config, Host, guest};

/// Nobody listens on this one.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:1";

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command, checks its exit code, and gives its stdout.
#[track_caller]
pub(crate) fn run(host: &Host, code: i32, arguments: &[&str]) -> String {
    let output = host.cli(arguments).unwrap();
    check(&output, code, arguments)
}

#[track_caller]
pub(crate) fn check(output: &Output, code: i32, arguments: &[&str]) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}\n{stdout}\n{stderr}"
    );
    assert!(
        code == 0 || !(stdout.is_empty() && stderr.is_empty()),
        "{arguments:?} fails without a word"
    );
    stdout
}

/// The same with `--json`: stdout is exactly one JSON value.
#[track_caller]
pub(crate) fn json(host: &Host, code: i32, arguments: &[&str]) -> Value {
    let with = [arguments, &["--json"]].concat();
    let stdout = run(host, code, &with);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{with:?}: {error}\n{stdout}"))
}

pub(crate) fn save(host: &Host, name: &str, contents: impl AsRef<[u8]>) {
    let path = host.directory().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, contents).unwrap();
}

pub(crate) fn document(name: &str, plugin: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n  - {{id: only, plugin: {plugin}}}\n"
    )
}

pub(crate) async fn start() -> Host {
    let host = Host::start(&Config::default()).await.unwrap();
    for name in ["hostile", "tagger"] {
        save(&host, &format!("{name}.wasm"), guest(name).unwrap());
    }
    host
}
