//! What every backend must do, run against each of them: the embedded index, and Pinecone as its stand-in speaks it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

#[path = "support/fixture.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use stepwell_vector::{
    Change, Filter, Health, Listing, Match, Metric, Page, Place, Search, Selection, SparseValues,
    Target, Vector, VectorError, VectorStore, limits,
};
use support::{Fixture, soon, vector, with};

/// One test for each backend.
macro_rules! contract {
    ($($name:ident($metric:ident, $dimension:expr);)*) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let fixture = super::Fixture::local(super::Metric::$metric, $dimension).await;
                super::$name(fixture.store()).await;
            })*
        }
        mod pinecone {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let fixture = super::Fixture::pinecone(super::Metric::$metric, $dimension).await;
                super::$name(fixture.store()).await;
            })*
        }
    };
}

contract! {
    upsert_then_fetch(Cosine, 3);
    upsert_replaces_whole(Cosine, 3);
    query_by_cosine(Cosine, 3);
    query_by_euclidean(Euclidean, 2);
    query_by_dotproduct(Dotproduct, 2);
    query_with_sparse_values(Dotproduct, 2);
    query_by_id(Cosine, 3);
    query_includes_what_was_asked_for(Cosine, 3);
    filters(Cosine, 2);
    update_changes_parts(Dotproduct, 2);
    delete_by_ids_filter_and_all(Cosine, 2);
    list_pages(Cosine, 2);
    namespaces_are_apart(Cosine, 2);
    awkward_ids(Cosine, 2);
    sizes_up_to_the_limits(Cosine, 400);
    hostile_calls_are_refused(Cosine, 3);
    too_large_answers_are_refused(Cosine, 1000);
    probe_is_ok(Cosine, 3);
}

type Store = Arc<dyn VectorStore>;

fn near(values: &[f32], top_k: u32) -> Search {
    Search {
        target: Target::Values {
            dense: values.to_vec(),
            sparse: None,
        },
        top_k,
        filter: None,
        include_values: false,
        include_metadata: false,
    }
}

fn ids(found: &[Match]) -> Vec<&str> {
    found.iter().map(|found| found.id.as_str()).collect()
}

fn assert_close(score: f32, wanted: f64) {
    assert!(
        (f64::from(score) - wanted).abs() < 1e-5,
        "{score}, wanted {wanted}"
    );
}

async fn upsert_then_fetch(store: Store) {
    let rich = with(
        vector("a", &[1.5, -2.0, 0.125]),
        json!({"s": "text", "n": 1.5, "b": true, "l": ["x", "y"]}),
    );
    let plain = vector("b", &[0.0, 1.0, 0.0]);
    assert_eq!(
        store
            .upsert(&soon(), vec![rich.clone(), plain.clone()])
            .await,
        Ok(2)
    );
    let found = store
        .fetch(
            &soon(),
            vec!["b".into(), "none".into(), "a".into(), "b".into()],
        )
        .await
        .unwrap();
    assert_eq!(found, [plain, rich]);
    assert_eq!(store.fetch(&soon(), vec![]).await, Ok(vec![]));
    assert_eq!(store.upsert(&soon(), vec![]).await, Ok(0));
}

async fn upsert_replaces_whole(store: Store) {
    let old = with(vector("a", &[1.0, 0.0, 0.0]), json!({"old": true}));
    store.upsert(&soon(), vec![old]).await.unwrap();
    let (loser, winner) = (vector("a", &[0.0, 1.0, 0.0]), vector("a", &[0.0, 0.0, 1.0]));
    assert_eq!(
        store.upsert(&soon(), vec![loser, winner.clone()]).await,
        Ok(2)
    );
    assert_eq!(
        store.fetch(&soon(), vec!["a".into()]).await,
        Ok(vec![winner])
    );
}

