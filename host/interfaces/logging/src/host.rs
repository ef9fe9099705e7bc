use wasmtime::component::{HasData, Linker};

use crate::call::CallLog;
use crate::entry::Level;

mod generated {
    wasmtime::component::bindgen!({
        path: "../../../wit/logging",
        world: "wasi:logging/imports",
    });
}

use generated::wasi::logging::logging;

/// What the host function sees of a store's state.
pub struct LoggingView<'a> {
    /// The call's log.
    pub log: &'a CallLog,
}

/// Tells the linker that the function takes a [`LoggingView`].
pub struct HasLogging;

impl HasData for HasLogging {
    type Data<'a> = LoggingView<'a>;
}

/// Links `wasi:logging/logging`.
///
/// # Errors
/// When it is linked already.
pub fn add_to_linker<T: 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> LoggingView<'_>,
) -> wasmtime::Result<()> {
    logging::add_to_linker::<T, HasLogging>(linker, view)
}

impl logging::Host for LoggingView<'_> {
    fn log(&mut self, level: logging::Level, context: String, message: String) {
        self.log.log(level.into(), &context, &message);
    }
}

impl From<logging::Level> for Level {
    fn from(level: logging::Level) -> Self {
        match level {
            logging::Level::Trace => Self::Trace,
            logging::Level::Debug => Self::Debug,
            logging::Level::Info => Self::Info,
            logging::Level::Warn => Self::Warn,
            logging::Level::Error => Self::Error,
            logging::Level::Critical => Self::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_links_once() {
        fn view(log: &mut CallLog) -> LoggingView<'_> {
            LoggingView { log }
        }
        let engine = wasmtime::Engine::default();
        let mut linker = Linker::<CallLog>::new(&engine);
        add_to_linker(&mut linker, view).unwrap();
        assert!(add_to_linker(&mut linker, view).is_err());
    }
}
