use std::fmt;
use std::time::Duration;

/// A size or duration that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidUnit {
    message: String,
    /// The text that was probably meant.
    pub hint: Option<String>,
}

const SIZES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const TIMES: [(&str, u64); 5] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Times that tokens and records are kept; [`TIMES`] would invite months in hours.
const LIFETIMES: [(&str, u64); 4] = [
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Reads a size such as `64MiB`: a whole number and `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// [`InvalidUnit`], with the unit that a bare number or a foreign unit may have meant.
pub fn parse_size(text: &str) -> Result<u64, InvalidUnit> {
    let hint = |digits: &str, unit: &str| match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => format!("{digits}KiB"),
        "g" | "gb" | "gib" => format!("{digits}GiB"),
        _ => format!("{digits}MiB"),
    };
    parse(text, &SIZES, "size", "KiB, MiB or GiB", hint)
}

/// Reads a duration such as `250ms`: a whole number and `us`, `ms`, `s`, `m` or `h`.
///
/// # Errors
/// [`InvalidUnit`], with the unit that a bare number or a foreign unit may have meant.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let hint = |digits: &str, unit: &str| match unit.trim().to_ascii_lowercase().as_str() {
        "us" | "ms" | "s" | "m" | "h" => format!("{digits}{}", unit.trim()),
        "" | "msec" | "millis" => format!("{digits}ms"),
        "µs" | "usec" => format!("{digits}us"),
        "min" | "mins" | "minutes" => format!("{digits}m"),
        "hr" | "hours" => format!("{digits}h"),
        _ => format!("{digits}s"),
    };
    parse(text, &TIMES, "duration", "us, ms, s, m or h", hint).map(Duration::from_nanos)
}

/// Reads how long something lives, such as `90d`: a whole number and `s`, `m`, `h` or `d`.
///
/// # Errors
/// [`InvalidUnit`], with the unit that a bare number or a foreign unit may have meant.
pub fn parse_lifetime(text: &str) -> Result<Duration, InvalidUnit> {
    let hint = |digits: &str, unit: &str| match unit.trim().to_ascii_lowercase().as_str() {
        "s" | "m" | "h" => format!("{digits}{}", unit.trim().to_ascii_lowercase()),
        "min" | "mins" | "minutes" => format!("{digits}m"),
        "hr" | "hours" => format!("{digits}h"),
        _ => format!("{digits}d"),
    };
    parse(text, &LIFETIMES, "time", "s, m, h or d", hint).map(Duration::from_nanos)
}

fn parse(
    text: &str,
    units: &[(&str, u64)],
    what: &str,
    expected: &str,
    hint: impl Fn(&str, &str) -> String,
) -> Result<u64, InvalidUnit> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shown: String = text.chars().take(40).collect();
    if digits.is_empty() {
        return Err(InvalidUnit {
            message: format!("'{shown}' is not a {what}: write a whole number and {expected}"),
            hint: None,
        });
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let message = if unit.is_empty() {
            format!("'{shown}' has no unit: a {what} is a whole number and {expected}")
        } else {
            format!("'{shown}' is not a {what}: the unit is one of {expected}")
        };
        return Err(InvalidUnit {
            message,
            hint: Some(format!("perhaps {}", hint(digits, unit))),
        });
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| InvalidUnit {
            message: format!("'{shown}' is too large a {what}"),
            hint: None,
        })
}

/// Writes a duration as [`parse_duration`] reads it, in the largest unit that divides it.
pub fn show_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    TIMES
        .iter()
        .rev()
        .find(|(_, factor)| nanos >= *factor && nanos.is_multiple_of(*factor))
        .map_or_else(
            || format!("{}us", nanos / 1000),
            |(unit, factor)| format!("{}{unit}", nanos / factor),
        )
}

/// Writes a number of bytes as [`parse_size`] reads it where it is whole, and with one decimal otherwise.
#[derive(Clone, Copy, Debug)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZES.iter().rev().find(|(_, factor)| self.0 >= *factor) {
            None => write!(f, "{} B", self.0),
            Some((unit, factor)) if self.0.is_multiple_of(*factor) => {
                write!(f, "{}{unit}", self.0 / factor)
            }
            #[allow(
                clippy::cast_precision_loss,
                reason = "one decimal of a size is shown to a person"
            )]
            Some((unit, factor)) => write!(f, "{:.1} {unit}", self.0 as f64 / *factor as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_size("1KiB").unwrap(), 1024);
        assert_eq!(
            parse_size("64MB").unwrap_err().hint.unwrap(),
            "perhaps 64MiB"
        );
        assert_eq!(parse_size("64").unwrap_err().hint.unwrap(), "perhaps 64MiB");
        assert!(parse_size("99999999999999GiB").is_err());
        assert!(parse_size("-1MiB").is_err());
        assert_eq!(ByteSize(64 << 20).to_string(), "64MiB");
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize(12).to_string(), "12 B");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(
            parse_duration("100").unwrap_err().hint.unwrap(),
            "perhaps 100ms"
        );
        assert!(parse_duration("1.5s").is_err());
        assert_eq!(
            parse_lifetime("90d").unwrap(),
            Duration::from_secs(90 * 86400)
        );
        assert_eq!(parse_lifetime("36h").unwrap(), Duration::from_secs(129_600));
        assert_eq!(
            parse_lifetime("90").unwrap_err().hint.unwrap(),
            "perhaps 90d"
        );
        assert!(parse_lifetime("5ms").is_err());
        for text in ["250ms", "2m", "1h", "90s", "5us"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }
}
