use std::sync::Arc;

use stepwell_core::Name;
use stepwell_pipeline::{
    Draft, HostState, HttpAuth, JwtIssuer, KafkaOwners, KnownPipeline, Subscriptions, TriggerSpec,
};

use crate::support::{document, host, kafka, name, of_triggers, validate};

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
