//! Uploads: inspecting one never panics, whatever its bytes.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use stepwell_engine::{Engine, EngineConfig, StoreBase, StoreState};

/// No call is ever made.
enum Never {}

impl StoreState for Never {
    fn base(&mut self) -> &mut StoreBase {
        match *self {}
    }
}

static ENGINE: OnceLock<Engine<Never>> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let engine = ENGINE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory").keep();
        let config = EngineConfig {
            instances: 1,
            max_component: 1 << 20,
            ..EngineConfig::new(directory)
        };
        Engine::new(config, |_| Ok(())).expect("an engine")
    });
    if let Err(refused) = engine.inspect(bytes) {
        assert!(!refused.to_string().is_empty());
    }
});
