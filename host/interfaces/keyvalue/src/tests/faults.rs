use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stepwell_core::{Action, STORE_SIZE};
use wasmtime::component::{Linker, ResourceTable};

use super::{Backend, guest, redis_stores, start_redis, words};
use crate::sqlite::file_of;
use crate::{
    KeyValueBindingConfig, KeyValueClient, KeyValueCtx, KeyValueView, KeyValues, SqliteStore,
};

const BOTH: [Action; 2] = [Action::Read, Action::Write];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stops_and_comes_back() {
    let Some(mut redis) = start_redis() else {
        return;
    };
    let stores = redis_stores(&redis.url());
    let mut before = guest(&stores, "cache", "", &BOTH, Duration::from_secs(60));
    let cache = before.cache().await;
    before.set(cache, "k", b"kept").await.unwrap();

    redis.stop();
    let started = Instant::now();
    let mut during = guest(&stores, "cache", "", &BOTH, Duration::from_secs(2));
    let cache = during.cache().await;
    for _ in 0..3 {
        let error = words(during.get(cache, "k").await);
        assert!(error.contains("the store is not available"), "{error}");
        assert!(!error.contains("127.0.0.1"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    let state = stores.state().await.pop().unwrap();
    let down = state.down.unwrap();
    assert_eq!(down, "the store is not available: it cannot be reached");

    redis.restart().unwrap();
    let mut after = guest(&stores, "cache", "", &BOTH, Duration::from_secs(60));
    let cache = after.cache().await;
    // Nothing is told that Redis is back: the first operation finds out.
    assert_eq!(after.get(cache, "k").await, Ok(Some(b"kept".to_vec())));
    assert_eq!(after.increment(cache, "n", 1).await, Ok(1));
    assert_eq!(stores.state().await.pop().unwrap().down, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_redis_closed_is_replaced() {
    let Some(backend) = Backend::redis() else {
        return;
    };
    let mut guest = backend.guest("");
    let cache = guest.cache().await;
    guest.set(cache, "k", b"1").await.unwrap();
    let mut admin = admin(&backend.url).await;
    let killed: u32 = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(killed, 1);
    assert_eq!(guest.get(cache, "k").await, Ok(Some(b"1".to_vec())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_never_answers_costs_no_more_than_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let stores = redis_stores(&format!("redis://user:hunter2@{address}/"));
    let started = Instant::now();
    let mut guest = guest(&stores, "cache", "", &BOTH, Duration::from_millis(500));
    let cache = guest.cache().await;
    let error = words(guest.get(cache, "k").await);
    assert!(error.contains("did not answer in time"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
    let down = stores.state().await.pop().unwrap().down.unwrap();
    assert!(
        !down.contains("hunter2") && !down.contains("127.0.0.1"),
        "{down}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_said_and_mended_without_a_restart() {
    let Some(backend) = Backend::redis() else {
        return;
    };
    let mut admin = admin(&backend.url).await;
    let set_password = async |admin: &mut redis::aio::MultiplexedConnection, password: &str| {
        redis::cmd("CONFIG")
            .arg(&["SET", "requirepass", password])
            .exec_async(admin)
            .await
            .unwrap();
    };
    set_password(&mut admin, "hunter2").await;
    let mut guest = backend.guest("");
    let cache = guest.cache().await;
    let error = words(guest.get(cache, "k").await);
    assert!(error.contains("refuses the host's credentials"), "{error}");
    set_password(&mut admin, "").await;
    assert_eq!(guest.get(cache, "k").await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_software_keeps_in_redis_is_no_panic() {
    let Some(backend) = Backend::redis() else {
        return;
    };
    let mut admin = admin(&backend.url).await;
    let push = redis::cmd("RPUSH").arg(&["a:list", "x"]).to_owned();
    push.exec_async(&mut admin).await.unwrap();
    let mut binary = redis::cmd("SET");
    binary.arg(b"a:\xff\xfe").arg("x");
    binary.exec_async(&mut admin).await.unwrap();
    let mut large = redis::cmd("SETRANGE");
    large.arg("a:large").arg(3 << 20).arg("x");
    large.exec_async(&mut admin).await.unwrap();

    let mut guest = backend.guest("a:");
    let cache = guest.cache().await;
    let error = words(guest.get(cache, "list").await);
    assert!(
        error.contains("something else than a plain value"),
        "{error}"
    );
    let error = words(guest.get(cache, "large").await);
    assert!(error.contains("values have up to 1MiB"), "{error}");
    assert_eq!(guest.list_all(cache).await, ["large"]);
}

async fn admin(url: &str) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// The writer of the next test, in a process of its own: it says which writes were acknowledged until it is killed.
#[tokio::test]
#[ignore = "run by acknowledged_writes_survive_a_kill"]
async fn writer_that_is_killed() {
    let file = std::env::var_os("STEPWELL_TEST_FILE").unwrap();
    let store = SqliteStore::new(file_of(file.as_ref(), STORE_SIZE));
    for n in 0..u32::MAX {
        let value = n.to_string();
        store.set(&value, value.clone().into()).await.unwrap();
        println!("acknowledged {n}");
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.sqlite");
    for round in 1..=3_u32 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::faults::writer_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env("STEPWELL_TEST_FILE", &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        for line in lines {
            if let Some((_, n)) = line.unwrap().split_once("acknowledged ") {
                acknowledged = n.trim().parse::<u32>().ok();
            }
            // `kill` is SIGKILL; the lines that are still in the pipe are read to the end.
            if acknowledged == Some(round * 40) {
                writer.kill().unwrap();
            }
        }
        writer.wait().unwrap();
        let last = acknowledged.unwrap();
        assert!(last >= round * 40);
        let store = SqliteStore::new(file_of(&file, STORE_SIZE));
        for n in 0..=last {
            let value = store.get(&n.to_string()).await.unwrap();
            assert_eq!(value.as_deref(), Some(n.to_string().as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_said_without_its_path() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keyvalue"), "a file in the way").unwrap();
    let max_size = STORE_SIZE;
    let config = [("main".to_owned(), KeyValueBindingConfig::Local { max_size })];
    let stores = std::sync::Arc::new(KeyValues::open(directory.path(), config.into()));
    let mut guest = guest(&stores, "cache", "", &BOTH, Duration::from_secs(5));
    let cache = guest.cache().await;
    let error = words(guest.set(cache, "k", b"1").await);
    assert!(
        error.contains("its file cannot be read or written"),
        "{error}"
    );
    assert!(!error.contains('/'), "{error}");
    // Once the way is free, the next operation opens it.
    std::fs::remove_file(directory.path().join("keyvalue")).unwrap();
    guest.set(cache, "k", b"1").await.unwrap();
}

#[test]
fn both_versions_link_side_by_side() {
    struct State {
        ctx: KeyValueCtx,
        table: ResourceTable,
    }
    fn view(state: &mut State) -> KeyValueView<'_> {
        KeyValueView {
            ctx: &mut state.ctx,
            table: &mut state.table,
        }
    }
    let engine = wasmtime::Engine::default();
    let mut linker = Linker::<State>::new(&engine);
    crate::add_to_linker(&mut linker, view).unwrap();
    assert!(crate::add_to_linker(&mut linker, view).is_err());
}
