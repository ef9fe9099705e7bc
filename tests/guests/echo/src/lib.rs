//! A step that gives back what it got: what a call costs, and nothing else.

wit_bindgen::generate!({
    path: "../../../wit/pipeline",
    world: "stepwell:pipeline/step",
    generate_all,
});

use exports::stepwell::pipeline::handler::{Error, Event, Guest};

struct Echo;
export!(Echo);

impl Guest for Echo {
    fn process(input: Event) -> Result<Vec<Event>, Error> {
        Ok(vec![input])
    }
}
