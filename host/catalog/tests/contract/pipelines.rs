use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use stepwell_catalog::{
    CatalogError, CatalogLimits, Change, Expected, Page, PipelineRevision, Precondition,
};
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
    one_damaged_revision_is_one_pipeline_that_fails,
    a_change_is_told_and_a_refusal_is_not,
    old_revisions_go_when_new_ones_come,
    a_list_of_large_documents_comes_in_small_parts,
    rows_of_deleted_pipelines_do_not_pile_up,
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
    assert_eq!(current.source, Some(wanted.source));
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
    // Lists are without the sources.
    let mut listed = again.revision;
    listed.source = None;
    assert_eq!(history.items, [listed]);
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

async fn one_damaged_revision_is_one_pipeline_that_fails(place: Place) {
    let catalog = place.open().await;
    let put = async |pipeline: &str, text: &str| {
        let new = revision(text, &[]);
        let (ns, name) = (ns(), name(pipeline));
        let put = catalog.put_pipeline(&ns, &name, &new, &ANY);
        put.await.unwrap()
    };
    for pipeline in ["a", "b", "c"] {
        put(pipeline, "1").await;
    }
    let names = |revisions: &[PipelineRevision]| {
        let names = revisions.iter().map(|one| one.name.to_string());
        names.collect::<Vec<_>>()
    };
    for column in ["document", "steps"] {
        let damage = format!("UPDATE pipeline_revisions SET {column} = '{{' WHERE name = 'b'");
        place.meddle(&damage).await;
        for since in [None, Some(0)] {
            let snapshot = catalog.snapshot(since).await.unwrap();
            assert_eq!(names(&snapshot.pipelines), ["a", "c"]);
            let [unreadable] = &snapshot.unreadable[..] else {
                panic!("{:?}", snapshot.unreadable)
            };
            assert_eq!(unreadable.name.as_str(), "b");
            assert!(unreadable.reason.contains("apply the pipeline anew"));
        }
        // Lists have the others, part by part.
        let mut page = Page {
            limit: 1,
            cursor: None,
        };
        let mut listed = Vec::new();
        loop {
            let part = catalog.pipelines(&ns(), &page).await.unwrap();
            listed.extend(names(&part.items));
            page.cursor = part.next;
            if page.cursor.is_none() {
                break;
            }
        }
        assert_eq!(listed, ["a", "c"]);
        // Another can be applied, and the same document mends this one.
        put("d", column).await;
        let mended = put("b", "1").await;
        assert_eq!(mended.change, Change::Changed);
        let snapshot = catalog.snapshot(None).await.unwrap();
        assert_eq!(names(&snapshot.pipelines), ["a", "b", "c", "d"]);
        assert_eq!(snapshot.unreadable, []);
        let revisions = catalog
            .pipeline_revisions(&ns(), &name("b"), &Page::default())
            .await
            .unwrap();
        let numbers: Vec<u64> = revisions.items.iter().map(|one| one.revision).collect();
        assert_eq!(numbers, [mended.revision.revision]);
        catalog
            .delete_pipeline(&ns(), &name("d"), &ANY)
            .await
            .unwrap();
    }
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

async fn old_revisions_go_when_new_ones_come(place: Place) {
    let catalog = place.open().await.limited(CatalogLimits {
        revisions: 3,
        ..CatalogLimits::default()
    });
    let (ns, reader) = (ns(), name("reader"));
    let put = async |text: String| {
        catalog
            .put_pipeline(&ns, &reader, &revision(&text, &[]), &ANY)
            .await
            .unwrap()
            .revision
            .revision
    };
    for number in 1..=5 {
        assert_eq!(put(number.to_string()).await, number);
    }
    let kept = async || {
        let page = Page::default();
        let listed = catalog.pipeline_revisions(&ns, &reader, &page).await;
        let numbers = listed.unwrap().items.into_iter().map(|one| one.revision);
        numbers.collect::<Vec<_>>()
    };
    assert_eq!(kept().await, [5, 4, 3]);
    // The oldest that is there can be gone back to, even though it goes by that.
    let back = catalog
        .rollback_pipeline(&ns, &reader, Some(3), &ANY)
        .await
        .unwrap();
    assert_eq!(back.revision.document, revision("3", &[]).document);
    assert_eq!(kept().await, [6, 5, 4]);
    for error in [
        catalog
            .rollback_pipeline(&ns, &reader, Some(3), &ANY)
            .await
            .unwrap_err(),
        catalog
            .pipeline_revision(&ns, &reader, 3)
            .await
            .unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "there is no revision 3 of pipeline reader any more: the oldest that is kept is 4 (limits.revisions)"
        );
    }
    // A change that changes nothing drops nothing, nor does another pipeline's.
    assert_eq!(put("3".to_owned()).await, 6);
    catalog
        .put_pipeline(&ns, &name("other"), &revision("a", &[]), &ANY)
        .await
        .unwrap();
    assert_eq!(kept().await, [6, 5, 4]);
    assert_eq!(catalog.pipeline(&ns, &reader).await.unwrap().revision, 6);
}

