use stepwell_pipeline::Draft;

use crate::support::{of_steps, validate};

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
