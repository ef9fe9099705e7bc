//! Pipeline documents: reading and validating one never panics, and what is accepted reads back from the catalog as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stepwell_core::{BindingKind, Digest, Name};
use stepwell_pipeline::{Draft, HostState, KnownPlugin};

fuzz_target!(|text: &str| {
    let mut host = HostState::default();
    host.bindings = BindingKind::ALL
        .map(|kind| (kind, "main".to_owned()))
        .to_vec();
    let draft = Draft::parse(text);
    host.plugins = draft.plugins().into_iter().map(known).collect();
    let namespace: Name = "default".parse().expect("a name");
    match draft.validate(&namespace, &host) {
        Ok(validated) => {
            let again = Draft::from_json(&validated.document)
                .finish()
                .expect("what was accepted is accepted again");
            assert_eq!(again, validated.spec);
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(!problem.message.is_empty());
                let _ = problem.to_string();
            }
        }
    }
});

fn known(name: Name) -> KnownPlugin {
    KnownPlugin {
        digest: Digest::of(name.as_str().as_bytes()),
        name,
        version: semver::Version::new(1, 0, 0),
        world: "stepwell:pipeline/step@0.1.0".to_owned(),
        imports: vec![
            "wasi:http/outgoing-handler@0.2.0".to_owned(),
            "stepwell:sql/database@0.1.0".to_owned(),
        ],
    }
}
