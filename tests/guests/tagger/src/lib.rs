//! A step that appends its configured `tag` to the event's data: it shows which revision a run is on.

wit_bindgen::generate!({
    path: ["../../../wit/config", "../../../wit/pipeline"],
    inline: "
        package test:tagger;
        world guest {
            include stepwell:pipeline/step@0.1.0;
            import wasi:config/store@0.2.0-rc.1;
        }
    ",
    world: "test:tagger/guest",
    generate_all,
});

use exports::stepwell::pipeline::handler::{Error, Event, Guest};

struct Tagger;
export!(Tagger);

impl Guest for Tagger {
    fn process(mut input: Event) -> Result<Vec<Event>, Error> {
        let tag = wasi::config::store::get("tag")
            .ok()
            .flatten()
            .ok_or_else(|| Error::Failed("there is no tag".into()))?;
        input.data.extend_from_slice(format!("{tag} ").as_bytes());
        Ok(vec![input])
    }
}
