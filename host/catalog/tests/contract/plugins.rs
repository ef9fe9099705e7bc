use std::sync::Arc;

use futures::future::join_all;
use stepwell_catalog::{CatalogError, Page, Precondition, PutVersion};
use stepwell_core::Digest;

use crate::place::{Place, name, ns, plugin, push, revision};

crate::contract!(
    a_version_is_stored_with_its_bytes_and_never_changes,
    of_many_uploads_of_one_version_one_is_created,
    equal_uploads_at_once_are_one_version,
    plugins_are_listed_in_parts,
    versions_of_a_plugin_come_highest_first,
    a_version_in_use_stays,
    bytes_go_with_the_last_version_that_has_them,
    a_corrupt_component_is_refused_by_digest_and_mended_by_a_push,
    a_large_component_survives_the_way_there_and_back,
);

async fn a_version_is_stored_with_its_bytes_and_never_changes(place: Place) {
    let catalog = place.open().await;
    let first = plugin("decode", "1.0.0-rc.1+build.7", "one");
    let PutVersion::Created(created) = catalog.put_plugin_version(first.clone()).await.unwrap()
    else {
        panic!("not created");
    };
    assert_eq!(created.digest, Digest::of(b"one"));
    assert_eq!(created.size, 3);
    assert_eq!(created.version, first.version);
    assert_eq!(created.imports, first.imports);
    assert_eq!(created.exports, first.exports);
    assert_eq!(created.world, first.world);
    assert_eq!(created.compile_ms, 118);

    let again = catalog.put_plugin_version(first.clone()).await.unwrap();
    assert_eq!(again, PutVersion::Same(created.clone()));
    let other = plugin("decode", "1.0.0-rc.1+build.7", "two");
    let conflict = catalog.put_plugin_version(other).await.unwrap();
    assert_eq!(conflict, PutVersion::Conflict(created.clone()));

    // Another catalog on the same database, as after a restart.
    catalog.close().await;
    let catalog = place.open().await;
    let found = catalog
        .plugin_version(&ns(), &first.name, &first.version)
        .await
        .unwrap();
    assert_eq!(found, created);
    assert_eq!(
        &catalog.component(created.digest).await.unwrap()[..],
        b"one"
    );
    let missing = catalog.component(Digest::of(b"two")).await.unwrap_err();
    assert!(matches!(missing, CatalogError::NotFound(_)), "{missing}");
}

async fn of_many_uploads_of_one_version_one_is_created(place: Place) {
    // Two hosts, as far as the database can tell.
    let catalogs = [Arc::new(place.open().await), Arc::new(place.open().await)];
    let uploads = (0..20).map(|number: usize| {
        let catalog = catalogs[number % 2].clone();
        let new = plugin("decode", "1.0.0", &format!("bytes {number}"));
        tokio::spawn(async move { (number, catalog.put_plugin_version(new).await.unwrap()) })
    });
    let results: Vec<_> = join_all(uploads)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let winners: Vec<_> = results
        .iter()
        .filter_map(|(number, result)| match result {
            PutVersion::Created(version) => Some((number, version.clone())),
            _ => None,
        })
        .collect();
    let [(number, winner)] = &winners[..] else {
        panic!("{} uploads were created", winners.len());
    };
    assert_eq!(
        winner.digest,
        Digest::of(format!("bytes {number}").as_bytes())
    );
    let conflicts = results
        .iter()
        .filter(|(_, result)| *result == PutVersion::Conflict(winner.clone()));
    assert_eq!(conflicts.count(), 19);
}

async fn equal_uploads_at_once_are_one_version(place: Place) {
    let catalog = place.open().await;
    let uploads = (0..10).map(|_| catalog.put_plugin_version(plugin("decode", "1.0.0", "x")));
    let results = join_all(uploads).await;
    let created = results
        .iter()
        .filter(|result| matches!(result, Ok(PutVersion::Created(_))));
    assert_eq!(created.count(), 1);
    let same = results
        .iter()
        .filter(|result| matches!(result, Ok(PutVersion::Same(_))));
    assert_eq!(same.count(), 9);
}

async fn plugins_are_listed_in_parts(place: Place) {
    let catalog = place.open().await;
    let names = ["a", "a-b", "a0", "ab", "b", "zz"];
    for (number, name) in names.iter().rev().enumerate() {
        push(&catalog, name, "1.0.0").await;
        push(&catalog, name, &format!("1.{}.0", number + 1)).await;
    }
    let mut listed = Vec::new();
    let mut page = Page {
        limit: 4,
        cursor: None,
    };
    loop {
        let part = catalog.plugins(&ns(), &page).await.unwrap();
        assert!(part.items.len() <= 4);
        assert!(part.items.iter().all(|plugin| plugin.versions.len() == 2));
        listed.extend(part.items.into_iter().map(|plugin| plugin.name.to_string()));
        match part.next {
            Some(cursor) => page.cursor = Some(cursor),
            None => break,
        }
    }
    assert_eq!(listed, names);
    let other = catalog.plugins(&name("other"), &Page::default()).await;
    assert!(other.unwrap().items.is_empty());
    assert_eq!(catalog.plugin_versions(&ns()).await.unwrap().len(), 12);
}

