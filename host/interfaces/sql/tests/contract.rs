//! What holds on both backends, through the interface that guests call.
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

use fixture::{Backend, Fixture, Guest, READ, READ_WRITE, WRITE, kind, sqlstate};
use stepwell_sql::wit::{Element, Error, Isolation, OtherValue, Value};
use stepwell_test_hits::hits;

/// Defines each test once for each backend.
macro_rules! both {
    ($($(#[$meta:meta])* async fn $name:ident($fixture:ident: Fixture) $body:block)*) => {
        mod sqlite {
            use super::*;
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Fixture::sqlite()).await; })*
        }
        mod postgres {
            use super::*;
            $($(#[$meta])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Fixture::postgres(4)).await; })*
        }
        $(async fn $name($fixture: Fixture) $body)*
    };
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A statement that never ends by itself.
const RUNAWAY: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT (i + 1) % 1000 FROM n) SELECT count(*) FROM n";

async fn count(guest: &mut Guest<'_>) -> i64 {
    match guest
        .query("SELECT count(*) FROM t", vec![])
        .await
        .unwrap()
        .rows[0][0]
    {
        Value::S64(count) => count,
        ref other => panic!("{other:?}"),
    }
}

async fn with_table(fixture: &Fixture) {
    let mut guest = fixture.guest(READ_WRITE);
    guest
        .execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT NOT NULL)",
            vec![],
        )
        .await
        .unwrap();
    guest
        .execute("INSERT INTO t VALUES (1, 'one')", vec![])
        .await
        .unwrap();
}

