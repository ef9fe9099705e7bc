//! Which runs are under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use stepwell_core::RunId;
use tracing::Span;

use crate::body::Slot;
use crate::deployment::Deployment;
use crate::spans::aside;

/// A run under way, as the drain, the sweep and the log know it.
pub(crate) struct Running {
    pub(crate) id: RunId,
    pub(crate) deployment: Arc<Deployment>,
    pub(crate) trigger: &'static str,
    span: OnceLock<Span>,
    body: OnceLock<Weak<Slot>>,
}

impl Running {
    pub(crate) fn new(id: RunId, deployment: Arc<Deployment>, trigger: &'static str) -> Self {
        Self {
            id,
            deployment,
            trigger,
            span: OnceLock::new(),
            body: OnceLock::new(),
        }
    }

    /// The run's span, made now if nobody has asked for it before.
    pub(crate) fn span(&self) -> &Span {
        self.span.get_or_init(|| {
            aside(|| {
                tracing::info_span!(
                    "run",
                    namespace = %self.deployment.namespace,
                    pipeline = %self.deployment.name,
                    revision = self.deployment.revision,
                    run_id = %self.id,
                    trigger = self.trigger,
                )
            })
        })
    }

    /// The response that is still being read: set once, when its head is there.
    pub(crate) fn set_body(&self, body: &Arc<Slot>) {
        let _ = self.body.set(Arc::downgrade(body));
    }

    pub(crate) fn body(&self) -> Option<Arc<Slot>> {
        self.body.get()?.upgrade()
    }
}

/// Parts of the table; runs of different threads seldom wait for each other.
const PARTS: usize = 16;

/// Every run under way.
#[derive(Default)]
pub(crate) struct RunTable([Mutex<HashMap<RunId, Arc<Running>>>; PARTS]);

impl RunTable {
    pub(crate) fn insert(&self, running: Arc<Running>) {
        if let Some(mut part) = self.part(running.id) {
            part.insert(running.id, running);
        }
    }

    pub(crate) fn remove(&self, id: RunId) {
        let removed = self.part(id).and_then(|mut part| part.remove(&id));
        // What it holds is dropped when the lock is free again.
        drop(removed);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Running>> {
        let parts = self.0.iter().map(lock);
        parts
            .flat_map(|part| part.values().cloned().collect::<Vec<_>>())
            .collect()
    }

    fn part(&self, id: RunId) -> Option<MutexGuard<'_, HashMap<RunId, Arc<Running>>>> {
        self.0.get(id.random() as usize % PARTS).map(lock)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
