//! Pinecone in trouble: what is sent again, what callers are told, and what they are never told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

#[path = "support/fixture.rs"]
mod support;

use std::time::{Duration, Instant};

use stepwell_core::Secret;
use stepwell_test_pinecone::{API_KEY, Fault, Pinecone};
use stepwell_vector::{
    Health, Listing, Metric, Page, Place, Vector, VectorBackend, VectorBindingConfig, VectorError,
};
use support::{Fixture, backend, open, soon, vector, within};

fn one() -> Vec<Vector> {
    vec![vector("a", &[1.0, 0.0])]
}

async fn fixture() -> Fixture {
    Fixture::pinecone(Metric::Cosine, 2).await
}

fn upserts(fixture: &Fixture) -> usize {
    let requests = fixture.pinecone.as_ref().unwrap().requests();
    requests
        .iter()
        .filter(|line| line.ends_with("/vectors/upsert"))
        .count()
}

fn inject(fixture: &Fixture, faults: impl IntoIterator<Item = Fault>) {
    fixture.pinecone.as_ref().unwrap().inject(faults);
}

#[tokio::test]
async fn each_retryable_status_is_sent_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let fixture = fixture().await;
        inject(&fixture, [Fault::status(status)]);
        assert_eq!(
            fixture.store().upsert(&soon(), one()).await,
            Ok(1),
            "{status}"
        );
        assert_eq!(upserts(&fixture), 2, "{status}");
    }
}

#[tokio::test]
async fn other_statuses_are_not_sent_again() {
    for (status, wanted) in [
        (400, "invalid-input"),
        (401, "unavailable"),
        (402, "unavailable"),
        (403, "unavailable"),
        (404, "not-found"),
        (409, "internal"),
        (413, "too-large"),
        (422, "invalid-input"),
        (302, "internal"),
        (501, "internal"),
    ] {
        let fixture = fixture().await;
        inject(&fixture, [Fault::status(status)]);
        let error = fixture.store().upsert(&soon(), one()).await.unwrap_err();
        assert_eq!(
            (error.as_str(), upserts(&fixture)),
            (wanted, 1),
            "{status}: {error}"
        );
    }
}

