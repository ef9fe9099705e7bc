use std::sync::Arc;
use std::time::Duration;

use stepwell_catalog::{
    Catalog, CatalogError, Directory, NewToken, NotVerified, Page, Token, Unavailable,
};
use stepwell_core::{Name, Principal, Quotas, Role, Secret};
use stepwell_test_services::Postgres;
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::place::{Place, name, push};

crate::contract!(
    a_token_is_told_once_and_stored_as_a_hash,
    tokens_are_listed_shown_and_revoked,
    a_directory_knows_who_bears_which_token,
    what_another_host_changes_is_known,
    a_token_that_has_expired_is_none,
    uses_are_noted_coarsely,
    namespaces_and_quotas_are_followed,
);

const KEEP: Duration = Duration::from_secs(3600);

fn new(role: Role, namespace: Option<&str>) -> NewToken {
    NewToken {
        name: "ci".to_owned(),
        role,
        namespace: namespace.map(name),
        expires_at: None,
    }
}

async fn create(catalog: &Catalog, role: Role) -> (Token, Secret) {
    catalog.create_token(&new(role, None)).await.unwrap()
}

async fn a_token_is_told_once_and_stored_as_a_hash(place: Place) {
    let catalog = place.open().await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let (token, value) = create(&catalog, Role::Viewer).await;
        let text = value.expose().to_owned();
        assert!(
            text.starts_with("sw_") && text.len() == 46,
            "{}",
            text.len()
        );
        assert!(!format!("{token:?} {value:?}").contains(&text));
        assert!(!seen.contains(&text) && !seen.contains(&token.id));
        seen.extend([text, token.id]);
    }
    // Not even in the file.
    if let stepwell_catalog::Location::Sqlite(path) = &place.location {
        let mut stored = std::fs::read(path).unwrap();
        stored.extend(std::fs::read(path.with_extension("sqlite-wal")).unwrap_or_default());
        let contains = |text: &str| {
            stored
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(contains(&seen[1]), "the id is there");
        assert!(!contains(&seen[0][3..]), "the value is not");
    }
}

async fn tokens_are_listed_shown_and_revoked(place: Place) {
    let catalog = place.open().await.by(&Principal::admin_token());
    catalog
        .put_namespace(&name("team-a"), &Quotas::default())
        .await
        .unwrap();
    let end = OffsetDateTime::from_unix_timestamp(4_000_000_000).unwrap();
    let wanted = NewToken {
        name: "build \u{2713}".to_owned(),
        expires_at: Some(end),
        ..new(Role::Deployer, Some("team-a"))
    };
    let (made, _) = catalog.create_token(&wanted).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.role),
        ("build \u{2713}", Role::Deployer)
    );
    assert_eq!(
        (&made.namespace, made.expires_at),
        (&wanted.namespace, Some(end))
    );
    assert_eq!(
        (made.created_by.as_str(), made.last_used_at),
        ("admin_token", None)
    );
    assert_eq!(catalog.token(&made.id).await.unwrap(), made);

    for _ in 0..4 {
        create(&catalog, Role::Viewer).await;
    }
    let mut listed = Vec::new();
    let mut page = Page {
        limit: 2,
        cursor: None,
    };
    loop {
        let part = catalog.tokens(&page).await.unwrap();
        listed.extend(part.items);
        match part.next {
            Some(next) => page.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(listed.len(), 5);
    assert!(listed.is_sorted_by_key(|token| token.id.clone()) && listed.contains(&made));

    catalog.revoke_token(&made.id).await.unwrap();
    for id in [made.id.as_str(), "t1", "", "a\0b", "' OR 1=1 --"] {
        for error in [
            catalog.token(id).await.unwrap_err(),
            catalog.revoke_token(id).await.unwrap_err(),
        ] {
            assert!(matches!(error, CatalogError::NotFound(_)), "{id}: {error}");
        }
    }
}

async fn a_directory_knows_who_bears_which_token(place: Place) {
    let catalog = place.open().await;
    catalog
        .put_namespace(&name("team-a"), &Quotas::default())
        .await
        .unwrap();
    let directory = Directory::new(&catalog, KEEP);
    let (made, value) = catalog
        .create_token(&new(Role::Deployer, Some("team-a")))
        .await
        .unwrap();
    let principal = directory.verify(value.expose()).await.unwrap();
    assert_eq!(principal, made.principal());
    assert_eq!(principal.namespace, Some(name("team-a")));

    let mut other = value.expose().to_owned();
    let last = if other.pop() == Some('A') { 'E' } else { 'A' };
    other.push(last);
    assert_eq!(directory.verify(&other).await, Err(NotVerified::Unknown));
    for text in [
        "",
        "sw_",
        &value.expose()[3..],
        &value.expose()[..45],
        &format!("{}A", value.expose()),
        &format!(" {}", value.expose()),
        &format!("SW_{}", &value.expose()[3..]),
        &"sw_".repeat(1000),
    ] {
        assert_eq!(
            directory.verify(text).await,
            Err(NotVerified::Malformed),
            "{text}"
        );
    }
    catalog.revoke_token(&made.id).await.unwrap();
    let refused = directory.verify(value.expose()).await;
    assert_eq!(
        refused,
        Err(NotVerified::Unknown),
        "revoked here, gone at once"
    );
}

async fn what_another_host_changes_is_known(place: Place) {
    let (here, there) = (place.open().await, place.open().await);
    let directory = Directory::new(&here, KEEP);
    // Made there, and used here before any notification may have come.
    let (made, value) = create(&there, Role::Viewer).await;
    directory.verify(value.expose()).await.unwrap();
    let team = name("team-a");
    assert_eq!(directory.has_namespace(&team).await, Ok(false));
    there
        .put_namespace(&team, &Quotas::default())
        .await
        .unwrap();
    assert_eq!(directory.has_namespace(&team).await, Ok(true));
    // Other changes of the catalog lose nothing.
    push(&there, "decode", "1.0.0").await;
    directory.verify(value.expose()).await.unwrap();

    there.revoke_token(&made.id).await.unwrap();
    if here.backend() == "sqlite" {
        // One host has the file; that it changes behind its back is found at the next look.
        return;
    }
    let revoked = async {
        while directory.verify(value.expose()).await != Err(NotVerified::Unknown) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), revoked)
        .await
        .expect("the other host's revocation is heard of");
}

