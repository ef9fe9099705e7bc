//! Structured CloudEvents: what is read is an event that can be sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stepwell_core::{Event, cloudevents};

fuzz_target!(|body: &[u8]| {
    if let Ok(event) = cloudevents::from_json(body) {
        assert!(!event.id.is_empty() && !event.source.is_empty() && !event.r#type.is_empty());
        for (name, _) in &event.extensions {
            assert!(Event::is_extension_name(name));
        }
        let _ = cloudevents::json_data(&event);
        let _ = cloudevents::sendable_extensions(&event).count();
    }
});
