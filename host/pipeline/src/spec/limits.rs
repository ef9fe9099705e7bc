//! Limits, timeouts and retries: how they are written, and the most that the host allows.

use std::time::Duration;

use stepwell_core::{ByteSize, ErrorKind, Limits, show_duration};
use stepwell_document::At;

use crate::{Retry, RunRetry};

/// The most CPU time that one call may be given.
pub(crate) const MAX_CPU: Duration = Duration::from_secs(60);
/// The most time that a call, a step or a run may be given.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(3600);
/// The most memory that one call may be given.
pub(crate) const MAX_MEMORY: u64 = 1 << 30;
/// The least memory with which a component can start: one page of 64 KiB.
const MIN_MEMORY: u64 = 64 << 10;
/// The most bytes that one call may return.
pub(crate) const MAX_OUTPUT: u64 = 64 << 20;
/// The largest request body that may be allowed.
pub(crate) const MAX_BODY: u64 = 64 << 20;
/// The most attempts that a retry may make.
pub(crate) const MAX_ATTEMPTS: i64 = 100;
/// The longest first pause.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest time after which a record is given up.
pub(crate) const MAX_RECORD_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

const MIN_TIME: Duration = Duration::from_micros(1);
const DEFAULT_BACKOFF: Duration = Duration::from_millis(100);

/// Reads `limits`; what is not written stays as in `defaults`.
pub(super) fn read_limits(at: Option<At<'_>>, defaults: Limits) -> Limits {
    let Some(mut map) = at.and_then(|at| at.mapping()) else {
        return defaults;
    };
    let cpu = map.optional("cpu").and_then(|at| duration(&at, MAX_CPU));
    let wall = map.optional("wall").and_then(|at| duration(&at, MAX_TIME));
    let memory = map
        .optional("memory")
        .and_then(|at| size(&at, MIN_MEMORY, MAX_MEMORY));
    let output = map
        .optional("output")
        .and_then(|at| size(&at, 0, MAX_OUTPUT));
    map.finish();
    Limits {
        cpu: cpu.unwrap_or(defaults.cpu),
        wall: wall.unwrap_or(defaults.wall),
        memory: memory.unwrap_or(defaults.memory),
        output: output.unwrap_or(defaults.output),
    }
}

/// Reads a step's `retry`.
pub(super) fn read_retry(at: &At<'_>) -> Option<Retry> {
    let mut map = at.mapping()?;
    let attempts = map.required("attempts").and_then(|at| attempts(&at));
    let backoff = map
        .optional("backoff")
        .and_then(|at| duration(&at, MAX_BACKOFF));
    let errors = map.optional("errors").and_then(|at| read_errors(&at));
    map.finish();
    Some(Retry {
        attempts: attempts?,
        backoff: backoff.unwrap_or(DEFAULT_BACKOFF),
        errors: errors.unwrap_or_else(|| {
            vec![
                ErrorKind::Unavailable,
                ErrorKind::Failed,
                ErrorKind::Timeout,
                ErrorKind::Trap,
            ]
        }),
    })
}

fn read_errors(at: &At<'_>) -> Option<Vec<ErrorKind>> {
    let items = at.sequence()?;
    if items.is_empty() {
        at.problem("no kind of error is retried: name one, or leave out 'retry'");
    }
    let mut kinds = Vec::new();
    for item in items {
        let Some(kind) = item
            .one_of(&ErrorKind::ALL.map(ErrorKind::as_str))
            .and_then(ErrorKind::parse)
        else {
            continue;
        };
        if kind == ErrorKind::Invalid {
            item.problem("an event that is invalid is never retried");
        } else if kinds.contains(&kind) {
            item.problem(format!("'{kind}' is there already"));
        } else {
            kinds.push(kind);
        }
    }
    Some(kinds)
}

/// Reads a Kafka trigger's `retry`.
pub(super) fn read_run_retry(at: Option<At<'_>>) -> RunRetry {
    let defaults = RunRetry::default();
    let Some(mut map) = at.and_then(|at| at.mapping()) else {
        return defaults;
    };
    let attempts = map.optional("attempts").and_then(|at| attempts(&at));
    let backoff = map
        .optional("backoff")
        .and_then(|at| duration(&at, MAX_BACKOFF));
    let max_age = map
        .optional("max_age")
        .and_then(|at| duration(&at, MAX_RECORD_AGE));
    map.finish();
    RunRetry {
        attempts: attempts.unwrap_or(defaults.attempts),
        backoff: backoff.unwrap_or(defaults.backoff),
        max_age: max_age.unwrap_or(defaults.max_age),
    }
}

fn attempts(at: &At<'_>) -> Option<u32> {
    at.integer(1, MAX_ATTEMPTS)
        .and_then(|number| u32::try_from(number).ok())
}

/// Reads a duration between a microsecond and `max`.
pub(super) fn duration(at: &At<'_>, max: Duration) -> Option<Duration> {
    let value = at.duration()?;
    if value < MIN_TIME {
        at.problem("must be longer than nothing");
        return None;
    }
    if value > max {
        let (value, max) = (show_duration(value), show_duration(max));
        at.problem(format!(
            "{value} is more than this host allows, which is {max}"
        ));
        return None;
    }
    Some(value)
}

/// Reads a size between `min` and `max`.
pub(super) fn size(at: &At<'_>, min: u64, max: u64) -> Option<u64> {
    let value = at.size()?;
    let [shown, least, most] = [value, min, max].map(ByteSize);
    if value < min {
        at.problem(format!("{shown} is too little: at least {least}"));
        return None;
    }
    if value > max {
        at.problem(format!(
            "{shown} is more than this host allows, which is {most}"
        ));
        return None;
    }
    Some(value)
}
