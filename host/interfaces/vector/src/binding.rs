use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::client::{
    Change, Description, Health, Listing, Match, Page, Place, Search, Selection, Vector,
    VectorError, VectorStore,
};
use crate::limits::{self, Shape};

/// One configured index: everything that is the same whatever holds the vectors. Each call takes a permit, is checked
/// against the limits, is bounded by its deadline and is counted, and only then reaches the backend.
pub(crate) struct Binding {
    name: Arc<str>,
    backend: &'static str,
    shape: Shape,
    store: Arc<dyn VectorStore>,
    permits: Semaphore,
    health: Mutex<Health>,
}

/// Describes this crate's metrics; call it once, after the recorder is installed.
pub fn describe_metrics() {
    describe_counter!(
        "stepwell_vector_operations_total",
        "Calls on vector indexes, by binding, operation and outcome"
    );
    describe_histogram!(
        "stepwell_vector_operation_seconds",
        Unit::Seconds,
        "Time of calls on vector indexes, waiting for a permit included"
    );
    describe_counter!(
        "stepwell_vector_retries_total",
        "Requests to a vector service that were sent again, by binding"
    );
}

/// Counts a call that was refused before it reached a binding.
pub(crate) fn count_denied(operation: &'static str) {
    counter!("stepwell_vector_operations_total", "binding" => "", "operation" => operation, "outcome" => "not-granted")
        .increment(1);
}

impl Binding {
    pub(crate) fn new(
        name: Arc<str>,
        backend: &'static str,
        shape: Shape,
        store: Arc<dyn VectorStore>,
        permits: usize,
    ) -> Self {
        Self {
            name,
            backend,
            shape,
            store,
            permits: Semaphore::new(permits),
            health: Mutex::new(Health::Ok),
        }
    }

    pub(crate) fn backend(&self) -> &'static str {
        self.backend
    }

    /// What the last probe or call showed.
    pub(crate) fn health(&self) -> Health {
        self.health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Remembers the state, and logs when it changes.
    fn observe(&self, now: Health) {
        let before = std::mem::replace(
            &mut *self.health.lock().unwrap_or_else(PoisonError::into_inner),
            now.clone(),
        );
        if std::mem::discriminant(&before) == std::mem::discriminant(&now) {
            return;
        }
        match now {
            Health::Ok => tracing::info!(binding = %self.name, "vector index is available"),
            Health::Degraded(reason) => {
                tracing::warn!(binding = %self.name, reason, "vector index is degraded");
            }
            Health::Down(reason) => {
                tracing::warn!(binding = %self.name, reason, "vector index is down");
            }
        }
    }

    async fn run<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        checked: Result<(), VectorError>,
        work: impl Future<Output = Result<T, VectorError>>,
    ) -> Result<T, VectorError> {
        let start = Instant::now();
        let bounded = async {
            checked?;
            if deadline <= start {
                return Err(VectorError::DeadlineExceeded);
            }
            let until = tokio::time::Instant::from_std(deadline);
            let Ok(permit) = timeout_at(until, self.permits.acquire()).await else {
                return Err(VectorError::Overloaded { retry_after: None });
            };
            let _permit = permit.map_err(|_| closed())?;
            timeout_at(until, work)
                .await
                .unwrap_or(Err(VectorError::DeadlineExceeded))
        };
        let result = bounded.await;
        let outcome = match &result {
            Ok(_) => {
                // A degraded index may still answer some calls: only a probe takes that back.
                if matches!(self.health(), Health::Down(_)) {
                    self.observe(Health::Ok);
                }
                "ok"
            }
            Err(error) => {
                match error {
                    VectorError::Unavailable(reason) if self.health() == Health::Ok => {
                        self.observe(Health::Degraded(reason.clone()));
                    }
                    VectorError::Internal(reason) => {
                        tracing::warn!(binding = %self.name, operation, reason, "vector call failed");
                    }
                    _ => {}
                }
                error.as_str()
            }
        };
        let name = self.name.to_string();
        counter!("stepwell_vector_operations_total", "binding" => name.clone(), "operation" => operation, "outcome" => outcome)
            .increment(1);
        histogram!("stepwell_vector_operation_seconds", "binding" => name, "operation" => operation)
            .record(start.elapsed().as_secs_f64());
        result
    }
}

