//! The command line as scripts and people use it: exit codes, JSON, tables, and every command of this version.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use stepwell_tests::{Config, Host, cli, guest, stepwell};

/// Nobody listens on this one.
const NOWHERE: &str = "http://127.0.0.1:1";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command, checks its exit code, and gives its stdout.
#[track_caller]
fn run(host: &Host, code: i32, arguments: &[&str]) -> String {
    let output = host.cli(arguments).unwrap();
    check(&output, code, arguments)
}

#[track_caller]
fn check(output: &Output, code: i32, arguments: &[&str]) -> String {
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
fn json(host: &Host, code: i32, arguments: &[&str]) -> Value {
    let with = [arguments, &["--json"]].concat();
    let stdout = run(host, code, &with);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{with:?}: {error}\n{stdout}"))
}

fn save(host: &Host, name: &str, contents: impl AsRef<[u8]>) {
    let path = host.directory().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, contents).unwrap();
}

fn document(name: &str, plugin: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n  - {{id: only, plugin: {plugin}}}\n"
    )
}

async fn start() -> Host {
    let host = Host::start(&Config::default()).await.unwrap();
    for name in ["hostile", "tagger"] {
        save(&host, &format!("{name}.wasm"), guest(name).unwrap());
    }
    host
}

#[tokio::test]
async fn plugins_are_pushed_listed_shown_and_removed() {
    let host = start().await;
    assert!(
        run(&host, 0, &["plugin", "list"]).contains("stepwell plugin push"),
        "an empty list says what to do"
    );
    // Name and version are the component's own, or the flags'.
    let pushed = json(&host, 0, &["plugin", "push", "hostile.wasm"]);
    assert_eq!(
        (pushed["name"].as_str(), pushed["version"].as_str()),
        (Some("hostile"), Some("0.1.0"))
    );
    let again = run(&host, 0, &["plugin", "push", "hostile.wasm"]);
    assert!(again.contains("already"), "{again}");
    let named = run(
        &host,
        0,
        &[
            "plugin",
            "push",
            "hostile.wasm",
            "--name",
            "other",
            "--version",
            "2.0.0-rc.1",
        ],
    );
    assert!(
        named.contains("other@2.0.0-rc.1") && named.contains("sha256:"),
        "{named}"
    );
    let exists = json(
        &host,
        1,
        &[
            "plugin",
            "push",
            "tagger.wasm",
            "--name",
            "hostile",
            "--version",
            "0.1.0",
        ],
    );
    assert_eq!(
        (exists["code"].as_str(), exists["status"].as_u64()),
        (Some("version-exists"), Some(409))
    );
    // Neither: wrong usage. What is no component is refused by the host, once it has a name.
    save(&host, "nameless.wasm", b"\0asm\x0d\0\x01\0");
    assert_eq!(
        json(&host, 2, &["plugin", "push", "nameless.wasm"])["code"],
        "usage"
    );
    assert_eq!(
        json(
            &host,
            2,
            &["plugin", "push", "nameless.wasm", "--name", "x"]
        )["code"],
        "usage"
    );
    let rubbish = json(
        &host,
        1,
        &[
            "plugin",
            "push",
            "stepwell.toml",
            "--name",
            "x",
            "--version",
            "1.0.0",
        ],
    );
    assert_eq!(rubbish["code"], "not-wasm");
    run(&host, 1, &["plugin", "push", "missing.wasm"]);

    let table = run(&host, 0, &["plugin", "list"]);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines,
        [
            vec!["NAME", "VERSIONS"],
            vec!["hostile", "0.1.0"],
            vec!["other", "2.0.0-rc.1"]
        ]
    );
    assert_eq!(
        json(&host, 0, &["plugin", "list"])["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        json(&host, 1, &["plugin", "list", "--namespace", "other"])["status"],
        404
    );
    let shown = run(&host, 0, &["plugin", "show", "hostile@0.1.0"]);
    assert!(
        shown.contains("stepwell:pipeline/step@0.1.0") && shown.contains("wasi:config/store"),
        "{shown}"
    );
    assert!(run(&host, 0, &["plugin", "show", "hostile"]).contains("0.1.0"));
    assert_eq!(
        json(&host, 0, &["plugin", "show", "hostile@0.1.0"])["name"],
        "hostile"
    );
    assert_eq!(
        json(&host, 1, &["plugin", "show", "nobody"])["code"],
        "not-found"
    );

    save(&host, "uses.yaml", document("uses", "hostile@0.1.0"));
    run(&host, 0, &["pipeline", "apply", "uses.yaml"]);
    let used = json(&host, 1, &["plugin", "rm", "hostile@0.1.0"]);
    assert_eq!(used["code"], "in-use");
    assert!(used.to_string().contains("uses"), "{used}");
    assert_eq!(
        json(&host, 2, &["plugin", "rm", "hostile"])["code"],
        "usage"
    );
    assert!(run(&host, 0, &["plugin", "rm", "other@2.0.0-rc.1"]).contains("removed"));
    run(&host, 1, &["plugin", "rm", "other@2.0.0-rc.1"]);
    run(&host, 0, &["pipeline", "rm", "uses"]);
    assert!(json(&host, 0, &["plugin", "rm", "hostile@0.1.0"]).is_null());
}

