use super::{LogLine, current};
use crate::log::Level;

pub(crate) fn write(level: Level, context: &str, message: &str) {
    // Logging never fails; outside of a call the line goes where a test's output goes.
    match current() {
        Ok(host) => host.logs.borrow_mut().push(LogLine {
            level,
            context: context.to_owned(),
            message: message.to_owned(),
        }),
        Err(_) => eprintln!("{level:?} {context}: {message}"),
    }
}
