//! Configuration files: reading one never panics, and every mistake has its place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stepwell_document::{At, Problems, parse_toml};

fuzz_target!(|text: &str| match parse_toml(text) {
    Ok(root) => {
        let _ = root.to_json();
        let problems = Problems::default();
        for (_, section) in At::root(&root, &problems).entries().into_iter().flatten() {
            for (_, value) in section.entries().into_iter().flatten() {
                let _ = (value.string(), value.duration(), value.size());
                let _ = (value.integer(0, 10), value.boolean(), value.name());
            }
        }
        for problem in problems.into_sorted() {
            let _ = problem.to_string();
        }
    }
    Err(problems) => assert!(!problems.is_empty()),
});
