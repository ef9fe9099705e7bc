//! What a guest's statements may take of the host on SQLite: CPU time, which is charged, and the disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

#[path = "common/fixture.rs"]
mod fixture;

use std::time::{Duration, Instant};

use fixture::{Fixture, Guest, READ, READ_WRITE};
use stepwell_sql::wit::{Error, Isolation, Value};
use stepwell_test_hits::hits;

const COUNTS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) SELECT count(*) FROM n";
const FOR_EVER: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_statement_computes_is_charged() {
    let fixture = Fixture::sqlite();
    let mut guest = fixture.guest(READ);
    guest.query("SELECT 1", vec![]).await.unwrap();
    let little = fixture.cpu.used();
    assert!(!little.is_zero());
    assert!(little < Duration::from_millis(20), "{little:?}");
    let began = Instant::now();
    guest.query(COUNTS, vec![]).await.unwrap();
    let took = began.elapsed();
    let charged = fixture.cpu.used() - little;
    assert!(charged > Duration::from_millis(20), "{charged:?}");
    assert!(charged <= took, "{charged:?} of {took:?}");
    // Nobody pays for what the host itself asks, once the connection is nobody's again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fixture.cpu.used();
    for _ in 0..20 {
        assert!(fixture.databases.state().await[0].down.is_none());
    }
    assert_eq!(fixture.cpu.used(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_any_more_is_charged_too() {
    let fixture = Fixture::sqlite();
    let mut guest = fixture.guest_for(READ, Duration::from_millis(300));
    let error = guest.query(FOR_EVER, vec![]).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
    let patience = Instant::now() + Duration::from_secs(20);
    while fixture.cpu.used() < Duration::from_millis(30) {
        assert!(Instant::now() < patience, "{:?}", fixture.cpu.used());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const MIB: u64 = 1 << 20;

async fn fill(guest: &mut Guest<'_>) -> (u32, Error) {
    for row in 0..1000 {
        let blob = Value::Bytes(vec![7; 20_000]);
        let sql = "INSERT INTO t (a, b) VALUES ($1, $2)";
        let params = vec![Value::S64(row.into()), blob];
        if let Err(error) = guest.execute(sql, params).await {
            return (row, error);
        }
    }
    panic!("20 MB were stored");
}

fn size_of(fixture: &Fixture, name: &str) -> u64 {
    let path = fixture.directory.path().join("sql").join(name);
    std::fs::metadata(path).map_or(0, |file| file.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_can_be_read_and_emptied() {
    let before = hits("store_size");
    let fixture = Fixture::sqlite_of(4 * MIB);
    let mut guest = fixture.guest(READ_WRITE);
    let create = "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)";
    guest.execute(create, vec![]).await.unwrap();
    let (stored, error) = fill(&mut guest).await;
    assert!(hits("store_size") > before);
    assert!(stored > 150, "{stored}");
    let Error::TooLarge(why) = &error else {
        panic!("{error:?}")
    };
    assert!(why.contains("'results' may have 4MiB"), "{why}");
    assert!(why.contains("bindings.sql.results.max_size"), "{why}");
    // A transaction that wanted too much is gone as a whole.
    let count = "SELECT count(*), sum(length(b)) FROM t";
    let rows = guest.query(count, vec![]).await.unwrap();
    assert_eq!(
        format!("{:?}", rows.rows[0][0]),
        format!("{:?}", Value::S64(stored.into()))
    );
    let update = "UPDATE t SET b = zeroblob(length(b)) WHERE a < 50";
    guest.execute(update, vec![]).await.unwrap();
    for row in 0..stored {
        let params = vec![Value::S64(row.into())];
        let delete = "DELETE FROM t WHERE a = $1";
        assert_eq!(guest.execute(delete, params).await.unwrap(), 1);
    }
    let (again, _) = fill(&mut guest).await;
    assert!(again >= stored - 1, "{again} of {stored}");
    let drop = "DROP TABLE t";
    guest.execute(drop, vec![]).await.unwrap();
    assert!(size_of(&fixture, "results.sqlite") <= 4 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_does_not_grow_for_as_long_as_somebody_reads() {
    const SIZE: u64 = 20 * MIB;
    let fixture = Fixture::sqlite_of(SIZE);
    let mut writer = fixture.guest(READ_WRITE);
    let create = "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)";
    writer.execute(create, vec![]).await.unwrap();
    let insert = "INSERT INTO t (a, b) VALUES (1, zeroblob(4000000))";
    writer.execute(insert, vec![]).await.unwrap();
    let mut reader = fixture.guest(READ);
    let reading = reader.begin(Isolation::Serializable, true).await.unwrap();
    let update = "UPDATE t SET b = randomblob(4000000)";
    let mut written = 0;
    let error = loop {
        // It is looked after, else it would be rolled back after a while.
        let seen = reader
            .query_in(&reading, "SELECT count(*) FROM t", vec![])
            .await;
        assert!(seen.is_ok(), "{seen:?}");
        match writer.execute(update, vec![]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 12, "{}", size_of(&fixture, "results.sqlite-wal"));
    };
    assert!(matches!(error, Error::Overloaded(_)), "{error:?}");
    assert!(written >= 4, "{written}");
    assert!(size_of(&fixture, "results.sqlite-wal") < 2 * SIZE);
    reader.rollback(reading).await.unwrap();
    writer.execute(update, vec![]).await.unwrap();
    assert!(size_of(&fixture, "results.sqlite-wal") < SIZE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_larger_already_grows_no_more() {
    let fixture = Fixture::sqlite_of(4 * MIB);
    let mut guest = fixture.guest(READ_WRITE);
    let create = "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)";
    guest.execute(create, vec![]).await.unwrap();
    let (stored, _) = fill(&mut guest).await;
    fixture.databases.close().await;
    let fixture = fixture.reopened(MIB);
    let mut guest = fixture.guest(READ_WRITE);
    let insert = "INSERT INTO t (a, b) VALUES (1000, zeroblob(100000))";
    let error = guest.execute(insert, vec![]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error:?}");
    // What becomes free at its end is used again.
    let delete = format!("DELETE FROM t WHERE a >= {}", stored - 10);
    assert_eq!(guest.execute(&delete, vec![]).await.unwrap(), 10);
    guest.execute(insert, vec![]).await.unwrap();
}
