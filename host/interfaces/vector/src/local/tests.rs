use stepwell_test_hits::hits;

use super::*;
use crate::client::{Metadata, Metric};
use crate::filter::Filter;

const SHAPE: Shape = Shape {
    dimension: 4,
    metric: Metric::Cosine,
};

fn store(directory: &tempfile::TempDir, max_bytes: usize) -> LocalStore {
    let path = directory.path().join("vectors/scans.sqlite");
    LocalStore::bounded("scans".into(), path, SHAPE, max_bytes)
}

fn soon() -> Place<'static> {
    Place::default_until(Instant::now() + Duration::from_secs(30))
}

fn vector(id: usize) -> Vector {
    Vector {
        id: format!("v{id:04}"),
        values: vec![id as f32 + 1.0, 1.0, 0.0, 0.5],
        sparse: None,
        metadata: None,
    }
}

#[tokio::test]
async fn a_full_index_refuses_and_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, 100_000);
    let (mut stored, before) = (0, hits("store_size"));
    let refused = loop {
        match store
            .upsert(&soon(), (stored..stored + 10).map(vector).collect())
            .await
        {
            Ok(_) => stored += 10,
            Err(error) => break error,
        }
        assert!(stored < 1000, "the bound does not hold");
    };
    assert!(matches!(refused, VectorError::TooLarge(_)), "{refused}");
    assert!(hits("store_size") > before);
    let description = store.describe(soon().deadline).await.unwrap();
    assert_eq!(description.namespaces["__default__"], stored as u64);
    store.delete(&soon(), Selection::All).await.unwrap();
    store.upsert(&soon(), vec![vector(1)]).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_named_and_used_again_once_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vectors/scans.sqlite");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(
        &path,
        "this is no database, and long enough to look like one ".repeat(100),
    )
    .unwrap();
    let store = store(&directory, MAX_BYTES);
    let error = store.upsert(&soon(), vec![vector(1)]).await.unwrap_err();
    assert!(matches!(error, VectorError::Unavailable(_)), "{error}");
    let Health::Down(reason) = store.probe(soon().deadline).await else {
        panic!("it is not down");
    };
    assert!(
        reason.contains("vector index 'scans'") && reason.contains("damaged"),
        "{reason}"
    );
    assert!(
        !reason.contains(directory.path().to_str().unwrap()),
        "{reason}"
    );
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(REOPEN_PAUSE + Duration::from_millis(100)).await;
    store.upsert(&soon(), vec![vector(1)]).await.unwrap();
    assert_eq!(store.probe(soon().deadline).await, Health::Ok);
}

#[tokio::test]
async fn damage_inside_the_file_is_found_when_it_opens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vectors/scans.sqlite");
    let first = store(&directory, MAX_BYTES);
    first
        .upsert(&soon(), (0..500).map(vector).collect())
        .await
        .unwrap();
    first.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let Health::Down(reason) = store(&directory, MAX_BYTES).probe(soon().deadline).await else {
        panic!("it is not down");
    };
    assert!(
        reason.contains("vector index 'scans'") && reason.contains("damaged"),
        "{reason}"
    );
}

#[tokio::test]
async fn another_dimension_than_the_files_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vectors/scans.sqlite");
    let first = store(&directory, MAX_BYTES);
    first.upsert(&soon(), vec![vector(1)]).await.unwrap();
    first.close().await;
    let shape = Shape {
        dimension: 5,
        ..SHAPE
    };
    let second = LocalStore::new("scans".into(), path, shape);
    let Health::Down(reason) = second.probe(soon().deadline).await else {
        panic!("it is not down");
    };
    assert!(
        reason.contains("4 dimensions") && reason.contains("says 5"),
        "{reason}"
    );
}

#[tokio::test]
async fn one_file_has_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let first = store(&directory, MAX_BYTES);
    first.upsert(&soon(), vec![vector(1)]).await.unwrap();
    let Health::Down(reason) = store(&directory, MAX_BYTES).probe(soon().deadline).await else {
        panic!("it is not down");
    };
    assert!(reason.contains("in use"), "{reason}");
}

