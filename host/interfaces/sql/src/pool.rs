use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::SqlError;
use crate::permit::Permit;

/// A connection that can be made fit for its next user.
pub(crate) trait Pooled: Send + 'static {
    /// Ends whatever the last user left and forgets what it changed in the session; false when the connection cannot serve
    /// again.
    fn reset(&mut self) -> impl Future<Output = bool> + Send;

    /// Closes it, whatever it is in the middle of. The permit is given back when nothing of that is left in this process.
    fn abandon(self, permit: Permit)
    where
        Self: Sized,
    {
        drop(self);
        drop(permit);
    }
}

/// The idle connections of a binding. How many there are in all is bounded by the permits that their users hold.
pub(crate) struct Pool<C> {
    idle: Mutex<Vec<C>>,
}

impl<C: Pooled> Pool<C> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::new(Vec::new()),
        })
    }

    /// The connection that was used last.
    pub(crate) fn take(&self) -> Option<C> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    fn put(&self, connection: C) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
    }
}

/// A connection in use, with its permit. When dropped it goes back to the pool, or is closed if it was dropped in the middle of something:
/// what the database was doing for it then ends with it.
pub(crate) struct Lease<C: Pooled> {
    held: Option<(C, Permit)>,
    pool: Arc<Pool<C>>,
    busy: bool,
}

/// How long making a connection fit for its next user may take.
const RESET_TIME: Duration = Duration::from_secs(5);

impl<C: Pooled> Lease<C> {
    pub(crate) fn new(connection: C, permit: Permit, pool: Arc<Pool<C>>) -> Self {
        Self {
            held: Some((connection, permit)),
            pool,
            busy: false,
        }
    }

    /// The connection, to do something that must be finished: until [`Busy::finish`] is called, dropping closes it.
    pub(crate) fn start(&mut self) -> Result<Busy<'_, C>, SqlError> {
        let (connection, _) = self
            .held
            .as_mut()
            .ok_or_else(|| SqlError::internal("the connection is gone"))?;
        self.busy = true;
        Ok(Busy {
            connection,
            busy: &mut self.busy,
        })
    }

    /// Takes the permit out, closing the connection.
    pub(crate) fn discard(mut self) -> Option<Permit> {
        self.held.take().map(|(_, permit)| permit)
    }
}

impl<C: Pooled> Drop for Lease<C> {
    fn drop(&mut self) {
        let Some((mut connection, permit)) = self.held.take() else {
            return;
        };
        // Without a runtime there is nothing to reset it with, so it is closed.
        let Some(runtime) = tokio::runtime::Handle::try_current()
            .ok()
            .filter(|_| !self.busy)
        else {
            return connection.abandon(permit);
        };
        let pool = Arc::clone(&self.pool);
        runtime.spawn(async move {
            if let Ok(true) = tokio::time::timeout(RESET_TIME, connection.reset()).await {
                pool.put(connection);
                drop(permit);
            } else {
                connection.abandon(permit);
            }
        });
    }
}

/// A connection in the middle of something.
pub(crate) struct Busy<'a, C> {
    connection: &'a mut C,
    busy: &'a mut bool,
}

impl<C> Busy<'_, C> {
    /// It is finished, and the connection is at rest.
    pub(crate) fn finish(self) {
        *self.busy = false;
    }
}

impl<C> Deref for Busy<'_, C> {
    type Target = C;
    fn deref(&self) -> &C {
        self.connection
    }
}

impl<C> DerefMut for Busy<'_, C> {
    fn deref_mut(&mut self) -> &mut C {
        self.connection
    }
}
