use std::time::Duration;

use stepwell_core::{Action, BindingKind, Digest, ErrorKind, Isolation, Limits, Reuse};
use stepwell_pipeline::{Draft, ModelSpec, NodeSpec, Order, Retry, RunRetry, TriggerSpec};

use crate::support::{EXAMPLE, of_steps, validate};

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
