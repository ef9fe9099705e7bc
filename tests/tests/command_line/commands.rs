use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;
use stepwell_tests::{Config, Host, cli, stepwell};

use crate::support::{NOWHERE, check, document, json, run, save, start, text};

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
