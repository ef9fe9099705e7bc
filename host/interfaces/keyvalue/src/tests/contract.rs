use std::collections::BTreeSet;

use stepwell_core::Action;

use super::{Backend, Guest, words};
use crate::host::draft2::atomics::CasError;
use crate::host::{Error, draft};
use crate::{MAX_BATCH, MAX_BATCH_BYTES, MAX_KEY, MAX_VALUE};

macro_rules! on_both_backends {
    ($($test:ident)*) => {
        mod local {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Backend::local()).await;
                }
            )*
        }
        mod redis {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(backend) = super::Backend::redis() {
                        super::$test(backend).await;
                    }
                }
            )*
        }
    };
}

on_both_backends! {
    what_is_set_is_read_until_it_is_deleted
    every_value_comes_back_as_it_was
    a_name_without_grant_is_denied
    reading_does_not_allow_writing
    writing_does_not_allow_reading
    hostile_keys_are_plain_data
    prefixes_keep_guests_apart
    a_prefix_with_globs_matches_itself_alone
    sizes_are_limited
    many_at_once
    lists_come_in_pages
    cursors_are_only_positions
    increments_add_up
    increments_of_other_things_fail_and_change_nothing
    swaps_happen_only_over_what_was_seen
    racing_swaps_lose_nothing
    remembered_values_are_limited
    no_time_left_is_an_error
    the_first_draft_has_the_same_stores
    a_probe_finds_it_well
}

async fn what_is_set_is_read_until_it_is_deleted(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    assert_eq!(guest.get(cache, "k").await, Ok(None));
    assert_eq!(guest.exists(cache, "k").await, Ok(false));
    guest.set(cache, "k", b"1").await.unwrap();
    guest.set(cache, "k", b"2").await.unwrap();
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"2".to_vec())));
    assert_eq!(guest.exists(cache, "k").await, Ok(true));
    guest.delete(cache, "k").await.unwrap();
    guest.delete(cache, "k").await.unwrap();
    assert_eq!(guest.get(cache, "k").await, Ok(None));
}

async fn every_value_comes_back_as_it_was(backend: Backend) {
    let mut guest = backend.guest("");
    let cache = guest.cache().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    for value in [b"".as_slice(), b"\0", "é".as_bytes(), &every_byte] {
        guest.set(cache, "k", value).await.unwrap();
        assert_eq!(guest.get(cache, "k").await, Ok(Some(value.to_vec())));
        assert_eq!(guest.exists(cache, "k").await, Ok(true));
    }
}

async fn a_name_without_grant_is_denied(backend: Backend) {
    let mut guest = backend.guest("a:");
    // The operator's name for it is nobody else's business.
    for name in ["main", "other", "", "../cache", "cache\0"] {
        assert_eq!(guest.open(name).await.err(), Some(Error::AccessDenied));
    }
    assert_eq!(guest.open("gone").await.err(), Some(Error::NoSuchStore));
}

async fn reading_does_not_allow_writing(backend: Backend) {
    let mut writer = backend.guest("a:");
    let cache = writer.cache().await;
    writer.set(cache, "k", b"1").await.unwrap();

    let mut guest = backend.guest_with("cache", "a:", &[Action::Read]);
    let cache = guest.cache().await;
    let keys = ["k".to_owned()];
    let denied = Err(Error::AccessDenied);
    assert_eq!(guest.set(cache, "k", b"2").await, denied);
    assert_eq!(guest.delete(cache, "k").await, denied);
    assert_eq!(
        guest.increment(cache, "k", 1).await.err(),
        denied.clone_err()
    );
    assert_eq!(guest.cas(cache, "k").await.err(), denied.clone_err());
    assert_eq!(guest.set_many(cache, Vec::new()).await, denied);
    assert_eq!(guest.delete_many(cache, &keys).await, denied);
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"1".to_vec())));
    assert_eq!(guest.list_all(cache).await, keys);
    assert_eq!(guest.get_many(cache, &keys).await.unwrap().len(), 1);
}

