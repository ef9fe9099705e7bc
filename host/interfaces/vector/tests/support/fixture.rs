//! Indexes to test with, on each backend.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell_core::Secret;
use stepwell_test_pinecone::{API_KEY, Pinecone};
use stepwell_vector::{
    Metric, Place, Vector, VectorBackend, VectorBindingConfig, VectorStore, Vectors,
};

/// The binding `scans`, and what it needs to live.
pub(crate) struct Fixture {
    pub(crate) vectors: Vectors,
    pub(crate) pinecone: Option<Pinecone>,
    pub(crate) directory: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn local(metric: Metric, dimension: u32) -> Self {
        Self::open(VectorBackend::Local, None, metric, dimension).await
    }

    pub(crate) async fn pinecone(metric: Metric, dimension: u32) -> Self {
        Self::pinecone_in(None, metric, dimension).await
    }

    pub(crate) async fn pinecone_in(
        namespace: Option<&str>,
        metric: Metric,
        dimension: u32,
    ) -> Self {
        let pinecone = Pinecone::start().await.unwrap();
        let host = pinecone.create_index("scans", dimension as usize, metric.as_str());
        let backend = backend(&host, namespace);
        Self::open(backend, Some(pinecone), metric, dimension).await
    }

    async fn open(
        backend: VectorBackend,
        pinecone: Option<Pinecone>,
        metric: Metric,
        dimension: u32,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vectors = open(directory.path(), backend, metric, dimension).await;
        Self {
            vectors,
            pinecone,
            directory,
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn VectorStore> {
        self.vectors.store("scans").unwrap()
    }
}

pub(crate) async fn open(
    directory: &std::path::Path,
    backend: VectorBackend,
    metric: Metric,
    dimension: u32,
) -> Vectors {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = VectorBindingConfig {
        backend,
        dimension,
        metric,
    };
    Vectors::open(directory, BTreeMap::from([("scans".to_owned(), config)])).await
}

pub(crate) fn backend(host: &str, namespace: Option<&str>) -> VectorBackend {
    VectorBackend::Pinecone {
        host: host.to_owned(),
        api_key: Secret::new(API_KEY),
        namespace: namespace.map(str::to_owned),
    }
}

pub(crate) fn soon() -> Place<'static> {
    within(Duration::from_secs(60))
}

pub(crate) fn within(time: Duration) -> Place<'static> {
    Place::default_until(Instant::now() + time)
}

pub(crate) fn vector(id: &str, values: &[f32]) -> Vector {
    Vector {
        id: id.to_owned(),
        values: values.to_vec(),
        sparse: None,
        metadata: None,
    }
}

pub(crate) fn with(vector: Vector, metadata: Value) -> Vector {
    Vector {
        metadata: metadata.as_object().cloned(),
        ..vector
    }
}

/// Five vectors of two dimensions, `e` without metadata.
pub(crate) fn films() -> Vec<Vector> {
    let film = |id, metadata| with(vector(id, &[1.0, 0.5]), metadata);
    vec![
        film(
            "a",
            json!({"genre": "drama", "year": 2019, "tags": ["old", "long"], "seen": true}),
        ),
        film(
            "b",
            json!({"genre": "comedy", "year": 2020.0, "tags": ["new"]}),
        ),
        film("c", json!({"genre": "drama", "year": 2021})),
        film(
            "d",
            json!({"genre": "action", "year": 2022, "seen": false, "tags": []}),
        ),
        vector("e", &[0.5, 1.0]),
    ]
}

/// Filters, and the ids of [`films`] for which they hold.
pub(crate) const FILTERS: &[(&str, &str)] = &[
    ("{}", "abcde"),
    (r#"{"genre": "drama"}"#, "ac"),
    (r#"{"genre": {"$eq": "drama"}}"#, "ac"),
    (r#"{"genre": {"$ne": "drama"}}"#, "bd"),
    (r#"{"genre": "Drama"}"#, ""),
    (r#"{"year": 2019}"#, "a"),
    (r#"{"year": 2019.0}"#, "a"),
    (r#"{"year": "2019"}"#, ""),
    (r#"{"seen": true}"#, "a"),
    (r#"{"seen": {"$ne": true}}"#, "d"),
    (r#"{"seen": 1}"#, ""),
    (r#"{"year": {"$gt": 2020}}"#, "cd"),
    (r#"{"year": {"$gte": 2020, "$lt": 2022}}"#, "bc"),
    (r#"{"year": {"$lte": 2019.5}}"#, "a"),
    (r#"{"genre": {"$gt": 1}}"#, ""),
    (r#"{"genre": {"$in": ["comedy", "action"]}}"#, "bd"),
    (r#"{"genre": {"$nin": ["comedy", "action"]}}"#, "ac"),
    (r#"{"year": {"$in": [2022, 2019, "drama"]}}"#, "ad"),
    (r#"{"year": {"$nin": [2022, 2019]}}"#, "bc"),
    (r#"{"tags": "old"}"#, "a"),
    (r#"{"tags": {"$in": ["new", "long"]}}"#, "ab"),
    (r#"{"tags": {"$ne": "old"}}"#, "bd"),
    (r#"{"tags": {"$nin": ["old", "new"]}}"#, "d"),
    (r#"{"tags": {"$exists": true}}"#, "abd"),
    (r#"{"genre": {"$exists": false}}"#, "e"),
    (r#"{"missing": {"$ne": "x"}}"#, ""),
    (r#"{"missing": {"$nin": ["x"]}}"#, ""),
    (r#"{"genre": "drama", "year": 2021}"#, "c"),
    (
        r#"{"$or": [{"genre": "comedy"}, {"year": {"$gt": 2021}}]}"#,
        "bd",
    ),
    (
        r#"{"$and": [{"genre": "drama"}, {"$or": [{"seen": true}, {"year": 2000}]}]}"#,
        "a",
    ),
    (
        r#"{"genre": "drama", "$or": [{"seen": true}, {"year": 2020}]}"#,
        "a",
    ),
    (
        r#"{"$or": [{"genre": {"$exists": false}}, {"seen": false}]}"#,
        "de",
    ),
];
