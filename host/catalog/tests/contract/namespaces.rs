use std::time::Duration;

use stepwell_catalog::{
    Applied, Catalog, CatalogError, CatalogLimits, NewPluginVersion, NewToken, Page, Precondition,
    PutVersion,
};
use stepwell_core::{Name, Principal, Quotas, Role};

use crate::place::{Place, name, ns, plugin, push, revision};

crate::contract!(
    the_default_namespace_is_there_and_stays,
    namespaces_are_made_changed_listed_and_deleted,
    a_namespace_that_holds_anything_stays,
    namespaces_are_apart,
    nothing_goes_into_a_namespace_that_is_not_there,
    a_used_up_quota_of_plugins_keeps_more_out,
    a_used_up_quota_of_bytes_keeps_more_out,
    of_many_uploads_at_once_as_many_as_fit_are_stored,
    a_used_up_quota_of_pipelines_keeps_more_out,
    of_many_applies_at_once_as_many_as_fit_are_stored,
    a_nul_is_refused_wherever_it_is_sent,
);

fn quotas(plugins: Option<u64>, bytes: Option<u64>) -> Quotas {
    Quotas {
        plugins,
        bytes,
        ..Quotas::default()
    }
}

fn in_namespace(namespace: &Name, version: &str, bytes: &str) -> NewPluginVersion {
    NewPluginVersion {
        namespace: namespace.clone(),
        ..plugin("decode", version, bytes)
    }
}

async fn make(catalog: &Catalog, text: &str, quotas: &Quotas) -> Name {
    let namespace = name(text);
    catalog.put_namespace(&namespace, quotas).await.unwrap();
    namespace
}

async fn the_default_namespace_is_there_and_stays(place: Place) {
    let catalog = place.open().await;
    let default = catalog.namespace(&ns()).await.unwrap();
    assert_eq!(default.quotas, Quotas::default());
    let error = catalog.delete_namespace(&ns()).await.unwrap_err();
    assert!(matches!(error, CatalogError::DefaultNamespace), "{error}");
    let (is_new, changed) = catalog
        .put_namespace(&ns(), &quotas(Some(7), None))
        .await
        .unwrap();
    assert!(!is_new && changed.quotas.plugins == Some(7));
}

async fn namespaces_are_made_changed_listed_and_deleted(place: Place) {
    let catalog = place.open().await;
    let all = Quotas {
        plugins: Some(10),
        bytes: Some(1 << 40),
        pipelines: Some(7),
        runs_per_second: Some(50),
        concurrent_runs: Some(0),
        cpu_per_minute: Some(Duration::from_millis(1500)),
    };
    let team = name("team-a");
    let before = catalog.ping().await.unwrap();
    let (is_new, made) = catalog.put_namespace(&team, &all).await.unwrap();
    assert!(is_new && made.quotas == all);
    assert_eq!(catalog.ping().await.unwrap(), before + 1);
    assert_eq!(catalog.namespace(&team).await.unwrap(), made);
    // The same again is no change.
    let (is_new, same) = catalog.put_namespace(&team, &all).await.unwrap();
    assert!(!is_new && same == made);
    assert_eq!(catalog.ping().await.unwrap(), before + 1);
    let (_, lifted) = catalog
        .put_namespace(&team, &Quotas::default())
        .await
        .unwrap();
    assert_eq!(
        (lifted.quotas, lifted.created_at),
        (Quotas::default(), made.created_at)
    );

    make(&catalog, "b", &Quotas::default()).await;
    let mut page = Page {
        limit: 2,
        cursor: None,
    };
    let first = catalog.namespaces(&page).await.unwrap();
    let names: Vec<&str> = first.items.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["b", "default"]);
    page.cursor = first.next;
    let second = catalog.namespaces(&page).await.unwrap();
    assert_eq!((second.items.len(), second.next), (1, None));
    assert_eq!(second.items[0].name, team);

    catalog.delete_namespace(&team).await.unwrap();
    for error in [
        catalog.namespace(&team).await.unwrap_err(),
        catalog.delete_namespace(&team).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "there is no namespace team-a");
    }
}

