//! What the demo says while it works: a line for each phase, with its time.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::place::Place;
use crate::scans::Scan;

/// Lines of the host's log that a failure shows, and the longest that they are shown.
const TAIL: usize = 12;
const WIDTH: usize = 300;

/// Prints a line; that nobody reads it any more does not stop the demo.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use say;

/// What the pipeline answers, as far as the demo shows it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    pub(crate) digit: u8,
    pub(crate) confidence: f64,
    pub(crate) neighbours: Vec<Neighbour>,
}

/// A known scan like the one that was sent.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Neighbour {
    pub(crate) id: String,
    pub(crate) score: f64,
    pub(crate) label: u8,
    /// One character for each pixel, from `0` to `g`.
    pub(crate) scan: String,
}

/// The answers to all scans, in their order, and how long they took.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answers: Vec<Answer>,
    right: usize,
    elapsed: Duration,
    /// Sorted; empty where they were not measured.
    latencies: Vec<Duration>,
}

impl Answered {
    pub(crate) fn new(scans: &[Scan], answers: Vec<Answer>, elapsed: Duration) -> Self {
        let right = scans
            .iter()
            .zip(&answers)
            .filter(|(scan, answer)| scan.label == answer.digit)
            .count();
        Self {
            answers,
            right,
            elapsed,
            latencies: Vec::new(),
        }
    }

    pub(crate) fn with_latencies(mut self, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        self.latencies = latencies;
        self
    }

    /// From 0 to 1.
    pub(crate) fn accuracy(&self) -> f64 {
        self.right as f64 / self.answers.len().max(1) as f64
    }

    /// The latency that this percentage of the requests did not exceed, in milliseconds.
    fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.latencies.len() * percent)
            .div_ceil(100)
            .saturating_sub(1);
        self.latencies
            .get(rank)
            .map(|latency| latency.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.answers.len();
        let rate = count as f64 / self.elapsed.as_secs_f64();
        write!(
            f,
            "{} of {count} right ({:.2} %), {rate:.0}/s",
            self.right,
            self.accuracy() * 100.0
        )?;
        if let (Some(p50), Some(p99)) = (self.percentile(50), self.percentile(99)) {
            write!(f, ", p50 {p50:.1} ms, p99 {p99:.1} ms")?;
        }
        Ok(())
    }
}

/// The lines, one for each phase.
#[derive(Debug)]
pub(crate) struct Report {
    start: Instant,
    phase: &'static str,
    phase_start: Instant,
    is_terminal: bool,
}

impl Default for Report {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            phase: "start",
            phase_start: now,
            is_terminal: std::io::stdout().is_terminal(),
        }
    }
}

impl Report {
    pub(crate) fn phase(&mut self, name: &'static str) {
        self.phase = name;
        self.phase_start = Instant::now();
        self.progress("…");
    }

    /// How far the phase is; only a terminal shows it.
    pub(crate) fn progress(&self, text: &str) {
        if self.is_terminal {
            let mut stdout = std::io::stdout().lock();
            let _ =
                write!(stdout, "\r\x1b[K  {:10}{text}", self.phase).and_then(|()| stdout.flush());
        }
    }

    pub(crate) fn done(&self, text: &str) {
        self.clear();
        say!(
            "{} {:10}{text:60} {:5.2} s",
            self.mark("32", "✓"),
            self.phase,
            self.phase_start.elapsed().as_secs_f64()
        );
    }

    pub(crate) fn remark(&self, text: &str) {
        say!("{:12}{text}", "");
    }

    pub(crate) fn failed(&self, error: &anyhow::Error, place: &Place) {
        self.clear();
        say!("{} {:10}{error:#}", self.mark("31", "✗"), self.phase);
        let log = std::fs::read_to_string(place.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        if !lines.is_empty() {
            say!("\nthe end of {}:", place.log().display());
        }
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
            say!("  {}", line.chars().take(WIDTH).collect::<String>());
        }
        say!(
            "\nfailed after {:.1} s; `make demo-stop` stops what is still running",
            self.start.elapsed().as_secs_f64()
        );
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stdout(), "\r\x1b[K");
        }
    }

    fn mark(&self, colour: &str, text: &str) -> String {
        if self.is_terminal {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_digit_is_wrong() {
        let scan = |label| Scan {
            id: 1,
            label,
            pixels: vec![0; 64],
        };
        let answer = |digit| Answer {
            digit,
            confidence: 1.0,
            neighbours: Vec::new(),
        };
        let scans = [scan(1), scan(2), scan(3), scan(4)];
        let answers = vec![answer(1), answer(2), answer(8), answer(4)];
        let latencies = (1..=4).rev().map(Duration::from_millis).collect();
        let answered =
            Answered::new(&scans, answers, Duration::from_secs(2)).with_latencies(latencies);
        assert_eq!(
            answered.to_string(),
            "3 of 4 right (75.00 %), 2/s, p50 2.0 ms, p99 4.0 ms"
        );
    }
}
