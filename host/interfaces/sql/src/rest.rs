//! A guest's transaction between its statements. It holds a connection, on SQLite the only one that writes: a guest that begins
//! and then does something else must not keep it from everybody.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::caller::failed_before;
use crate::client::Transaction;
use crate::{SqlError, SqlErrorKind};

/// How long a transaction may wait for its guest's next statement. Less than others wait for a connection
/// ([`crate::permit::PERMIT_WAIT`]), so that who comes while it rests gets one.
pub(crate) const LONGEST: Duration = Duration::from_secs(4);

/// A transaction while no statement of it runs. When dropped, the transaction rolls back.
pub(crate) struct Rest {
    state: Arc<Mutex<State>>,
    watch: AbortHandle,
}

enum State {
    /// It waits for its guest.
    Resting {
        transaction: Box<dyn Transaction>,
        since: Instant,
    },
    /// It works; or it was rolled back, because something in it has failed.
    Away,
    /// It was rolled back, because its guest let it wait for too long.
    Over,
}

impl Rest {
    /// A transaction that has just begun. Its time is looked after by a task of its own, since its guest may never come back.
    pub(crate) fn new(transaction: Box<dyn Transaction>) -> Self {
        let state = State::Resting {
            transaction,
            since: Instant::now(),
        };
        let state = Arc::new(Mutex::new(state));
        let watch = tokio::spawn(watch(Arc::downgrade(&state))).abort_handle();
        Self { state, watch }
    }

    /// Takes it out to work, so that a call that is cut short drops it.
    pub(crate) fn take(&self) -> Result<Box<dyn Transaction>, SqlError> {
        let mut state = lock(&self.state);
        match mem::replace(&mut *state, State::Away) {
            State::Resting { transaction, .. } => Ok(transaction),
            State::Away => Err(failed_before()),
            State::Over => {
                *state = State::Over;
                Err(rested_too_long())
            }
        }
    }

    /// Puts it back.
    pub(crate) fn put(&self, transaction: Box<dyn Transaction>) {
        *lock(&self.state) = State::Resting {
            transaction,
            since: Instant::now(),
        };
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Ends the transaction once it rests for too long.
async fn watch(state: Weak<Mutex<State>>) {
    let mut left = LONGEST;
    loop {
        tokio::time::sleep(left).await;
        let Some(state) = state.upgrade() else { return };
        let over = {
            let mut state = lock(&state);
            left = match &*state {
                State::Resting { since, .. } => LONGEST.saturating_sub(since.elapsed()),
                State::Away => LONGEST,
                State::Over => return,
            };
            if !left.is_zero() {
                continue;
            }
            mem::replace(&mut *state, State::Over)
        };
        metrics::counter!("stepwell_limit_hits_total", "limit" => "sql_idle").increment(1);
        tracing::debug!(
            "a guest's transaction is rolled back: it waited for its next statement for too long"
        );
        // This rolls back and gives the connection to the next who waits.
        drop(over);
        return;
    }
}

fn rested_too_long() -> SqlError {
    SqlError::new(
        SqlErrorKind::Aborted,
        "25P03",
        format!(
            "the transaction was rolled back: no statement of it came for {} s; do what takes long before it begins or after it",
            LONGEST.as_secs()
        ),
    )
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
