use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use stepwell_catalog::{CatalogError, Change, Expected, Page, Precondition};
use stepwell_core::Digest;
use tokio::time::timeout;

use crate::place::{Place, name, ns, push, revision};

crate::contract!(
    a_pipeline_gets_a_revision_for_each_change,
    numbers_go_on_after_a_deletion,
    rollback_makes_a_new_revision,
    preconditions_hold_or_nothing_happens,
    of_many_changes_to_one_revision_one_happens,
    changes_at_once_each_get_a_number_of_their_own,
    a_pin_must_be_there_with_the_same_bytes,
    pipelines_and_revisions_are_listed_in_parts,
    a_snapshot_has_every_current_revision,
    a_change_is_told_and_a_refusal_is_not,
);

const ANY: Precondition = Precondition {
    expected: Expected::Any,
    generation: None,
};

fn expecting(expected: Expected) -> Precondition {
    Precondition {
        expected,
        generation: None,
    }
}

async fn a_pipeline_gets_a_revision_for_each_change(place: Place) {
    let catalog = place.open().await;
    let (ns, reader) = (ns(), name("reader"));
    let old = push(&catalog, "decode", "1.0.0").await;
    let new = push(&catalog, "decode", "1.1.0").await;
    let put = async |text: &str, plugin| {
        let applied = catalog
            .put_pipeline(&ns, &reader, &revision(text, &[plugin]), &ANY)
            .await
            .unwrap();
        (applied.change, applied.revision.revision)
    };
    assert_eq!(put("a", &old).await, (Change::Created, 1));
    assert_eq!(put("a", &old).await, (Change::Unchanged, 1));
    assert_eq!(put("b", &old).await, (Change::Changed, 2));
    // The same document that resolves to another version runs other code.
    assert_eq!(put("b", &new).await, (Change::Changed, 3));
    assert_eq!(put("b", &new).await, (Change::Unchanged, 3));

    let current = catalog.pipeline(&ns, &reader).await.unwrap();
    let wanted = revision("b", &[&new]);
    assert_eq!(current.revision, 3);
    assert_eq!(current.source, wanted.source);
    assert_eq!(current.content_type, wanted.content_type);
    assert_eq!(current.document, wanted.document);
    assert_eq!(current.steps, wanted.steps);
    let first = catalog.pipeline_revision(&ns, &reader, 1).await.unwrap();
    assert_eq!(first.steps, revision("a", &[&old]).steps);
    for missing in [0, 4, u64::MAX] {
        let error = catalog
            .pipeline_revision(&ns, &reader, missing)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("there is no revision {missing} of pipeline reader")
        );
    }
}

async fn numbers_go_on_after_a_deletion(place: Place) {
    let catalog = place.open().await;
    let (ns, reader) = (ns(), name("reader"));
    for text in ["a", "b"] {
        catalog
            .put_pipeline(&ns, &reader, &revision(text, &[]), &ANY)
            .await
            .unwrap();
    }
    catalog.delete_pipeline(&ns, &reader, &ANY).await.unwrap();
    for error in [
        catalog.pipeline(&ns, &reader).await.unwrap_err(),
        catalog
            .pipeline_revisions(&ns, &reader, &Page::default())
            .await
            .unwrap_err(),
        catalog
            .delete_pipeline(&ns, &reader, &ANY)
            .await
            .unwrap_err(),
        catalog
            .rollback_pipeline(&ns, &reader, Some(1), &ANY)
            .await
            .unwrap_err(),
        catalog
            .pipeline_revision(&ns, &reader, 1)
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, CatalogError::NotFound(_)), "{error}");
    }
    let listed = catalog.pipelines(&ns, &Page::default()).await.unwrap();
    assert!(listed.items.is_empty());

    let again = catalog
        .put_pipeline(&ns, &reader, &revision("b", &[]), &ANY)
        .await
        .unwrap();
    assert_eq!(again.change, Change::Created);
    assert_eq!(again.revision.revision, 3);
    let history = catalog
        .pipeline_revisions(&ns, &reader, &Page::default())
        .await
        .unwrap();
    assert_eq!(history.items, [again.revision]);
}