async fn a_namespace_that_holds_anything_stays(place: Place) {
    let catalog = place.open().await;
    let team = make(&catalog, "team-a", &Quotas::default()).await;
    let bytes = "the bytes";
    catalog
        .put_plugin_version(in_namespace(&team, "1.0.0", bytes))
        .await
        .unwrap();
    let pipeline = name("reader");
    let precondition = Precondition::default();
    catalog
        .put_pipeline(&team, &pipeline, &revision("a", &[]), &precondition)
        .await
        .unwrap();
    let new = NewToken {
        name: "ci".to_owned(),
        role: Role::Viewer,
        namespace: Some(team.clone()),
        expires_at: None,
    };
    let (token, _) = catalog.create_token(&new).await.unwrap();
    let usage = catalog.namespace(&team).await.unwrap().usage;
    assert_eq!((usage.plugins, usage.bytes), (1, bytes.len() as u64));
    assert_eq!((usage.pipelines, usage.tokens), (1, 1));

    let refused = async || catalog.delete_namespace(&team).await.unwrap_err();
    assert_eq!(
        refused().await.to_string(),
        "namespace team-a is not empty: it has 1 plugin version, 1 pipeline, 1 token"
    );
    catalog
        .delete_pipeline(&team, &pipeline, &precondition)
        .await
        .unwrap();
    let version = "1.0.0".parse().unwrap();
    catalog
        .delete_plugin_version(&team, &name("decode"), &version)
        .await
        .unwrap();
    assert!(refused().await.to_string().ends_with("it has 1 token"));
    catalog.revoke_token(&token.id).await.unwrap();
    catalog.delete_namespace(&team).await.unwrap();

    // Whoever takes the name next starts with nothing, and revisions go on counting.
    make(&catalog, "team-a", &Quotas::default()).await;
    assert_eq!(
        catalog
            .pipelines(&team, &Page::default())
            .await
            .unwrap()
            .items,
        []
    );
    let again = catalog
        .put_pipeline(&team, &pipeline, &revision("b", &[]), &precondition)
        .await
        .unwrap();
    assert_eq!(again.revision.revision, 2);
}

async fn namespaces_are_apart(place: Place) {
    let catalog = place.open().await;
    let (a, b) = (
        make(&catalog, "a", &Quotas::default()).await,
        make(&catalog, "b", &Quotas::default()).await,
    );
    for (namespace, bytes) in [(&a, "of a"), (&b, "of b")] {
        let new = in_namespace(namespace, "1.0.0", bytes);
        let put = catalog.put_plugin_version(new).await.unwrap();
        assert!(matches!(put, PutVersion::Created(_)), "{put:?}");
    }
    let (decode, version) = (name("decode"), "1.0.0".parse().unwrap());
    let of_a = catalog.plugin_version(&a, &decode, &version).await.unwrap();
    let of_b = catalog.plugin_version(&b, &decode, &version).await.unwrap();
    assert_ne!(of_a.digest, of_b.digest);
    assert_eq!(
        catalog
            .plugins(&ns(), &Page::default())
            .await
            .unwrap()
            .items,
        []
    );
    // A pipeline of one namespace cannot pin what another has.
    let stolen = catalog
        .put_pipeline(
            &a,
            &name("thief"),
            &revision("x", &[&of_b]),
            &Precondition::default(),
        )
        .await
        .unwrap_err();
    assert!(matches!(stolen, CatalogError::PluginsGone(_)), "{stolen}");
    // Deleting what one has takes nothing from the other, not even when the bytes are equal.
    for (namespace, version) in [(&a, "2.0.0"), (&b, "2.0.0")] {
        let new = in_namespace(namespace, version, "shared");
        catalog.put_plugin_version(new).await.unwrap();
    }
    let version = "2.0.0".parse().unwrap();
    catalog
        .delete_plugin_version(&a, &decode, &version)
        .await
        .unwrap();
    let left = catalog.plugin_version(&b, &decode, &version).await.unwrap();
    assert_eq!(
        &catalog.component(left.digest).await.unwrap()[..],
        b"shared"
    );
}