async fn a_list_of_large_documents_comes_in_small_parts(place: Place) {
    let catalog = place.open().await.limited(CatalogLimits {
        revisions: 1_000,
        ..CatalogLimits::default()
    });
    let reader = name("reader");
    let large = "x".repeat(100 << 10);
    let mut new = revision("a", &[]);
    new.document["large"] = large.into();
    catalog
        .put_pipeline(&ns(), &reader, &new, &ANY)
        .await
        .unwrap();
    // As many as one part may have, and pipelines likewise.
    for sql in [
        "INSERT INTO pipeline_revisions (namespace, name, revision, source, content_type, document, steps, created_at) \
         SELECT r.namespace, r.name, n.n, r.source, r.content_type, r.document, r.steps, r.created_at \
         FROM pipeline_revisions r, (WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c WHERE n < 500) SELECT n FROM c) n",
        "UPDATE pipelines SET revision = 500",
        "INSERT INTO pipelines (namespace, name, revision, generation) \
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300) \
         SELECT 'default', 'p' || n, 1, 1 FROM c",
        "INSERT INTO pipeline_revisions (namespace, name, revision, source, content_type, document, steps, created_at) \
         SELECT p.namespace, p.name, 1, r.source, r.content_type, r.document, r.steps, r.created_at \
         FROM pipelines p, pipeline_revisions r WHERE p.name <> 'reader' AND r.revision = 1",
    ] {
        place.meddle(sql).await;
    }
    let bytes = |document: &serde_json::Value| document.to_string().len();
    let mut page = Page {
        limit: 500,
        cursor: None,
    };
    let mut numbers = Vec::new();
    loop {
        let part = catalog
            .pipeline_revisions(&ns(), &reader, &page)
            .await
            .unwrap();
        assert!(part.items.iter().all(|item| item.source.is_none()));
        let size: usize = part.items.iter().map(|item| bytes(&item.document)).sum();
        assert!((3 << 20..=4 << 20).contains(&size) || part.next.is_none());
        numbers.extend(part.items.iter().map(|item| item.revision));
        page.cursor = part.next;
        if page.cursor.is_none() {
            break;
        }
    }
    assert_eq!(numbers, (1..=500).rev().collect::<Vec<u64>>());

    let mut seen = 0;
    loop {
        let part = catalog.pipelines(&ns(), &page).await.unwrap();
        assert!(part.items.len() < 50);
        seen += part.items.len();
        page.cursor = part.next;
        if page.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, 301);
    // One that is larger than a part is a part by itself.
    new.document["large"] = "x".repeat(5 << 20).into();
    for pipeline in ["a", "b"] {
        catalog
            .put_pipeline(&ns(), &name(pipeline), &new, &ANY)
            .await
            .unwrap();
    }
    let first = catalog.pipelines(&ns(), &page).await.unwrap();
    assert_eq!((first.items.len(), first.next), (1, Some("a".to_owned())));
}

async fn rows_of_deleted_pipelines_do_not_pile_up(place: Place) {
    let catalog = place.open().await;
    let put = async |pipeline: &str| {
        let new = revision("a", &[]);
        let applied = catalog
            .put_pipeline(&ns(), &name(pipeline), &new, &ANY)
            .await;
        applied.unwrap().revision.revision
    };
    let delete = async |pipeline: &str| {
        let deleted = catalog.delete_pipeline(&ns(), &name(pipeline), &ANY).await;
        deleted.unwrap()
    };
    for pipeline in ["stays", "first"] {
        assert_eq!(put(pipeline).await, 1);
    }
    place
        .meddle("UPDATE pipelines SET revision = 41 WHERE name = 'first'")
        .await;
    place
        .meddle("UPDATE pipeline_revisions SET revision = 41 WHERE name = 'first'")
        .await;
    let seen = catalog.ping().await.unwrap();
    let first = delete("first").await;
    // A thousand more that were deleted since.
    place
        .meddle(&format!(
            "INSERT INTO pipelines (namespace, name, revision, deleted_at, generation) \
             WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 999) \
             SELECT 'default', 'gone-' || n, 1, 1, {first} + n FROM c"
        ))
        .await;
    place
        .meddle("UPDATE catalog_state SET generation = generation + 999")
        .await;
    let before = catalog.snapshot(Some(seen)).await.unwrap();
    assert_eq!((before.complete, before.deleted.len()), (false, 1_000));
    assert_eq!(put("last").await, 1);
    let last = delete("last").await;
    // The oldest went; nobody can be told of it any more, so whoever has not heard of it is told everything.
    let after = catalog.snapshot(Some(first)).await.unwrap();
    assert_eq!((after.complete, after.deleted.len()), (false, 1_000));
    let missed = catalog.snapshot(Some(seen)).await.unwrap();
    let left: Vec<&str> = missed
        .pipelines
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!((missed.complete, left), (true, vec!["stays"]));
    assert_eq!(missed.generation, last);
    // No number of a name is used again, whether or not its row is there.
    assert_eq!(put("first").await, 42);
    assert_eq!(put("gone-7").await, 2);
    assert_eq!(put("stays").await, 1);
    assert_eq!(put("new").await, 42);
    let elsewhere = name("team-a");
    let quotas = stepwell_core::Quotas::default();
    catalog.put_namespace(&elsewhere, &quotas).await.unwrap();
    let new = revision("a", &[]);
    let applied = catalog
        .put_pipeline(&elsewhere, &name("new"), &new, &ANY)
        .await
        .unwrap();
    assert_eq!(applied.revision.revision, 1);
}