async fn query_by_cosine(store: Store) {
    let vectors = vec![
        vector("same", &[3.0, 0.0, 0.0]),
        vector("slant", &[1.0, 1.0, 0.0]),
        vector("right", &[0.0, 0.0, 2.0]),
        vector("opposite", &[-1.0, 0.0, 0.0]),
    ];
    store.upsert(&soon(), vectors).await.unwrap();
    let found = store
        .query(&soon(), near(&[2.0, 0.0, 0.0], 10))
        .await
        .unwrap();
    assert_eq!(ids(&found), ["same", "slant", "right", "opposite"]);
    for (found, wanted) in found.iter().zip([1.0, 0.5f64.sqrt(), 0.0, -1.0]) {
        assert_close(found.score, wanted);
    }
    let found = store
        .query(&soon(), near(&[2.0, 0.0, 0.0], 2))
        .await
        .unwrap();
    assert_eq!(ids(&found), ["same", "slant"]);
    let found = store
        .query(&soon(), near(&[0.0, 0.0, 0.0], 10))
        .await
        .unwrap();
    assert!(found.len() == 4 && found.iter().all(|found| found.score == 0.0));
}

async fn query_by_euclidean(store: Store) {
    let vectors = vec![
        vector("far", &[4.0, 5.0]),
        vector("here", &[1.0, 1.0]),
        vector("near", &[1.0, 3.0]),
    ];
    store.upsert(&soon(), vectors).await.unwrap();
    let found = store.query(&soon(), near(&[1.0, 1.0], 3)).await.unwrap();
    assert_eq!(ids(&found), ["here", "near", "far"]);
    for (found, wanted) in found.iter().zip([0.0, 4.0, 25.0]) {
        assert_close(found.score, wanted);
    }
}

async fn query_by_dotproduct(store: Store) {
    let vectors = vec![
        vector("long", &[4.0, 5.0]),
        vector("short", &[1.0, 1.0]),
        vector("away", &[-1.0, 0.0]),
    ];
    store.upsert(&soon(), vectors).await.unwrap();
    let found = store.query(&soon(), near(&[1.0, 2.0], 3)).await.unwrap();
    assert_eq!(ids(&found), ["long", "short", "away"]);
    for (found, wanted) in found.iter().zip([14.0, 3.0, -1.0]) {
        assert_close(found.score, wanted);
    }
}

async fn query_with_sparse_values(store: Store) {
    let sparse = |indices: &[u32], values: &[f32]| SparseValues {
        indices: indices.to_vec(),
        values: values.to_vec(),
    };
    let mut hybrid = vector("hybrid", &[1.0, 0.0]);
    hybrid.sparse = Some(sparse(&[3, 4_000_000_000], &[0.5, 2.0]));
    store
        .upsert(&soon(), vec![hybrid.clone(), vector("dense", &[2.0, 0.0])])
        .await
        .unwrap();
    let mut search = near(&[1.0, 0.0], 2);
    search.include_values = true;
    assert_eq!(
        ids(&store.query(&soon(), search.clone()).await.unwrap()),
        ["dense", "hybrid"]
    );
    search.target = Target::Values {
        dense: vec![1.0, 0.0],
        sparse: Some(sparse(&[4_000_000_000, 7], &[10.0, 1.0])),
    };
    let found = store.query(&soon(), search).await.unwrap();
    assert_eq!(ids(&found), ["hybrid", "dense"]);
    assert_close(found[0].score, 21.0);
    assert_eq!(
        (&found[0].sparse, &found[1].sparse),
        (&hybrid.sparse, &None)
    );
    assert_eq!(
        store.fetch(&soon(), vec!["hybrid".into()]).await,
        Ok(vec![hybrid])
    );
}

async fn query_by_id(store: Store) {
    let vectors = vec![
        vector("a", &[1.0, 0.0, 0.0]),
        vector("b", &[1.0, 0.1, 0.0]),
        vector("c", &[0.0, 1.0, 0.0]),
    ];
    store.upsert(&soon(), vectors).await.unwrap();
    let by_id = |id: &str| Search {
        target: Target::Id(id.into()),
        ..near(&[], 2)
    };
    assert_eq!(
        ids(&store.query(&soon(), by_id("a")).await.unwrap()),
        ["a", "b"]
    );
    assert_eq!(
        ids(&store.query(&soon(), by_id("missing")).await.unwrap()),
        [""; 0]
    );
}