async fn nothing_goes_into_a_namespace_that_is_not_there(place: Place) {
    let catalog = place.open().await;
    let nowhere = name("nowhere");
    let new = NewToken {
        name: "ci".to_owned(),
        role: Role::Viewer,
        namespace: Some(nowhere.clone()),
        expires_at: None,
    };
    for error in [
        catalog
            .put_plugin_version(in_namespace(&nowhere, "1.0.0", "x"))
            .await
            .unwrap_err(),
        catalog
            .put_pipeline(
                &nowhere,
                &name("p"),
                &revision("x", &[]),
                &Precondition::default(),
            )
            .await
            .unwrap_err(),
        catalog.create_token(&new).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "there is no namespace nowhere");
    }
    assert_eq!(catalog.ping().await.unwrap(), 0, "nothing has changed");
}

async fn a_used_up_quota_of_plugins_keeps_more_out(place: Place) {
    let catalog = place.open().await.by(&Principal::admin_token());
    let team = make(&catalog, "team-a", &quotas(Some(2), None)).await;
    for version in ["1.0.0", "1.0.1"] {
        let new = in_namespace(&team, version, version);
        catalog.put_plugin_version(new).await.unwrap();
    }
    let third = || in_namespace(&team, "1.0.2", "third");
    let error = catalog.put_plugin_version(third()).await.unwrap_err();
    let text = error.to_string();
    for part in [
        "team-a",
        "plugins 2",
        "has 2",
        "1 more",
        "operator",
        "--plugins",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // What is there stays usable, and other namespaces do not notice.
    let again = in_namespace(&team, "1.0.0", "1.0.0");
    let same = catalog.put_plugin_version(again).await.unwrap();
    assert!(matches!(same, PutVersion::Same(_)), "{same:?}");
    push(&catalog, "decode", "1.0.2").await;
    // Raised, there is room; lowered below what is there, nothing goes.
    make(&catalog, "team-a", &quotas(Some(3), None)).await;
    catalog.put_plugin_version(third()).await.unwrap();
    make(&catalog, "team-a", &quotas(Some(0), None)).await;
    assert_eq!(catalog.namespace(&team).await.unwrap().usage.plugins, 3);
    let error = catalog
        .put_plugin_version(in_namespace(&team, "1.0.3", "x"))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        CatalogError::QuotaExceeded {
            quota: "plugins",
            ..
        }
    ));
}

async fn a_used_up_quota_of_bytes_keeps_more_out(place: Place) {
    let catalog = place.open().await;
    let team = make(&catalog, "team-a", &quotas(None, Some(2048))).await;
    let kib = "k".repeat(1024);
    catalog
        .put_plugin_version(in_namespace(&team, "1.0.0", &kib))
        .await
        .unwrap();
    let large = format!("{kib}!");
    let error = catalog
        .put_plugin_version(in_namespace(&team, "1.0.1", &large))
        .await
        .unwrap_err();
    let text = error.to_string();
    for part in ["bytes 2KiB", "has 1KiB", "1.0 KiB more", "--bytes"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // To the byte; equal bytes count twice, since either version may go.
    catalog
        .put_plugin_version(in_namespace(&team, "1.0.1", &kib))
        .await
        .unwrap();
    assert_eq!(catalog.namespace(&team).await.unwrap().usage.bytes, 2048);
    let error = catalog
        .put_plugin_version(in_namespace(&team, "1.0.2", "x"))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        CatalogError::QuotaExceeded { quota: "bytes", .. }
    ));
    let version = "1.0.0".parse().unwrap();
    catalog
        .delete_plugin_version(&team, &name("decode"), &version)
        .await
        .unwrap();
    catalog
        .put_plugin_version(in_namespace(&team, "1.0.2", "x"))
        .await
        .unwrap();
}

async fn of_many_uploads_at_once_as_many_as_fit_are_stored(place: Place) {
    let catalogs = [place.open().await, place.open().await];
    let team = make(&catalogs[0], "team-a", &quotas(Some(5), None)).await;
    let uploads = (0..12).map(|number: usize| {
        let catalog = &catalogs[number % 2];
        let new = in_namespace(&team, &format!("1.0.{number}"), &format!("{number}"));
        catalog.put_plugin_version(new)
    });
    let results = futures::future::join_all(uploads).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
    let refused = results.into_iter().filter_map(Result::err);
    assert!(
        refused
            .into_iter()
            .all(|error| matches!(error, CatalogError::QuotaExceeded { .. }))
    );
}

