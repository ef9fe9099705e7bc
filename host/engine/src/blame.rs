//! Why a guest did not come to its end, and where it was.

use std::fmt::{self, Write as _};

use stepwell_core::{Blame, ErrorKind, Fault, Limits, StepError};
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::meter::{Exceeded, Meter};
use crate::store::HANDLES;

/// Functions of a backtrace that are named.
const FRAMES: usize = 16;

/// Functions that the error's own text names.
const SHOWN: usize = 4;

/// Characters of a function's name.
const NAME: usize = 160;

/// Bytes of a mangled name that are worth to be demangled.
const MANGLED: usize = 4096;

/// Says whose fault it was that the guest stopped.
pub(crate) fn blame(
    error: &wasmtime::Error,
    meter: &Meter,
    limits: &Limits,
    host_call_bytes: u64,
) -> StepError {
    if error.is::<PoolConcurrencyLimitError>() {
        return busy();
    }
    let trace = error.downcast_ref::<WasmBacktrace>();
    let fault = |kind: &str| Fault {
        kind: kind.to_owned(),
        backtrace: backtrace(trace),
    };
    if let Some(exceeded) = exceeded(error, meter, limits, host_call_bytes) {
        return StepError::from(exceeded).with_fault(fault(exceeded.as_str()));
    }
    let (kind, what) = match (
        error.downcast_ref::<I32Exit>(),
        error.downcast_ref::<Trap>(),
    ) {
        (Some(exit), _) => (
            "exit".to_owned(),
            format!("called exit with status {}", exit.0),
        ),
        (None, Some(trap)) => {
            let text = trap.to_string();
            let text = text.trim_start_matches("wasm trap: ");
            (word(trap), format!("trapped: {text}"))
        }
        // What it handed over was not what its type says, or the host could not go on.
        (None, None) => {
            let cause = written(format_args!("{}", error.root_cause()), 500);
            ("invalid-value".to_owned(), format!("trapped: {cause}"))
        }
    };
    let fault = fault(&kind);
    let message = match fault.backtrace.get(..SHOWN).unwrap_or(&fault.backtrace) {
        [] => format!("the guest {what}"),
        names => format!("the guest {what} (in {})", names.join(", called by ")),
    };
    StepError::new(ErrorKind::Trap, message).with_fault(fault)
}

/// The host runs as many instances as it can hold.
pub(crate) fn busy() -> StepError {
    metrics::counter!("stepwell_limit_hits_total", "limit" => "instances").increment(1);
    StepError::new(
        ErrorKind::Unavailable,
        "the host runs as many instances as it can hold; this limit is the host's own and has no setting",
    )
    .blamed(Blame::Host)
}

/// The namespace runs as many instances as it may beside others.
pub(crate) fn crowded(all: u32) -> StepError {
    metrics::counter!("stepwell_limit_hits_total", "limit" => "instances_share").increment(1);
    StepError::new(
        ErrorKind::Unavailable,
        format!(
            "the guests of this namespace take up three quarters of the {all} instances that this host can hold, and there are no more for them while other namespaces use it; this limit is the host's own and has no setting"
        ),
    )
    .blamed(Blame::Host)
}

fn exceeded(
    error: &wasmtime::Error,
    meter: &Meter,
    limits: &Limits,
    host_call_bytes: u64,
) -> Option<Exceeded> {
    if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
        return Some(*exceeded);
    }
    // Guests are told of a refused growth and mostly abort: what comes after is the limit's doing.
    if let Some(refused) = meter.refused {
        return Some(refused);
    }
    if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
        return Some(Exceeded::Handles(HANDLES));
    }
    let cause = error.root_cause().to_string();
    if cause.contains("store handle limit exceeded") {
        return Some(Exceeded::Handles(HANDLES));
    }
    if cause.contains("fuel allocated for hostcalls has been exhausted") {
        // With a backtrace the guest was calling the host; without one it had returned.
        return Some(match error.downcast_ref::<WasmBacktrace>() {
            Some(_) => Exceeded::HostCall(host_call_bytes),
            None => Exceeded::Output(limits.output),
        });
    }
    None
}

/// A trap's kind as one word of the kind that `Fault` has: `MemoryOutOfBounds` is `memory-out-of-bounds`.
fn word(trap: &Trap) -> String {
    let mut word = String::new();
    for c in format!("{trap:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

/// The innermost functions, by name.
fn backtrace(trace: Option<&WasmBacktrace>) -> Vec<String> {
    trace
        .map(WasmBacktrace::frames)
        .unwrap_or_default()
        .iter()
        .take(FRAMES)
        .map(|frame| match frame.func_name() {
            Some(name) => readable(name),
            None => format!("function {}", frame.func_index()),
        })
        .collect()
}

/// A function's name as its author wrote it. The name is whatever the component's maker put there.
fn readable(name: &str) -> String {
    if name.len() <= MANGLED
        && let Ok(symbol) = rustc_demangle::try_demangle(name)
    {
        // A few bytes can stand for a name of megabytes.
        return written(format_args!("{symbol:#}"), NAME);
    }
    harmless(name, NAME)
}

/// What a guest has made up, as text that is cut to length before it is written at length.
pub(crate) fn shown(value: &impl fmt::Debug, length: usize) -> String {
    written(format_args!("{value:?}"), length)
}

fn written(text: fmt::Arguments<'_>, length: usize) -> String {
    let mut short = Short {
        text: String::new(),
        left: length,
    };
    let _ = short.write_fmt(text);
    harmless(&short.text, length)
}

/// Takes as many characters as fit and ends the writing there.
struct Short {
    text: String,
    left: usize,
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.text.push(c);
        }
        Ok(())
    }
}

/// The text cut to length, without what would forge lines or obey a terminal.
fn harmless(text: &str, length: usize) -> String {
    text.chars()
        .take(length)
        .map(|c| match c {
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                char::REPLACEMENT_CHARACTER
            }
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_harmless() {
        for (name, shown) in [
            (
                "_ZN4core9panicking5panic17h0123456789abcdefE",
                "core::panicking::panic",
            ),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("main", "main"),
            ("", ""),
            (
                "a\u{1b}[2J\r\nERROR forged\u{202e}",
                "a\u{fffd}[2J\u{fffd}\u{fffd}ERROR forged\u{fffd}",
            ),
        ] {
            assert_eq!(readable(name), shown, "{name:?}");
        }
        assert_eq!(readable(&"é".repeat(100_000)).chars().count(), NAME);
        // Each B refers back to a tuple of the one before: the name doubles with every few bytes.
        let mut bomb = "_RINvC1a1bTuuE".to_owned();
        for _ in 0..60 {
            let at = bomb.len() - 4;
            bomb.push_str(&format!("TB{at:x}_B{at:x}_E"));
        }
        bomb.push('E');
        assert!(readable(&bomb).chars().count() <= NAME);
    }

    #[test]
    fn traps_have_a_word() {
        assert_eq!(word(&Trap::MemoryOutOfBounds), "memory-out-of-bounds");
        assert_eq!(word(&Trap::StackOverflow), "stack-overflow");
        assert_eq!(
            word(&Trap::UnreachableCodeReached),
            "unreachable-code-reached"
        );
    }
}