async fn query_includes_what_was_asked_for(store: Store) {
    let stored = with(vector("a", &[1.0, 2.0, 3.0]), json!({"k": "v"}));
    store
        .upsert(
            &soon(),
            vec![stored.clone(), vector("b", &[-1.0, 0.0, 0.0])],
        )
        .await
        .unwrap();
    for (include_values, include_metadata) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let search = Search {
            include_values,
            include_metadata,
            ..near(&[1.0, 2.0, 3.0], 2)
        };
        let found = store.query(&soon(), search).await.unwrap();
        assert_eq!(
            found[0].values,
            include_values.then(|| stored.values.clone())
        );
        assert_eq!(
            found[0].metadata,
            stored.metadata.clone().filter(|_| include_metadata)
        );
        assert_eq!(found[1].metadata, None);
    }
}

/// Two evaluators that share nothing, one table.
async fn filters(store: Store) {
    let vectors = support::films();
    store.upsert(&soon(), vectors).await.unwrap();
    for (text, wanted) in support::FILTERS {
        let search = Search {
            filter: Some(Filter::parse(text).unwrap()),
            ..near(&[1.0, 1.0], 100)
        };
        let mut found: Vec<String> = store
            .query(&soon(), search)
            .await
            .unwrap()
            .into_iter()
            .map(|found| found.id)
            .collect();
        found.sort();
        assert_eq!(found.concat(), *wanted, "{text}");
    }
}

async fn update_changes_parts(store: Store) {
    let stored = with(
        vector("a", &[1.0, 2.0]),
        json!({"keep": 1.0, "change": "old"}),
    );
    store.upsert(&soon(), vec![stored]).await.unwrap();
    let fields = json!({"change": ["new"], "add": true});
    let change = Change {
        id: "a".into(),
        metadata: fields.as_object().cloned(),
        ..Change::default()
    };
    store.update(&soon(), change).await.unwrap();
    let found = store.fetch(&soon(), vec!["a".into()]).await.unwrap();
    assert_eq!(
        found,
        [with(
            vector("a", &[1.0, 2.0]),
            json!({"keep": 1.0, "change": ["new"], "add": true})
        )]
    );
    let sparse = Some(SparseValues {
        indices: vec![5],
        values: vec![0.5],
    });
    let change = Change {
        id: "a".into(),
        values: Some(vec![7.0, 8.0]),
        sparse: sparse.clone(),
        ..Change::default()
    };
    store.update(&soon(), change).await.unwrap();
    let found = store.fetch(&soon(), vec!["a".into()]).await.unwrap();
    assert_eq!(
        (&found[0].values, &found[0].sparse),
        (&vec![7.0, 8.0], &sparse)
    );
    assert_eq!(found[0].metadata.as_ref().unwrap().len(), 3);
    let change = Change {
        id: "missing".into(),
        values: Some(vec![1.0, 1.0]),
        ..Change::default()
    };
    assert_eq!(store.update(&soon(), change).await, Ok(()));
    assert_eq!(
        store.fetch(&soon(), vec!["missing".into()]).await,
        Ok(vec![])
    );
    // Fields that are legal alone but too many together.
    for (field, accepted) in [("x", true), ("y", false)] {
        let fields = json!({field: "z".repeat(30_000)});
        let change = Change {
            id: "a".into(),
            metadata: fields.as_object().cloned(),
            ..Change::default()
        };
        assert_eq!(
            store.update(&soon(), change).await.is_ok(),
            accepted,
            "{field}"
        );
    }
}

