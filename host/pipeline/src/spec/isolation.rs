//! How the calls of a step share instances: how it is written, and the most that the host allows.

use std::time::Duration;

use stepwell_core::{Isolation, Reuse, show_duration};
use stepwell_document::{At, Value};

use super::limits::duration;

/// The most calls that one instance may answer.
pub(crate) const MAX_CALLS: i64 = 1_000_000;
/// The shortest time after which an idle instance ends: below this none would be found again.
pub(crate) const MIN_IDLE: Duration = Duration::from_millis(1);
/// The longest.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(3600);
/// The most calls that one instance may answer at the same time.
pub(crate) const MAX_CONCURRENCY: i64 = 1000;

const FRESH: &str = "fresh";
const REUSE: &str = "reuse";

/// Reads `isolation`; of `reuse`, what is not written stays as in `defaults`.
pub(super) fn read_isolation(at: Option<At<'_>>, defaults: Isolation) -> Isolation {
    let Some(at) = at else {
        return defaults;
    };
    let inherited = match defaults {
        Isolation::Reuse(reuse) => reuse,
        Isolation::Fresh => Reuse::default(),
    };
    match &at.node().value {
        Value::Mapping(_) => Isolation::Reuse(read_reuse(&at, inherited)),
        Value::String(_) => match at.one_of(&[FRESH, REUSE]) {
            Some(REUSE) => Isolation::Reuse(inherited),
            _ => Isolation::Fresh,
        },
        other => {
            at.problem_with_hint(
                format!(
                    "expected '{FRESH}', '{REUSE}' or a mapping, found {}",
                    other.kind()
                ),
                "such as {reuse: {max_calls: 1000}}",
            );
            defaults
        }
    }
}

fn read_reuse(at: &At<'_>, inherited: Reuse) -> Reuse {
    let Some(mut map) = at.mapping() else {
        return inherited;
    };
    let reuse = map.required(REUSE).and_then(|at| at.mapping());
    map.finish();
    let Some(mut map) = reuse else {
        return inherited;
    };
    let number = |at: At<'_>, most| {
        let number = at.integer(1, most)?;
        u32::try_from(number).ok()
    };
    let max_calls = map
        .optional("max_calls")
        .and_then(|at| number(at, MAX_CALLS));
    let idle = map.optional("idle").and_then(|at| read_idle(&at));
    let concurrency = map
        .optional("concurrency")
        .and_then(|at| number(at, MAX_CONCURRENCY));
    map.finish();
    Reuse {
        max_calls: max_calls.unwrap_or(inherited.max_calls),
        idle: idle.unwrap_or(inherited.idle),
        concurrency: concurrency.unwrap_or(inherited.concurrency),
    }
}

fn read_idle(at: &At<'_>) -> Option<Duration> {
    let value = duration(at, MAX_IDLE)?;
    if value < MIN_IDLE {
        let (value, least) = (show_duration(value), show_duration(MIN_IDLE));
        at.problem(format!("{value} is too little: at least {least}"));
        return None;
    }
    Some(value)
}
