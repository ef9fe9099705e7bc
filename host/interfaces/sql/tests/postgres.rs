//! What only PostgreSQL has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

#[path = "common/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::time::Duration;

use fixture::{Fixture, READ, READ_WRITE, SERVER, kind, sqlstate};
use stepwell_core::Secret;
use stepwell_sql::wit::{Element, Isolation, OtherValue, Value};
use stepwell_sql::{Databases, SqlBindingConfig};
use stepwell_test_services::Postgres;

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn show<T: std::fmt::Debug>(value: T) -> String {
    format!("{value:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_become_what_the_server_expects() {
    let fixture = Fixture::postgres(2);
    let mut guest = fixture.guest(READ_WRITE);
    for sql in [
        "CREATE TYPE mood AS ENUM ('sad', 'happy')",
        "CREATE DOMAIN positive AS int4 CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 10)",
    ] {
        guest.execute(sql, vec![]).await.unwrap();
    }
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    // A value, the type that it is sent to, and what that type's own text of it is.
    for (value, type_name, expected) in [
        (Value::S64(5), "int2", "5"),
        (Value::S64(5), "int4", "5"),
        (Value::S64(5), "numeric", "5"),
        (Value::S64(5), "float8", "5"),
        (Value::S64(5), "text", "5"),
        (Value::S64(4_000_000_000), "oid", "4000000000"),
        (Value::F64(0.5), "float4", "0.5"),
        (Value::F64(0.5), "numeric", "0.5"),
        (Value::F64(f64::NAN), "float8", "NaN"),
        (Value::F64(f64::INFINITY), "float4", "Infinity"),
        (Value::Numeric("7".into()), "int8", "7"),
        (Value::Numeric("1.250".into()), "numeric", "1.250"),
        (
            Value::Numeric("-0.00000000000000000001".into()),
            "numeric",
            "-0.00000000000000000001",
        ),
        (
            Value::Numeric("12345678901234567890000.5".into()),
            "numeric",
            "12345678901234567890000.5",
        ),
        (Value::Numeric("10000".into()), "numeric", "10000"),
        (Value::Numeric("NaN".into()), "numeric", "NaN"),
        (text("2026-03-01"), "date", "2026-03-01"),
        (text("12:30"), "time", "12:30:00"),
        (text("1 day 2 hours"), "interval", "1 day 02:00:00"),
        (text("10.0.0.1/8"), "inet", "10.0.0.1/8"),
        (text("[1,5)"), "int4range", "[1,5)"),
        (text("42"), "int4", "42"),
        (
            text("2026-03-01 10:00+02"),
            "timestamptz",
            "2026-03-01 08:00:00+00",
        ),
        (text("happy"), "mood", "happy"),
        (text(uuid), "uuid", uuid),
        (text(r#"{"a":1}"#), "jsonb", r#"{"a": 1}"#),
        (text("9"), "positive", "9"),
        (Value::S64(9), "positive", "9"),
        (text("fine"), "short", "fine"),
        (text("abc"), "bpchar", "abc"),
        (
            Value::Timestamp("2026-03-01T10:00:00+02:00".into()),
            "timestamp",
            "2026-03-01 08:00:00",
        ),
        (
            Value::Timestamp("2026-03-01T10:00:00Z".into()),
            "date",
            "2026-03-01",
        ),
        (Value::Bytes(vec![1, 255]), "bytea", "\\x01ff"),
        (
            Value::Array(vec![Element::Numeric("1.5".into()), Element::Null]),
            "numeric[]",
            "{1.5,NULL}",
        ),
        (
            Value::Array(vec![Element::Text("ab".into())]),
            "bpchar[]",
            "{ab}",
        ),
        (
            Value::Array(vec![Element::Bytes(vec![255])]),
            "bytea[]",
            "{\"\\\\xff\"}",
        ),
        (
            Value::Array(vec![Element::Text("sad".into())]),
            "mood[]",
            "{sad}",
        ),
        (
            Value::Array(vec![Element::Text("a\",\"b\\{}'$1".into())]),
            "text[]",
            "{\"a\\\",\\\"b\\\\{}'$1\"}",
        ),
        (Value::Array(vec![]), "int4[]", "{}"),
    ] {
        let sql = format!("SELECT ($1::{type_name})::text");
        let rows = guest.query(&sql, vec![value.clone()]).await;
        let rows = rows.unwrap_or_else(|error| panic!("{value:?} to {type_name}: {error:?}"));
        assert_eq!(
            show(&rows.rows),
            show([[text(expected)]]),
            "{value:?} to {type_name}"
        );
    }
    for (value, type_name, state) in [
        (Value::S64(40_000), "int2", "22003"),
        (Value::S64(1 << 40), "int4", "22003"),
        (Value::S64(-1), "oid", "22003"),
        (Value::S64(-1), "positive", "23514"),
        (text("angry"), "mood", "22P02"),
        (text("nonsense"), "date", "22007"),
        (text("'; DROP TABLE t; --"), "int4", "22P02"),
        (Value::Boolean(true), "int4", "22P02"),
        (Value::Bytes(vec![1]), "text", "42804"),
        (Value::Array(vec![]), "text", "42804"),
        (
            Value::Other(OtherValue {
                type_name: "INET".into(),
                data: vec![9],
            }),
            "INET",
            "22P03",
        ),
        (
            Value::Other(OtherValue {
                type_name: "INET".into(),
                data: vec![9],
            }),
            "text",
            "42804",
        ),
    ] {
        let sql = format!("SELECT ($1::{type_name})::text");
        let result = guest.query(&sql, vec![value.clone()]).await;
        assert_eq!(sqlstate(result), state, "{value:?} to {type_name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_have_the_servers_values() {
    let fixture = Fixture::postgres(2);
    let mut guest = fixture.guest(READ);
    for (sql, expected) in [
        ("1::int2", Value::S64(1)),
        ("4000000000::oid", Value::S64(4_000_000_000)),
        ("0.5::float4", Value::F64(0.5)),
        ("'x'::\"char\"", text("x")),
        ("'abc'::name", text("abc")),
        ("0::numeric", Value::Numeric("0".into())),
        ("0.00::numeric", Value::Numeric("0.00".into())),
        (
            "1e20::numeric",
            Value::Numeric("100000000000000000000".into()),
        ),
        ("1.00001::numeric", Value::Numeric("1.00001".into())),
        ("-0.0001::numeric", Value::Numeric("-0.0001".into())),
        (
            "123456789.123456789::numeric",
            Value::Numeric("123456789.123456789".into()),
        ),
        ("'infinity'::numeric", Value::Numeric("Infinity".into())),
        (
            "'1999-12-31 23:59:59.999999Z'::timestamptz",
            Value::Timestamp("1999-12-31T23:59:59.999999Z".into()),
        ),
        ("'{\"a\":1}'::jsonb", Value::Json(r#"{"a": 1}"#.into())),
        ("NULL::int4", Value::Null),
        ("pg_sleep(0)", Value::Null),
        (
            "ARRAY[1,NULL]::int2[]",
            Value::Array(vec![Element::S64(1), Element::Null]),
        ),
        (
            "ARRAY['10.0.0.1'::inet]",
            Value::Array(vec![Element::Other(OtherValue {
                type_name: "INET".into(),
                data: vec![2, 32, 0, 4, 10, 0, 0, 1],
            })]),
        ),
        (
            "'10.0.0.1'::inet",
            Value::Other(OtherValue {
                type_name: "INET".into(),
                data: vec![2, 32, 0, 4, 10, 0, 0, 1],
            }),
        ),
        (
            "'infinity'::timestamptz",
            Value::Other(OtherValue {
                type_name: "TIMESTAMPTZ".into(),
                data: i64::MAX.to_be_bytes().to_vec(),
            }),
        ),
    ] {
        let rows = guest.query(&format!("SELECT {sql}"), vec![]).await.unwrap();
        assert_eq!(show(&rows.rows), show([[expected]]), "{sql}");
    }
    let rows = guest
        .query("SELECT ARRAY[[1,2],[3,4]]", vec![])
        .await
        .unwrap();
    assert!(matches!(&rows.rows[0][0], Value::Other(other) if other.type_name == "INT4[]"));
    // A value that is not understood goes back as it came.
    let inet = Value::Other(OtherValue {
        type_name: "INET".into(),
        data: vec![2, 32, 0, 4, 10, 0, 0, 1],
    });
    let rows = guest
        .query("SELECT host($1::inet)", vec![inet])
        .await
        .unwrap();
    assert_eq!(show(&rows.rows), show([[text("10.0.0.1")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_grant_finds_no_way_to_write() {
    let fixture = Fixture::postgres(1);
    let mut owner = fixture.guest(READ_WRITE);
    for sql in [
        "CREATE TABLE t (a int4)",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION sneak() RETURNS int4 LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (1); RETURN 1; END $$",
        "CREATE FUNCTION run(sql text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; RETURN 'done'; END $$",
        "CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; INSERT INTO t VALUES (2); END $$",
    ] {
        owner.execute(sql, vec![]).await.unwrap();
    }
    let mut guest = fixture.guest(READ);
    for sql in [
        "SELECT nextval('s')",
        "SELECT setval('s', 9)",
        "SELECT sneak()",
        "SELECT run('INSERT INTO t VALUES (3)')",
        "SELECT run('CREATE TEMP TABLE t (a int4)')",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (5)",
        "SELECT a FROM t FOR UPDATE",
        "TRUNCATE t",
        "COMMENT ON TABLE t IS 'x'",
    ] {
        assert_eq!(kind(guest.query(sql, vec![]).await), "not-granted", "{sql}");
    }
    // The ways out of a read-only transaction, each by itself and then with a write.
    for (sql, state) in [
        (
            "SELECT set_config('transaction_read_only', 'off', false)",
            "25001",
        ),
        (
            "SELECT set_config('transaction_read_only', 'off', true)",
            "25001",
        ),
        ("SELECT run('SET TRANSACTION READ WRITE')", "25001"),
        ("SELECT run('COMMIT')", "0A000"),
        ("SELECT run('ROLLBACK')", "0A000"),
        ("CALL commits()", "2D000"),
        (
            "SELECT query_to_xml('INSERT INTO t VALUES (4) RETURNING a', true, true, '')",
            "0A000",
        ),
        (
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'transaction_read_only'",
            "",
        ),
    ] {
        for in_transaction in [false, true] {
            let result = if in_transaction {
                let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
                let result = guest.query_in(&transaction, sql, vec![]).await;
                guest.drop_transaction(transaction).await;
                result
            } else {
                guest.query(sql, vec![]).await
            };
            if state.is_empty() {
                result.unwrap_err();
            } else {
                assert_eq!(sqlstate(result), state, "{sql}");
            }
        }
    }
    // The session's default says nothing about a transaction that the host begins, and is forgotten besides.
    let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
    let off = "SELECT set_config('default_transaction_read_only', 'off', false)";
    guest.query_in(&transaction, off, vec![]).await.unwrap();
    assert_eq!(
        kind(guest.query_in(&transaction, "SELECT sneak()", vec![]).await),
        "not-granted"
    );
    guest.drop_transaction(transaction).await;
    let rows = owner.query("SELECT count(*) FROM t", vec![]).await.unwrap();
    assert_eq!(show(&rows.rows), show([[Value::S64(0)]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_forgets_its_user() {
    // One connection, so that the next user has the same one.
    let fixture = Fixture::postgres(1);
    let mut owner = fixture.guest(READ_WRITE);
    owner
        .execute("CREATE TABLE t (a int4)", vec![])
        .await
        .unwrap();
    owner.execute("CREATE ROLE guest", vec![]).await.unwrap();
    let pid = "SELECT pg_backend_pid()";
    let before = owner.query(pid, vec![]).await.unwrap();
    for sql in [
        "SELECT set_config('search_path', 'nowhere', false)",
        "SELECT set_config('statement_timeout', '1', false)",
        "SELECT set_config('session_authorization', 'guest', false)",
        "SELECT set_config('role', 'guest', false)",
        "SELECT set_config('default_transaction_read_only', 'on', false)",
        "SELECT set_config('stepwell.secret', 'mine', false)",
        "CREATE TEMP TABLE t AS SELECT 99 AS a",
        "SELECT pg_advisory_lock(42)",
    ] {
        owner.query(sql, vec![]).await.unwrap();
        owner
            .execute("INSERT INTO t VALUES (1)", vec![])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = owner
            .query(
                "SELECT current_user::text, current_setting('stepwell.secret', true), \
                 (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), (SELECT count(*) FROM t WHERE a = 99)",
                vec![],
            )
            .await
            .unwrap();
        let row = &rows.rows[0];
        assert_eq!(show(&row[0]), show(text("stepwell")), "{sql}");
        assert_ne!(show(&row[1]), show(text("mine")), "{sql}");
        assert_eq!(
            show(&row[2..]),
            show([Value::S64(0), Value::S64(0)]),
            "{sql}"
        );
    }
    let after = owner.query(pid, vec![]).await.unwrap();
    assert_eq!(show(&before.rows), show(&after.rows));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meddling_with_prepared_statements_ends_with_the_connection() {
    let fixture = Fixture::postgres(1);
    let mut guest = fixture.guest(READ_WRITE);
    guest
        .execute(
            "CREATE FUNCTION run(sql text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; RETURN 'done'; END $$",
            vec![],
        )
        .await
        .unwrap();
    guest.query("SELECT 'mine'", vec![]).await.unwrap();
    guest
        .query("SELECT run('DEALLOCATE ALL')", vec![])
        .await
        .unwrap();
    // The connection that lost its statements fails once at most, and is not used again.
    let _ = guest.query("SELECT 'mine'", vec![]).await;
    for _ in 0..3 {
        let rows = guest.query("SELECT 'mine'", vec![]).await.unwrap();
        assert_eq!(show(&rows.rows), show([[text("mine")]]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bindings_statement_timeout_holds() {
    let url = SERVER.create_database("timeouts").unwrap();
    let config = SqlBindingConfig::Postgres {
        url: Secret::new(url.clone()),
        max_connections: 1,
        statement_timeout: Duration::from_millis(300),
    };
    let mut fixture = Fixture::postgres_at(url, 1);
    let bindings = BTreeMap::from([(fixture::BINDING.to_owned(), config)]);
    fixture.databases = Databases::open(fixture.directory.path(), bindings).unwrap();
    let mut guest = fixture.guest(READ_WRITE);
    assert_eq!(
        kind(guest.query("SELECT pg_sleep(20)", vec![]).await),
        "deadline-exceeded"
    );
    let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
    let longer = "SELECT set_config('statement_timeout', '0', true)";
    guest.query_in(&transaction, longer, vec![]).await.unwrap();
    let result = guest
        .query_in(&transaction, "SELECT pg_sleep(20)", vec![])
        .await;
    assert_eq!(kind(result), "deadline-exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_role_is_no_superuser() {
    let url = SERVER.create_database("ordinary").unwrap();
    SERVER.psql("CREATE ROLE ordinary LOGIN").unwrap();
    let fixture = Fixture::postgres_at(url.replace("stepwell@", "ordinary@"), 1);
    assert_eq!(
        fixture.databases.is_superuser(fixture::BINDING).await,
        Some(false)
    );
    let mut guest = fixture.guest(READ);
    assert_eq!(
        sqlstate(
            guest
                .query("SELECT pg_read_file('/etc/passwd')", vec![])
                .await
        ),
        "42501"
    );
    assert_eq!(
        sqlstate(guest.query("SELECT lo_import('/etc/passwd')", vec![]).await),
        "42501"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_is_unavailable_until_it_is_back() {
    let mut server = Postgres::start().unwrap();
    let fixture = Fixture::postgres_at(server.url(), 3);
    let mut guest = fixture.guest(READ_WRITE);
    guest
        .execute("CREATE TABLE t (a int4)", vec![])
        .await
        .unwrap();
    let transaction = guest.begin(Isolation::ReadCommitted, false).await.unwrap();
    guest
        .execute_in(&transaction, "INSERT INTO t VALUES (1)", vec![])
        .await
        .unwrap();
    let mut other = fixture.guest(READ);
    other.query("SELECT * FROM t", vec![]).await.unwrap();

    server.stop();
    assert_eq!(kind(guest.commit(transaction).await), "unavailable");
    assert_eq!(
        kind(other.query("SELECT * FROM t", vec![]).await),
        "unavailable"
    );
    // At once, and not when the deadline has come: so it is the database's fault and not the step's.
    let mut hasty = fixture.guest_for(READ, Duration::from_secs(1));
    assert_eq!(kind(hasty.query("SELECT 1", vec![]).await), "unavailable");
    let state = fixture.databases.state().await;
    let reason = state[0].down.clone().unwrap();
    for secret in ["127.0.0.1", "stepwell", "postgres://"] {
        assert!(!reason.contains(secret), "{reason}");
    }

    server.restart().unwrap();
    let rows = other.query("SELECT * FROM t", vec![]).await.unwrap();
    assert!(rows.rows.is_empty());
    assert_eq!(fixture.databases.state().await[0].down, None);
    guest
        .execute("INSERT INTO t VALUES (1)", vec![])
        .await
        .unwrap();

    // A restart that nobody noticed costs nobody an error.
    server.restart().unwrap();
    guest
        .execute("INSERT INTO t VALUES (2)", vec![])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_never_there_is_unavailable() {
    let fixture = Fixture::postgres_at("postgres://u:hunter2@127.0.0.1:1/d".to_owned(), 1);
    let error = fixture
        .guest(READ)
        .query("SELECT 1", vec![])
        .await
        .unwrap_err();
    let shown = show(&error);
    assert!(
        shown.starts_with("Error::Unavailable") || shown.contains("Unavailable"),
        "{shown}"
    );
    assert!(
        !shown.contains("hunter2") && !shown.contains("127.0.0.1"),
        "{shown}"
    );
    assert!(fixture.databases.state().await[0].down.is_some());
    let invalid = Databases::open(
        fixture.directory.path(),
        BTreeMap::from([(
            "a".to_owned(),
            SqlBindingConfig::Postgres {
                url: Secret::new("mysql://u:hunter2@h/d"),
                max_connections: 1,
                statement_timeout: Duration::from_secs(1),
            },
        )]),
    );
    let message = invalid.err().unwrap().to_string();
    assert!(!message.contains("hunter2"), "{message}");
}
