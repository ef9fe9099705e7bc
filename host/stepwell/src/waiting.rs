//! Whoever waits for a change, and how long.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use metrics::counter;
use stepwell_catalog::{CatalogError, Expected};
use stepwell_core::Digest;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::deployer::ApplyError;

/// Somebody who has asked for a change. What takes long ends when they are gone or it takes too long, and nothing is stored then.
#[derive(Clone)]
pub(crate) struct Caller {
    gone: CancellationToken,
    until: Instant,
    patience: Duration,
}

impl Caller {
    /// One who waits for this long, and is gone when the guard is dropped.
    pub(crate) fn waiting(patience: Duration) -> (Self, DropGuard) {
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        let until = Instant::now() + patience;
        let caller = Self {
            gone,
            until,
            patience,
        };
        (caller, guard)
    }

    /// Awaits this while the caller waits. It must be something that may be left at any point.
    pub(crate) async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, ApplyError> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(ApplyError::Abandoned),
            done = work => Ok(done),
            () = sleep_until(self.until) => Err(self.too_slow()),
        }
    }

    /// Asked before something is stored.
    pub(crate) fn still_waits(&self) -> Result<(), ApplyError> {
        if self.gone.is_cancelled() {
            return Err(ApplyError::Abandoned);
        }
        if Instant::now() >= self.until {
            return Err(self.too_slow());
        }
        Ok(())
    }

    fn too_slow(&self) -> ApplyError {
        counter!("stepwell_limit_hits_total", "limit" => "deploy").increment(1);
        ApplyError::TooSlow(self.patience)
    }
}

/// What a change has waited for while others could change the catalog, and what it found when it began to.
#[derive(Default)]
pub(crate) struct Waited {
    /// Made ready for this change. They are not asked for again: where the cache cannot keep them, they never would be.
    ready: BTreeSet<Digest>,
    /// Whether it waited; and the pipeline's revision then, if it existed.
    found: Option<Option<u64>>,
}

impl Waited {
    pub(crate) fn has_made(&self, digest: &Digest) -> bool {
        self.ready.contains(digest)
    }

    /// Remembers the pipeline's revision, if this is the first wait.
    pub(crate) fn begin(&mut self, found: Option<u64>) {
        self.found.get_or_insert(found);
    }

    pub(crate) fn made(&mut self, digests: impl IntoIterator<Item = Digest>) {
        self.ready.extend(digests);
    }

    /// What the pipeline's state must be when the change is stored: what its caller expects, and after a wait also what it was
    /// before it. Who asked for the change first must not undo what somebody else did meanwhile.
    pub(crate) fn expected(&self, wanted: Expected) -> Expected {
        match (wanted, self.found) {
            (Expected::Any | Expected::Exists, Some(Some(revision))) => {
                Expected::Revision(revision)
            }
            (Expected::Any, Some(None)) => Expected::Absent,
            _ => wanted,
        }
    }

    /// The error of storing it, in the words of who asked: a precondition that was not theirs is none that they missed.
    pub(crate) fn error(&self, wanted: Expected, error: CatalogError) -> ApplyError {
        match error {
            CatalogError::Stale { current }
                if self.expected(wanted) != wanted
                    && !(wanted == Expected::Exists && current.is_none()) =>
            {
                ApplyError::Overtaken(current)
            }
            error => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use stepwell_test_hits::hits;

    use super::*;

    #[tokio::test]
    async fn nobody_is_waited_for_who_is_gone_or_has_waited_too_long() {
        let long = Duration::from_secs(60);
        let (caller, here) = Caller::waiting(long);
        assert_eq!(caller.wait(ready(1)).await.unwrap(), 1);
        caller.still_waits().unwrap();
        drop(here);
        let left = caller.wait(pending::<()>()).await.unwrap_err();
        assert!(matches!(left, ApplyError::Abandoned), "{left}");
        assert!(caller.wait(ready(1)).await.is_err());
        assert!(caller.still_waits().is_err());

        let (short, before) = (Duration::from_millis(20), hits("deploy"));
        let (caller, _here) = Caller::waiting(short);
        let slow = caller.wait(pending::<()>()).await.unwrap_err();
        assert!(
            matches!(slow, ApplyError::TooSlow(limit) if limit == short),
            "{slow}"
        );
        assert!(caller.still_waits().is_err());
        assert!(hits("deploy") >= before + 2);
    }

    #[test]
    fn a_change_that_waited_is_stored_upon_what_it_found_alone() {
        use Expected::{Absent, Any, Exists, Revision};
        let mut waited = Waited::default();
        for wanted in [Any, Exists, Absent, Revision(3)] {
            assert_eq!(waited.expected(wanted), wanted, "it did not wait");
        }
        waited.begin(Some(7));
        waited.begin(Some(8));
        assert_eq!(waited.expected(Any), Revision(7), "before the first wait");
        assert_eq!(waited.expected(Exists), Revision(7));
        assert_eq!(waited.expected(Absent), Absent);
        assert_eq!(waited.expected(Revision(3)), Revision(3));
        let stale = |current| CatalogError::Stale { current };
        let is_overtaken = |error: &ApplyError| matches!(error, ApplyError::Overtaken(current) if *current == Some(9));
        assert!(is_overtaken(&waited.error(Any, stale(Some(9)))));
        assert!(is_overtaken(&waited.error(Exists, stale(Some(9)))));
        assert!(!is_overtaken(&waited.error(Revision(3), stale(Some(9)))));
        // It had to exist, and does not.
        let gone = waited.error(Exists, stale(None));
        assert!(matches!(gone, ApplyError::Catalog(_)), "{gone}");

        let mut absent = Waited::default();
        absent.begin(None);
        assert_eq!(absent.expected(Any), Absent);
        assert_eq!(absent.expected(Exists), Exists);
        assert!(is_overtaken(&absent.error(Any, stale(Some(9)))));
    }
}
