//! How often limits were run into, for the tests of those who count it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// What `stepwell_limit_hits_total` of this limit has counted in this process, from the first time that anything is asked here.
///
/// # Panics
/// If the process has another recorder of metrics.
pub fn hits(limit: &str) -> u64 {
    static HITS: LazyLock<Hits> = LazyLock::new(|| {
        let hits = Hits::default();
        let installed = metrics::set_global_recorder(hits.clone());
        assert!(installed.is_ok(), "something else records the metrics");
        hits
    });
    HITS.lock().get(limit).copied().unwrap_or_default()
}

#[derive(Clone, Default)]
struct Hits(Arc<Mutex<HashMap<String, u64>>>);

struct Limit {
    hits: Hits,
    name: String,
}

impl Hits {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CounterFn for Limit {
    fn increment(&self, value: u64) {
        *self.hits.lock().entry(self.name.clone()).or_default() += value;
    }

    fn absolute(&self, value: u64) {
        self.hits.lock().insert(self.name.clone(), value);
    }
}

impl Recorder for Hits {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let limit = key.labels().find(|label| label.key() == "limit");
        match limit.filter(|_| key.name() == "stepwell_limit_hits_total") {
            Some(limit) => Counter::from_arc(Arc::new(Limit {
                hits: self.clone(),
                name: limit.value().to_owned(),
            })),
            None => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
