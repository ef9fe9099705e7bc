use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

/// What was counted, and what was wrong.
#[derive(Default)]
pub(crate) struct Findings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counts: BTreeMap<String, u64>,
    wrong: Vec<String>,
    wrongs: u64,
}

/// Findings that are shown in full.
const SHOWN: usize = 50;

impl Findings {
    /// Something happened as it should.
    pub(crate) fn count(&self, what: &str) {
        self.add(what, 1);
    }

    /// The same, so many times.
    pub(crate) fn add(&self, what: &str, times: u64) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *inner.counts.entry(what.to_owned()).or_default() += times;
    }

    /// Something was wrong.
    pub(crate) fn wrong(&self, what: String) {
        note(&format!("WRONG {what}"));
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.wrongs += 1;
        if inner.wrong.len() < SHOWN {
            inner.wrong.push(what);
        }
    }

    /// Says everything, and how many things were wrong.
    pub(crate) fn report(&self) -> u64 {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (what, count) in &inner.counts {
            note(&format!("{count:>9}  {what}"));
        }
        for what in &inner.wrong {
            note(&format!("WRONG {what}"));
        }
        inner.wrongs
    }
}

/// One line on stdout; nobody reading it is no reason to stop.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