#[tokio::test]
async fn pipelines_are_applied_all_or_none() {
    let host = start().await;
    run(&host, 0, &["plugin", "push", "hostile.wasm"]);
    assert!(run(&host, 0, &["pipeline", "list"]).contains("stepwell pipeline apply"));
    save(&host, "all/one.yaml", document("one", "hostile@0.1.0"));
    save(&host, "all/two.yml", document("two", "hostile@0.1"));
    save(
        &host,
        "all/three.json",
        r#"{"stepwell": 1, "name": "three", "steps": [{"id": "only", "plugin": "hostile@latest"}]}"#,
    );
    save(&host, "all/notes.txt", "not a document");
    save(
        &host,
        "bad.yaml",
        document("bad", "nobody@1").replace("stepwell: 1", "stepwell: 7"),
    );

    // One has mistakes: all of them are reported, and nothing is applied.
    let output = host.cli(&["pipeline", "apply", "all", "bad.yaml"]).unwrap();
    check(&output, 1, &["apply"]);
    let message = text(&output.stderr);
    assert!(
        message.contains("bad.yaml") && message.contains("nobody") && message.contains("/stepwell"),
        "{message}"
    );
    assert_eq!(
        json(&host, 1, &["pipeline", "apply", "all", "bad.yaml"])["code"],
        "invalid-pipeline"
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "list"])["items"],
        serde_json::json!([])
    );

    // Nor is anything when two of them want the same: the host, which has neither, would take one.
    save(&host, "twice.yaml", document("one", "tagger@0.1.0"));
    save(
        &host,
        "taken.yaml",
        document("taken", "hostile@0.1.0").replace("/taken", "/two"),
    );
    for (other, part) in [
        ("twice.yaml", "both are the pipeline 'one'"),
        ("taken.yaml", "both have the route POST /two"),
    ] {
        for flag in [&["--dry-run"][..], &[]] {
            let arguments = [&["pipeline", "apply", "all", other], flag].concat();
            let output = host.cli(&arguments).unwrap();
            check(&output, 1, &arguments);
            let message = text(&output.stderr);
            for part in [other, part, "nothing was changed"] {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
    }
    assert_eq!(
        json(&host, 1, &["pipeline", "apply", "all", "twice.yaml"])["code"],
        "invalid-pipeline"
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "list"])["items"],
        serde_json::json!([])
    );

    let dry = run(&host, 0, &["pipeline", "apply", "all", "--dry-run"]);
    assert_eq!(dry.matches("valid").count(), 3, "{dry}");
    assert_eq!(
        json(&host, 0, &["pipeline", "list"])["items"],
        serde_json::json!([]),
        "a dry run stores nothing"
    );

    let applied = json(&host, 0, &["pipeline", "apply", "all"]);
    assert_eq!(applied.as_array().unwrap().len(), 3);
    assert_eq!(
        json(&host, 0, &["pipeline", "apply", "all/one.yaml"])["revision"],
        1,
        "an identical one makes no revision"
    );
    save(
        &host,
        "all/one.yaml",
        document("one", "hostile@0.1.0").replace("/one", "/uno"),
    );
    assert!(run(&host, 0, &["pipeline", "apply", "all/one.yaml"]).contains("revision 2"));

    let table = run(&host, 0, &["pipeline", "list"]);
    assert!(
        table.starts_with(" NAME") || table.starts_with("NAME"),
        "{table}"
    );
    assert!(table.contains("POST /uno"), "{table}");
    let shown = run(&host, 0, &["pipeline", "show", "one"]);
    assert!(
        shown.contains("revision 2") && shown.contains("0.1.0") && shown.contains("sha256:"),
        "{shown}"
    );
    let first = json(&host, 0, &["pipeline", "show", "one", "--revision", "1"]);
    assert_eq!(first["document"]["triggers"][0]["http"]["path"], "/one");
    assert_eq!(
        run(&host, 0, &["pipeline", "history", "one"])
            .lines()
            .count(),
        3
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "history", "one"])["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "rollback", "one"])["revision"],
        3
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "rollback", "one", "2"])["revision"],
        4
    );
    assert_eq!(
        json(&host, 0, &["pipeline", "show", "one"])["document"]["triggers"][0]["http"]["path"],
        "/uno"
    );
    run(&host, 1, &["pipeline", "rollback", "one", "99"]);
    run(&host, 2, &["pipeline", "rollback", "one", "many"]);
    assert!(run(&host, 0, &["pipeline", "rm", "one"]).contains("removed"));
    for arguments in [
        &["pipeline", "show", "one"][..],
        &["pipeline", "history", "one"],
        &["pipeline", "rm", "one"],
    ] {
        assert_eq!(json(&host, 1, arguments)["code"], "not-found");
    }
    run(&host, 1, &["pipeline", "apply", "missing.yaml"]);
    run(&host, 2, &["pipeline", "apply"]);
    // Needs no host.
    let schema = cli(NOWHERE, host.directory(), &["pipeline", "schema"]).unwrap();
    let schema: Value = serde_json::from_str(&check(&schema, 0, &["schema"])).unwrap();
    assert!(
        schema["$schema"]
            .as_str()
            .unwrap()
            .contains("json-schema.org")
    );
    let published = stepwell_tests::repository().join("docs/pipeline.schema.json");
    let published: Value = serde_json::from_slice(&std::fs::read(published).unwrap()).unwrap();
    assert_eq!(schema, published, "make schema writes it anew");
}

