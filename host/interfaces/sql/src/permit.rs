use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::CpuAccount;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client::{Access, Capacity};
use crate::{SqlError, SqlErrorKind};

/// The right to one connection; it is given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
    in_use: metrics::Gauge,
    /// Who is charged for what an embedded database computes meanwhile; nobody for the host's own statements.
    cpu: Option<Arc<CpuAccount>>,
}

impl Permit {
    /// Charges what is computed with it to this account.
    #[must_use]
    pub(crate) fn charged_to(mut self, cpu: &Arc<CpuAccount>) -> Self {
        self.cpu = Some(cpu.clone());
        self
    }

    pub(crate) fn cpu(&self) -> Option<&Arc<CpuAccount>> {
        self.cpu.as_ref()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_use.decrement(1.0);
    }
}

/// The permits of one binding.
pub(crate) struct Permits {
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    in_use: metrics::Gauge,
}

/// How long a call waits for a connection before it is told that there is none.
pub(crate) const PERMIT_WAIT: Duration = Duration::from_secs(5);

impl Permits {
    pub(crate) fn new(capacity: Capacity, in_use: metrics::Gauge) -> Self {
        let readers = Arc::new(Semaphore::new(capacity.connections.max(1)));
        let writers = capacity.writers.map_or_else(
            || Arc::clone(&readers),
            |writers| Arc::new(Semaphore::new(writers.max(1))),
        );
        Self {
            readers,
            writers,
            in_use,
        }
    }

    /// A permit, at the latest when `deadline` has come or [`PERMIT_WAIT`] is over.
    pub(crate) async fn acquire(
        &self,
        access: Access,
        deadline: Instant,
    ) -> Result<Permit, SqlError> {
        let wait = PERMIT_WAIT.min(deadline.saturating_duration_since(Instant::now()));
        match tokio::time::timeout(wait, Arc::clone(self.of(access)).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(self.count(permit)),
            Ok(Err(_)) => Err(SqlError::unavailable()),
            Err(_) if wait == PERMIT_WAIT => Err(SqlError::new(
                SqlErrorKind::Overloaded,
                "53300",
                "all connections of the binding are in use",
            )),
            Err(_) => Err(SqlError::deadline()),
        }
    }

    /// A permit if one is free.
    pub(crate) fn try_acquire(&self, access: Access) -> Option<Permit> {
        Arc::clone(self.of(access))
            .try_acquire_owned()
            .ok()
            .map(|permit| self.count(permit))
    }

    /// No permits from now on.
    pub(crate) fn close(&self) {
        self.readers.close();
        self.writers.close();
    }

    fn of(&self, access: Access) -> &Arc<Semaphore> {
        match access {
            Access::Read => &self.readers,
            Access::Write => &self.writers,
        }
    }

    fn count(&self, permit: OwnedSemaphorePermit) -> Permit {
        self.in_use.increment(1.0);
        Permit {
            _permit: permit,
            in_use: self.in_use.clone(),
            cpu: None,
        }
    }
}
