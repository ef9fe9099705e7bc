use std::path::Path;

use serde_json::Value;
use stepwell_tests::{Config, Host, cli};

use crate::support::{NOWHERE, check, text};

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
    let confined = format!(
        "{QUIET}[bindings.sql.results]\nnamespaces = [\"team-b\", \"team-a\"]\n[bindings.keyvalue.all]\n"
    );
    let report = doctor(directory.path(), &confined, 0);
    let said = |what: &str| {
        let checks = report["checks"].as_array().unwrap().iter();
        let mut found = checks.filter(|check| check["what"] == what);
        found.next().map(|check| check["finding"].clone())
    };
    assert_eq!(
        said("sql/results").unwrap(),
        "for the pipelines of team-a, team-b alone"
    );
    assert_eq!(said("keyvalue/all"), None);
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
