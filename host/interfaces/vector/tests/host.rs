//! The guest's side: grants, hostile arguments and what errors say, through the functions that guests call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

#[path = "support/fixture.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Action, BindingKind, Call, Grant, Grants, Name, RunId, StepScope};
use stepwell_vector::wit::{
    Change, Error, Host, IndexInfo, Metric as WitMetric, Page, Search, Selection, SparseValues,
    Target, Vector,
};
use stepwell_vector::{HasVectors, Metric, VectorsView, add_to_linker};
use support::Fixture;

/// A call that may do these actions on what it calls `mine`, which the operator calls `scans`.
fn call(actions: &[Action]) -> Call {
    let mut grants = Grants::default();
    for (name, binding) in [("mine", "scans"), ("gone", "removed-since")] {
        grants.insert(
            BindingKind::Vectors,
            name,
            Grant {
                binding: binding.into(),
                actions: actions.to_vec(),
                prefix: String::new(),
            },
        );
    }
    Call {
        scope: Arc::new(StepScope {
            namespace: Name::default_namespace(),
            pipeline: "test".parse().unwrap(),
            revision: 1,
            step: "step".parse().unwrap(),
            plugin: "plugin@1.0.0".into(),
            digest: None,
            grants,
            config: Vec::new(),
            cpu: Arc::default(),
        }),
        run: RunId::new(),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn vector(id: &str, values: &[f32], metadata: Option<&str>) -> Vector {
    Vector {
        id: id.into(),
        values: values.to_vec(),
        sparse: None,
        metadata: metadata.map(str::to_owned),
    }
}

fn search(target: Target, top_k: u32, filter: Option<&str>) -> Search {
    Search {
        target,
        top_k,
        filter: filter.map(str::to_owned),
        include_values: true,
        include_metadata: true,
    }
}

fn change(id: &str, metadata: Option<&str>) -> Change {
    Change {
        id: id.into(),
        values: None,
        sparse: None,
        metadata: metadata.map(str::to_owned),
    }
}

/// Every function once, on `index`; which ones answered `not-granted`, and the texts of all errors.
async fn try_everything(
    view: &mut VectorsView<'_>,
    index: &str,
) -> (Vec<&'static str>, Vec<Error>) {
    let name = || index.to_owned();
    let one = vec![vector("a", &[1.0, 0.0, 0.0], Some(r#"{"k":"v"}"#))];
    let near = search(Target::Values(vec![1.0, 0.0, 0.0]), 1, None);
    let outcomes = [
        ("upsert", view.upsert(name(), None, one).await.err()),
        ("query", view.query(name(), None, near).await.err()),
        (
            "fetch",
            view.fetch(name(), None, vec!["a".into()]).await.err(),
        ),
        (
            "update",
            view.update(name(), None, change("a", Some("{}")))
                .await
                .err(),
        ),
        (
            "list",
            view.list(name(), None, None, None, None).await.err(),
        ),
        ("describe", view.describe(name()).await.err()),
        (
            "delete",
            view.delete(name(), None, Selection::All).await.err(),
        ),
    ];
    let denied = outcomes
        .iter()
        .filter(|(_, error)| matches!(error, Some(Error::NotGranted(_))))
        .map(|(name, _)| *name)
        .collect();
    (
        denied,
        outcomes
            .into_iter()
            .filter_map(|(_, error)| error)
            .collect(),
    )
}

/// Each action alone allows its function and refuses every other.
#[tokio::test]
async fn each_function_needs_its_own_grant() {
    let fixture = Fixture::local(Metric::Cosine, 3).await;
    let functions = [
        "upsert", "query", "fetch", "update", "list", "describe", "delete",
    ];
    for (action, allowed) in [
        (Action::Upsert, vec!["upsert"]),
        (Action::Query, vec!["query", "describe"]),
        (Action::Fetch, vec!["fetch"]),
        (Action::Update, vec!["update"]),
        (Action::List, vec!["list"]),
        (Action::Delete, vec!["delete"]),
        (Action::Read, vec![]),
    ] {
        let call = call(&[action]);
        let mut view = VectorsView {
            vectors: &fixture.vectors,
            call: &call,
        };
        let (denied, errors) = try_everything(&mut view, "mine").await;
        let wanted: Vec<&str> = functions
            .into_iter()
            .filter(|name| !allowed.contains(name))
            .collect();
        assert_eq!(denied, wanted, "{action}");
        assert_eq!(errors.len(), denied.len(), "{action}: {errors:?}");
    }
}

#[tokio::test]
async fn names_that_are_not_granted_tell_nothing() {
    let fixture = Fixture::local(Metric::Cosine, 3).await;
    let call = call(BindingKind::Vectors.actions());
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &call,
    };
    // The operator's name of what is granted as `mine`, and names that nobody has.
    for name in [
        "scans",
        "unknown",
        "",
        "../scans",
        "mine\0",
        &"m".repeat(1_000_000),
    ] {
        let (denied, errors) = try_everything(&mut view, name).await;
        assert_eq!((denied.len(), errors.len()), (7, 7));
        assert!(errors.iter().all(|error| format!("{error:?}").len() < 2000));
    }
    let (denied, errors) = try_everything(&mut view, "gone").await;
    assert!(denied.is_empty());
    for error in errors {
        assert!(
            matches!(&error, Error::NotFound(text) if text.contains("'gone'") && !text.contains("removed-since")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn what_the_host_computes_is_charged_to_the_call() {
    let fixture = Fixture::local(Metric::Dotproduct, 64).await;
    let call = call(BindingKind::Vectors.actions());
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &call,
    };
    let mine = || "mine".to_owned();
    let near = || Target::Values(vec![0.5; 64]);
    let used = || call.scope.cpu.used();
    // The guest's own thread computes a small search, and is charged as for everything that it does.
    let one = vec![vector("one", &[1.0; 64], None)];
    view.upsert(mine(), None, one).await.unwrap();
    view.query(mine(), None, search(near(), 1, None))
        .await
        .unwrap();
    assert!(used().is_zero(), "{:?}", used());
    for part in 0..4 {
        let vectors = (0..500).map(|id| vector(&format!("{part}-{id}"), &[0.1; 64], None));
        let stored = view.upsert(mine(), None, vectors.collect()).await;
        assert!(matches!(stored, Ok(500)));
    }
    let before = used();
    view.query(mine(), None, search(near(), 1, None))
        .await
        .unwrap();
    let searched = used();
    assert!(searched > before, "{searched:?}");
    let nothing = Selection::Filter(r#"{"split": "none"}"#.to_owned());
    view.delete(mine(), None, nothing).await.unwrap();
    assert!(used() > searched, "{:?}", used());
}

#[tokio::test]
async fn a_guest_stores_and_finds() {
    let fixture = Fixture::local(Metric::Dotproduct, 3).await;
    let call = call(BindingKind::Vectors.actions());
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &call,
    };
    let mine = || "mine".to_owned();
    let mut hybrid = vector(
        "a",
        &[1.0, 0.0, 0.0],
        Some(r#" {"digit": 7, "split" : "train"} "#),
    );
    hybrid.sparse = Some(SparseValues {
        indices: vec![9],
        values: vec![2.0],
    });
    let vectors = vec![hybrid, vector("b", &[0.5, 0.0, 0.0], None)];
    assert!(matches!(view.upsert(mine(), None, vectors).await, Ok(2)));
    let target = Target::Hybrid((
        vec![1.0, 0.0, 0.0],
        SparseValues {
            indices: vec![9],
            values: vec![4.0],
        },
    ));
    let found = view
        .query(mine(), None, search(target, 5, None))
        .await
        .unwrap();
    assert_eq!(
        found
            .iter()
            .map(|found| (found.id.as_str(), found.score))
            .collect::<Vec<_>>(),
        [("a", 9.0), ("b", 0.5)]
    );
    assert_eq!(
        found[0].metadata.as_deref(),
        Some(r#"{"digit":7,"split":"train"}"#)
    );
    assert_eq!(
        (
            found[0].sparse.as_ref().unwrap().indices[0],
            found[1].metadata.as_ref()
        ),
        (9, None)
    );
    view.update(mine(), None, change("a", Some(r#"{"digit": 8}"#)))
        .await
        .unwrap();
    let by_id = search(Target::Id("b".into()), 1, Some(r#"{"digit": {"$gt": 7}}"#));
    assert_eq!(view.query(mine(), None, by_id).await.unwrap()[0].id, "a");
    let fetched = view
        .fetch(mine(), Some(String::new()), vec!["a".into()])
        .await
        .unwrap();
    assert_eq!(
        fetched[0].metadata.as_deref(),
        Some(r#"{"digit":8,"split":"train"}"#)
    );
    let Page { ids, next } = view
        .list(mine(), None, Some("a".into()), Some(10), None)
        .await
        .unwrap();
    assert_eq!((ids, next), (vec!["a".to_owned()], None));
    let IndexInfo {
        dimension,
        metric,
        namespaces,
    } = view.describe(mine()).await.unwrap();
    assert!(dimension == 3 && metric == WitMetric::Dotproduct);
    assert!(
        namespaces.len() == 1 && namespaces[0].name == "__default__" && namespaces[0].vectors == 2
    );
    let filter = Selection::Filter(r#"{"digit": 8}"#.into());
    view.delete(mine(), None, filter).await.unwrap();
    view.delete(mine(), None, Selection::Ids(vec!["b".into()]))
        .await
        .unwrap();
    assert!(view.describe(mine()).await.unwrap().namespaces.is_empty());
}

#[tokio::test]
async fn hostile_arguments_have_clear_errors() {
    let fixture = Fixture::local(Metric::Cosine, 3).await;
    let call = call(BindingKind::Vectors.actions());
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &call,
    };
    let mine = || "mine".to_owned();
    let ones = || Target::Values(vec![1.0; 3]);
    let mut errors = Vec::new();
    for (values, metadata) in [
        (vec![f32::NAN; 3], None),
        (vec![0.0; 3], None),
        (vec![1.0; 2], None),
        (vec![1.0; 1_000_000], None),
        (vec![1.0; 3], Some("[]".to_owned())),
        (vec![1.0; 3], Some("not json".to_owned())),
        (vec![1.0; 3], Some(r#"{"a":{"b":{}}}"#.to_owned())),
        (vec![1.0; 3], Some("[".repeat(50_000))),
    ] {
        let vectors = vec![vector("x", &values, metadata.as_deref())];
        let error = view.upsert(mine(), None, vectors).await.unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error:?}");
        errors.push(error);
    }
    let fat = format!("{{\"fat\":\"{}\"}}", "f".repeat(10_000_000));
    let vectors = vec![vector("x", &[1.0; 3], Some(&fat))];
    let error = view.upsert(mine(), None, vectors).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error:?}");
    for (target, top_k, filter) in [
        (ones(), 10_001, None),
        (ones(), u32::MAX, None),
        (ones(), 0, None),
        (Target::Values(vec![f32::INFINITY; 3]), 1, None),
        (Target::Values(vec![]), 1, None),
        (Target::Id(String::new()), 1, None),
        (
            Target::Hybrid((
                vec![1.0; 3],
                SparseValues {
                    indices: vec![1],
                    values: vec![1.0],
                },
            )),
            1,
            None,
        ),
        (ones(), 1, Some("{\"$where\": \"1\"}")),
        (ones(), 1, Some("nonsense")),
    ] {
        errors.push(
            view.query(mine(), None, search(target, top_k, filter))
                .await
                .unwrap_err(),
        );
    }
    errors.push(
        view.update(mine(), None, change("x", Some("null")))
            .await
            .unwrap_err(),
    );
    errors.push(
        view.delete(mine(), None, Selection::Filter("{}".into()))
            .await
            .unwrap_err(),
    );
    errors.push(
        view.list(mine(), None, Some("p".repeat(600)), None, None)
            .await
            .unwrap_err(),
    );
    errors.push(
        view.list(mine(), None, None, None, Some("t".repeat(1 << 20)))
            .await
            .unwrap_err(),
    );
    for error in errors {
        let (Error::InvalidInput(text) | Error::TooLarge(text)) = &error else {
            panic!("{error:?}");
        };
        assert!(
            text.starts_with("vector index 'mine': ") && !text.contains("scans"),
            "{text}"
        );
        assert!(text.len() < 500 && !text.ends_with('.'), "{text}");
    }
    // A limit above a page's is a page, and a foreign token is only a place to go on from.
    let page = view
        .list(
            mine(),
            None,
            None,
            Some(u32::MAX),
            Some("\u{10ffff}".into()),
        )
        .await
        .unwrap();
    assert!(page.ids.is_empty() && page.next.is_none());
}

#[tokio::test]
async fn a_call_whose_time_is_up_does_nothing() {
    let fixture = Fixture::local(Metric::Cosine, 3).await;
    let late = Call {
        deadline: Instant::now(),
        ..call(BindingKind::Vectors.actions())
    };
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &late,
    };
    let (_, errors) = try_everything(&mut view, "mine").await;
    assert_eq!(errors.len(), 7);
    assert!(
        errors
            .iter()
            .all(|error| matches!(error, Error::DeadlineExceeded)),
        "{errors:?}"
    );
    let current = call(BindingKind::Vectors.actions());
    let mut view = VectorsView {
        vectors: &fixture.vectors,
        call: &current,
    };
    assert!(
        view.describe("mine".into())
            .await
            .unwrap()
            .namespaces
            .is_empty()
    );
}

/// The interface fits a linker, and only once.
#[test]
fn the_interface_can_be_linked() {
    struct Data(Fixture, Call);
    impl HasVectors for Data {
        fn vectors(&mut self) -> VectorsView<'_> {
            VectorsView {
                vectors: &self.0.vectors,
                call: &self.1,
            }
        }
    }
    let engine = wasmtime::Engine::default();
    let mut linker = wasmtime::component::Linker::<Data>::new(&engine);
    add_to_linker(&mut linker).unwrap();
    assert!(add_to_linker(&mut linker).is_err());
}