async fn writing_does_not_allow_reading(backend: Backend) {
    let mut guest = backend.guest_with("cache", "a:", &[Action::Write]);
    let cache = guest.cache().await;
    let denied = Some(Error::AccessDenied);
    guest.set(cache, "k", b"1").await.unwrap();
    assert_eq!(guest.get(cache, "k").await.err(), denied);
    assert_eq!(guest.exists(cache, "k").await.err(), denied);
    assert_eq!(guest.list(cache, None).await.err(), denied);
    assert_eq!(guest.get_many(cache, &[]).await.err(), denied);
    let cas = guest.cas(cache, "k").await.unwrap();
    assert_eq!(guest.current(&cas).await.err(), denied);
    guest.swap(cas, b"2").await.unwrap();
    assert_eq!(guest.increment(cache, "k", 1).await, Ok(3));
}

/// `Result<(), Error>` to `Option<Error>`, for comparing with results of other types.
trait CloneErr {
    fn clone_err(&self) -> Option<Error>;
}

impl CloneErr for Result<(), Error> {
    fn clone_err(&self) -> Option<Error> {
        match self {
            Err(Error::AccessDenied) => Some(Error::AccessDenied),
            _ => None,
        }
    }
}

const HOSTILE: [&str; 14] = [
    "",
    " ",
    "*",
    "?",
    "[a-z]",
    "\\",
    "\\*",
    "../../etc/passwd",
    "\0",
    "a\0b",
    "a\r\nDEL x\r\n",
    "%",
    "' OR 1=1 --",
    "ключ🔑",
];

async fn hostile_keys_are_plain_data(backend: Backend) {
    let mut guest = backend.guest("mine:");
    let mut neighbour = backend.guest("yours:");
    let (cache, theirs) = (guest.cache().await, neighbour.cache().await);
    neighbour.set(theirs, "x", b"untouched").await.unwrap();
    for key in HOSTILE {
        guest.set(cache, key, key.as_bytes()).await.unwrap();
    }
    for key in HOSTILE {
        assert_eq!(guest.get(cache, key).await, Ok(Some(key.into())), "{key:?}");
    }
    let expected: BTreeSet<String> = HOSTILE.map(str::to_owned).into();
    let listed: BTreeSet<String> = guest.list_all(cache).await.into_iter().collect();
    assert_eq!(listed, expected);
    for key in HOSTILE {
        guest.delete(cache, key).await.unwrap();
    }
    assert!(guest.list_all(cache).await.is_empty());
    assert_eq!(neighbour.list_all(theirs).await, ["x"]);
}

async fn prefixes_keep_guests_apart(backend: Backend) {
    let mut one = backend.guest("a:");
    let mut two = backend.guest("a:b:");
    let mut all = backend.guest("");
    let (first, second, third) = (one.cache().await, two.cache().await, all.cache().await);
    one.set(first, "k", b"1").await.unwrap();
    two.set(second, "k", b"2").await.unwrap();
    assert_eq!(one.get(first, "k").await, Ok(Some(b"1".to_vec())));
    assert_eq!(two.get(second, "../k").await, Ok(None));
    assert_eq!(two.list_all(second).await, ["k"]);
    // What the operator put under the first prefix is there for its owner; the prefix itself shows nowhere.
    assert_eq!(one.list_all(first).await, ["b:k", "k"]);
    assert_eq!(all.list_all(third).await, ["a:b:k", "a:k"]);
}

async fn a_prefix_with_globs_matches_itself_alone(backend: Backend) {
    let mut all = backend.guest("");
    let everything = all.cache().await;
    for key in ["aXk", "a*k", "a?k", "abk", "a[b]k", "a\\k", "a\\*k"] {
        all.set(everything, key, b"").await.unwrap();
    }
    for (prefix, expected) in [
        ("a*", vec!["k"]),
        ("a?", vec!["k"]),
        ("a[b]", vec!["k"]),
        ("a\\", vec!["*k", "k"]),
        ("[a]", vec![]),
        ("*", vec![]),
    ] {
        let mut guest = backend.guest(prefix);
        let cache = guest.cache().await;
        assert_eq!(guest.list_all(cache).await, expected, "{prefix}");
    }
}

