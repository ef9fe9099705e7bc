//! How many lines of one kind, about one thing, the log gets.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that are logged in [`WINDOW`]; the others are counted.
const LINES: u32 = 50;
const WINDOW: Duration = Duration::from_secs(5);

/// Bounds the lines that one deployment's failures make in the log, so that nobody's fill the disk or drown the others'.
#[derive(Default)]
pub struct LogRate(Mutex<Window>);

#[derive(Default)]
struct Window {
    /// None: nothing was logged yet.
    began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

/// What is logged of a failure.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// All of it.
    Whole {
        /// Failures before it of which nothing was logged.
        left_out: u64,
    },
    /// That it and further ones are left out.
    FirstLeftOut,
    /// Nothing.
    LeftOut,
}

impl Line {
    /// Whether the failure itself is logged.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    /// What is logged in front of it, or in its place, about those that are left out: `failures` says what they are, and `counter` is
    /// the metric that knows of them all.
    pub fn left_out(&self, failures: &str, counter: &str) -> Option<String> {
        match self {
            Self::Whole { left_out: 0 } | Self::LeftOut => None,
            Self::Whole { left_out } => {
                Some(format!("{failures}: {left_out} were left out of the log"))
            }
            Self::FirstLeftOut => Some(format!(
                "{failures}: too many for the log, most are left out; {counter} counts them all"
            )),
        }
    }
}

impl LogRate {
    /// What is logged of the failure that has just happened.
    pub fn next(&self, now: Instant) -> Line {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |began| now.saturating_duration_since(began) >= WINDOW;
        if window.began.is_none_or(is_over) {
            let left_out = window.left_out;
            *window = Window {
                began: Some(now),
                lines: 1,
                left_out: 0,
            };
            return Line::Whole { left_out };
        }
        if window.lines < LINES {
            window.lines += 1;
            return Line::Whole { left_out: 0 };
        }
        window.left_out += 1;
        match window.left_out {
            1 => Line::FirstLeftOut,
            _ => Line::LeftOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_once_on_either_side() {
        let said = |line: Line| (line.is_whole(), line.left_out("falls", "falls_total"));
        assert_eq!(said(Line::Whole { left_out: 0 }), (true, None));
        let after = "falls: 7 were left out of the log".to_owned();
        assert_eq!(said(Line::Whole { left_out: 7 }), (true, Some(after)));
        let first = "falls: too many for the log, most are left out; falls_total counts them all";
        assert_eq!(said(Line::FirstLeftOut), (false, Some(first.to_owned())));
        assert_eq!(said(Line::LeftOut), (false, None));
    }

    #[test]
    fn so_many_lines_and_then_how_many_were_left_out() {
        let (rate, start) = (LogRate::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        for at in 0..50 {
            assert_eq!(rate.next(after(at)), Line::Whole { left_out: 0 });
        }
        assert_eq!(rate.next(after(50)), Line::FirstLeftOut);
        for at in 51..60 {
            assert_eq!(rate.next(after(at)), Line::LeftOut);
        }
        assert_eq!(rate.next(after(4_999)), Line::LeftOut);
        assert_eq!(rate.next(after(5_000)), Line::Whole { left_out: 11 });
        for at in 5_001..5_050 {
            assert_eq!(rate.next(after(at)), Line::Whole { left_out: 0 });
        }
        assert_eq!(rate.next(after(5_050)), Line::FirstLeftOut);
        assert_eq!(rate.next(after(60_000)), Line::Whole { left_out: 1 });
    }
}