async fn rollback_makes_a_new_revision(place: Place) {
    let catalog = place.open().await;
    let (ns, reader) = (ns(), name("reader"));
    let plugin = push(&catalog, "decode", "1.0.0").await;
    catalog
        .put_pipeline(&ns, &reader, &revision("a", &[&plugin]), &ANY)
        .await
        .unwrap();
    let nothing_before = catalog
        .rollback_pipeline(&ns, &reader, None, &ANY)
        .await
        .unwrap_err();
    assert_eq!(
        nothing_before.to_string(),
        "there is no revision of pipeline reader before 1"
    );
    for text in ["b", "c"] {
        catalog
            .put_pipeline(&ns, &reader, &revision(text, &[]), &ANY)
            .await
            .unwrap();
    }
    let back = catalog
        .rollback_pipeline(&ns, &reader, Some(1), &ANY)
        .await
        .unwrap();
    assert_eq!(back.change, Change::Changed);
    assert_eq!(back.revision.revision, 4);
    assert_eq!(back.revision.document, revision("a", &[]).document);
    assert_eq!(back.revision.steps, revision("a", &[&plugin]).steps);
    let error = catalog
        .delete_plugin_version(&ns, &plugin.name, &plugin.version)
        .await
        .unwrap_err();
    assert!(matches!(error, CatalogError::InUse { .. }), "{error}");

    let before = catalog
        .rollback_pipeline(&ns, &reader, None, &ANY)
        .await
        .unwrap();
    assert_eq!(before.revision.revision, 5);
    assert_eq!(before.revision.document, revision("c", &[]).document);
    let stale = catalog
        .rollback_pipeline(&ns, &reader, None, &expecting(Expected::Revision(4)))
        .await
        .unwrap_err();
    assert!(matches!(stale, CatalogError::Stale { current: Some(5) }));
}

async fn preconditions_hold_or_nothing_happens(place: Place) {
    let catalog = place.open().await;
    let (ns, reader) = (ns(), name("reader"));
    let put = async |text: &str, precondition: Precondition| {
        catalog
            .put_pipeline(&ns, &reader, &revision(text, &[]), &precondition)
            .await
    };
    for expected in [Expected::Exists, Expected::Revision(1)] {
        let error = put("a", expecting(expected)).await.unwrap_err();
        assert!(matches!(error, CatalogError::Stale { current: None }));
    }
    put("a", expecting(Expected::Absent)).await.unwrap();
    for expected in [Expected::Absent, Expected::Revision(2)] {
        let error = put("a", expecting(expected)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pipeline has changed: it is at revision 1"
        );
    }
    put("b", expecting(Expected::Exists)).await.unwrap();
    put("c", expecting(Expected::Revision(2))).await.unwrap();
    let error = catalog
        .delete_pipeline(&ns, &reader, &expecting(Expected::Revision(2)))
        .await
        .unwrap_err();
    assert!(matches!(error, CatalogError::Stale { current: Some(3) }));

    let checked_at = catalog.ping().await.unwrap();
    let guarded = Precondition {
        expected: Expected::Any,
        generation: Some(checked_at),
    };
    push(&catalog, "decode", "1.0.0").await;
    let error = put("d", guarded).await.unwrap_err();
    assert!(matches!(error, CatalogError::Moved), "{error}");
    assert_eq!(catalog.pipeline(&ns, &reader).await.unwrap().revision, 3);
    let guarded = Precondition {
        generation: Some(catalog.ping().await.unwrap()),
        ..guarded
    };
    let applied = put("d", guarded).await.unwrap();
    assert_eq!(applied.generation, catalog.ping().await.unwrap());
}

async fn of_many_changes_to_one_revision_one_happens(place: Place) {
    let catalogs = [Arc::new(place.open().await), Arc::new(place.open().await)];
    catalogs[0]
        .put_pipeline(&ns(), &name("reader"), &revision("a", &[]), &ANY)
        .await
        .unwrap();
    let changes = (0..20).map(|number: usize| {
        let catalog = catalogs[number % 2].clone();
        tokio::spawn(async move {
            catalog
                .put_pipeline(
                    &ns(),
                    &name("reader"),
                    &revision(&format!("by {number}"), &[]),
                    &expecting(Expected::Revision(1)),
                )
                .await
        })
    });
    let results = join_all(changes).await;
    let (done, refused): (Vec<_>, Vec<_>) = results
        .into_iter()
        .map(Result::unwrap)
        .partition(Result::is_ok);
    assert_eq!(done.len(), 1);
    for error in refused.into_iter().map(Result::unwrap_err) {
        assert!(matches!(error, CatalogError::Stale { current: Some(2) }));
    }
}

async fn changes_at_once_each_get_a_number_of_their_own(place: Place) {
    let catalogs = [place.open().await, place.open().await];
    let (ns, reader) = (&ns(), &name("reader"));
    let changes = (0..20).map(|number: usize| {
        let catalog = &catalogs[number % 2];
        async move {
            catalog
                .put_pipeline(ns, reader, &revision(&format!("by {number}"), &[]), &ANY)
                .await
                .unwrap()
                .revision
                .revision
        }
    });
    let mut numbers = join_all(changes).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<u64>>());
}

async fn a_pin_must_be_there_with_the_same_bytes(place: Place) {
    let catalog = place.open().await;
    let plugin = push(&catalog, "decode", "1.0.0").await;
    let mut other_bytes = plugin.clone();
    other_bytes.digest = Digest::of(b"other");
    let mut other_version = plugin.clone();
    other_version.version = "1.0.1".parse().unwrap();
    for (number, gone) in [other_bytes, other_version].iter().enumerate() {
        let error = catalog
            .put_pipeline(
                &ns(),
                &name("reader"),
                &revision("a", &[&plugin, gone]),
                &ANY,
            )
            .await
            .unwrap_err();
        let CatalogError::PluginsGone(steps) = error else {
            panic!("{number}: {error}");
        };
        assert_eq!(steps, revision("a", &[&plugin, gone]).steps[1..]);
    }
    assert!(catalog.pipeline(&ns(), &name("reader")).await.is_err());
}

