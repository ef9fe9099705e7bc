use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{BindingKind, Digest, Name};
use stepwell_pipeline::{
    Draft, HostState, HttpAuth, HttpTriggerSpec, JwtHost, KafkaOwners, KafkaTriggerSpec,
    KnownPipeline, KnownPlugin, Order, RunRetry, TriggerSpec, Validated,
};

pub(crate) const EXAMPLE: &str = include_str!("../digit-reader.yaml");

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn plugin(name_and_version: &str, world: &str, imports: &[&str]) -> KnownPlugin {
    let (plugin, version) = name_and_version.split_once('@').unwrap();
    KnownPlugin {
        name: name(plugin),
        version: version.parse().unwrap(),
        digest: Digest::of(name_and_version.as_bytes()),
        world: world.to_owned(),
        imports: imports.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) const STEP: &str = "stepwell:pipeline/step@0.1.0";
pub(crate) const PROXY: &str = "wasi:http/proxy@0.2.6";

pub(crate) fn host() -> HostState {
    let classify = [
        "stepwell:pipeline/types@0.1.0",
        "stepwell:model/inference@0.1.0",
        "stepwell:vector/index@0.1.0",
        "wasi:cli/environment@0.2.6",
    ];
    let record = [
        "wasi:keyvalue/store@0.2.0-draft",
        "wasi:keyvalue/atomics@0.2.0-draft",
        "stepwell:sql/database@0.1.0",
        "wasi:http/types@0.2.10",
    ];
    HostState {
        plugins: vec![
            plugin("decode-image@0.9.0", STEP, &[]),
            plugin("decode-image@1.0.0", STEP, &[]),
            plugin("decode-image@1.2.0", STEP, &[]),
            plugin("decode-image@1.3.0-rc.1", STEP, &[]),
            plugin("decode-image@2.0.0", STEP, &[]),
            plugin("classify-digit@1.0.0", STEP, &classify),
            plugin("record@1.0.0", STEP, &record),
            plugin(
                "caller@1.0.0",
                STEP,
                &[
                    "wasi:http/types@0.2.10",
                    "wasi:http/outgoing-handler@0.2.10",
                ],
            ),
            plugin("hello-http@1.0.0", PROXY, &["wasi:http/types@0.2.6"]),
            plugin("many@1.0.0", "stepwell:pipeline/batch-step@0.1.0", &[]),
            plugin("unripe@1.0.0-rc.1", STEP, &[]),
        ],
        bindings: vec![
            (BindingKind::Models, "digits".into()),
            (BindingKind::Vectors, "scans".into()),
            (BindingKind::Keyvalue, "main-redis".into()),
            (BindingKind::Sql, "results".into()),
        ],
        kafka: KafkaOwners::default(),
        pipelines: [
            KnownPipeline {
                namespace: name("default"),
                name: name("other"),
                triggers: vec![
                    http("GET", "/taken/{x}"),
                    http("POST", "/taken/here"),
                    kafka("theirs", "theirs"),
                ],
            },
            KnownPipeline {
                namespace: name("elsewhere"),
                name: name("other"),
                triggers: vec![http("POST", "/elsewhere")],
            },
            // Its own earlier revision takes nothing from it.
            KnownPipeline {
                namespace: name("default"),
                name: name("digit-reader"),
                triggers: vec![
                    http("POST", "/digits/{set}"),
                    kafka("digits", "digit-reader"),
                ],
            },
        ]
        .map(Arc::new)
        .to_vec(),
        subscriptions: None,
        jwt: JwtHost {
            has_issuer: false,
            trusted: vec!["http://keys.internal:8080".to_owned()],
        },
    }
}

pub(crate) fn http(method: &str, path: &str) -> TriggerSpec {
    TriggerSpec::Http(HttpTriggerSpec {
        method: Some(method.to_owned()),
        path: path.to_owned(),
        max_body: 1 << 20,
        timeout: Duration::from_secs(30),
        auth: HttpAuth::None,
    })
}

pub(crate) fn kafka(topic: &str, group: &str) -> TriggerSpec {
    TriggerSpec::Kafka(KafkaTriggerSpec {
        topics: vec![topic.to_owned()],
        group: group.to_owned(),
        output: None,
        dead_letter: format!("{group}.dlq"),
        order: Order::Key,
        timeout: Duration::from_secs(30),
        retry: RunRetry::default(),
    })
}

pub(crate) fn validate(text: &str) -> Result<Validated, Vec<String>> {
    Draft::parse(text)
        .validate(&name("default"), &host())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// A document with these triggers and steps, each given as flow YAML; triggers begin on line 4, steps right after them.
pub(crate) fn document(triggers: &[&str], steps: &[&str]) -> String {
    let items = |items: &[&str]| {
        items
            .iter()
            .map(|item| format!("  - {item}\n"))
            .collect::<String>()
    };
    format!(
        "stepwell: 1\nname: p\ntriggers:\n{}steps:\n{}",
        items(triggers),
        items(steps)
    )
}

pub(crate) fn of_steps(steps: &[&str]) -> String {
    document(&["http: {method: POST, path: /p}"], steps)
}

pub(crate) fn of_triggers(triggers: &[&str]) -> String {
    document(triggers, &["{id: a, plugin: decode-image@1}"])
}
