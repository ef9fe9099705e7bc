//! A step that imports WASI 0.3 beside the 0.2 of its standard library: its data is how long it thinks that it slept.

wit_bindgen::generate!({
    path: "../../../wit/pipeline",
    world: "stepwell:pipeline/step@0.1.0",
    generate_all,
});

use std::time::Duration;

use exports::stepwell::pipeline::handler::{Error, Event, Guest};
use wasip3::clocks::monotonic_clock;

struct Clocks;
export!(Clocks);

impl Guest for Clocks {
    fn process(mut input: Event) -> Result<Vec<Event>, Error> {
        let began = monotonic_clock::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = Duration::from_nanos(monotonic_clock::now() - began);
        input.data = slept.as_millis().to_string().into_bytes();
        Ok(vec![input])
    }
}