async fn delete_by_ids_filter_and_all(store: Store) {
    store.upsert(&soon(), support::films()).await.unwrap();
    let left = async || {
        let found = store.query(&soon(), near(&[1.0, 1.0], 100)).await.unwrap();
        let mut left: Vec<String> = found.into_iter().map(|found| found.id).collect();
        left.sort();
        left.concat()
    };
    let everything = left().await;
    store
        .delete(&soon(), Selection::Ids(vec!["a".into(), "missing".into()]))
        .await
        .unwrap();
    assert_eq!(left().await, everything.replace('a', ""));
    store.delete(&soon(), Selection::Ids(vec![])).await.unwrap();
    let drama = Filter::parse(r#"{"genre": "drama"}"#).unwrap();
    store
        .delete(&soon(), Selection::Filter(drama.clone()))
        .await
        .unwrap();
    assert_eq!(left().await, everything.replace(['a', 'c'], ""));
    store
        .delete(&soon(), Selection::Filter(drama))
        .await
        .unwrap();
    store.delete(&soon(), Selection::All).await.unwrap();
    assert_eq!(left().await, "");
    store.delete(&soon(), Selection::All).await.unwrap();
    let nowhere = Place {
        namespace: Some("nowhere"),
        ..soon()
    };
    for selection in [Selection::All, Selection::Ids(vec!["a".into()])] {
        assert_eq!(store.delete(&nowhere, selection).await, Ok(()));
    }
}

async fn list_pages(store: Store) {
    let mut wanted: Vec<String> = (0..250).map(|number| format!("doc-{number}")).collect();
    let mut vectors: Vec<Vector> = wanted.iter().map(|id| vector(id, &[1.0, 0.0])).collect();
    vectors.extend([
        vector("dob", &[1.0, 0.0]),
        vector("doc", &[1.0, 0.0]),
        vector("doc.", &[1.0, 0.0]),
    ]);
    store.upsert(&soon(), vectors).await.unwrap();
    wanted.sort();
    for (limit, sizes) in [
        (Some(125), vec![100, 100, 50]),
        (None, vec![100, 100, 50]),
        (Some(90), vec![90, 90, 70]),
    ] {
        let (mut listed, mut pages, mut token) = (Vec::new(), Vec::new(), None);
        loop {
            let listing = Listing {
                prefix: "doc-".into(),
                limit,
                token,
            };
            let Page { ids, next } = store.list(&soon(), listing).await.unwrap();
            pages.push(ids.len());
            listed.extend(ids);
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!((listed, pages), (wanted.clone(), sizes), "{limit:?}");
    }
    let exact = Listing {
        prefix: "doc-2".into(),
        limit: Some(61),
        token: None,
    };
    let page = store.list(&soon(), exact).await.unwrap();
    assert_eq!((page.ids.len(), page.next), (61, None));
    let none = Listing {
        prefix: "x".into(),
        ..Listing::default()
    };
    assert_eq!(store.list(&soon(), none).await, Ok(Page::default()));
    let nowhere = Place {
        namespace: Some("nowhere"),
        ..soon()
    };
    assert_eq!(
        store.list(&nowhere, Listing::default()).await,
        Ok(Page::default())
    );
}

async fn namespaces_are_apart(store: Store) {
    let elsewhere = Place {
        namespace: Some("else / where?&"),
        ..soon()
    };
    store
        .upsert(&soon(), vec![vector("a", &[1.0, 0.0])])
        .await
        .unwrap();
    store
        .upsert(
            &elsewhere,
            vec![vector("a", &[0.0, 1.0]), vector("b", &[0.0, 1.0])],
        )
        .await
        .unwrap();
    for name in [None, Some(""), Some("__default__")] {
        let here = Place {
            namespace: name,
            ..soon()
        };
        assert_eq!(
            store.fetch(&here, vec!["a".into(), "b".into()]).await,
            Ok(vec![vector("a", &[1.0, 0.0])])
        );
    }
    let found = store
        .fetch(&elsewhere, vec!["a".into(), "b".into()])
        .await
        .unwrap();
    assert_eq!(found, [vector("a", &[0.0, 1.0]), vector("b", &[0.0, 1.0])]);
    let nowhere = Place {
        namespace: Some("nowhere"),
        ..soon()
    };
    assert_eq!(store.fetch(&nowhere, vec!["a".into()]).await, Ok(vec![]));
    assert_eq!(
        store.query(&nowhere, near(&[1.0, 1.0], 1)).await,
        Ok(vec![])
    );
    let description = store.describe(soon().deadline).await.unwrap();
    let wanted = BTreeMap::from([
        ("__default__".to_owned(), 1),
        ("else / where?&".to_owned(), 2),
    ]);
    assert_eq!(
        (
            description.dimension,
            description.metric,
            description.namespaces
        ),
        (2, Metric::Cosine, wanted)
    );
    store.delete(&elsewhere, Selection::All).await.unwrap();
    assert_eq!(
        store.fetch(&soon(), vec!["a".into()]).await.unwrap().len(),
        1
    );
    assert_eq!(
        store
            .describe(soon().deadline)
            .await
            .unwrap()
            .namespaces
            .len(),
        1
    );
}

async fn awkward_ids(store: Store) {
    let odd: Vec<String> = [
        " ",
        "a&ids=b",
        "%2F",
        "+",
        "'; DROP TABLE vectors; --",
        "\"]}",
        "../..",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain(["~".repeat(512)])
    .collect();
    store
        .upsert(
            &soon(),
            odd.iter().map(|id| vector(id, &[1.0, 2.0])).collect(),
        )
        .await
        .unwrap();
    let found = store.fetch(&soon(), odd.clone()).await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|vector| vector.id.clone())
            .collect::<Vec<_>>(),
        odd
    );
    let page = store.list(&soon(), Listing::default()).await.unwrap();
    let mut sorted = odd.clone();
    sorted.sort();
    assert_eq!(page.ids, sorted);
    store.delete(&soon(), Selection::Ids(odd)).await.unwrap();
    assert_eq!(
        store.list(&soon(), Listing::default()).await,
        Ok(Page::default())
    );
}

/// 1,000 vectors of 400 dimensions are under 2 MiB as limits count them, and over it as JSON.
async fn sizes_up_to_the_limits(store: Store) {
    let values = |id: usize| {
        (0..400)
            .map(|at| ((id * 31 + at * 17) % 1009) as f32 / 997.0 - 0.4)
            .collect::<Vec<f32>>()
    };
    let vectors: Vec<Vector> = (0..1000)
        .map(|id| vector(&format!("v{id:04}"), &values(id)))
        .collect();
    assert_eq!(store.upsert(&soon(), vectors.clone()).await, Ok(1000));
    let ids: Vec<String> = vectors.iter().map(|vector| vector.id.clone()).collect();
    assert_eq!(store.fetch(&soon(), ids.clone()).await.unwrap(), vectors);
    let found = store
        .query(&soon(), near(&values(77), 10_000))
        .await
        .unwrap();
    assert_eq!((found.len(), found[0].id.as_str()), (1000, "v0077"));
    store.delete(&soon(), Selection::Ids(ids)).await.unwrap();
    assert_eq!(
        store.list(&soon(), Listing::default()).await,
        Ok(Page::default())
    );
}

async fn hostile_calls_are_refused(store: Store) {
    let good = || vector("good", &[1.0, 0.0, 0.0]);
    let invalid =
        |result: Result<u32, VectorError>| matches!(result, Err(VectorError::InvalidInput(_)));
    let large = |result: Result<u32, VectorError>| matches!(result, Err(VectorError::TooLarge(_)));
    let mut sparse = good();
    sparse.sparse = Some(SparseValues {
        indices: vec![1],
        values: vec![1.0],
    });
    for bad in [
        vector("x", &[1.0, 0.0]),
        vector("x", &[1.0, 0.0, 0.0, 0.0]),
        vector("x", &[]),
        vector("x", &[0.0, 0.0, -0.0]),
        vector("x", &[f32::NAN, 0.0, 0.0]),
        vector("x", &[1.0, f32::INFINITY, 0.0]),
        vector("", &[1.0, 0.0, 0.0]),
        vector("nul\0", &[1.0, 0.0, 0.0]),
        vector("ü", &[1.0, 0.0, 0.0]),
        with(good(), json!({"null": null})),
        with(good(), json!({"deep": {"er": 1}})),
        with(good(), json!({"list": [1, 2]})),
        with(good(), json!({"$and": "x"})),
        sparse,
    ] {
        let shown = format!("{bad:?}");
        assert!(
            invalid(store.upsert(&soon(), vec![good(), bad]).await),
            "{shown}"
        );
    }
    let huge_id = vector(&"i".repeat(513), &[1.0, 0.0, 0.0]);
    assert!(large(store.upsert(&soon(), vec![good(), huge_id]).await));
    let fat = with(
        good(),
        json!({"fat": "f".repeat(limits::MAX_METADATA_BYTES)}),
    );
    assert!(large(store.upsert(&soon(), vec![fat]).await));
    assert!(large(store.upsert(&soon(), vec![good(); 1001]).await));
    let heavy = |id: usize| {
        with(
            vector(&format!("{id}"), &[1.0, 0.0, 0.0]),
            json!({"fat": "f".repeat(40_000)}),
        )
    };
    assert!(large(
        store.upsert(&soon(), (0..60).map(heavy).collect()).await
    ));
    // Not one of them has left anything behind.
    assert_eq!(
        store.list(&soon(), Listing::default()).await,
        Ok(Page::default())
    );

    for (top_k, dense) in [
        (0, vec![1.0; 3]),
        (10_001, vec![1.0; 3]),
        (u32::MAX, vec![1.0; 3]),
        (1, vec![1.0; 2]),
        (1, vec![f32::NAN; 3]),
    ] {
        assert!(
            store.query(&soon(), near(&dense, top_k)).await.is_err(),
            "{top_k} {dense:?}"
        );
    }
    assert!(matches!(
        store.fetch(&soon(), vec!["x".into(); 1001]).await,
        Err(VectorError::TooLarge(_))
    ));
    assert!(matches!(
        store
            .delete(&soon(), Selection::Ids(vec!["x".into(); 1001]))
            .await,
        Err(VectorError::TooLarge(_))
    ));
    let everything = Selection::Filter(Filter::parse("{}").unwrap());
    assert!(matches!(
        store.delete(&soon(), everything).await,
        Err(VectorError::InvalidInput(_))
    ));
    let change = Change {
        id: "x".into(),
        values: Some(vec![0.0; 3]),
        ..Change::default()
    };
    assert!(matches!(
        store.update(&soon(), change).await,
        Err(VectorError::InvalidInput(_))
    ));
    let listing = Listing {
        limit: Some(0),
        ..Listing::default()
    };
    assert!(store.list(&soon(), listing).await.is_err());
    let place = Place {
        namespace: Some("line\nbreak"),
        ..soon()
    };
    assert!(store.fetch(&place, vec!["x".into()]).await.is_err());
    let name = "n".repeat(100_000);
    let place = Place {
        namespace: Some(&name),
        ..soon()
    };
    assert!(matches!(
        store.upsert(&place, vec![good()]).await,
        Err(VectorError::TooLarge(_))
    ));
}

async fn too_large_answers_are_refused(store: Store) {
    for start in [0, 500, 1000] {
        let vectors = (start..start + 500)
            .map(|id| vector(&format!("{id}"), &[0.123_456_7; 1000]))
            .collect();
        store.upsert(&soon(), vectors).await.unwrap();
    }
    let with_values = |top_k| Search {
        include_values: true,
        ..near(&[1.0; 1000], top_k)
    };
    assert!(matches!(
        store.query(&soon(), with_values(1500)).await,
        Err(VectorError::TooLarge(_))
    ));
    assert_eq!(
        store.query(&soon(), with_values(1000)).await.unwrap().len(),
        1000
    );
    assert_eq!(
        store
            .query(&soon(), near(&[1.0; 1000], 1500))
            .await
            .unwrap()
            .len(),
        1500
    );
}

async fn probe_is_ok(store: Store) {
    assert_eq!(store.probe(soon().deadline).await, Health::Ok);
}