#[tokio::test]
async fn after_three_retries_the_caller_is_told() {
    let fixture = fixture().await;
    let asked = Fault::Status {
        status: 429,
        retry_after: Some("0.05".into()),
    };
    inject(&fixture, vec![asked; 4]);
    let error = fixture.store().upsert(&soon(), one()).await.unwrap_err();
    assert_eq!(
        error,
        VectorError::Overloaded {
            retry_after: Some(Duration::from_millis(50))
        }
    );
    assert_eq!(upserts(&fixture), 4);
    assert_eq!(fixture.store().upsert(&soon(), one()).await, Ok(1));
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let fixture = fixture().await;
    inject(
        &fixture,
        [Fault::Status {
            status: 503,
            retry_after: Some("1".into()),
        }],
    );
    let start = Instant::now();
    assert_eq!(fixture.store().upsert(&soon(), one()).await, Ok(1));
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_pause_past_the_deadline_is_not_begun() {
    let fixture = fixture().await;
    inject(
        &fixture,
        [Fault::Status {
            status: 429,
            retry_after: Some("30".into()),
        }],
    );
    let start = Instant::now();
    let error = fixture
        .store()
        .upsert(&within(Duration::from_secs(10)), one())
        .await
        .unwrap_err();
    assert_eq!(
        error,
        VectorError::Overloaded {
            retry_after: Some(Duration::from_secs(30))
        }
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_deadline_bounds_a_slow_service() {
    let fixture = fixture().await;
    inject(&fixture, [Fault::Slow(Duration::from_secs(30))]);
    let start = Instant::now();
    let error = fixture
        .store()
        .upsert(&within(Duration::from_millis(500)), one())
        .await
        .unwrap_err();
    assert_eq!(error, VectorError::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(10));
    let late = Place::default_until(Instant::now());
    assert_eq!(
        fixture.store().upsert(&late, one()).await,
        Err(VectorError::DeadlineExceeded)
    );
}

/// The bucket of a host holds 100 tokens, and nothing is sent again at 50 or less.
#[tokio::test]
async fn a_host_in_trouble_is_spared() {
    let fixture = fixture().await;
    let asked = Fault::Status {
        status: 503,
        retry_after: Some("0".into()),
    };
    inject(&fixture, vec![asked; 400]);
    for _ in 0..30 {
        assert!(fixture.store().upsert(&soon(), one()).await.is_err());
    }
    // 12 calls with 4 attempts, then 49 and 50; from then on one attempt each.
    assert_eq!(upserts(&fixture), 12 * 4 + 2 + 17);
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_internal() {
    let fixture = fixture().await;
    inject(&fixture, [Fault::Garbage]);
    let error = fixture
        .store()
        .list(&soon(), Listing::default())
        .await
        .unwrap_err();
    assert_eq!(error.as_str(), "internal", "{error}");
}

#[tokio::test]
async fn a_service_that_is_down_comes_back_by_itself() {
    let mut fixture = fixture().await;
    fixture.store().upsert(&soon(), one()).await.unwrap();
    assert_eq!(fixture.vectors.probe().await[0].health, Health::Ok);
    let address = fixture.pinecone.take().unwrap().address();
    let error = fixture
        .store()
        .upsert(&within(Duration::from_secs(3)), one())
        .await
        .unwrap_err();
    assert!(matches!(error, VectorError::Unavailable(_)), "{error}");
    let state = fixture.vectors.state();
    assert!(
        matches!(&state[0].health, Health::Degraded(reason) if reason.contains("reached")),
        "{state:?}"
    );
    let state = fixture.vectors.probe().await;
    assert!(
        matches!(&state[0].health, Health::Down(reason) if reason.contains("reached")),
        "{state:?}"
    );
    let pinecone = loop {
        match Pinecone::start_at(address).await {
            Ok(pinecone) => break pinecone,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    pinecone.create_index("scans", 2, "cosine");
    assert_eq!(fixture.store().upsert(&soon(), one()).await, Ok(1));
    assert_eq!(fixture.vectors.state()[0].health, Health::Ok);
}

#[tokio::test]
async fn a_service_that_is_down_at_the_start_does_not_stop_the_host() {
    let directory = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let start = Instant::now();
    let vectors = open(
        directory.path(),
        backend(&format!("http://{address}"), None),
        Metric::Cosine,
        2,
    )
    .await;
    assert!(start.elapsed() < Duration::from_secs(20));
    let state = vectors.state();
    assert!(matches!(state[0].health, Health::Down(_)), "{state:?}");
    let shown = format!("{state:?}");
    assert!(
        !shown.contains(&address.port().to_string()) && !shown.contains("127.0.0.1"),
        "{shown}"
    );
    let store = vectors.store("scans").unwrap();
    let error = store
        .upsert(&within(Duration::from_secs(2)), one())
        .await
        .unwrap_err();
    assert!(matches!(error, VectorError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn an_index_unlike_the_configuration_is_down() {
    let fixture = fixture().await;
    let host = fixture
        .pinecone
        .as_ref()
        .unwrap()
        .create_index("other", 5, "dotproduct");
    for (metric, dimension, wanted) in [
        (Metric::Cosine, 5, "metric"),
        (Metric::Dotproduct, 4, "dimensions"),
    ] {
        let vectors = open(
            fixture.directory.path(),
            backend(&host, None),
            metric,
            dimension,
        )
        .await;
        let state = vectors.state();
        assert!(
            matches!(&state[0].health, Health::Down(reason) if reason.contains(wanted)),
            "{state:?}"
        );
    }
}

#[tokio::test]
async fn a_confined_binding_stays_in_its_namespace() {
    let fixture = Fixture::pinecone_in(Some("mine"), Metric::Cosine, 2).await;
    let open_to_all = open(
        fixture.directory.path(),
        backend(
            &format!("{}/i/scans", fixture.pinecone.as_ref().unwrap().url()),
            None,
        ),
        Metric::Cosine,
        2,
    )
    .await
    .store("scans")
    .unwrap();
    let (mine, theirs) = (
        Place {
            namespace: Some("mine"),
            ..soon()
        },
        Place {
            namespace: Some("theirs"),
            ..soon()
        },
    );
    open_to_all
        .upsert(&theirs, vec![vector("secret", &[1.0, 1.0])])
        .await
        .unwrap();
    open_to_all
        .upsert(&soon(), vec![vector("secret", &[1.0, 1.0])])
        .await
        .unwrap();
    let confined = fixture.store();
    confined.upsert(&soon(), one()).await.unwrap();
    assert_eq!(
        open_to_all.fetch(&mine, vec!["a".into()]).await.unwrap(),
        one()
    );
    assert_eq!(
        confined
            .fetch(&mine, vec!["a".into(), "secret".into()])
            .await
            .unwrap(),
        one()
    );
    let error = confined
        .fetch(&theirs, vec!["secret".into()])
        .await
        .unwrap_err();
    assert!(matches!(error, VectorError::NotGranted(_)), "{error}");
    let listed = confined.list(&soon(), Listing::default()).await.unwrap();
    assert_eq!(
        listed,
        Page {
            ids: vec!["a".into()],
            next: None
        }
    );
    let namespaces = confined.describe(soon().deadline).await.unwrap().namespaces;
    assert_eq!(namespaces.into_keys().collect::<Vec<_>>(), ["mine"]);
}

#[tokio::test]
async fn a_refused_key_is_said_without_the_key() {
    let fixture = fixture().await;
    let host = format!("{}/i/scans", fixture.pinecone.as_ref().unwrap().url());
    let key = "pcsk_wrong-key-31415926";
    let config = VectorBindingConfig {
        backend: VectorBackend::Pinecone {
            host: host.clone(),
            api_key: Secret::new(key),
            namespace: None,
        },
        dimension: 2,
        metric: Metric::Cosine,
    };
    assert!(!format!("{config:?}").contains(key));
    let vectors = open(fixture.directory.path(), config.backend, Metric::Cosine, 2).await;
    let store = vectors.store("scans").unwrap();
    let error = store.upsert(&soon(), one()).await.unwrap_err();
    let told = format!("{error} {error:?} {:?}", vectors.state());
    assert!(told.contains("refuses the host's key"), "{told}");
    for hidden in [key, API_KEY, host.as_str(), "127.0.0.1"] {
        assert!(!told.contains(hidden), "{told}");
    }
}

#[tokio::test]
async fn wrong_configuration_is_reported_whole_and_stops_nobody_else() {
    let config = VectorBindingConfig {
        backend: VectorBackend::Pinecone {
            host: "ftp://user:pass@nowhere?x".into(),
            api_key: Secret::new("with\nbreak"),
            namespace: None,
        },
        dimension: 0,
        metric: Metric::Cosine,
    };
    let keys: Vec<&str> = config.mistakes().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["dimension", "host", "api_key"]);
    let directory = tempfile::tempdir().unwrap();
    let good = VectorBindingConfig {
        backend: VectorBackend::Local,
        dimension: 2,
        metric: Metric::Cosine,
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let vectors = stepwell_vector::Vectors::open(
        directory.path(),
        [
            ("bad".to_owned(), config),
            ("../up".to_owned(), good.clone()),
            ("good".to_owned(), good),
        ]
        .into(),
    )
    .await;
    let usable: Vec<bool> = vectors
        .state()
        .iter()
        .map(|state| state.health == Health::Ok)
        .collect();
    assert_eq!(usable, [false, false, true]);
    assert!(!directory.path().join("up.sqlite").exists());
    assert!(
        vectors
            .store("bad")
            .unwrap()
            .upsert(&soon(), one())
            .await
            .is_err()
    );
    assert_eq!(
        vectors.store("good").unwrap().upsert(&soon(), one()).await,
        Ok(1)
    );
    assert!(vectors.store("unknown").is_none());
    vectors.close().await;
    assert!(matches!(
        vectors.store("good").unwrap().upsert(&soon(), one()).await,
        Err(VectorError::Unavailable(_))
    ));
}