async fn sizes_are_limited(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    let (long, longer) = ("k".repeat(MAX_KEY), "k".repeat(MAX_KEY + 1));
    let (large, larger) = (vec![7; MAX_VALUE], vec![7; MAX_VALUE + 1]);
    guest.set(cache, &long, &large).await.unwrap();
    assert_eq!(guest.get(cache, &long).await, Ok(Some(large.clone())));
    assert!(words(guest.set(cache, &longer, b"").await).contains("keys have up to 1KiB"));
    assert!(words(guest.get(cache, &longer).await).contains("keys have up to 1KiB"));
    assert!(words(guest.set(cache, "k", &larger).await).contains("values have up to 1MiB"));
    let keys = vec!["k".to_owned(); MAX_BATCH + 1];
    assert!(words(guest.get_many(cache, &keys).await).contains("up to 1000 entries"));
    assert!(words(guest.delete_many(cache, &keys).await).contains("up to 1000 entries"));

    let entries: Vec<(String, Vec<u8>)> = (0..=MAX_BATCH_BYTES / MAX_VALUE)
        .map(|n| (n.to_string(), large.clone()))
        .collect();
    let error = words(guest.set_many(cache, entries.clone()).await);
    assert!(error.contains("too large together"), "{error}");
    assert_eq!(guest.exists(cache, "0").await, Ok(false));
    for (key, value) in &entries {
        guest.set(cache, key, value).await.unwrap();
    }
    let keys: Vec<String> = entries.into_iter().map(|(key, _)| key).collect();
    assert!(words(guest.get_many(cache, &keys).await).contains("too large together"));
    assert!(guest.get_many(cache, keys.get(1..).unwrap()).await.is_ok());
}

async fn many_at_once(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    let entries: Vec<(String, Vec<u8>)> = (0..MAX_BATCH)
        .map(|n| (format!("k{n}"), n.to_string().into_bytes()))
        .collect();
    guest.set_many(cache, entries.clone()).await.unwrap();
    let mut keys: Vec<String> = entries.iter().rev().map(|(key, _)| key.clone()).collect();
    let answers = guest.get_many(cache, &keys).await.unwrap();
    let expected: Vec<_> = entries
        .into_iter()
        .rev()
        .map(|(key, value)| (key, Some(value)))
        .collect();
    assert_eq!(answers, expected);

    keys.truncate(MAX_BATCH - 1);
    guest.delete_many(cache, &keys).await.unwrap();
    assert_eq!(guest.list_all(cache).await, ["k0"]);
    let asked = ["k1".to_owned(), "k0".to_owned(), "k0".to_owned()];
    let answers = guest.get_many(cache, &asked).await.unwrap();
    let found: Vec<bool> = answers.iter().map(|(_, value)| value.is_some()).collect();
    assert_eq!(found, [false, true, true]);
    let twice = vec![("t".to_owned(), vec![1]), ("t".to_owned(), vec![2])];
    guest.set_many(cache, twice).await.unwrap();
    assert_eq!(guest.get(cache, "t").await, Ok(Some(vec![2])));
    guest.set_many(cache, Vec::new()).await.unwrap();
    guest.delete_many(cache, &[]).await.unwrap();
    assert_eq!(guest.get_many(cache, &[]).await, Ok(Vec::new()));
}

