//! Filters of vector queries: reading and evaluating one never panics, and what is accepted is accepted again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stepwell_vector::Filter;

fuzz_target!(|text: &str| {
    if let Ok(filter) = Filter::parse(text) {
        let _ = filter.holds(None);
        Filter::parse(&filter.as_json().to_string()).expect("what was accepted is accepted again");
    }
});