async fn a_token_that_has_expired_is_none(place: Place) {
    let catalog = place.open().await;
    let directory = Directory::new(&catalog, KEEP);
    let until = |end| NewToken {
        expires_at: Some(end),
        ..new(Role::Viewer, None)
    };
    let past = until(OffsetDateTime::now_utc() - Duration::from_secs(1));
    let (_, value) = catalog.create_token(&past).await.unwrap();
    let refused = directory.verify(value.expose()).await;
    assert_eq!(refused, Err(NotVerified::Expired));
    // It expires while it is known, too.
    let soon = until(OffsetDateTime::now_utc() + Duration::from_millis(1500));
    let (_, value) = catalog.create_token(&soon).await.unwrap();
    directory.verify(value.expose()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let refused = directory.verify(value.expose()).await;
    assert_eq!(refused, Err(NotVerified::Expired));
}

async fn uses_are_noted_coarsely(place: Place) {
    let catalog = place.open().await;
    let directory = Directory::new(&catalog, KEEP);
    let (made, value) = create(&catalog, Role::Viewer).await;
    let generation = catalog.ping().await.unwrap();
    directory.verify(value.expose()).await.unwrap();
    directory.store_uses().await;
    let used = catalog.token(&made.id).await.unwrap().last_used_at.unwrap();
    let age = OffsetDateTime::now_utc() - used;
    assert!(age < Duration::from_secs(30), "{age}");
    // Soon after, nothing is written; and no host is told of uses.
    tokio::time::sleep(Duration::from_millis(5)).await;
    directory.verify(value.expose()).await.unwrap();
    directory.store_uses().await;
    let again = catalog.token(&made.id).await.unwrap().last_used_at;
    assert_eq!(again, Some(used));
    assert_eq!(catalog.ping().await.unwrap(), generation);
}

async fn namespaces_and_quotas_are_followed(place: Place) {
    let catalog = place.open().await;
    let directory = Arc::new(Directory::new(&catalog, KEEP));
    let mut quotas = directory.quotas();
    let follower = tokio::spawn({
        let directory = directory.clone();
        async move { directory.follow().await }
    });
    let team: Name = name("team-a");
    let wanted = Quotas {
        concurrent_runs: Some(3),
        ..Quotas::default()
    };
    catalog.put_namespace(&team, &wanted).await.unwrap();
    let told = quotas.wait_for(|all| all.get(&team) == Some(&wanted));
    timeout(Duration::from_secs(30), told)
        .await
        .unwrap()
        .unwrap();
    catalog.delete_namespace(&team).await.unwrap();
    let told = quotas.wait_for(|all| !all.contains_key(&team));
    timeout(Duration::from_secs(30), told)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(directory.has_namespace(&team).await, Ok(false));
    assert_eq!(
        directory.has_namespace(&Name::default_namespace()).await,
        Ok(true)
    );
    follower.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_known_tokens_go_on_and_others_are_unavailable() {
    let mut server = Postgres::start().unwrap();
    let url = Secret::new(server.url());
    let location = stepwell_catalog::Location::parse(&url, "unused".as_ref()).unwrap();
    let catalog = Catalog::new(&location).unwrap();
    let directory = Directory::new(&catalog, KEEP);
    let (_, value) = create(&catalog, Role::Viewer).await;
    directory.verify(value.expose()).await.unwrap();
    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    for _ in 0..3 {
        directory.verify(value.expose()).await.unwrap();
    }
    let unknown = format!("sw_{}", "A".repeat(43));
    let refused = directory.verify(&unknown).await;
    assert_eq!(refused, Err(NotVerified::Unavailable(Unavailable)));
    assert_eq!(
        directory.has_namespace(&name("team-a")).await,
        Err(Unavailable)
    );
    // Who has never read the catalog knows nobody.
    let fresh = Directory::new(&Catalog::new(&location).unwrap(), KEEP);
    let refused = fresh.verify(value.expose()).await;
    assert_eq!(refused, Err(NotVerified::Unavailable(Unavailable)));

    let server = tokio::task::spawn_blocking(move || {
        server.restart().unwrap();
        server
    })
    .await
    .unwrap();
    let back = async {
        while directory.verify(&unknown).await != Err(NotVerified::Unknown) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fresh.verify(value.expose()).await
    };
    timeout(Duration::from_secs(60), back)
        .await
        .unwrap()
        .unwrap();
    drop(server);
}