async fn lists_come_in_pages(backend: Backend) {
    let mut guest = backend.guest("rare:");
    let mut neighbour = backend.guest("common:");
    let (cache, theirs) = (guest.cache().await, neighbour.cache().await);
    assert_eq!(guest.list(cache, None).await, Ok((Vec::new(), None)));
    let mut expected = BTreeSet::new();
    for block in 0..5 {
        let common = |n| (format!("{block}/{n}"), Vec::new());
        let entries = (0..900).map(common).collect();
        neighbour.set_many(theirs, entries).await.unwrap();
        for n in 0..3 {
            let key = format!("{block}/{n}");
            guest.set(cache, &key, b"").await.unwrap();
            expected.insert(key);
        }
    }
    let mut pages = 0;
    let mut found = BTreeSet::new();
    let mut cursor = None;
    loop {
        let (keys, next) = guest.list(cache, cursor.as_deref()).await.unwrap();
        assert!(
            !keys.is_empty() || next.is_none(),
            "an empty page with a cursor"
        );
        found.extend(keys);
        pages += 1;
        match next {
            None => break,
            next => cursor = next,
        }
    }
    assert_eq!(found, expected);
    assert!(pages > 1, "4,515 keys in one page");
    assert_eq!(neighbour.list_all(theirs).await.len(), 4_500);
}

async fn cursors_are_only_positions(backend: Backend) {
    let mut guest = backend.guest("mine:");
    let mut neighbour = backend.guest("yours:");
    let (cache, theirs) = (guest.cache().await, neighbour.cache().await);
    guest.set(cache, "k", b"").await.unwrap();
    neighbour.set(theirs, "secret", b"").await.unwrap();
    for cursor in [
        "0",
        "1",
        "4096",
        "9223372036854775807",
        "18446744073709551615",
    ] {
        let (keys, _) = guest.list(cache, Some(cursor)).await.unwrap();
        assert!(keys.is_empty() || keys == ["k"], "{keys:?}");
    }
    for cursor in [
        "",
        "-1",
        "abc",
        "1; DROP TABLE entries",
        "18446744073709551616",
    ] {
        let error = words(guest.list(cache, Some(cursor)).await);
        assert!(error.contains("no cursor of this store"), "{error}");
    }
}

async fn increments_add_up(backend: Backend) {
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let mut guest = backend.guest("a:");
            tokio::spawn(async move {
                let cache = guest.cache().await;
                for by in [1, 5, -3] {
                    guest.increment(cache, "n", by).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    assert_eq!(guest.increment(cache, "n", 0).await, Ok(150));
    assert_eq!(guest.get(cache, "n").await, Ok(Some(b"150".to_vec())));
}

async fn increments_of_other_things_fail_and_change_nothing(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    for value in ["", "x", "1.5", " 1", "01", "+1", "9223372036854775808"] {
        guest.set(cache, "k", value.as_bytes()).await.unwrap();
        let error = words(guest.increment(cache, "k", 1).await);
        assert!(error.contains("not a whole number"), "{value:?}: {error}");
        assert_eq!(guest.get(cache, "k").await, Ok(Some(value.into())));
    }
    for (value, by) in [(i64::MAX, 1), (i64::MIN, -1)] {
        let text = value.to_string();
        guest.set(cache, "k", text.as_bytes()).await.unwrap();
        let error = words(guest.increment(cache, "k", by).await);
        assert!(error.contains("does not fit 64 bits"), "{error}");
        assert_eq!(guest.get(cache, "k").await, Ok(Some(text.into())));
    }
}

async fn swaps_happen_only_over_what_was_seen(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    let cas = guest.cas(cache, "k").await.unwrap();
    assert_eq!(guest.current(&cas).await, Ok(None));
    guest.set(cache, "k", b"").await.unwrap();
    let Err(CasError::CasFailed(cas)) = guest.swap(cas, b"lost").await else {
        panic!("an empty value is not the same as none")
    };
    assert_eq!(guest.current(&cas).await, Ok(Some(Vec::new())));
    guest.swap(cas, b"1").await.unwrap();
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"1".to_vec())));

    let cas = guest.cas(cache, "k").await.unwrap();
    guest.delete(cache, "k").await.unwrap();
    let Err(CasError::CasFailed(cas)) = guest.swap(cas, b"lost").await else {
        panic!("the key was gone")
    };
    assert_eq!(guest.current(&cas).await, Ok(None));
    guest.swap(cas, b"2").await.unwrap();
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"2".to_vec())));

    let cas = guest.cas(cache, "k").await.unwrap();
    let refused = guest.swap(cas, &vec![0; MAX_VALUE + 1]).await;
    assert!(matches!(refused, Err(CasError::StoreError(_))));
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"2".to_vec())));
}