async fn pipelines_and_revisions_are_listed_in_parts(place: Place) {
    let catalog = place.open().await;
    let names = ["a", "b", "c-d", "c0"];
    for pipeline in names {
        for text in ["one", "two", "three"] {
            catalog
                .put_pipeline(&ns(), &name(pipeline), &revision(text, &[]), &ANY)
                .await
                .unwrap();
        }
    }
    let mut page = Page {
        limit: 3,
        cursor: None,
    };
    let first = catalog.pipelines(&ns(), &page).await.unwrap();
    assert_eq!(first.items.len(), 3);
    assert!(first.items.iter().all(|item| item.revision == 3));
    page.cursor = first.next;
    let second = catalog.pipelines(&ns(), &page).await.unwrap();
    assert_eq!(second.items.len(), 1);
    assert_eq!(second.items[0].name.as_str(), "c0");
    assert_eq!(second.next, None);

    let mut page = Page {
        limit: 2,
        cursor: None,
    };
    let first = catalog
        .pipeline_revisions(&ns(), &name("b"), &page)
        .await
        .unwrap();
    page.cursor = first.next;
    let second = catalog
        .pipeline_revisions(&ns(), &name("b"), &page)
        .await
        .unwrap();
    let numbers: Vec<u64> = first
        .items
        .iter()
        .chain(&second.items)
        .map(|item| item.revision)
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(second.next, None);
    // A page of nothing is a page of one.
    page = Page {
        limit: 0,
        cursor: None,
    };
    assert_eq!(
        catalog.pipelines(&ns(), &page).await.unwrap().items.len(),
        1
    );
}

async fn a_snapshot_has_every_current_revision(place: Place) {
    let catalog = place.open().await;
    let empty = catalog.snapshot(None).await.unwrap();
    assert_eq!((empty.generation, empty.pipelines.len()), (0, 0));
    for (pipeline, text) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")] {
        catalog
            .put_pipeline(&ns(), &name(pipeline), &revision(text, &[]), &ANY)
            .await
            .unwrap();
    }
    let generation = catalog
        .delete_pipeline(&ns(), &name("b"), &ANY)
        .await
        .unwrap();
    let snapshot = catalog.snapshot(None).await.unwrap();
    let pipelines: Vec<_> = snapshot
        .pipelines
        .iter()
        .map(|pipeline| (pipeline.name.as_str(), pipeline.revision))
        .collect();
    assert_eq!(pipelines, [("a", 2), ("c", 1)]);
    assert_eq!(snapshot.generation, generation);
    assert_eq!(generation, 5);
    assert!(snapshot.complete);
    // And what has changed since then is told alone.
    for (since, changed, deleted) in [
        (0, &[("a", 2), ("c", 1)][..], &["b"][..]),
        (2, &[("a", 2), ("c", 1)], &["b"]),
        (3, &[("c", 1)], &["b"]),
        (4, &[], &["b"]),
        (5, &[], &[]),
    ] {
        let part = catalog.snapshot(Some(since)).await.unwrap();
        let names = part
            .pipelines
            .iter()
            .map(|one| (one.name.as_str(), one.revision));
        assert_eq!(names.collect::<Vec<_>>(), changed, "since {since}");
        let names = part.deleted.iter().map(|(_, name)| name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), deleted, "since {since}");
        assert_eq!((part.generation, part.complete), (5, false));
    }
    // One that is made again is there again, and no longer among the deleted.
    let again = catalog
        .put_pipeline(&ns(), &name("b"), &revision("2", &[]), &ANY)
        .await
        .unwrap();
    assert_eq!(again.generation, 6);
    let part = catalog.snapshot(Some(5)).await.unwrap();
    assert_eq!((part.pipelines.len(), part.deleted.len()), (1, 0));
    // Whoever knows of a later generation knew another catalog.
    let other = catalog.snapshot(Some(7)).await.unwrap();
    assert_eq!((other.complete, other.pipelines.len()), (true, 3));
}

async fn a_change_is_told_and_a_refusal_is_not(place: Place) {
    let catalog = place.open().await;
    let mut changes = catalog.changes();
    catalog
        .put_pipeline(&ns(), &name("a"), &revision("1", &[]), &ANY)
        .await
        .unwrap();
    timeout(Duration::from_secs(30), changes.wait_for(|at| *at == 1))
        .await
        .unwrap()
        .unwrap();
    let refused = catalog
        .put_pipeline(
            &ns(),
            &name("a"),
            &revision("2", &[]),
            &expecting(Expected::Absent),
        )
        .await;
    refused.unwrap_err();
    let unchanged = catalog
        .put_pipeline(&ns(), &name("a"), &revision("1", &[]), &ANY)
        .await
        .unwrap();
    assert_eq!(unchanged.generation, 1);
    assert_eq!(catalog.ping().await.unwrap(), 1);
}
