use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use stepwell_tests::{cli, stepwell};

use crate::support::{NOWHERE, check, start, text};

#[test]
fn exit_codes_say_what_went_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let ask = |arguments: &[&str]| cli(NOWHERE, directory.path(), arguments).unwrap();
    for arguments in [
        &["plugin", "list"][..],
        &["pipeline", "list"],
        &["invoke", "x"],
        &["logs"],
        &["model", "list"],
    ] {
        let output = ask(arguments);
        check(&output, 3, arguments);
        assert!(text(&output.stderr).contains("127.0.0.1:1"), "{output:?}");
        let output = ask(&[arguments, &["--json"]].concat());
        let problem: Value = serde_json::from_str(&check(&output, 3, arguments)).unwrap();
        assert_eq!(problem["code"], "unreachable");
    }
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["plugin"],
        &["plugin", "list", "--loud"],
        &["plugin", "list", "--url", "not a url"],
        &["invoke"],
        &["new"],
    ] {
        check(&ask(arguments), 2, arguments);
    }
    check(&ask(&["--version"]), 0, &["--version"]);
}

#[test]
fn help_names_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let help = |arguments: &[&str]| {
        let output = cli(
            NOWHERE,
            directory.path(),
            &[arguments, &["--help"]].concat(),
        )
        .unwrap();
        check(&output, 0, arguments)
    };
    for (command, words) in [
        (
            &[][..],
            &[
                "serve",
                "plugin",
                "pipeline",
                "invoke",
                "model",
                "logs",
                "new",
                "build",
                "doctor",
                "--url",
                "--token",
                "--namespace",
                "--json",
            ][..],
        ),
        (
            &["serve"],
            &["--config", "--data-dir", "--listen", "--admin-listen"],
        ),
        (&["plugin"], &["push", "list", "show", "rm"]),
        (&["plugin", "push"], &["FILE", "--name", "--version"]),
        (
            &["pipeline"],
            &["apply", "list", "show", "history", "rollback", "rm"],
        ),
        (&["pipeline", "apply"], &["--dry-run"]),
        (&["pipeline", "show"], &["--revision"]),
        (
            &["invoke"],
            &["--data", "--content-type", "--type", "--subject"],
        ),
        (&["model"], &["list", "show"]),
        (&["logs"], &["--follow", "--pipeline", "--step", "--level"]),
        (&["new"], &["NAME", "--lang"]),
        (&["build"], &["DIR"]),
        (&["doctor"], &["--config"]),
    ] {
        let text = help(command);
        for word in words {
            assert!(text.contains(word), "{word} in the help of {command:?}");
        }
        for variable in ["STEPWELL_URL", "STEPWELL_TOKEN", "STEPWELL_NAMESPACE"] {
            assert!(
                text.contains(variable),
                "{variable} in the help of {command:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_or_written_or_sent_is_said() {
    let host = start().await;
    let zero = ["/dev/zero"];
    for arguments in [
        &["pipeline", "apply", "/dev/zero"][..],
        &[
            "plugin",
            "push",
            "/dev/zero",
            "--name",
            "z",
            "--version",
            "1.0.0",
        ],
        &["invoke", "p", "--data", "@/dev/zero"],
        &["run-component", "/dev/zero"],
        &["serve", "--config", "/dev/zero"],
    ] {
        let output = host.cli(arguments).unwrap();
        check(&output, 1, arguments);
        let said = text(&output.stderr);
        assert!(
            said.contains(zero[0]) && said.contains("the most that is read"),
            "{said}"
        );
    }
    for (arguments, option) in [
        (&["plugin", "list", "--token", "a\nb"][..], "--token"),
        (&["invoke", "p", "--type", "a\r\nb: c"], "--type"),
        (&["plugin", "list", "--url", "http://["], "--url"),
    ] {
        let output = host.cli(arguments).unwrap();
        check(&output, 2, arguments);
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("error: {option} ")), "{said}");
    }
    // A script that keeps what is printed must not go on with a part of it.
    let full = |arguments: &[&str]| {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(stepwell().unwrap());
        command.args(arguments).args(["--url", host.admin()]);
        command.stdout(full).output().unwrap()
    };
    for arguments in [
        &["plugin", "list"][..],
        &["plugin", "list", "--json"],
        &["token", "create", "--role", "viewer"],
        &["pipeline", "schema"],
    ] {
        let output = full(arguments);
        check(&output, 1, arguments);
        let said = text(&output.stderr);
        assert!(said.contains("the output could not be written"), "{said}");
    }
    // Who has read enough is no mistake.
    let mut command = Command::new(stepwell().unwrap());
    command.args(["pipeline", "schema"]).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    check(&output, 0, &["pipeline", "schema"]);
}

#[test]
fn what_a_host_says_does_not_reach_the_terminal_as_it_is() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        let body = r#"{"detail": "one\u001b]0;title\u0007\nother\r"}"#;
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 500 Oops\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
    });
    let output = cli(&url, Path::new("."), &["pipeline", "show", "p"]).unwrap();
    server.join().unwrap();
    check(&output, 1, &["pipeline", "show"]);
    assert_eq!(text(&output.stderr), "error: one·]0;title·\nother·\n");
}
