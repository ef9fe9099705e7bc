//! The records of what was refused: so many in a minute, since whoever may do nothing must not fill the audit log either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell_catalog::{Catalog, CatalogError};
use stepwell_core::{Name, Principal};
use tracing::{debug, warn};

/// Refusals of one kind that are recorded in a minute.
const IN_A_MINUTE: u32 = 60;

/// Bytes of the names that one record has.
const NAMES: usize = 1_000;

/// Writes refusals of one kind to the audit log.
pub(crate) struct Refusals {
    catalog: Arc<Catalog>,
    /// Since when it is counted, and how many there were.
    minute: Mutex<(Instant, u32)>,
}

impl Refusals {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            catalog,
            minute: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Records a request to which somebody had no right.
    pub(crate) async fn of_request(
        &self,
        by: &Principal,
        operation: &'static str,
        subject: String,
    ) {
        if self.counts(by, operation) {
            let recorded = self.catalog.by(by).record_refusal(operation, subject).await;
            told(by, operation, recorded);
        }
    }

    /// Records a document that wants what is for other namespaces alone.
    pub(crate) async fn of_names(
        &self,
        by: &Principal,
        operation: &'static str,
        (namespace, pipeline): (&Name, &Name),
        names: impl IntoIterator<Item = String>,
    ) {
        if !self.counts(by, operation) {
            return;
        }
        let mut subject = format!("pipeline {pipeline} of {namespace} wants");
        for name in names {
            if subject.len() + name.len() > NAMES {
                subject.push_str(" …");
                break;
            }
            subject.push(' ');
            subject.push_str(&name);
        }
        let catalog = self.catalog.by(by);
        let recorded = catalog.record_withheld(operation, subject).await;
        told(by, operation, recorded);
    }

    /// Whether one more is to be recorded.
    fn counts(&self, by: &Principal, operation: &'static str) -> bool {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.0.elapsed() >= Duration::from_secs(60) {
            *minute = (Instant::now(), 0);
        }
        minute.1 = minute.1.saturating_add(1);
        let counts = minute.1 <= IN_A_MINUTE;
        if !counts {
            debug!(who = %by.id, operation, "a refused request is not recorded: there are too many");
        }
        counts
    }
}

fn told(by: &Principal, operation: &'static str, recorded: Result<(), CatalogError>) {
    if let Err(error) = recorded {
        warn!(who = %by.id, operation, %error, "a refused request could not be recorded");
    }
}
