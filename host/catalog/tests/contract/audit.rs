use std::time::Duration;

use stepwell_catalog::{
    AuditQuery, Audited, Catalog, Directory, NewPluginVersion, NewToken, Outcome, Page,
    Precondition,
};
use stepwell_core::{Name, Principal, Quotas, Role};
use time::OffsetDateTime;

use crate::place::{Place, name, ns, plugin, push, revision};

crate::contract!(
    every_change_is_recorded_with_who_and_what,
    what_did_not_happen_is_not_recorded,
    records_are_found_by_namespace_time_and_part,
    refusals_belong_to_who_was_refused,
    old_records_are_forgotten,
);

fn deployer() -> Principal {
    Principal {
        id: "t12".into(),
        name: "ci of team a".into(),
        role: Role::Deployer,
        namespace: Some(name("team-a")),
    }
}

async fn all(catalog: &Catalog) -> Vec<Audited> {
    let mut found = catalog.audit(&AuditQuery::default()).await.unwrap().items;
    found.reverse();
    found
}

async fn every_change_is_recorded_with_who_and_what(place: Place) {
    let host = place.open().await;
    let operator = host.by(&Principal::admin_token());
    let team = name("team-a");
    operator
        .put_namespace(&team, &Quotas::default())
        .await
        .unwrap();
    let ci = host.by(&deployer());
    let new = NewPluginVersion {
        namespace: team.clone(),
        ..plugin("decode", "1.0.0", "bytes")
    };
    ci.put_plugin_version(new).await.unwrap();
    let (reader, any) = (name("reader"), Precondition::default());
    for text in ["a", "b"] {
        ci.put_pipeline(&team, &reader, &revision(text, &[]), &any)
            .await
            .unwrap();
    }
    ci.rollback_pipeline(&team, &reader, None, &any)
        .await
        .unwrap();
    ci.delete_pipeline(&team, &reader, &any).await.unwrap();
    let version = "1.0.0".parse().unwrap();
    ci.delete_plugin_version(&team, &name("decode"), &version)
        .await
        .unwrap();
    let new = NewToken {
        name: "watcher".to_owned(),
        role: Role::Viewer,
        namespace: Some(team.clone()),
        expires_at: None,
    };
    let (token, value) = operator.create_token(&new).await.unwrap();
    operator.revoke_token(&token.id).await.unwrap();
    operator.delete_namespace(&team).await.unwrap();

    let found = all(&host).await;
    let told: Vec<String> = found
        .iter()
        .map(|one| {
            let revision = one
                .revision
                .map_or(String::new(), |number| format!(" {number}"));
            format!("{} {} {}{revision}", one.who, one.action, one.subject)
        })
        .collect();
    assert_eq!(
        told,
        [
            "admin_token namespace.set namespace team-a".to_owned(),
            "t12 plugin.put plugin decode@1.0.0".to_owned(),
            "t12 pipeline.apply pipeline reader 1".to_owned(),
            "t12 pipeline.apply pipeline reader 2".to_owned(),
            "t12 pipeline.rollback pipeline reader 3".to_owned(),
            "t12 pipeline.delete pipeline reader 3".to_owned(),
            "t12 plugin.delete plugin decode@1.0.0".to_owned(),
            format!("admin_token token.create token {} (viewer)", token.id),
            format!("admin_token token.revoke token {} (viewer)", token.id),
            "admin_token namespace.delete namespace team-a".to_owned(),
        ]
    );
    let digest = Some(stepwell_core::Digest::of(b"bytes"));
    assert_eq!((found[1].digest, found[6].digest), (digest, digest));
    assert_eq!(found[1].who_name, "ci of team a");
    for one in &found {
        assert_eq!(
            (&one.namespace, one.outcome),
            (&Some(team.clone()), Outcome::Done)
        );
        let age = OffsetDateTime::now_utc() - one.time;
        assert!(age < Duration::from_secs(60), "{age}");
    }
    assert!(!format!("{found:?}").contains(value.expose()));
}

async fn what_did_not_happen_is_not_recorded(place: Place) {
    let catalog = place.open().await;
    push(&catalog, "decode", "1.0.0").await;
    let recorded = all(&catalog).await.len();
    assert_eq!(recorded, 1);
    let ns = Name::default_namespace();
    // The same again, other bytes, what is not there, what is refused.
    let same = plugin("decode", "1.0.0", "the bytes of decode@1.0.0");
    catalog.put_plugin_version(same).await.unwrap();
    let other = plugin("decode", "1.0.0", "other");
    catalog.put_plugin_version(other).await.unwrap();
    let none = name("none");
    let any = Precondition::default();
    catalog.delete_pipeline(&ns, &none, &any).await.unwrap_err();
    let gone = catalog.delete_namespace(&none).await;
    gone.unwrap_err();
    catalog.revoke_token("t1").await.unwrap_err();
    catalog
        .put_namespace(&ns, &Quotas::default())
        .await
        .unwrap();
    assert_eq!(all(&catalog).await.len(), recorded);
}