#[tokio::test]
async fn events_are_sent_and_logs_are_shown() {
    let host = start().await;
    run(&host, 0, &["plugin", "push", "hostile.wasm"]);
    run(&host, 0, &["plugin", "push", "tagger.wasm"]);
    save(&host, "probe.yaml", document("probe", "hostile@0"));
    save(
        &host,
        "tagged.yaml",
        "stepwell: 1\nname: tagged\nsteps:\n  - {id: only, plugin: tagger@0, config: {tag: end}}\n",
    );
    run(
        &host,
        0,
        &["pipeline", "apply", "probe.yaml", "tagged.yaml"],
    );

    assert_eq!(
        run(&host, 0, &["invoke", "tagged", "--data", "words "]),
        "words end \n"
    );
    save(&host, "data.bin", "from a file ");
    assert_eq!(
        run(&host, 0, &["invoke", "tagged", "--data", "@data.bin"]),
        "from a file end \n"
    );
    let mut piped = Command::new(stepwell().unwrap())
        .args(["invoke", "tagged", "--data", "-"])
        .env("STEPWELL_URL", host.admin())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"piped ").unwrap();
    assert_eq!(
        text(&piped.wait_with_output().unwrap().stdout),
        "piped end \n"
    );
    assert_eq!(run(&host, 0, &["invoke", "tagged"]), "end \n");
    run(&host, 1, &["invoke", "tagged", "--data", "@missing"]);

    let echoed = json(
        &host,
        0,
        &["invoke", "probe", "--type", "echo", "--data", r#"{"a": 1}"#],
    );
    assert_eq!(
        (&echoed["data"]["a"], &echoed["status"]),
        (&1.into(), &200.into())
    );
    assert_eq!(
        (
            echoed["content_type"].as_str(),
            echoed["run_id"].as_str().unwrap().len()
        ),
        (Some("application/json"), 36)
    );
    let typed = [
        "invoke",
        "probe",
        "--type",
        "echo",
        "--data",
        "1",
        "--content-type",
        "text/csv",
        "--subject",
        "s",
    ];
    assert_eq!(json(&host, 0, &typed)["content_type"], "text/csv");
    assert_eq!(run(&host, 0, &["invoke", "probe", "--type", "drop"]), "");
    assert_eq!(
        json(&host, 0, &["invoke", "probe", "--type", "drop"])["status"],
        204
    );
    assert_eq!(
        json(&host, 1, &["invoke", "probe", "--type", "invalid:no"])["detail"],
        "no"
    );
    let failed = host
        .cli(&["invoke", "probe", "--type", "failed:why"])
        .unwrap();
    check(&failed, 1, &["invoke"]);
    assert!(
        text(&failed.stderr).contains("stepwell logs"),
        "the owner is told where to look"
    );
    assert_eq!(json(&host, 1, &["invoke", "nobody"])["code"], "not-found");

    run(&host, 0, &["invoke", "probe", "--type", "log:2"]);
    let logs = run(&host, 0, &["logs"]);
    for part in ["line 0", "line 1", "why", "probe/only"] {
        assert!(logs.contains(part), "{part} in {logs}");
    }
    let errors = run(&host, 0, &["logs", "--level", "error"]);
    assert!(
        errors.contains("why") && !errors.contains("line 0"),
        "{errors}"
    );
    assert!(
        json(&host, 0, &["logs", "--pipeline", "probe", "--step", "only"])["items"]
            .as_array()
            .unwrap()
            .len()
            >= 4
    );
    assert_eq!(
        json(&host, 0, &["logs", "--pipeline", "tagged"])["items"],
        serde_json::json!([])
    );
    run(&host, 2, &["logs", "--level", "loud"]);

    // Following: what is logged later arrives.
    let mut follower = Command::new(stepwell().unwrap())
        .args(["logs", "--follow", "--pipeline", "probe", "--json"])
        .env("STEPWELL_URL", host.admin())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // What was there comes first, and then it waits.
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["pipeline"], "probe");
    run(&host, 0, &["invoke", "probe", "--type", "log:7"]);
    let found = lines.any(|line| line.unwrap().contains("line 6"));
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(found, "the new line arrived");
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let host = Host::start(&Config::digits()).await.unwrap();
    host.wait_for("models/digits", "ok").await.unwrap();
    let table = run(&host, 0, &["model", "list"]);
    assert!(
        table.contains("NAME") && table.contains("digits") && table.contains("available"),
        "{table}"
    );
    let digits = json(&host, 0, &["model", "show", "digits"]);
    assert_eq!(digits["versions"][0]["inputs"][0]["name"], "image");
    assert_eq!(
        json(&host, 1, &["model", "show", "nobody"])["code"],
        "not-found"
    );
    assert!(json(&host, 0, &["model", "list"])["items"].is_array());
}

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

