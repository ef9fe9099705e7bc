#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! Pipeline documents: the example of the contract, and every mistake with its exact place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Action, BindingKind, Digest, ErrorKind, Isolation, Limits, Name, Reuse};
use stepwell_pipeline::{
    Draft, HostState, HttpAuth, HttpTriggerSpec, JwtHost, JwtIssuer, KafkaOwners, KafkaTriggerSpec,
    KnownPipeline, KnownPlugin, ModelSpec, NodeSpec, Order, Retry, RunRetry, Subscriptions,
    TriggerSpec, Validated,
};

const EXAMPLE: &str = include_str!("digit-reader.yaml");

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn plugin(name_and_version: &str, world: &str, imports: &[&str]) -> KnownPlugin {
    let (plugin, version) = name_and_version.split_once('@').unwrap();
    KnownPlugin {
        name: name(plugin),
        version: version.parse().unwrap(),
        digest: Digest::of(name_and_version.as_bytes()),
        world: world.to_owned(),
        imports: imports.iter().map(ToString::to_string).collect(),
    }
}

const STEP: &str = "stepwell:pipeline/step@0.1.0";
const PROXY: &str = "wasi:http/proxy@0.2.6";

fn host() -> HostState {
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

fn http(method: &str, path: &str) -> TriggerSpec {
    TriggerSpec::Http(HttpTriggerSpec {
        method: Some(method.to_owned()),
        path: path.to_owned(),
        max_body: 1 << 20,
        timeout: Duration::from_secs(30),
        auth: HttpAuth::None,
    })
}

fn kafka(topic: &str, group: &str) -> TriggerSpec {
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

fn validate(text: &str) -> Result<Validated, Vec<String>> {
    Draft::parse(text)
        .validate(&name("default"), &host())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// A document with these triggers and steps, each given as flow YAML; triggers begin on line 4, steps right after them.
fn document(triggers: &[&str], steps: &[&str]) -> String {
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

fn of_steps(steps: &[&str]) -> String {
    document(&["http: {method: POST, path: /p}"], steps)
}

fn of_triggers(triggers: &[&str]) -> String {
    document(triggers, &["{id: a, plugin: decode-image@1}"])
}

#[test]
fn the_example_of_the_contract() {
    let validated = validate(EXAMPLE).unwrap();
    let spec = &validated.spec;
    assert_eq!(spec.name.as_str(), "digit-reader");
    assert_eq!(
        spec.description.as_deref(),
        Some("Reads a picture of a handwritten digit.")
    );
    let TriggerSpec::Http(http) = &spec.triggers[0] else {
        panic!()
    };
    assert_eq!(
        (http.method.as_deref(), http.path.as_str()),
        (Some("POST"), "/digits/{set}")
    );
    assert_eq!(
        (http.max_body, http.timeout),
        (1 << 20, Duration::from_secs(2))
    );
    let TriggerSpec::Kafka(kafka) = &spec.triggers[1] else {
        panic!()
    };
    assert_eq!(
        (kafka.topics[0].as_str(), kafka.group.as_str()),
        ("digits", "digit-reader")
    );
    assert_eq!(
        (kafka.output.as_deref(), kafka.dead_letter.as_str()),
        (Some("answers"), "digits.dlq")
    );
    assert_eq!(
        (kafka.timeout, kafka.retry),
        (Duration::from_secs(30), RunRetry::default())
    );

    let [decode, classify, record] = spec.steps.as_slice() else {
        panic!()
    };
    assert_eq!(
        (decode.limits, decode.timeout, &decode.retry),
        (Limits::default(), None, &None)
    );
    assert_eq!(classify.config, [("neighbours".to_owned(), "5".to_owned())]);
    assert!(
        classify
            .grants
            .check(BindingKind::Models, "digits", Action::Infer)
            .is_ok()
    );
    assert!(
        classify
            .grants
            .check(BindingKind::Models, "digits", Action::Describe)
            .is_err()
    );
    assert_eq!(classify.timeout, Some(Duration::from_millis(200)));
    let retry = Retry {
        attempts: 3,
        backoff: Duration::from_millis(50),
        errors: vec![ErrorKind::Unavailable],
    };
    assert_eq!(classify.retry, Some(retry));
    let grant = record.grants.get(BindingKind::Keyvalue, "cache").unwrap();
    assert_eq!(
        (grant.binding.as_str(), grant.prefix.as_str()),
        ("main-redis", "digits:")
    );

    let pins: Vec<String> = validated
        .pins
        .iter()
        .map(|pin| format!("{} {}@{}", pin.step, pin.plugin, pin.version))
        .collect();
    assert_eq!(
        pins,
        [
            "decode decode-image@1.2.0",
            "classify classify-digit@1.0.0",
            "record record@1.0.0"
        ]
    );
    assert_eq!(
        serde_json::to_value(&validated.pins[0]).unwrap(),
        serde_json::json!({"id": "decode", "plugin": "decode-image", "version": "1.2.0", "digest": Digest::of(b"decode-image@1.2.0")})
    );
    // What the catalog keeps reads back as the same specification, in the same order.
    let keys: Vec<&String> = validated.document.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "stepwell",
            "name",
            "description",
            "triggers",
            "defaults",
            "steps"
        ]
    );
    assert_eq!(
        Draft::from_json(&validated.document).finish().unwrap(),
        *spec
    );
    assert_eq!(
        validate(&validated.document.to_string()).unwrap().document,
        validated.document
    );
    assert_eq!(
        validate(&serde_json::to_string_pretty(&validated.document).unwrap())
            .unwrap()
            .spec,
        *spec
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "stepwell: 1\nname: p\ntriggers:\n- http: {method: GET, path: /}\n- kafka: {topics: [a.b_C-9], group: g}\nsteps: [{id: a, plugin: decode-image@latest, limits: {memory: 1GiB}}]\n";
    let spec = validate(text).unwrap().spec;
    let TriggerSpec::Http(http) = &spec.triggers[0] else {
        panic!()
    };
    assert_eq!(
        (http.max_body, http.timeout),
        (1 << 20, Duration::from_secs(30))
    );
    let TriggerSpec::Kafka(kafka) = &spec.triggers[1] else {
        panic!()
    };
    assert_eq!(
        (
            kafka.output.as_deref(),
            kafka.dead_letter.as_str(),
            kafka.order
        ),
        (None, "g.dlq", Order::Key)
    );
    assert_eq!(
        spec.steps[0].limits,
        Limits {
            memory: 1 << 30,
            ..Limits::default()
        }
    );
}

#[test]
fn json_is_read_as_json() {
    let text = "{\n\t\"stepwell\": 1, \"name\": \"p\",\n\t\"description\": \"a\\/b \\u00e9 \\ud83d\\ude00 \\\"q\\\" \\n\",\n\t\"steps\": [{\"id\":\"a\",\"plugin\":\"decode-image@1\"}]\n}";
    let expected: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(validate(text).unwrap().document, expected);
}

#[test]
fn a_model_step() {
    let steps = [
        "{id: a, model: digits@2, inputs: {x: /image/0}, outputs: {answer: y}, timeout: 1s}",
        "{id: b, model: digits}",
    ];
    let validated = validate(&of_steps(&steps)).unwrap();
    assert!(validated.pins.is_empty());
    let NodeSpec::Model(model) = &validated.spec.steps[0].node else {
        panic!()
    };
    let expected = ModelSpec {
        binding: "digits".into(),
        version: Some("2".into()),
        inputs: vec![("x".into(), "/image/0".into())],
        outputs: vec![("answer".into(), "y".into())],
    };
    assert_eq!(*model, expected);
    assert!(
        validated.spec.steps[1]
            .grants
            .check(BindingKind::Models, "digits", Action::Infer)
            .is_ok()
    );
}

#[test]
fn a_function_is_the_only_step_of_its_pipeline() {
    for trigger in [
        "http: {path: '/hello/{*rest}'}",
        "http: {path: /hello}",
        "http: {method: GET, path: '/hello/{name}'}",
    ] {
        validate(&document(&[trigger], &["{id: a, plugin: hello-http@1}"])).unwrap();
    }
}

#[test]
fn neighbouring_routes_are_free() {
    for path in [
        "/taken/there",
        "/taken",
        "/taken/{x}/more",
        "/v2x",
        "/elsewhere",
    ] {
        validate(&of_triggers(&[&format!(
            "http: {{method: POST, path: '{path}'}}"
        )]))
        .unwrap();
    }
    validate(&of_triggers(&[
        "http: {method: DELETE, path: '/taken/{y}'}",
    ]))
    .unwrap();
    validate(&of_triggers(&["kafka: {topics: [theirs], group: ours}"])).unwrap();
}

#[test]
fn topics_and_groups_of_other_namespaces_are_refused() {
    let owners = [("ours.", "default"), ("theirs.", "elsewhere")];
    let checked = |trigger: &str| {
        let mut host = host();
        host.kafka = owners
            .map(|(start, owner)| (start.into(), name(owner)))
            .into_iter()
            .collect();
        Draft::parse(&of_triggers(&[trigger])).validate(&Name::default_namespace(), &host)
    };
    checked("kafka: {topics: [ours.in, free], group: ours.g, output: ours.out}").unwrap();
    // Whoever read it before it was ours does not any more.
    let mut host = host();
    host.kafka = [("theirs".into(), name("default"))].into_iter().collect();
    host.pipelines = vec![Arc::new(KnownPipeline {
        namespace: name("elsewhere"),
        name: name("other"),
        triggers: vec![kafka("theirs", "theirs")],
    })];
    let text = of_triggers(&["kafka: {topics: [theirs], group: theirs}"]);
    let validate =
        |host: &HostState| Draft::parse(&text).validate(&Name::default_namespace(), host);
    validate(&host).unwrap();
    host.kafka = KafkaOwners::default();
    assert!(validate(&host).is_err());
    for (trigger, places) in [
        (
            "{topics: [ours.in, theirs.in], group: g}",
            &["topics/1"][..],
        ),
        ("{topics: [in], group: theirs.g}", &["group", "group"]),
        (
            "{topics: [in], group: theirs.g, dead_letter: dead}",
            &["group"],
        ),
        (
            "{topics: [in], group: theirs.g, dead_letter: theirs.gone}",
            &["group", "dead_letter"],
        ),
        ("{topics: [in], group: g, output: theirs.in}", &["output"]),
        (
            "{topics: [in], group: g, dead_letter: theirs.in}",
            &["dead_letter"],
        ),
    ] {
        let problems = checked(&format!("kafka: {trigger}")).unwrap_err();
        let found: Vec<&str> = problems
            .iter()
            .map(|problem| problem.path.as_str())
            .collect();
        let expected: Vec<String> = places
            .iter()
            .map(|place| format!("/triggers/0/kafka/{place}"))
            .collect();
        assert_eq!(found, expected, "{problems:?}");
        let shown = problems[0].to_string();
        assert!(
            shown.contains("'theirs.") && shown.contains("not for namespace 'default'"),
            "{shown}"
        );
        assert!(!shown.contains("elsewhere"), "{shown}");
    }
}

#[test]
fn subscriptions_need_room() {
    let text = of_triggers(&[
        "kafka: {topics: [a], group: one}",
        "http: {method: POST, path: /free}",
        "kafka: {topics: [a], group: two}",
    ]);
    let checked = |free| {
        let mut host = host();
        host.subscriptions = Some(Subscriptions { free, most: 40 });
        Draft::parse(&text).validate(&Name::default_namespace(), &host)
    };
    checked(2).unwrap();
    let problems = checked(1).unwrap_err();
    let problem = &problems[0];
    assert_eq!((problems.len(), problem.path.as_str()), (1, "/triggers"));
    for part in [
        "2 Kafka triggers",
        "room for 1",
        "a host has 40",
        "limits.subscriptions",
    ] {
        assert!(problem.message.contains(part), "{problem:?}");
    }
}

#[test]
fn origins_are_granted_in_the_order_of_the_document() {
    let step = "{id: a, plugin: caller@1, grants: {http: ['https://api.example.com', 'http://10.0.0.5:8080', 'https://*.example.com']}}";
    let validated = validate(&of_steps(&[step])).unwrap();
    let origins: Vec<String> = validated.spec.steps[0]
        .grants
        .http()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        origins,
        [
            "https://api.example.com",
            "http://10.0.0.5:8080",
            "https://*.example.com"
        ]
    );
    // Importing it without a grant is no mistake: calls are denied.
    let validated = validate(&of_steps(&["{id: a, plugin: caller@1}"])).unwrap();
    assert!(validated.spec.steps[0].grants.http().is_empty());
}

#[test]
fn a_route_says_who_may_call() {
    let own = JwtIssuer {
        issuer: "https://issuer.example/".to_owned(),
        audience: "stepwell".to_owned(),
        jwks: "https://issuer.example/keys".to_owned(),
    };
    let internal = JwtIssuer {
        jwks: "http://keys.internal:8080/set?x=1".to_owned(),
        ..own.clone()
    };
    for (written, expected) in [
        ("", HttpAuth::None),
        (", auth: none", HttpAuth::None),
        (", auth: token", HttpAuth::Token),
        (
            ", auth: {jwt: {issuer: 'https://issuer.example/', audience: stepwell, jwks: 'https://issuer.example/keys'}}",
            HttpAuth::OwnJwt(own),
        ),
        (
            ", auth: {jwt: {issuer: 'https://issuer.example/', audience: stepwell, jwks: 'http://keys.internal:8080/set?x=1'}}",
            HttpAuth::OwnJwt(internal),
        ),
    ] {
        let trigger = format!("http: {{method: POST, path: /p{written}}}");
        let validated = validate(&of_triggers(&[&trigger])).unwrap();
        let TriggerSpec::Http(http) = &validated.spec.triggers[0] else {
            panic!("{trigger}");
        };
        assert_eq!(http.auth, expected, "{trigger}");
    }
    // The operator's issuer is there to be used once there is one.
    let text = of_triggers(&["http: {method: POST, path: /p, auth: jwt}"]);
    assert!(validate(&text).is_err());
    let mut with_issuer = host();
    with_issuer.jwt.has_issuer = true;
    let draft = Draft::parse(&text);
    draft.validate(&name("default"), &with_issuer).unwrap();
}

/// `mistakes.txt` holds documents and, after `=>`, what is wrong with each; `UPDATE=1` writes anew what follows the arrows.
#[test]
fn every_mistake_says_where_it_is() {
    let path = "tests/mistakes.txt";
    let text = std::fs::read_to_string(path).unwrap();
    let mut updated = String::new();
    let mut cases = 0;
    for case in text.split("\n\n") {
        let (document, expected) = case.split_once("=>\n").unwrap();
        let found = validate(document)
            .map(|_| ())
            .expect_err(document)
            .join("\n");
        if std::env::var_os("UPDATE").is_none() {
            assert_eq!(found, expected.trim_end(), "{document}");
        }
        let gap = if cases == 0 { "" } else { "\n\n" };
        updated += &format!("{gap}{document}=>\n{found}");
        cases += 1;
    }
    assert!(cases > 50, "{cases}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, updated + "\n").unwrap();
    }
}

/// A small generator of our own (xorshift), so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn no_mutation_of_a_document_panics() {
    let mut random = Random(0x5743_7e11);
    let host = host();
    let words = [
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "'",
        "\"",
        "&a",
        "*a",
        "!!",
        "null",
        "~",
        "1e999",
        "\t",
        "\0",
        "é",
        "%",
        "|",
        ">",
        "? ",
        "-1MiB",
        "99999999999999999999s",
        "plugin",
        "steps",
        "http",
    ];
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let mut lines: Vec<String> = EXAMPLE.lines().map(ToOwned::to_owned).collect();
        for _ in 0..=random.below(3) {
            let line = random.below(lines.len());
            match random.below(5) {
                0 => drop(lines.remove(line)),
                1 => lines.insert(line, lines[line].clone()),
                2 => {
                    let other = random.below(lines.len());
                    lines.swap(line, other);
                }
                3 => {
                    let mut characters: Vec<char> = lines[line].chars().collect();
                    let place = random.below(characters.len().max(1));
                    characters.splice(place..place, words[random.below(words.len())].chars());
                    lines[line] = characters.into_iter().collect();
                }
                _ => {
                    let mut characters: Vec<char> = lines[line].chars().collect();
                    if !characters.is_empty() {
                        let place = random.below(characters.len());
                        characters[place] = char::from(u8::try_from(random.below(128)).unwrap());
                    }
                    lines[line] = characters.into_iter().collect();
                }
            }
            if lines.is_empty() {
                break;
            }
        }
        let text = lines.join("\n");
        match Draft::parse(&text).validate(&name("default"), &host) {
            Ok(validated) => {
                good += 1;
                assert_eq!(
                    Draft::from_json(&validated.document).finish().unwrap(),
                    validated.spec,
                    "{round}"
                );
            }
            Err(problems) => {
                bad += 1;
                assert!(!problems.is_empty(), "{round}: {text}");
                let count = u32::try_from(text.lines().count()).unwrap();
                for problem in problems {
                    assert!(problem.line.unwrap() <= count + 1, "{round}: {problem}");
                }
            }
        }
    }
    assert!(good > 100 && bad > 1000, "{good} {bad}");
}