async fn versions_of_a_plugin_come_highest_first(place: Place) {
    let catalog = place.open().await;
    for version in ["1.9.0", "1.10.0", "2.0.0-rc.1", "0.1.0"] {
        push(&catalog, "decode", version).await;
    }
    let plugin = catalog.plugin(&ns(), &name("decode")).await.unwrap();
    let versions: Vec<String> = plugin
        .versions
        .iter()
        .map(|version| version.version.to_string())
        .collect();
    assert_eq!(versions, ["2.0.0-rc.1", "1.10.0", "1.9.0", "0.1.0"]);
    let missing = catalog.plugin(&ns(), &name("none")).await.unwrap_err();
    assert_eq!(missing.to_string(), "there is no plugin none");
}

async fn a_version_in_use_stays(place: Place) {
    let catalog = place.open().await;
    let version = push(&catalog, "decode", "1.0.0").await;
    let newer = push(&catalog, "decode", "1.1.0").await;
    let any = Precondition::default();
    for pipeline in ["reader", "other"] {
        catalog
            .put_pipeline(
                &ns(),
                &name(pipeline),
                &revision("a", &[&version, &version]),
                &any,
            )
            .await
            .unwrap();
    }
    let namespace = ns();
    let delete = || catalog.delete_plugin_version(&namespace, &version.name, &version.version);
    let error = delete().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "plugin decode@1.0.0 is used by pipelines other, reader"
    );
    // One pipeline moves on, the other goes: the version is free, although an old revision names it.
    catalog
        .put_pipeline(&ns(), &name("reader"), &revision("b", &[&newer]), &any)
        .await
        .unwrap();
    let error = delete().await.unwrap_err();
    assert!(
        matches!(&error, CatalogError::InUse { pipelines, .. } if *pipelines == [name("other")]),
        "{error}"
    );
    catalog
        .delete_pipeline(&ns(), &name("other"), &any)
        .await
        .unwrap();
    delete().await.unwrap();
    assert!(matches!(
        delete().await.unwrap_err(),
        CatalogError::NotFound(_)
    ));
    // What the old revision needs is gone, and a rollback says so.
    let error = catalog
        .rollback_pipeline(&ns(), &name("reader"), Some(1), &any)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "a plugin version is gone: decode@1.0.0 of step step-0, decode@1.0.0 of step step-1"
    );
}

async fn bytes_go_with_the_last_version_that_has_them(place: Place) {
    let catalog = place.open().await;
    for version in ["1.0.0", "1.0.1"] {
        let new = plugin("decode", version, "the same");
        catalog.put_plugin_version(new).await.unwrap();
    }
    let digest = Digest::of(b"the same");
    let delete = async |version: &str| {
        catalog
            .delete_plugin_version(&ns(), &name("decode"), &version.parse().unwrap())
            .await
            .unwrap();
    };
    delete("1.0.0").await;
    catalog.component(digest).await.unwrap();
    delete("1.0.1").await;
    let error = catalog.component(digest).await.unwrap_err();
    assert!(matches!(error, CatalogError::NotFound(_)), "{error}");
    assert!(catalog.plugin(&ns(), &name("decode")).await.is_err());
}

async fn a_corrupt_component_is_refused_by_digest_and_mended_by_a_push(place: Place) {
    let catalog = place.open().await;
    let version = push(&catalog, "decode", "1.0.0").await;
    place
        .meddle("UPDATE blobs SET bytes = (SELECT bytes FROM (SELECT bytes FROM blobs) b) || bytes")
        .await;
    let error = catalog.component(version.digest).await.unwrap_err();
    assert!(matches!(&error, CatalogError::CorruptBlob(digest) if *digest == version.digest));
    assert!(error.to_string().contains(&version.digest.to_string()));

    let again = plugin("decode", "1.0.0", "the bytes of decode@1.0.0");
    let result = catalog.put_plugin_version(again).await.unwrap();
    assert_eq!(result, PutVersion::Same(version.clone()));
    let bytes = catalog.component(version.digest).await.unwrap();
    assert_eq!(&bytes[..], b"the bytes of decode@1.0.0");
}

async fn a_large_component_survives_the_way_there_and_back(place: Place) {
    let catalog = place.open().await;
    let bytes: Vec<u8> = (0..20_000_000_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut new = plugin("large", "1.0.0", "");
    new.bytes = bytes.clone().into();
    let PutVersion::Created(created) = catalog.put_plugin_version(new).await.unwrap() else {
        panic!("not created");
    };
    assert_eq!(created.size, 20_000_000);
    let back = catalog.component(created.digest).await.unwrap();
    assert!(back == bytes);
}