async fn records_are_found_by_namespace_time_and_part(place: Place) {
    let catalog = place.open().await;
    for number in 0..5 {
        let namespace = name(&format!("n{number}"));
        catalog
            .put_namespace(&namespace, &Quotas::default())
            .await
            .unwrap();
        push(&catalog, "decode", &format!("1.0.{number}")).await;
    }
    let ask = async |query: AuditQuery| catalog.audit(&query).await.unwrap();
    let ids = |items: &[Audited]| items.iter().map(|one| one.id).collect::<Vec<_>>();
    let everything = ids(&ask(AuditQuery::default()).await.items);
    assert_eq!(everything.len(), 10);
    assert!(everything.is_sorted_by(|a, b| a > b), "the newest first");

    let mut query = AuditQuery {
        page: Page {
            limit: 4,
            cursor: None,
        },
        ..AuditQuery::default()
    };
    let mut parts = Vec::new();
    loop {
        let part = ask(query.clone()).await;
        parts.extend(ids(&part.items));
        match part.next {
            Some(next) => query.page.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(parts, everything);

    let of = |namespace: &str| AuditQuery {
        namespace: Some(name(namespace)),
        ..AuditQuery::default()
    };
    assert_eq!(ask(of("default")).await.items.len(), 5);
    assert_eq!(ask(of("n3")).await.items.len(), 1);
    assert_eq!(ask(of("other")).await.items, []);
    let now = OffsetDateTime::now_utc();
    for (since, count) in [
        (now - Duration::from_secs(600), 10),
        (now + Duration::from_secs(5), 0),
    ] {
        let query = AuditQuery {
            since: Some(since),
            ..AuditQuery::default()
        };
        assert_eq!(ask(query).await.items.len(), count);
    }
}

async fn refusals_belong_to_who_was_refused(place: Place) {
    let catalog = place.open().await;
    let generation = catalog.ping().await.unwrap();
    catalog
        .by(&deployer())
        .record_refusal(
            "delete_namespace",
            "DELETE /api/v1/namespaces/team-b".to_owned(),
        )
        .await
        .unwrap();
    let found = all(&catalog).await;
    let [refusal] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(refusal.outcome, Outcome::Refused);
    assert_eq!(refusal.action, "delete_namespace");
    assert_eq!(
        refusal.namespace,
        Some(name("team-a")),
        "not that of whom it was after"
    );
    assert_eq!(
        catalog.ping().await.unwrap(),
        generation,
        "no host need hear of it"
    );
}

async fn old_records_are_forgotten(place: Place) {
    let catalog = place.open().await;
    push(&catalog, "decode", "1.0.0").await;
    push(&catalog, "decode", "1.0.1").await;
    place
        .meddle("UPDATE audit SET at = at - 7200000 WHERE subject LIKE '%1.0.0'")
        .await;
    // The newest thousand stay, however old they are.
    let copy = |namespace: &str, of: &str| {
        format!(
            "INSERT INTO audit (at, who, who_name, action, namespace, subject, outcome) \
             SELECT at, who, who_name, action, {namespace}, subject, outcome FROM audit WHERE {of}"
        )
    };
    place
        .meddle(&copy("'other'", "subject LIKE '%1.0.1'"))
        .await;
    for _ in 0..10 {
        place
            .meddle(&copy("namespace", "namespace = 'other'"))
            .await;
    }
    let query = AuditQuery {
        namespace: Some(ns()),
        ..AuditQuery::default()
    };
    let left = async || {
        let found = catalog.audit(&query).await.unwrap().items;
        let subjects = found.into_iter().map(|record| record.subject);
        subjects.collect::<Vec<_>>()
    };
    assert_eq!(left().await.len(), 2);
    let directory = Directory::new(&catalog, Duration::from_secs(3600));
    let forgotten = async {
        while left().await.len() != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = directory.follow() => panic!("it follows for ever"),
        done = tokio::time::timeout(Duration::from_secs(30), forgotten) => done.unwrap(),
    }
    assert_eq!(left().await, ["plugin decode@1.0.1"]);
}
