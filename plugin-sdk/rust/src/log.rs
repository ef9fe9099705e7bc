//! Writes to the host's log (`wasi:logging/logging`); lines carry the plugin, the step and the run by themselves.
//!
//! ```
//! use stepwell_sdk::log;
//! # stepwell_sdk::testing::Host::new().call(|| {
//! log::info!("read {} pixels", 64);
//! # });
//! ```
//!
//! Standard output and standard error go there too, so a panic's message is never lost.

pub use crate::{
    __critical as critical, __debug as debug, __error as error, __info as info, __trace as trace,
    __warn as warn,
};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every little thing.
    Trace,
    /// For who looks for a mistake.
    Debug,
    /// Normal and worth knowing.
    Info,
    /// Odd, but handled.
    Warn,
    /// Something did not work.
    Error,
    /// Nothing works any more.
    Critical,
}

/// Writes one line. `context` says which part of the plugin speaks; the macros write the module's path there.
pub fn write(level: Level, context: &str, message: &str) {
    crate::host::log::write(level, context, message);
}

/// Logs every little thing; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __trace {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Trace, ::core::module_path!(), &::std::format!($($arg)+))
    };
}

/// Logs what helps to find a mistake; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __debug {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Debug, ::core::module_path!(), &::std::format!($($arg)+))
    };
}

/// Logs what is normal and worth knowing; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __info {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Info, ::core::module_path!(), &::std::format!($($arg)+))
    };
}

/// Logs what is odd, but handled; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __warn {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Warn, ::core::module_path!(), &::std::format!($($arg)+))
    };
}

/// Logs what did not work; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __error {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Error, ::core::module_path!(), &::std::format!($($arg)+))
    };
}

/// Logs that nothing works any more; arguments as for `format!`.
#[macro_export]
#[doc(hidden)]
macro_rules! __critical {
    ($($arg:tt)+) => {
        $crate::log::write($crate::log::Level::Critical, ::core::module_path!(), &::std::format!($($arg)+))
    };
}
