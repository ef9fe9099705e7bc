//! The first five minutes: a new project is built, pushed, applied, and answers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use stepwell_tests::{Config, Host, stepwell};

/// Runs the command line in the project, as its README says to. Build products of guests are shared with the other guests'.
fn run(host: &Host, directory: &Path, arguments: &[&str]) -> Output {
    Command::new(stepwell().unwrap())
        .args(arguments)
        .current_dir(directory)
        .env("STEPWELL_URL", host.admin())
        .env(
            "CARGO_TARGET_DIR",
            stepwell_test_services::cache_dir().join("guest-target"),
        )
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn a_new_project_answers() {
    let host = Host::start(&Config::default()).await.unwrap();
    let top = host.directory().to_owned();
    let name = "first-steps";
    let said = succeed(&run(&host, &top, &["new", name]));
    for step in [
        "stepwell build",
        "stepwell plugin push",
        "stepwell pipeline apply",
        "curl",
    ] {
        assert!(said.contains(step), "{step} in {said}");
    }
    // The same name again, and what cannot be one, is refused, and nothing is overwritten.
    let source = top.join(name).join("src/lib.rs");
    let before = std::fs::read_to_string(&source).unwrap();
    let clash = run(&host, &top, &["new", name]);
    assert_eq!(clash.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&clash.stderr).contains("not empty"));
    assert_eq!(std::fs::read_to_string(&source).unwrap(), before);
    for bad in ["First_Steps", "../evil", "std", "runs"] {
        let refused = run(&host, &top, &["new", bad]);
        assert_ne!(refused.status.code(), Some(0), "{bad}");
        assert!(!refused.stderr.is_empty());
    }

    let project = top.join(name);
    let built = succeed(&run(&host, &project, &["build", "--json"]));
    let built: Value = serde_json::from_str(&built).unwrap();
    let component = &built["components"][0];
    assert_eq!(
        (component["name"].as_str(), component["version"].as_str()),
        (Some(name), Some("0.1.0"))
    );
    let file = component["path"].as_str().unwrap().to_owned();

    let pushed = succeed(&run(&host, &project, &["plugin", "push", &file]));
    assert!(pushed.contains(&format!("{name}@0.1.0")), "{pushed}");
    succeed(&run(
        &host,
        &project,
        &["pipeline", "apply", "pipeline.yaml"],
    ));
    let ask =
        |body: &'static str| host.post("/first-steps", "application/x-www-form-urlencoded", body);
    let reply = ask(r#"{"name": "Ada"}"#).await.unwrap();
    assert_eq!(
        (reply.status.as_u16(), reply.json()),
        (200, json!({"greeting": "Hello, Ada!"}))
    );
    assert_eq!(ask("{}").await.unwrap().status.as_u16(), 422);
    let logs = succeed(&run(&host, &project, &["logs", "--pipeline", name]));
    assert!(logs.contains("greeting Ada"), "{logs}");

    // A change: a new version, built and applied the same way.
    std::fs::write(
        &source,
        before.replace("{greeting}, {name}!", "{greeting}, dear {name}!"),
    )
    .unwrap();
    let manifest = project.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("0.1.0", "0.2.0", 1)).unwrap();
    succeed(&run(&host, &project, &["build"]));
    succeed(&run(&host, &project, &["plugin", "push", &file]));
    assert_eq!(
        ask(r#"{"name": "Ada"}"#).await.unwrap().json()["greeting"],
        "Hello, Ada!",
        "pinned until the next apply"
    );
    succeed(&run(
        &host,
        &project,
        &["pipeline", "apply", "pipeline.yaml"],
    ));
    assert_eq!(
        ask(r#"{"name": "Ada"}"#).await.unwrap().json()["greeting"],
        "Hello, dear Ada!"
    );
    let _ = std::fs::remove_file(file);
}

#[tokio::test]
async fn a_project_that_does_not_compile_says_why() {
    let host = Host::start(&Config::default()).await.unwrap();
    let top = host.directory().to_owned();
    succeed(&run(&host, &top, &["new", "broken-steps"]));
    let project = top.join("broken-steps");
    std::fs::write(project.join("src/lib.rs"), "fn broken( {").unwrap();
    let output = run(&host, &project, &["build"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("src/lib.rs"),
        "the compiler's words are there"
    );
    let empty = tempfile::tempdir().unwrap();
    let nothing = run(&host, empty.path(), &["build"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("Cargo.toml"));
}