/// A large search leaves the thread free, gives up at its deadline, and agrees with a plain sort.
#[tokio::test]
async fn large_searches_are_exact_and_stop_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let shape = Shape {
        dimension: 64,
        metric: Metric::Euclidean,
    };
    let path = directory.path().join("large.sqlite");
    let store = LocalStore::new("large".into(), path, shape);
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let vectors: Vec<Vector> = (0..6000)
        .map(|id| Vector {
            id: format!("{id}"),
            values: (0..64).map(|_| random()).collect(),
            sparse: None,
            metadata: Some(Metadata::from_iter([("mod".to_owned(), (id % 7).into())])),
        })
        .collect();
    for chunk in vectors.chunks(1000) {
        store.upsert(&soon(), chunk.to_vec()).await.unwrap();
    }
    let query: Vec<f32> = (0..64).map(|_| random()).collect();
    let mut wanted: Vec<(f64, &str)> = vectors
        .iter()
        .enumerate()
        .filter(|(id, _)| id % 7 == 3)
        .map(|(_, vector)| {
            let pairs = query.iter().zip(&vector.values);
            let distance = pairs
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                .sum();
            (distance, vector.id.as_str())
        })
        .collect();
    wanted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let search = Search {
        target: Target::Values {
            dense: query,
            sparse: None,
        },
        top_k: 50,
        filter: Some(Filter::parse(r#"{"mod": 3}"#).unwrap()),
        include_values: false,
        include_metadata: false,
    };
    let found = store.query(&soon(), search.clone()).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(
        ids,
        wanted
            .iter()
            .take(50)
            .map(|(_, id)| *id)
            .collect::<Vec<_>>()
    );
    let late = store
        .query(&Place::default_until(Instant::now()), search)
        .await;
    assert_eq!(late, Err(VectorError::DeadlineExceeded));
}

/// Readers never see half of an upsert, and never wait for the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_each_upsert_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(store(&directory, MAX_BYTES));
    let batch = |round: usize| -> Vec<Vector> {
        (0..50)
            .map(|id| Vector {
                metadata: Some(Metadata::from_iter([("round".to_owned(), round.into())])),
                ..vector(id)
            })
            .collect()
    };
    store.upsert(&soon(), batch(0)).await.unwrap();
    let writing = Arc::new(AtomicBool::new(true));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, writing) = (Arc::clone(&store), Arc::clone(&writing));
            tokio::spawn(async move {
                let mut last = 0;
                while writing.load(Ordering::Relaxed) {
                    let search = Search {
                        target: Target::Values {
                            dense: vec![1.0; 4],
                            sparse: None,
                        },
                        top_k: 100,
                        filter: None,
                        include_values: false,
                        include_metadata: true,
                    };
                    let found = store.query(&soon(), search).await.unwrap();
                    assert_eq!(found.len(), 50);
                    let rounds: Vec<u64> = found
                        .iter()
                        .map(|found| found.metadata.as_ref().unwrap()["round"].as_u64().unwrap())
                        .collect();
                    assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
                    assert!(rounds[0] >= last);
                    last = rounds[0];
                    tokio::task::yield_now().await;
                }
                last
            })
        })
        .collect();
    for round in 1..=60 {
        store.upsert(&soon(), batch(round)).await.unwrap();
    }
    writing.store(false, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}

/// A caller that stops waiting does not stop its write, and leaves memory and file in step.
#[tokio::test]
async fn an_abandoned_write_happens_whole() {
    let directory = tempfile::tempdir().unwrap();
    let first = store(&directory, MAX_BYTES);
    first.upsert(&soon(), vec![vector(0)]).await.unwrap();
    for start in 1..20 {
        let at = soon();
        let write = first.upsert(&at, (start * 100..start * 100 + 100).map(vector).collect());
        // One poll hands the write over; then its caller is gone.
        let _ = tokio::time::timeout(Duration::from_micros(200), write).await;
    }
    let Ok(remembered) = first.list(&soon(), Listing::default()).await else {
        panic!("it cannot be listed");
    };
    assert!(!remembered.ids.is_empty());
    first.close().await;
    let counted = first.describe(soon().deadline).await.unwrap().namespaces;
    let second = store(&directory, MAX_BYTES);
    let reopened = second.describe(soon().deadline).await.unwrap().namespaces;
    assert_eq!(counted, reopened);
    assert_eq!(counted["__default__"] % 100, 1);
    assert!(matches!(
        first.upsert(&soon(), vec![vector(1)]).await,
        Err(VectorError::Unavailable(_))
    ));
}

/// A filter that takes long for each row: what is looked for is in none of many tags.
fn long_filter() -> Filter {
    let test = serde_json::json!({"tags": {"$nin": ["x", "y", "z"]}});
    Filter::from_json(serde_json::json!({"$and": vec![test; 120]})).unwrap()
}

#[tokio::test]
async fn a_filter_ends_at_its_deadline_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, MAX_BYTES);
    let tags: Vec<String> = (0..400).map(|tag| format!("t{tag}")).collect();
    let metadata: Metadata = serde_json::from_value(serde_json::json!({ "tags": tags })).unwrap();
    for first in (0..2_000).step_by(200) {
        let vectors = (first..first + 200).map(|id| Vector {
            metadata: Some(metadata.clone()),
            ..vector(id)
        });
        store.upsert(&soon(), vectors.collect()).await.unwrap();
    }
    let search = || Search {
        target: Target::Values {
            dense: vec![1.0, 0.0, 0.0, 0.0],
            sparse: None,
        },
        top_k: 10_000,
        filter: Some(long_filter()),
        include_values: false,
        include_metadata: false,
    };
    // All of it takes seconds.
    let began = Instant::now();
    let at = || Place::default_until(Instant::now() + Duration::from_millis(50));
    let found = store.query(&at(), search()).await;
    assert_eq!(found.unwrap_err(), VectorError::DeadlineExceeded);
    let deleted = store.delete(&at(), Selection::Filter(long_filter())).await;
    assert_eq!(deleted.unwrap_err(), VectorError::DeadlineExceeded);
    assert!(
        began.elapsed() < Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    // With enough time every row is found once, in order, whatever the turns.
    let all = Search {
        filter: Some(Filter::from_json(serde_json::json!({"tags": "t399"})).unwrap()),
        ..search()
    };
    let found = store.query(&soon(), all).await.unwrap();
    assert_eq!(found.len(), 2_000);
    assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
}