async fn apply(
    catalog: &Catalog,
    namespace: &Name,
    pipeline: &str,
    text: &str,
) -> Result<Applied, CatalogError> {
    let new = revision(text, &[]);
    catalog
        .put_pipeline(namespace, &name(pipeline), &new, &Precondition::default())
        .await
}

async fn a_used_up_quota_of_pipelines_keeps_more_out(place: Place) {
    let catalog = place.open().await.limited(CatalogLimits {
        pipelines: 3,
        ..CatalogLimits::default()
    });
    let two = Quotas {
        pipelines: Some(2),
        ..Quotas::default()
    };
    let team = make(&catalog, "team-a", &two).await;
    for pipeline in ["a", "b"] {
        apply(&catalog, &team, pipeline, "1").await.unwrap();
    }
    let error = apply(&catalog, &team, "c", "1").await.unwrap_err();
    let text = error.to_string();
    for part in [
        "team-a",
        "pipelines 2",
        "has 2",
        "1 more",
        "delete pipelines",
        "--pipelines",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(catalog.namespace(&team).await.unwrap().usage.pipelines, 2);
    // Those that are there go on changing, and one that goes makes room.
    apply(&catalog, &team, "a", "2").await.unwrap();
    let any = Precondition::default();
    catalog
        .rollback_pipeline(&team, &name("a"), None, &any)
        .await
        .unwrap();
    catalog
        .delete_pipeline(&team, &name("b"), &any)
        .await
        .unwrap();
    apply(&catalog, &team, "c", "1").await.unwrap();
    let error = apply(&catalog, &team, "b", "1").await.unwrap_err();
    assert!(
        matches!(
            error,
            CatalogError::QuotaExceeded {
                quota: "pipelines",
                ..
            }
        ),
        "{error}"
    );
    // Without a quota, as many as the limit says.
    make(&catalog, "team-a", &Quotas::default()).await;
    apply(&catalog, &team, "b", "1").await.unwrap();
    let error = apply(&catalog, &team, "d", "1").await.unwrap_err();
    assert!(error.to_string().contains("pipelines 3"), "{error}");
    // And a quota may be above it.
    let four = Quotas {
        pipelines: Some(4),
        ..Quotas::default()
    };
    make(&catalog, "team-a", &four).await;
    apply(&catalog, &team, "d", "1").await.unwrap();
    assert!(apply(&catalog, &team, "e", "1").await.is_err());
}

async fn of_many_applies_at_once_as_many_as_fit_are_stored(place: Place) {
    let catalogs = [place.open().await, place.open().await];
    let five = Quotas {
        pipelines: Some(5),
        ..Quotas::default()
    };
    let team = make(&catalogs[0], "team-a", &five).await;
    let applies = (0..12).map(|number: usize| {
        let (catalog, team) = (&catalogs[number % 2], &team);
        async move { apply(catalog, team, &format!("p{number}"), "1").await }
    });
    let results = futures::future::join_all(applies).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
    assert!(
        results
            .into_iter()
            .filter_map(Result::err)
            .all(|error| matches!(error, CatalogError::QuotaExceeded { .. }))
    );
    let usage = catalogs[0].namespace(&team).await.unwrap().usage;
    assert_eq!(usage.pipelines, 5);
}

async fn a_nul_is_refused_wherever_it_is_sent(place: Place) {
    let catalog = place.open().await;
    apply(&catalog, &ns(), "reader", "1").await.unwrap();
    let page = Page {
        limit: 10,
        cursor: Some("a\0".to_owned()),
    };
    for error in [
        catalog.namespaces(&page).await.unwrap_err(),
        catalog.tokens(&page).await.unwrap_err(),
        catalog.plugins(&ns(), &page).await.unwrap_err(),
        catalog.pipelines(&ns(), &page).await.unwrap_err(),
        apply(&catalog, &ns(), "reader", "\0").await.unwrap_err(),
    ] {
        assert!(matches!(error, CatalogError::Nul), "{error:?}");
    }
    assert_eq!(
        catalog
            .pipeline(&ns(), &name("reader"))
            .await
            .unwrap()
            .revision,
        1
    );
}
