use std::time::Duration;

use futures::future::join_all;
use stepwell_catalog::{Catalog, CatalogError, Location, Page, Precondition, PutVersion};
use stepwell_core::Secret;
use stepwell_test_services::Postgres;
use tokio::time::timeout;

use crate::place::{Place, name, ns, plugin, push, revision};

crate::contract!(
    many_open_an_empty_database_at_once,
    a_newer_catalog_is_refused,
    an_abandoned_change_leaves_nothing_and_blocks_nobody,
    a_row_that_makes_no_sense_is_corrupt,
);

async fn many_open_an_empty_database_at_once(place: Place) {
    let catalogs: Vec<Catalog> = (0..8)
        .map(|_| Catalog::new(&place.location).unwrap())
        .collect();
    for result in join_all(catalogs.iter().map(Catalog::migrate)).await {
        result.unwrap();
    }
    for (number, catalog) in catalogs.iter().enumerate() {
        push(catalog, "decode", &format!("1.0.{number}")).await;
    }
    let plugin = catalogs[0].plugin(&ns(), &name("decode")).await.unwrap();
    assert_eq!(plugin.versions.len(), 8);
}

#[tokio::test]
async fn a_catalog_file_that_was_emptied_is_refused() {
    let place = Place::sqlite();
    let Location::Sqlite(path) = &place.location else {
        panic!("not SQLite");
    };
    place.open().await.close().await;
    std::fs::File::create(path).unwrap();
    let catalog = Catalog::new(&place.location).unwrap();
    let error = catalog.migrate().await.unwrap_err();
    assert!(matches!(error, CatalogError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("backup"), "{error}");
    assert_eq!(
        std::fs::metadata(path).unwrap().len(),
        0,
        "it is left as it was"
    );
    std::fs::remove_file(path).unwrap();
    catalog.migrate().await.unwrap();
}

async fn a_newer_catalog_is_refused(place: Place) {
    place.open().await.close().await;
    place
        .meddle(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             SELECT 9999, 'from the future', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1",
        )
        .await;
    let catalog = Catalog::new(&place.location).unwrap();
    let error = catalog.migrate().await.unwrap_err();
    assert!(matches!(error, CatalogError::TooNew { found: 9999, .. }));
    assert!(error.to_string().contains("run the newer version"));
    // And nothing works around it.
    let error = catalog.plugins(&ns(), &Page::default()).await.unwrap_err();
    assert!(matches!(error, CatalogError::TooNew { .. }), "{error}");
    let again = Catalog::new(&place.location).unwrap().migrate().await;
    assert!(matches!(again.unwrap_err(), CatalogError::TooNew { .. }));
}

async fn an_abandoned_change_leaves_nothing_and_blocks_nobody(place: Place) {
    let catalog = place.open().await;
    for micros in (0..3000).step_by(150) {
        let change = catalog.put_plugin_version(plugin("decode", "1.0.0", "bytes"));
        let result = timeout(Duration::from_micros(micros), change).await;
        if let Ok(result) = result {
            result.unwrap();
        }
    }
    let result = catalog
        .put_plugin_version(plugin("decode", "1.0.0", "bytes"))
        .await
        .unwrap();
    let (PutVersion::Created(version) | PutVersion::Same(version)) = result else {
        panic!("{result:?}");
    };
    catalog.component(version.digest).await.unwrap();
}

async fn a_row_that_makes_no_sense_is_corrupt(place: Place) {
    let catalog = place.open().await;
    push(&catalog, "decode", "1.0.0").await;
    place
        .meddle("UPDATE plugin_versions SET imports = '[1, oops'")
        .await;
    let error = catalog.plugin(&ns(), &name("decode")).await.unwrap_err();
    assert!(matches!(error, CatalogError::Corrupt(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_is_corrupt() {
    let place = Place::sqlite();
    let Location::Sqlite(path) = &place.location else {
        unreachable!("a place in SQLite is a file");
    };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(
        path,
        "certainly no database, but long enough for a header ".repeat(50),
    )
    .unwrap();
    let catalog = Catalog::new(&place.location).unwrap();
    let error = catalog.migrate().await.unwrap_err();
    assert!(matches!(error, CatalogError::Corrupt(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_hear_of_each_others_changes() {
    let place = Place::postgres();
    let (one, other) = (place.open().await, place.open().await);
    let mut changes = other.changes();
    let applied = one
        .put_pipeline(
            &ns(),
            &name("reader"),
            &revision("a", &[]),
            &Precondition::default(),
        )
        .await
        .unwrap();
    timeout(
        Duration::from_secs(30),
        changes.wait_for(|at| *at == applied.generation),
    )
    .await
    .expect("the change was told")
    .unwrap();
    // A change whose notification got lost is found by looking.
    place
        .meddle("UPDATE catalog_state SET generation = generation + 1")
        .await;
    timeout(
        Duration::from_secs(30),
        changes.wait_for(|at| *at == applied.generation + 1),
    )
    .await
    .expect("the change was found")
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_stop_and_come_back() {
    let mut server = Postgres::start().unwrap();
    let url = Secret::new(server.url());
    let location = Location::parse(&url, "unused".as_ref()).unwrap();
    let catalog = Catalog::new(&location).unwrap();
    let version = push(&catalog, "decode", "1.0.0").await;
    let mut changes = catalog.changes();

    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    for error in [
        catalog.ping().await.unwrap_err(),
        catalog.component(version.digest).await.unwrap_err(),
        catalog
            .put_plugin_version(plugin("decode", "1.0.1", "x"))
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(error, CatalogError::Unavailable { .. }),
            "{error:?}"
        );
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }
    // A host that starts meanwhile gets the same answer, and goes on when the database is there.
    let late = Catalog::new(&location).unwrap();
    let error = late.migrate().await.unwrap_err();
    assert!(matches!(error, CatalogError::Unavailable { .. }), "{error}");

    let server = tokio::task::spawn_blocking(move || {
        server.restart().unwrap();
        server
    })
    .await
    .unwrap();
    catalog.component(version.digest).await.unwrap();
    push(&late, "decode", "1.0.1").await;
    timeout(Duration::from_secs(60), changes.wait_for(|at| *at == 2))
        .await
        .expect("the change was told after the restart")
        .unwrap();
    catalog.ping().await.unwrap();
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_said_without_them() {
    let server = Postgres::start().unwrap();
    let url = server.url().replace("stepwell@", "nobody:hunter2@");
    let location = Location::parse(&Secret::new(url), "unused".as_ref()).unwrap();
    let error = Catalog::new(&location)
        .unwrap()
        .migrate()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the catalog database is unavailable: it refused the credentials"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
}
