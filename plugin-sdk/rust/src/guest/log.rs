use super::bindings::wasi::logging::logging::{Level as WitLevel, log};
use crate::log::Level;

pub(crate) fn write(level: Level, context: &str, message: &str) {
    let level = match level {
        Level::Trace => WitLevel::Trace,
        Level::Debug => WitLevel::Debug,
        Level::Info => WitLevel::Info,
        Level::Warn => WitLevel::Warn,
        Level::Error => WitLevel::Error,
        Level::Critical => WitLevel::Critical,
    };
    log(level, context, message);
}