/// Mistakes of several kinds, each with the line that it is on.
const BROKEN: &str = "\
[server]
listen = 5
nonsense = true
[limits]
component = \"64\"
[bindings.sql.results]
backend = \"oracle\"
[bindings.keyvalue.cache]
backend = \"redis\"
url = { env = \"STEPWELL_TESTS_NOT_SET\" }
";

#[test]
fn every_mistake_of_the_configuration_is_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("stepwell.toml"), BROKEN).unwrap();
    let ask = |arguments: &[&str]| cli(NOWHERE, directory.path(), arguments).unwrap();
    let expected = [
        (2, "/server/listen"),
        (3, "nonsense"),
        (5, "64"),
        (7, "oracle"),
        (10, "STEPWELL_TESTS_NOT_SET"),
    ];
    for arguments in [
        &["serve"][..],
        &["serve", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["serve", "--config", "stepwell.toml"],
    ] {
        let output = ask(arguments);
        let stdout = check(&output, 1, arguments);
        let all = stdout.clone() + &text(&output.stderr);
        for (line, part) in expected {
            assert!(
                all.contains(&format!("stepwell.toml:{line}:")) && all.contains(part),
                "{arguments:?}, line {line}: {part}\n{all}"
            );
        }
        if arguments.contains(&"--json") {
            serde_json::from_str::<Value>(&stdout)
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{stdout}"));
        }
    }
    let missing = ask(&["serve", "--config", "elsewhere.toml"]);
    check(&missing, 1, &["serve"]);
    assert!(text(&missing.stderr).contains("elsewhere.toml"));
}

