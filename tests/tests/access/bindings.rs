use std::fs;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stepwell_tests::{Config, Host, guest};

use crate::support::{ADMIN, get, guarded, namespace, put, token};

const DOCUMENT: &str = "\
stepwell: 1
name: keeping
triggers: [{http: {method: POST, path: /keep}}, {kafka: {topics: [team-a.in], group: team-a.keeping}}]
steps:
  - id: only
    plugin: record@1
    grants: {keyvalue: {cache: [read, write]}, sql: {results: [read, write]}}
";

/// What is written to a file of embedded results.
fn answer() -> String {
    json!({"digit": 3, "confidence": 0.9, "pixels": vec![0.5; 64]}).to_string()
}

/// Kinds and names of the bindings that a token shows.
async fn seen(host: &Host, token: &str) -> Vec<String> {
    let listed = get(host, token, "/api/v1/bindings").await.json();
    let items = listed["items"].as_array().unwrap().iter();
    let shown = |item: &Value| {
        let text = |key: &str| item[key].as_str().unwrap().to_owned();
        format!("{}/{}", text("kind"), text("name"))
    };
    items.map(shown).collect()
}

#[tokio::test]
async fn bindings_and_topics_are_for_their_namespaces_alone() {
    let config = Config {
        sections: "[kafka.owners]\n\"team-a.\" = \"team-a\"\n\
                   [bindings.keyvalue.cache]\n[bindings.sql.results]\nnamespaces = [\"team-a\"]\n"
            .to_owned(),
        ..guarded()
    };
    let mut host = Host::start(&config).await.unwrap();
    let mut deployers = Vec::new();
    for name in ["team-a", "team-b"] {
        namespace(&host, name).await;
        let body = json!({"role": "deployer", "namespace": name});
        let deployer = token(&host, ADMIN, body).await.1;
        let version = format!("/api/v1/namespaces/{name}/plugins/record/versions/1.0.0");
        let stored = put(&host, &deployer, &version, guest("record").unwrap()).await;
        assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.json());
        deployers.push(deployer);
    }
    let [of_a, of_b] = &deployers[..] else {
        unreachable!()
    };
    let at = |name: &str| format!("/api/v1/namespaces/{name}/pipelines/keeping");
    let applied = put(&host, of_a, &at("team-a"), DOCUMENT).await;
    assert_eq!(applied.status, StatusCode::CREATED, "{}", applied.json());
    let kept = host
        .post("/@team-a/keep", "application/json", answer())
        .await
        .unwrap();
    assert_eq!(kept.status, StatusCode::OK, "{:?}", kept.body);

    // For others it is as if it were not there, whatever role they have.
    for (token, name) in [(of_b.as_str(), "team-b"), (ADMIN, "team-b")] {
        let refused = put(&host, token, &at(name), DOCUMENT).await;
        assert_eq!(refused.code(), "invalid-pipeline", "{}", refused.json());
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(text.contains("there is no sql binding 'results'"), "{text}");
        assert!(
            text.contains("'team-a.in' is not for namespace 'team-b'"),
            "{text}"
        );
        assert!(!text.contains("\"team-a\""), "{text}");
    }
    // The operator is told what they wanted. Nobody else is, since that would say that it is there.
    let audited = get(&host, ADMIN, "/api/v1/audit?limit=2").await.json();
    for item in audited["items"].as_array().unwrap() {
        assert_eq!(item["action"], "pipeline.apply", "{item}");
        assert_eq!(item["outcome"], "refused", "{item}");
        assert_eq!(
            item["subject"],
            "pipeline keeping of team-b wants kafka/team-a.in kafka/team-a.keeping kafka/team-a.keeping.dlq sql/results"
        );
    }
    assert_eq!(audited["items"][0]["who"], "admin_token");
    let own = get(&host, of_b, "/api/v1/audit").await.json().to_string();
    assert!(!own.contains("sql/results"), "{own}");
    assert_eq!(seen(&host, of_a).await, ["keyvalue/cache", "sql/results"]);
    assert_eq!(seen(&host, of_b).await, ["keyvalue/cache"]);
    assert_eq!(seen(&host, ADMIN).await, ["keyvalue/cache", "sql/results"]);

    // Who had it and loses it has it no longer.
    let file = host.directory().join("stepwell.toml");
    let text = fs::read_to_string(&file).unwrap();
    let given = text
        .replace("[\"team-a\"]", "[\"team-b\"]")
        .replace("= \"team-a\"", "= \"team-b\"");
    fs::write(&file, given).unwrap();
    host.restart().await.unwrap();
    let lost = host
        .post("/@team-a/keep", "application/json", answer())
        .await
        .unwrap();
    assert_eq!(lost.status, StatusCode::NOT_FOUND);
    let ready = get(&host, ADMIN, "/readyz").await.json().to_string();
    assert!(
        ready.contains("[bindings.sql.results] is not for namespace 'team-a'"),
        "{ready}"
    );
    let applied = put(&host, of_b, &at("team-b"), DOCUMENT).await;
    assert_eq!(applied.status, StatusCode::CREATED, "{}", applied.json());
}