async fn racing_swaps_lose_nothing(backend: Backend) {
    async fn append(mut guest: Guest, letter: char) {
        let cache = guest.cache().await;
        let mut cas = guest.cas(cache, "word").await.unwrap();
        loop {
            let mut word = guest.current(&cas).await.unwrap().unwrap_or_default();
            word.push(letter as u8);
            match guest.swap(cas, &word).await {
                Ok(()) => return,
                Err(CasError::CasFailed(newer)) => cas = newer,
                Err(CasError::StoreError(error)) => panic!("{error:?}"),
            }
        }
    }
    let tasks: Vec<_> = ('a'..='t')
        .map(|letter| tokio::spawn(append(backend.guest("a:"), letter)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    let mut word = guest.get(cache, "word").await.unwrap().unwrap();
    word.sort_unstable();
    assert_eq!(
        String::from_utf8(word).unwrap(),
        ('a'..='t').collect::<String>()
    );
}

async fn remembered_values_are_limited(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    guest.set(cache, "k", &vec![1; MAX_VALUE]).await.unwrap();
    let mut handles = Vec::new();
    for _ in 0..MAX_BATCH_BYTES / MAX_VALUE {
        handles.push(guest.cas(cache, "k").await.unwrap());
    }
    assert!(words(guest.cas(cache, "k").await).contains("drop some"));
    let handle = handles.pop().unwrap();
    crate::host::draft2::atomics::HostCas::drop(&mut guest.view(), handle)
        .await
        .unwrap();
    guest.cas(cache, "k").await.unwrap();
}

async fn no_time_left_is_an_error(backend: Backend) {
    let actions = [Action::Read, Action::Write];
    let time = std::time::Duration::ZERO;
    let mut guest = super::guest(&backend.stores, "cache", "a:", &actions, time);
    let cache = guest.cache().await;
    let error = words(guest.get(cache, "k").await);
    assert!(error.contains("did not answer in time"), "{error}");
}

async fn the_first_draft_has_the_same_stores(backend: Backend) {
    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    guest.set(cache, "k", b"1").await.unwrap();
    let mut view = guest.view();
    let get = draft::store::HostBucket::get(&mut view, cache.borrow(), "k".to_owned()).await;
    assert_eq!(get, Ok(Some(b"1".to_vec())));
    let add = draft::atomics::Host::increment(&mut view, cache.borrow(), "n".to_owned(), 2).await;
    assert_eq!(add, Ok(2));
    let too_much =
        draft::atomics::Host::increment(&mut view, cache.borrow(), "n".to_owned(), u64::MAX).await;
    assert!(words(too_much).contains("63 bits"));
    let keys = vec!["x".to_owned(), "k".to_owned()];
    let many = draft::batch::Host::get_many(&mut view, cache.borrow(), keys).await;
    assert_eq!(many, Ok(vec![None, Some(("k".to_owned(), b"1".to_vec()))]));
    let page = draft::store::HostBucket::list_keys(&mut view, cache.borrow(), Some(u64::MAX)).await;
    assert!(page.unwrap().keys.len() <= 2);
    guest.increment(cache, "n", -10).await.unwrap();
    let mut view = guest.view();
    let below = draft::atomics::Host::increment(&mut view, cache.borrow(), "n".to_owned(), 1).await;
    assert!(words(below).contains("below zero"));
}

async fn a_probe_finds_it_well(backend: Backend) {
    let states = backend.stores.state().await;
    assert_eq!(states.len(), 1);
    assert_eq!(states.first().unwrap().name, "main");
    assert_eq!(states.first().unwrap().down, None);
}