#[test]
fn hostile_documents_are_refused_quickly() {
    let bomb = (1..30).fold("a0: &a0 [x, x, x, x]\n".to_owned(), |text, n| {
        let before = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{before}, {before}, {before}, {before}]\n")
    });
    let keys: String = (0..25_000).map(|n| format!("k{n}: 1\n")).collect();
    let steps: String = (0..5_000)
        .map(|n| format!("  - {{id: s{n}, plugin: decode-image@1}}\n"))
        .collect();
    for (text, part) in [
        (bomb, "anchors"),
        ("[".repeat(200_000), "recursion limit"),
        ("{a: ".repeat(50_000), "recursion limit"),
        ("- ".repeat(100_000), "nested deeper"),
        (keys, "unknown key 'k0'"),
        (
            format!("stepwell: 1\nname: p\nsteps:\n{steps}"),
            "more than 100 steps",
        ),
        ("a".repeat(300 << 10), "longer than 256 KiB"),
        (String::new(), "expected a mapping"),
    ] {
        let started = Instant::now();
        let found = validate(&text).unwrap_err();
        assert!(
            found.iter().any(|problem| problem.contains(part)),
            "{part}: {:?}",
            &found[..found.len().min(3)]
        );
        assert!(found.len() <= 101);
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{part}: {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn isolation_is_fresh_until_a_document_says_otherwise() {
    let isolation = |text: &str| {
        let spec = Draft::parse(text).finish().expect(text);
        spec.steps
            .iter()
            .map(|step| step.isolation)
            .collect::<Vec<_>>()
    };
    let reuse = |max_calls, idle, concurrency| {
        Isolation::Reuse(Reuse {
            max_calls,
            idle: Duration::from_millis(idle),
            concurrency,
        })
    };
    let steps = "[{id: a, plugin: x@1}, {id: b, plugin: x@1, isolation: fresh}, {id: c, plugin: x@1, isolation: reuse}, \
                 {id: d, plugin: x@1, isolation: {reuse: {idle: 1ms}}}, {id: e, plugin: x@1, isolation: {reuse: {max_calls: 1000000, idle: 1h, concurrency: 1000}}}]";
    assert_eq!(
        isolation(&format!("{{stepwell: 1, name: p, steps: {steps}}}")),
        [
            Isolation::Fresh,
            Isolation::Fresh,
            reuse(1000, 30_000, 1),
            reuse(1000, 1, 1),
            reuse(1_000_000, 3_600_000, 1000),
        ]
    );
    // What a step does not say stays as in the defaults.
    let defaults = "{isolation: {reuse: {max_calls: 7, concurrency: 2}}}";
    assert_eq!(
        isolation(&format!(
            "{{stepwell: 1, name: p, defaults: {defaults}, steps: {steps}}}"
        )),
        [
            reuse(7, 30_000, 2),
            Isolation::Fresh,
            reuse(7, 30_000, 2),
            reuse(7, 1, 2),
            reuse(1_000_000, 3_600_000, 1000),
        ]
    );
}

#[test]
fn grants_of_a_kind_are_so_many_and_no_more() {
    let of = |count: usize| {
        let grants: String = (0..count)
            .map(|i| format!("      g{i}: [read]\n"))
            .collect();
        let text = format!(
            "stepwell: 1\nname: p\nsteps:\n- id: a\n  plugin: x@1\n  grants:\n    keyvalue:\n{grants}"
        );
        Draft::parse(&text).finish()
    };
    assert!(of(256).is_ok());
    for count in [257, 10_000] {
        let problems = of(count).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].message.contains("more than 256 grants"),
            "{}",
            problems[0]
        );
    }
}