/// A free address, for a doctor that looks whether it can be listened on.
const QUIET: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n";

fn doctor(directory: &Path, configuration: &str, code: i32) -> Value {
    std::fs::write(directory.join("stepwell.toml"), configuration).unwrap();
    let table = cli(NOWHERE, directory, &["doctor"]).unwrap();
    check(&table, code, &["doctor"]);
    let output = cli(NOWHERE, directory, &["doctor", "--json"]).unwrap();
    serde_json::from_str(&check(&output, code, &["doctor", "--json"])).unwrap()
}

#[test]
fn the_doctor_finds_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let healthy = doctor(directory.path(), QUIET, 0);
    assert_eq!(healthy["ok"], true);
    assert!(healthy["checks"].as_array().unwrap().len() >= 5);
    let unwell = format!(
        "{QUIET}[bindings.models.nobody]\nmodel = \"nobody\"\n\
         [bindings.keyvalue.far]\nbackend = \"redis\"\nurl = \"redis://:hunter2@127.0.0.1:1\"\n"
    );
    let report = doctor(directory.path(), &unwell, 1);
    assert_eq!(report["ok"], false);
    let failed: Vec<&Value> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["status"] == "failed")
        .collect();
    for what in ["models/nobody", "keyvalue/far"] {
        let check = failed
            .iter()
            .find(|check| check["what"].as_str().unwrap().starts_with(what));
        let check = check.unwrap_or_else(|| panic!("{what} in {report:#}"));
        assert!(check["mend"].is_string(), "{what} says what mends it");
    }
    assert!(!report.to_string().contains("hunter2"), "{report:#}");
}

#[tokio::test]
async fn secrets_are_never_shown() {
    let secrets = tempfile::tempdir().unwrap();
    let url = secrets.path().join("url");
    std::fs::write(&url, "redis://user:hunter2@127.0.0.1:1\n").unwrap();
    let config = Config {
        server: "admin_token = \"correct-horse-battery\"\n".to_owned(),
        sections: format!(
            "[bindings.keyvalue.far]\nbackend = \"redis\"\nurl = {{ file = \"{}\" }}\n\
             [bindings.sql.near]\nbackend = \"postgres\"\nurl = \"postgres://user:swordfish@127.0.0.1:1/x\"\n",
            url.display()
        ),
    };
    let mut host = Host::start(&config).await.unwrap();
    let mut shown = String::new();
    for path in ["/readyz", "/metrics", "/api/v1/bindings", "/api/v1/models"] {
        let request = host
            .admin_request(reqwest::Method::GET, path)
            .bearer_auth("correct-horse-battery");
        let reply = stepwell_tests::send(request).await.unwrap();
        shown += &String::from_utf8_lossy(&reply.body);
    }
    assert!(shown.contains("far") && shown.contains("near"), "{shown}");
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["plugin", "list"],
        &["plugin", "list", "--token", "correct-horse-battery"],
    ] {
        let output = host.cli(arguments).unwrap();
        shown += &(text(&output.stdout) + &text(&output.stderr));
    }
    assert_eq!(host.stop().unwrap(), 0);
    shown += &host.log();
    for secret in ["hunter2", "swordfish", "correct-horse-battery"] {
        assert!(!shown.contains(secret), "{secret} was shown");
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
