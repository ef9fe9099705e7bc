//! Records that wait until a topic takes what came of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many wait, and why the last of them began to: a partition that stands still must not look well.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<(usize, String)>);

impl Waiting {
    /// Why records wait; none: none does.
    pub(crate) fn why(&self) -> Option<String> {
        let waiting = self.lock();
        (waiting.0 > 0).then(|| waiting.1.clone())
    }

    /// One more, until what this answers is dropped.
    pub(crate) fn begin(&self, why: String) -> Waits<'_> {
        let mut waiting = self.lock();
        waiting.0 += 1;
        waiting.1 = why;
        Waits(self)
    }

    fn lock(&self) -> MutexGuard<'_, (usize, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that waits.
pub(crate) struct Waits<'a>(&'a Waiting);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().0 -= 1;
    }
}