both! {
    async fn every_kind_of_value_comes_back(fixture: Fixture) {
        let mut guest = fixture.guest(READ_WRITE);
        let (bytes, numeric) = fixture.pick(("BLOB", "NUMERIC_TEXT"), ("BYTEA", "NUMERIC"));
        guest.execute(&format!(
            "CREATE TABLE v (flag BOOLEAN, small SMALLINT, big BIGINT, f DOUBLE PRECISION, t TEXT, b {bytes}, j JSON, \
             ts TIMESTAMPTZ, u UUID, d {numeric}, at TEXT[], ai BIGINT[], ab BOOLEAN[], au UUID[], af DOUBLE PRECISION[])"
        ), vec![]).await.unwrap();
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let row = vec![
            Value::Boolean(true),
            Value::S64(-7),
            Value::S64(i64::MIN),
            Value::F64(0.1),
            text("ünïcödé \"quotes\" \\ and 'more'\n"),
            Value::Bytes(vec![0, 1, 255]),
            Value::Json(r#"{"a": [1, null]}"#.into()),
            Value::Timestamp("2026-03-01T12:00:00.25Z".into()),
            Value::Uuid(uuid.into()),
            Value::Numeric("-12345678901234567890.012345678901234567890".into()),
            Value::Array(vec![Element::Text("a\",\"{}\\ NULL".into()), Element::Null, Element::Text(String::new())]),
            Value::Array(vec![Element::S64(i64::MAX), Element::S64(0)]),
            Value::Array(vec![Element::Boolean(true), Element::Boolean(false)]),
            Value::Array(vec![Element::Uuid(uuid.into())]),
            Value::Array(vec![Element::F64(0.5), Element::F64(3.0)]),
        ];
        let insert = "INSERT INTO v VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15)";
        assert_eq!(guest.execute(insert, row.clone()).await.unwrap(), 1);
        let rows = guest.query("SELECT * FROM v", vec![]).await.unwrap();
        for (column, (got, sent)) in rows.columns.iter().zip(rows.rows[0].iter().zip(&row)) {
            assert_eq!(format!("{got:?}"), format!("{sent:?}"), "{}", column.name);
        }
        let names: Vec<&str> = rows.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names[..3], ["flag", "small", "big"]);
        assert!(rows.columns[4].type_name.eq_ignore_ascii_case("text"));

        guest.execute("DELETE FROM v", vec![]).await.unwrap();
        let nulls = vec![Value::Null; row.len()];
        guest.execute(insert, nulls.clone()).await.unwrap();
        let rows = guest.query("SELECT * FROM v", vec![]).await.unwrap();
        assert_eq!(format!("{:?}", rows.rows[0]), format!("{nulls:?}"));
        guest.execute("DELETE FROM v", vec![]).await.unwrap();
        let empty = guest.query("SELECT * FROM v", vec![]).await.unwrap();
        assert_eq!((empty.columns.len(), empty.rows.len()), (row.len(), 0));
    }

    async fn counts_of_changed_rows(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        assert_eq!(guest.execute("INSERT INTO t VALUES (2, 'two'), (3, 'three')", vec![]).await.unwrap(), 2);
        assert_eq!(guest.execute("CREATE TABLE other (a BIGINT)", vec![]).await.unwrap(), 0);
        assert_eq!(guest.execute("SELECT * FROM t", vec![]).await.unwrap(), 0);
        assert_eq!(guest.execute("UPDATE t SET name = $1 WHERE id > $2", vec![text("x"), Value::S64(1)]).await.unwrap(), 2);
        assert_eq!(guest.execute("DELETE FROM t WHERE id = 99", vec![]).await.unwrap(), 0);
    }

    async fn parameters_are_never_code(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        for evil in ["'; DROP TABLE t; --", "' OR '1'='1", "$2", "\\'; SELECT 1; --", "1); DELETE FROM t; --"] {
            let rows = guest.query("SELECT id FROM t WHERE name = $1", vec![text(evil)]).await.unwrap();
            assert!(rows.rows.is_empty(), "{evil}");
            guest.execute("UPDATE t SET name = $1 WHERE id = 1", vec![text(evil)]).await.unwrap();
            let rows = guest.query("SELECT name FROM t WHERE name = $1", vec![text(evil)]).await.unwrap();
            assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[text(evil)]]));
        }
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn only_one_statement_runs(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        for two in ["SELECT 1; DROP TABLE t", "SELECT 1; COMMIT", "INSERT INTO t VALUES (8, 'a'); INSERT INTO t VALUES (9, 'b')"] {
            assert_eq!(sqlstate(guest.query(two, vec![]).await), "42601", "{two}");
            assert_eq!(sqlstate(guest.execute(two, vec![]).await), "42601", "{two}");
        }
        assert_eq!(count(&mut guest).await, 1);
        guest.query("SELECT 1; -- the end", vec![]).await.unwrap();
    }

    async fn without_a_grant_nothing_opens(fixture: Fixture) {
        let mut guest = fixture.guest(READ_WRITE);
        for name in ["other", fixture::BINDING, "", "../db"] {
            assert_eq!(kind(guest.open(name).await), "not-granted", "{name}");
        }
        guest.open("db").await.unwrap();
    }

    async fn a_read_grant_only_reads(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ);
        assert_eq!(count(&mut guest).await, 1);
        for write in [
            "INSERT INTO t VALUES (2, 'two')",
            "INSERT INTO t VALUES (2, 'two') RETURNING id",
            "WITH x AS (SELECT 2 AS id) INSERT INTO t SELECT id, 'x' FROM x",
            "UPDATE t SET name = 'x'",
            "DELETE FROM t",
            "DROP TABLE t",
            "ALTER TABLE t ADD COLUMN c BIGINT",
            "CREATE TABLE s (a BIGINT)",
            "CREATE TEMP TABLE s (a BIGINT)",
        ] {
            assert_eq!(kind(guest.query(write, vec![]).await), "not-granted", "{write}");
            assert_eq!(kind(guest.execute(write, vec![]).await), "not-granted", "{write}");
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            assert_eq!(kind(guest.query_in(&transaction, write, vec![]).await), "not-granted", "{write}");
            assert_eq!(kind(guest.commit(transaction).await), "aborted");
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            assert_eq!(kind(guest.execute_in(&transaction, write, vec![]).await), "not-granted", "{write}");
            guest.drop_transaction(transaction).await;
        }
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn a_write_grant_does_not_read(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(WRITE);
        guest.execute("INSERT INTO t VALUES (2, 'two')", vec![]).await.unwrap();
        for sql in ["SELECT * FROM t", "DELETE FROM t RETURNING name"] {
            assert_eq!(kind(guest.query(sql, vec![]).await), "not-granted", "{sql}");
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            assert_eq!(kind(guest.query_in(&transaction, sql, vec![]).await), "not-granted", "{sql}");
            guest.drop_transaction(transaction).await;
        }
        let mut guest = fixture.guest(READ_WRITE);
        let rows = guest.query("DELETE FROM t WHERE id = 2 RETURNING name", vec![]).await.unwrap();
        assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[text("two")]]));
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn a_read_only_transaction_refuses_writes(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        let transaction = guest.begin(Isolation::Serializable, true).await.unwrap();
        guest.query_in(&transaction, "SELECT * FROM t", vec![]).await.unwrap();
        assert_eq!(sqlstate(guest.execute_in(&transaction, "DELETE FROM t", vec![]).await), "25006");
        guest.drop_transaction(transaction).await;
        let transaction = guest.begin(Isolation::Serializable, true).await.unwrap();
        assert_eq!(sqlstate(guest.query_in(&transaction, "DELETE FROM t RETURNING id", vec![]).await), "25006");
        guest.drop_transaction(transaction).await;
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn sessions_and_transactions_are_the_hosts(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        for sql in [
            "BEGIN", "COMMIT", "ROLLBACK", "/* */ END", ";COMMIT", "SAVEPOINT a", "SET TRANSACTION READ WRITE", "RESET ALL", "DISCARD ALL",
            "PRAGMA journal_mode = OFF", "ATTACH '/tmp/stepwell-attached' AS x", "VACUUM INTO '/tmp/stepwell-vacuumed'",
            "COPY t TO PROGRAM 'id'", "DO $$ BEGIN END $$", "LISTEN a", "PREPARE TRANSACTION 'a'", "DEALLOCATE ALL",
        ] {
            assert_eq!(sqlstate(guest.query(sql, vec![]).await), "0A000", "{sql}");
            assert_eq!(sqlstate(guest.execute(sql, vec![]).await), "0A000", "{sql}");
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            assert_eq!(sqlstate(guest.execute_in(&transaction, sql, vec![]).await), "0A000", "{sql}");
            guest.drop_transaction(transaction).await;
        }
        assert!(!std::path::Path::new("/tmp/stepwell-attached").exists());
        assert!(!std::path::Path::new("/tmp/stepwell-vacuumed").exists());
    }

    async fn transactions_commit_and_roll_back(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        let insert = "INSERT INTO t VALUES ($1, 'x')";

        let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
        assert_eq!(guest.execute_in(&transaction, insert, vec![Value::S64(2)]).await.unwrap(), 1);
        let rows = guest.query_in(&transaction, "SELECT count(*) FROM t", vec![]).await.unwrap();
        assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[Value::S64(2)]]));
        assert_eq!(count(&mut fixture.guest(READ)).await, 1, "others do not see it yet");
        guest.commit(transaction).await.unwrap();
        assert_eq!(count(&mut guest).await, 2);

        let transaction = guest.begin(Isolation::RepeatableRead, false).await.unwrap();
        guest.execute_in(&transaction, insert, vec![Value::S64(3)]).await.unwrap();
        guest.rollback(transaction).await.unwrap();
        assert_eq!(count(&mut guest).await, 2);

        let transaction = guest.begin(Isolation::Serializable, false).await.unwrap();
        guest.execute_in(&transaction, insert, vec![Value::S64(3)]).await.unwrap();
        guest.drop_transaction(transaction).await;
        assert_eq!(count(&mut guest).await, 2);
    }

    async fn after_an_error_a_transaction_only_rolls_back(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
        guest.execute_in(&transaction, "INSERT INTO t VALUES (2, 'x')", vec![]).await.unwrap();
        assert_eq!(kind(guest.execute_in(&transaction, "INSERT INTO t VALUES (1, 'x')", vec![]).await), "constraint");
        assert_eq!(sqlstate(guest.query_in(&transaction, "SELECT 1", vec![]).await), "25P02");
        assert_eq!(sqlstate(guest.commit(transaction).await), "25P02");
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn a_transaction_that_waits_for_its_guest_makes_room(fixture: Fixture) {
        let before = hits("sql_idle");
        with_table(&fixture).await;
        let mut idle = fixture.guest(READ_WRITE);
        let insert = "INSERT INTO t VALUES ($1, 'x')";
        let transaction = idle.begin(Isolation::ReadCommitted, false).await.unwrap();
        // What goes on is not idle, however long it takes.
        let begun = Instant::now();
        let mut id = 100;
        while begun.elapsed() < Duration::from_secs(5) {
            idle.execute_in(&transaction, insert, vec![Value::S64(id)]).await.unwrap();
            id += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // On SQLite this waits for the only writer; on PostgreSQL, for the row.
        idle.execute_in(&transaction, "UPDATE t SET name = 'held' WHERE id = 1", vec![]).await.unwrap();
        let mut other = fixture.guest_for(READ_WRITE, Duration::from_secs(20));
        let waited = Instant::now();
        other.execute("UPDATE t SET name = 'free' WHERE id = 1", vec![]).await.unwrap();
        assert!(waited.elapsed() > Duration::from_secs(1), "{:?}", waited.elapsed());
        assert_eq!(count(&mut other).await, 1, "it is rolled back");
        assert_eq!(sqlstate(idle.query_in(&transaction, "SELECT 1", vec![]).await), "25P03");
        let again = idle.execute_in(&transaction, insert, vec![Value::S64(2)]).await;
        assert!(format!("{again:?}").contains("no statement of it came for 4 s"), "{again:?}");
        assert_eq!(kind(again), "aborted");
        assert!(hits("sql_idle") > before);
        assert_eq!(sqlstate(idle.commit(transaction).await), "25P03");
        // Its guest goes on, and may end by itself what has ended.
        let transaction = idle.begin(Isolation::ReadCommitted, false).await.unwrap();
        idle.execute_in(&transaction, insert, vec![Value::S64(2)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        idle.rollback(transaction).await.unwrap();
        assert_eq!(count(&mut idle).await, 1);
    }

    async fn a_store_that_goes_away_rolls_back(fixture: Fixture) {
        with_table(&fixture).await;
        for round in 0..20 {
            let mut guest = fixture.guest(READ_WRITE);
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            guest.execute_in(&transaction, "INSERT INTO t VALUES (2, 'x')", vec![]).await.unwrap();
            drop(guest);
            let mut next = fixture.guest(READ_WRITE);
            assert_eq!(count(&mut next).await, 1, "round {round}");
            // The next user of the connection is in no transaction: what it does stays.
            next.execute("UPDATE t SET name = $1", vec![text(&round.to_string())]).await.unwrap();
            let rows = fixture.guest(READ).query("SELECT name FROM t", vec![]).await.unwrap();
            assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[text(&round.to_string())]]));
        }
    }

    async fn two_transactions_at_once_lose_no_update(fixture: Fixture) {
        let mut guest = fixture.guest(READ_WRITE);
        guest.execute("CREATE TABLE n (i BIGINT NOT NULL)", vec![]).await.unwrap();
        guest.execute("INSERT INTO n VALUES (0)", vec![]).await.unwrap();
        let add_ten = async || {
            let mut guest = fixture.guest(READ_WRITE);
            let mut done = 0;
            while done < 10 {
                let transaction = guest.begin(Isolation::Serializable, false).await.unwrap();
                let read = guest.query_in(&transaction, "SELECT i FROM n", vec![]).await.unwrap();
                let Value::S64(i) = read.rows[0][0] else { panic!() };
                tokio::task::yield_now().await;
                let written = guest.execute_in(&transaction, "UPDATE n SET i = $1", vec![Value::S64(i + 1)]).await;
                let ended = match written {
                    Ok(_) => guest.commit(transaction).await,
                    Err(error) => {
                        guest.drop_transaction(transaction).await;
                        Err(error)
                    }
                };
                match ended {
                    Ok(()) => done += 1,
                    Err(Error::Aborted(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        tokio::join!(add_ten(), add_ten());
        let rows = guest.query("SELECT i FROM n", vec![]).await.unwrap();
        assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[Value::S64(20)]]));
    }

    async fn errors_have_the_same_sqlstate(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        guest.execute("CREATE TABLE c (t BIGINT REFERENCES t (id), n BIGINT CHECK (n > 0))", vec![]).await.unwrap();
        for (sql, state, kinds) in [
            ("INSERT INTO t VALUES (1, 'x')", "23505", "constraint"),
            ("INSERT INTO t VALUES (2, NULL)", "23502", "constraint"),
            ("INSERT INTO c VALUES (99, 1)", "23503", "constraint"),
            ("INSERT INTO c VALUES (1, 0)", "23514", "constraint"),
            ("SELECT 1 FROM nowhere", "42P01", "invalid"),
            ("SELECT missing FROM t", "42703", "invalid"),
            ("SELECT FROM WHERE", "42601", "invalid"),
            ("SELECT no_such_function()", "42883", "invalid"),
            ("CREATE TABLE t (a BIGINT)", "42P07", "invalid"),
        ] {
            let error = guest.execute(sql, vec![]).await;
            assert_eq!(kind(error.clone()), kinds, "{sql}");
            assert_eq!(sqlstate(error), state, "{sql}");
        }
    }

    async fn wrong_parameters_are_invalid(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        let select = "SELECT * FROM t WHERE name = $1";
        assert_eq!(sqlstate(guest.query(select, vec![]).await), "07001");
        assert_eq!(sqlstate(guest.query(select, vec![Value::Null, Value::Null]).await), "07001");
        assert_eq!(sqlstate(guest.query(select, vec![text("a\0b")]).await), "22021");
        assert_eq!(sqlstate(guest.query("SELECT '\0'", vec![]).await), "42601");
        for bad in [
            Value::Uuid("nonsense".into()),
            Value::Json("{".into()),
            Value::Numeric("1; DROP".into()),
        ] {
            assert_eq!(sqlstate(guest.query(select, vec![bad]).await), "22P02");
        }
        assert_eq!(sqlstate(guest.query(select, vec![Value::Timestamp("yesterday".into())]).await), "22007");
        let many = vec![Value::Null; 65_000];
        assert_eq!(kind(guest.query(select, many).await), "too-large");
        let list: Vec<String> = (1..=65_000).map(|n| format!("${n}")).collect();
        let sql = format!("SELECT {}", list.join(","));
        assert_eq!(kind(guest.query(&sql, vec![Value::Null; 65_000]).await), "too-large");
        let large = Value::Bytes(vec![0; 9 << 20]);
        assert_eq!(kind(guest.query(select, vec![large]).await), "too-large");
        assert_eq!(kind(guest.query(&format!("SELECT '{}'", "x".repeat(300_000)), vec![]).await), "too-large");
        let other = Value::Other(OtherValue { type_name: "INET".into(), data: vec![1] });
        assert_eq!(kind(guest.query(select, vec![other]).await), "invalid");
        assert_eq!(count(&mut guest).await, 1);
    }

    async fn many_parameters_work(fixture: Fixture) {
        let mut guest = fixture.guest(READ);
        let list: Vec<String> = (1..=5_000).map(|n| format!("(${n})")).collect();
        let sql = format!("SELECT count(*) FROM (VALUES {}) AS v", list.join(","));
        let rows = guest.query(&sql, vec![text("x"); 5_000]).await.unwrap();
        assert_eq!(format!("{:?}", rows.rows), format!("{:?}", [[Value::S64(5_000)]]));
    }

    async fn results_are_bounded(fixture: Fixture) {
        let mut guest = fixture.guest(READ_WRITE);
        let numbers = |most: u64| {
            format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {most}) SELECT i FROM n")
        };
        assert_eq!(guest.query_bounded(&numbers(10), Some(10), None).await.unwrap().rows.len(), 10);
        assert_eq!(kind(guest.query_bounded(&numbers(11), Some(10), None).await), "too-large");
        assert_eq!(kind(guest.query_bounded("SELECT 'hello'", None, Some(4)).await), "too-large");
        guest.query_bounded("SELECT 'hello'", None, Some(5)).await.unwrap();
        assert_eq!(kind(guest.query_bounded("SELECT 1", Some(0), None).await), "too-large");
        // The host's own bounds hold whatever the guest says.
        assert_eq!(kind(guest.query_bounded(&numbers(10_000_000), Some(u32::MAX), None).await), "too-large");
        let wide = fixture.pick("printf('%.*c', 1000000, 'x')", "repeat('x', 1000000)");
        let sql = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT {wide} FROM n");
        assert_eq!(kind(guest.query_bounded(&sql, None, Some(u64::MAX)).await), "too-large");
        // In a transaction, too, and the binding is none the worse for it.
        let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
        assert_eq!(kind(guest.query_in(&transaction, &numbers(10_000_000), vec![]).await), "too-large");
        assert_eq!(kind(guest.commit(transaction).await), "aborted");
        guest.execute("CREATE TABLE after_all (a BIGINT)", vec![]).await.unwrap();
    }

    async fn a_runaway_statement_stops_at_the_deadline(fixture: Fixture) {
        with_table(&fixture).await;
        let began = Instant::now();
        for (actions, insert) in [(READ, false), (READ_WRITE, false), (READ_WRITE, true)] {
            let mut guest = fixture.guest_for(actions, Duration::from_millis(300));
            let result = if insert {
                guest.execute(&format!("INSERT INTO t SELECT 5, 'x' WHERE 0 = ({RUNAWAY})"), vec![]).await.map(|_| ())
            } else {
                guest.query(RUNAWAY, vec![]).await.map(|_| ())
            };
            assert_eq!(kind(result), "deadline-exceeded");
        }
        let mut guest = fixture.guest_for(READ_WRITE, Duration::from_millis(300));
        let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
        guest.execute_in(&transaction, "INSERT INTO t VALUES (7, 'x')", vec![]).await.unwrap();
        assert_eq!(kind(guest.query_in(&transaction, RUNAWAY, vec![]).await), "deadline-exceeded");
        drop(guest);
        // Nothing is held, and nothing was kept.
        let mut next = fixture.guest(READ_WRITE);
        assert_eq!(next.execute("INSERT INTO t VALUES (6, 'x')", vec![]).await.unwrap(), 1);
        assert_eq!(count(&mut next).await, 2);
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    async fn a_call_that_is_cut_short_leaves_nothing_behind(fixture: Fixture) {
        with_table(&fixture).await;
        let began = Instant::now();
        for _ in 0..3 {
            let mut guest = fixture.guest(READ_WRITE);
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            guest.execute_in(&transaction, "INSERT INTO t VALUES (7, 'x')", vec![]).await.unwrap();
            let work = guest.query_in(&transaction, RUNAWAY, vec![]);
            assert!(tokio::time::timeout(Duration::from_millis(100), work).await.is_err());
            drop(guest);
            let mut guest = fixture.guest(READ_WRITE);
            let work = guest.query(RUNAWAY, vec![]);
            assert!(tokio::time::timeout(Duration::from_millis(100), work).await.is_err());
        }
        let mut next = fixture.guest(READ_WRITE);
        assert_eq!(count(&mut next).await, 1);
        assert_eq!(next.execute("INSERT INTO t VALUES (6, 'x')", vec![]).await.unwrap(), 1);
        assert_eq!(count(&mut fixture.guest(READ)).await, 2);
        // The database has stopped working on it, too: nobody waited for its statement timeout, which is 20 s.
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    async fn who_finds_no_connection_is_told(fixture: Fixture) {
        with_table(&fixture).await;
        let mut holders: Vec<(Guest<'_>, _)> = Vec::new();
        let places = fixture.pick(1, 4);
        for _ in 0..places {
            let mut guest = fixture.guest(READ_WRITE);
            let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
            holders.push((guest, transaction));
        }
        let mut late = fixture.guest(READ_WRITE);
        let work = async {
            match late.execute("INSERT INTO t VALUES (2, 'x')", vec![]).await {
                Err(Error::Overloaded(millis)) => assert_eq!(millis, 5_000),
                other => panic!("{other:?}"),
            }
            let mut hasty = fixture.guest_for(READ_WRITE, Duration::from_millis(100));
            assert_eq!(kind(hasty.execute("DELETE FROM t", vec![]).await), "deadline-exceeded");
        };
        // They go on with their transactions: one that waits for its guest would make room.
        let busy = async {
            loop {
                for (guest, transaction) in &mut holders {
                    guest.query_in(transaction, "SELECT 1", vec![]).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = busy => {}
        }
        drop(holders);
        late.execute("INSERT INTO t VALUES (2, 'x')", vec![]).await.unwrap();
    }

    async fn a_changed_table_is_seen_at_once(fixture: Fixture) {
        with_table(&fixture).await;
        let mut guest = fixture.guest(READ_WRITE);
        for columns in 2..6 {
            let rows = guest.query("SELECT * FROM t", vec![]).await.unwrap();
            assert_eq!(rows.columns.len(), columns);
            assert_eq!(rows.rows[0].len(), columns);
            guest.execute(&format!("ALTER TABLE t ADD COLUMN c{columns} BIGINT"), vec![]).await.unwrap();
        }
    }

    async fn the_state_is_told(fixture: Fixture) {
        let states = fixture.databases.state().await;
        assert_eq!(states.len(), 1);
        assert_eq!(states[0].name, fixture::BINDING);
        assert_eq!(states[0].down, None);
        let expected = fixture.pick("sqlite", "postgres");
        assert_eq!(states[0].backend, expected);
        assert_eq!(fixture.databases.is_superuser("nobody").await, None);
        let superuser = fixture.backend == Backend::Postgres;
        assert_eq!(fixture.databases.is_superuser(fixture::BINDING).await, Some(superuser));
        fixture.databases.close().await;
        assert_eq!(kind(fixture.guest(READ).query("SELECT 1", vec![]).await), "unavailable");
    }
}
