//! `stepwell run-component`: commands and HTTP functions by themselves, with what the flags give and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use stepwell_tests::{guest, stepwell};
use tempfile::TempDir;

/// Components in a directory of their own.
struct Components(TempDir);

impl Components {
    fn new(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), guest(name).unwrap()).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, flags: &[&str], name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(stepwell().unwrap());
        command
            .arg("run-component")
            .args(flags)
            .arg(self.path(name))
            .arg("--")
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, flags: &[&str], name: &str, arguments: &[&str]) -> Output {
        self.command(flags, name, arguments).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const COMMANDS: [&str; 2] = ["command", "command-03"];

#[test]
fn commands_have_their_arguments_environment_streams_and_exit_code() {
    let components = Components::new(&COMMANDS);
    for name in COMMANDS {
        let output = components.run(&["--env", "GREETING=a=b"], name, &["greet", "you", "--all"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), "hello you --all Some(\"a=b\")\n");
        // The process's own environment is not theirs.
        let output = components
            .command(&[], name, &["greet"])
            .env("GREETING", "x")
            .output()
            .unwrap();
        assert_eq!(stdout(&output), "hello  None\n");
        // Twice: the last one counts.
        let flags = ["--env", "GREETING=1", "--env", "GREETING=2"];
        let output = components.run(&flags, name, &["greet"]);
        assert_eq!(stdout(&output), "hello  Some(\"2\")\n");

        for (arguments, code) in [
            // The standard library says no more than that it is not 0.
            (&["exit", "7"][..], 1),
            (&["exit", "0"], 0),
            (&["exit-with-code", "7"], 7),
            (&["exit-with-code", "0"], 0),
            (&["fail"], 1),
            (&["trap"], 1),
        ] {
            let output = components.run(&[], name, arguments);
            assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}");
        }
        assert!(stderr(&components.run(&[], name, &["trap"])).contains("unreachable"));

        let mut child = components
            .command(&[], name, &["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (stdout(&output).as_str(), stderr(&output).as_str()),
            ("one\ntwo", "7 bytes\n")
        );
    }
    let output = components.run(&[], "command-03", &["tick"]);
    assert_eq!(stdout(&output), "one\ntwo\n", "{}", stderr(&output));
}

#[test]
fn commands_see_of_the_machine_what_the_flags_say() {
    let components = Components::new(&COMMANDS);
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a.txt"), "inside").unwrap();
    let dir = format!("{}::/data", files.path().display());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for name in COMMANDS {
        let flags = ["--dir", dir.as_str()];
        let output = components.run(&flags, name, &["read", "/data/a.txt"]);
        assert_eq!(stdout(&output), "inside\n", "{}", stderr(&output));
        let output = components.run(&flags, name, &["write", "/data/b.txt", name]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(
            std::fs::read_to_string(files.path().join("b.txt")).unwrap(),
            name
        );
        for path in ["/data/../a.txt", "/etc/passwd"] {
            let output = components.run(&flags, name, &["read", path]);
            assert_eq!(output.status.code(), Some(1), "{path}");
        }
        let output = components.run(&[], name, &["read", "/data/a.txt"]);
        assert_eq!(output.status.code(), Some(1), "without --dir");

        let output = components.run(&["--network"], name, &["connect", &address]);
        assert_eq!(stdout(&output), "true\n");
        let output = components.run(&[], name, &["connect", &address]);
        assert_eq!(stdout(&output), "false\n", "without --network");
    }
    let output = components.run(&["--dir", "/nowhere::/data"], "command", &["greet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere"));
}

#[test]
fn limits_are_those_of_the_flags() {
    let components = Components::new(&COMMANDS);
    for name in COMMANDS {
        for (flags, arguments, needle) in [
            (["--cpu", "100ms"], &["spin"][..], "CPU time"),
            (["--wall", "200ms"], &["sleep"], "200ms"),
            (["--memory", "16MiB"], &["allocate", "100000000"], "memory"),
        ] {
            let output = components.run(&flags, name, arguments);
            assert_eq!(output.status.code(), Some(1), "{name} {flags:?}");
            assert!(stderr(&output).contains(needle), "{}", stderr(&output));
        }
        let output = components.run(&[], name, &["allocate", "100000000"]);
        assert_eq!(stdout(&output), "100000000\n");
    }
}

#[test]
fn what_cannot_be_run_says_what_it_is() {
    let components = Components::new(&["hostile", "command", "service"]);
    for (name, bytes) in [
        ("module", &b"\0asm\x01\0\0\0"[..]),
        ("nonsense", b"rubbish"),
        ("nothing", b"\0asm\x0d\0\x01\0"),
    ] {
        std::fs::write(components.path(name), bytes).unwrap();
    }
    for (name, needle) in [
        ("module", "core WebAssembly module"),
        ("nonsense", "not WebAssembly"),
        ("nothing", "exports nothing"),
        ("hostile", "stepwell:pipeline/step@0.1.0"),
        ("missing", "cannot read"),
    ] {
        let output = components.run(&[], name, &[]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains(needle), "{}", stderr(&output));
    }
    let output = components.run(&[], "service", &["argument"]);
    assert_eq!(output.status.code(), Some(1));
    for flags in [["--env", "novalue"], ["--dir", "::x"], ["--cpu", "5"]] {
        let output = components.run(&flags, "command", &["greet"]);
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}

/// A function that is being served.
struct Served {
    child: Child,
    url: String,
}

fn serve(components: &Components, name: &str, flags: &[&str]) -> Served {
    // For the client of these tests.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut child = Command::new(stepwell().unwrap())
        .args(["run-component", "--addr", "127.0.0.1:0"])
        .args(flags)
        .arg(components.path(name))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line.trim().to_owned();
    Served { child, url }
}

impl Served {
    async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap())
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// The exit code, and what it said on stderr.
    fn wait(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

#[tokio::test]
async fn functions_serve_every_path_until_a_signal() {
    let components = Components::new(&["hostile-http", "service"]);
    for (name, signal) in [("hostile-http", "-TERM"), ("service", "-INT")] {
        let served = serve(&components, name, &["--env", "GREETING=hi"]);
        assert!(
            served.url.starts_with("http://127.0.0.1:"),
            "{}",
            served.url
        );
        assert!(served.url.ends_with('/'), "{}", served.url);
        assert_eq!(served.get("").await, (200, "hello".to_owned()));
        let (_, about) = served.get("about/a?b=c").await;
        assert!(about.ends_with("/about/a?b=c"), "{about}");
        assert_eq!(served.get("none").await.0, 404);
        let (status, error) = served.get("nothing-of-the-kind/1").await;
        assert_eq!((status, error.as_str()), (404, ""));
        served.signal(signal);
        let first = format!("Serving HTTP on {}\n", served.url);
        let (code, said) = served.wait();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with(&first), "{said}");
    }
}

#[tokio::test]
async fn a_request_under_way_is_answered_after_the_signal() {
    let components = Components::new(&["service"]);
    let served = serve(&components, "service", &["--cpu", "200ms", "--env", "A=B"]);
    assert_eq!(
        served.get("environment").await,
        (200, r#"[("A", "B")] true []"#.to_owned())
    );
    // A guest that fails is the end of its request alone.
    let (status, error) = served.get("spin").await;
    assert_eq!(status, 500);
    assert!(error.contains("CPU time"), "{error}");
    let (slow, ()) = tokio::join!(served.get("sleep/1000"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        served.signal("-TERM");
    });
    assert_eq!(slow, (200, "1".to_owned()));
    let (code, said) = served.wait();
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn a_guest_that_fails_after_the_head_is_told_of() {
    let components = Components::new(&["service"]);
    let served = serve(&components, "service", &["--cpu", "200ms"]);
    let url = format!("{}trap-midway", served.url);
    let response = reqwest::get(url).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response.text().await.unwrap_err();
    // The response is whole, and the guest goes on.
    assert_eq!(served.get("linger-spin/1").await, (200, "hello".to_owned()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    served.signal("-TERM");
    let (code, said) = served.wait();
    assert_eq!(code, Some(0), "{said}");
    for needle in [
        "error: the response's body broke off: trap: the guest trapped: wasm `unreachable`",
        "WARN a guest failed after its response step=",
        "limits.cpu",
    ] {
        assert!(said.contains(needle), "{needle}: {said}");
    }
}

#[tokio::test]
async fn requests_go_out_with_the_network_alone() {
    let components = Components::new(&["service"]);
    let (inner, silent) = (
        serve(&components, "service", &[]),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let closed = silent.local_addr().unwrap();
    drop(silent);
    let authority = inner
        .url
        .trim_start_matches("http://")
        .trim_end_matches('/');

    let open = serve(&components, "service", &["--network"]);
    let fetch = format!("fetch/{authority}");
    assert_eq!(open.get(&fetch).await, (200, "200".to_owned()));
    let (_, error) = open.get(&format!("fetch/{closed}")).await;
    assert!(error.contains("ConnectionRefused"), "{error}");

    let confined = serve(&components, "service", &[]);
    let (_, error) = confined.get(&fetch).await;
    assert!(error.contains("HttpRequestDenied"), "{error}");

    for served in [inner, open, confined] {
        served.signal("-TERM");
        let (code, said) = served.wait();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