pub(crate) fn closed() -> VectorError {
    VectorError::Unavailable("the index is closed, since the host is stopping".into())
}

#[async_trait]
impl VectorStore for Binding {
    async fn upsert(&self, at: &Place<'_>, mut vectors: Vec<Vector>) -> Result<u32, VectorError> {
        for vector in &mut vectors {
            vector.metadata = vector
                .metadata
                .take()
                .filter(|metadata| !metadata.is_empty());
        }
        let checked = limits::check_place(at).and_then(|()| self.shape.check_upsert(&vectors));
        let work = async {
            if vectors.is_empty() {
                return Ok(0);
            }
            self.store.upsert(at, vectors).await
        };
        self.run("upsert", at.deadline, checked, work).await
    }

    async fn query(&self, at: &Place<'_>, mut search: Search) -> Result<Vec<Match>, VectorError> {
        let checked = limits::check_place(at).and_then(|()| self.shape.check_search(&search));
        search.filter = search.filter.filter(|filter| !filter.is_empty());
        self.run("query", at.deadline, checked, self.store.query(at, search))
            .await
    }

    async fn fetch(
        &self,
        at: &Place<'_>,
        mut ids: Vec<String>,
    ) -> Result<Vec<Vector>, VectorError> {
        let checked = limits::check_place(at).and_then(|()| limits::check_ids(&ids));
        let mut seen = std::collections::HashSet::new();
        if checked.is_ok() {
            ids.retain(|id| seen.insert(id.clone()));
        }
        let work = async {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            self.store.fetch(at, ids).await
        };
        self.run("fetch", at.deadline, checked, work).await
    }

    async fn update(&self, at: &Place<'_>, change: Change) -> Result<(), VectorError> {
        let checked = limits::check_place(at).and_then(|()| self.shape.check_change(&change));
        self.run(
            "update",
            at.deadline,
            checked,
            self.store.update(at, change),
        )
        .await
    }

    async fn delete(&self, at: &Place<'_>, selection: Selection) -> Result<(), VectorError> {
        let checked = limits::check_place(at).and_then(|()| limits::check_selection(&selection));
        let work = async {
            if matches!(&selection, Selection::Ids(ids) if ids.is_empty()) {
                return Ok(());
            }
            self.store.delete(at, selection).await
        };
        self.run("delete", at.deadline, checked, work).await
    }

    async fn list(&self, at: &Place<'_>, listing: Listing) -> Result<Page, VectorError> {
        let (checked, listing) =
            match limits::check_place(at).and_then(|()| limits::check_listing(listing)) {
                Ok(listing) => (Ok(()), listing),
                Err(error) => (Err(error), Listing::default()),
            };
        self.run("list", at.deadline, checked, self.store.list(at, listing))
            .await
    }

    async fn describe(&self, deadline: Instant) -> Result<Description, VectorError> {
        self.run("describe", deadline, Ok(()), self.store.describe(deadline))
            .await
    }

    async fn probe(&self, deadline: Instant) -> Health {
        let until = tokio::time::Instant::from_std(deadline);
        let health = timeout_at(until, self.store.probe(deadline))
            .await
            .unwrap_or_else(|_| Health::Down("it did not answer in time".into()));
        self.observe(health.clone());
        health
    }

    async fn close(&self) {
        self.permits.close();
        if tokio::time::timeout(Duration::from_secs(10), self.store.close())
            .await
            .is_err()
        {
            tracing::warn!(binding = %self.name, "vector index did not close in time");
        }
    }
}
