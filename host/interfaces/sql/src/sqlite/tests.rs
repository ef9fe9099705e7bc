use std::sync::LazyLock;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::*;

/// What fills SQLite's memory, which is the process's, is not tested beside others.
static MEMORY: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

struct Directory {
    directory: tempfile::TempDir,
    _others: OwnedRwLockReadGuard<()>,
}

impl Directory {
    fn path(&self) -> &std::path::Path {
        self.directory.path()
    }
}

async fn connections() -> (Directory, [Confined; 2]) {
    let others = MEMORY.clone().read_owned().await;
    let (directory, both) = connections_of_one().await;
    let directory = Directory {
        directory,
        _others: others,
    };
    (directory, both)
}

fn file(directory: &tempfile::TempDir) -> StoreFile {
    StoreFile {
        kind: stepwell_core::BindingKind::Sql,
        binding: "test".to_owned(),
        path: directory.path().join("sql").join("test.sqlite"),
        max_size: stepwell_core::STORE_SIZE,
    }
}

async fn connections_of_one() -> (tempfile::TempDir, [Confined; 2]) {
    let directory = tempfile::TempDir::new().unwrap();
    let sqlite = Sqlite::new(file(&directory));
    let mut writer = sqlite.connect(Access::Write).await.unwrap();
    writer.interrupt.arm(Instant::now() + BUSY);
    let create = "CREATE TABLE t (a INTEGER, n TEXT UNIQUE)";
    writer.connection.execute(create).await.unwrap();
    let reader = sqlite.connect(Access::Read).await.unwrap();
    reader.interrupt.arm(Instant::now() + BUSY);
    (directory, [reader, writer])
}

/// The first keyword is checked elsewhere: this is what holds if that ever lets something through.
#[tokio::test]
async fn the_authorizer_alone_denies_what_leaves_the_database() {
    let (directory, connections) = connections().await;
    let other = directory.path().join("other.sqlite");
    let other = other.display();
    for mut confined in connections {
        for sql in [
            format!("ATTACH '{other}' AS other"),
            format!("VACUUM INTO '{other}'"),
            "DETACH main".to_owned(),
            "PRAGMA journal_mode = OFF".to_owned(),
            "PRAGMA query_only = OFF".to_owned(),
            "SELECT * FROM pragma_table_info('t')".to_owned(),
            "SELECT load_extension('/lib/x.so')".to_owned(),
            "SELECT LOAD_EXTENSION('/lib/x.so')".to_owned(),
            "SELECT fts3_tokenizer('simple')".to_owned(),
            "SAVEPOINT a".to_owned(),
            "CREATE TEMP TABLE u (a)".to_owned(),
            "CREATE TABLE temp.u (a)".to_owned(),
            "CREATE VIEW temp.u AS SELECT 1".to_owned(),
            "CREATE TRIGGER temp.g AFTER INSERT ON t BEGIN SELECT 1; END".to_owned(),
            "CREATE VIRTUAL TABLE u USING fts5(a)".to_owned(),
            "UPDATE sqlite_schema SET sql = ''".to_owned(),
        ] {
            let result = confined
                .connection
                .execute(AssertSqlSafe(sql.clone()))
                .await;
            assert!(result.is_err(), "{:?}: {sql}", confined.access);
        }
    }
    assert!(!directory.path().join("other.sqlite").exists());
}

#[tokio::test]
async fn tables_may_be_changed_in_every_usual_way() {
    let (_directory, [_, mut writer]) = connections().await;
    for sql in [
        "CREATE INDEX i ON t (a)",
        "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 7",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE t DROP COLUMN c",
        "ALTER TABLE t RENAME TO u",
        "CREATE VIEW v AS SELECT a FROM u",
        "CREATE TRIGGER g AFTER INSERT ON u BEGIN UPDATE u SET a = a + 1; END",
        "INSERT INTO u (a) VALUES (1) ON CONFLICT DO NOTHING",
        "CREATE TABLE w AS SELECT * FROM v",
        "ANALYZE",
        "REINDEX",
        "DROP TRIGGER g",
        "DROP VIEW v",
        "DROP INDEX i",
        "DROP TABLE u",
    ] {
        let result = writer.connection.execute(sql).await;
        result.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test]
async fn a_readers_authorizer_denies_every_write() {
    let (_directory, [mut reader, _]) = connections().await;
    for sql in [
        "INSERT INTO t (a) VALUES (1)",
        "WITH x AS (SELECT 1) INSERT INTO t (a) SELECT * FROM x",
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "REINDEX",
        "ANALYZE",
    ] {
        assert!(reader.connection.execute(sql).await.is_err(), "{sql}");
    }
    reader.connection.execute("SELECT a FROM t").await.unwrap();
}

#[tokio::test]
async fn statements_are_seen_before_they_run() {
    let (_directory, [_, mut writer]) = connections().await;
    let mut handle = writer.connection.lock_handle().await.unwrap();
    let mut inspect = |sql: &str| guard::inspect(&mut handle, sql);
    let shape = inspect("SELECT a AS b, $2 + $1 FROM t;  -- end").unwrap();
    assert_eq!((shape.parameters, shape.reads_only), (2, true));
    assert_eq!(
        shape.columns.first(),
        Some(&("b".to_owned(), Some("INTEGER".to_owned())))
    );
    assert!(!inspect("DELETE FROM t").unwrap().reads_only);
    let trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;";
    inspect(trigger).unwrap();
    for wrong in [
        "SELECT 1; SELECT 2",
        "SELECT 1; nonsense",
        "SELECT ?",
        "SELECT ?1",
        "SELECT :a",
        "SELECT @a",
        "SELECT $a",
        "SELECT $0",
        "SELECT $01",
        "SELECT $1::x",
        "SELECT $99999999999999999999",
        "",
        "--",
    ] {
        assert!(inspect(wrong).is_err(), "{wrong}");
    }
}

/// `instr` looks at every byte of one text for every byte of the other, and nothing interrupts it.
const UNSTOPPABLE: &str = "SELECT instr(printf('%.600000c', 'a'), printf('%.300000c', 'a') || 'b')";

fn permits() -> crate::permit::Permits {
    let capacity = Capacity {
        connections: 1,
        writers: None,
    };
    crate::permit::Permits::new(capacity, metrics::Gauge::noop())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_is_given_back_when_its_statement_has_really_ended() {
    let (_directory, [mut reader, _]) = connections().await;
    // Nobody waits for it any more after a moment.
    let statement = reader.connection.execute(UNSTOPPABLE);
    let outcome = tokio::time::timeout(Duration::from_millis(50), statement).await;
    assert!(outcome.is_err(), "it is no long statement: {outcome:?}");
    let permits = permits();
    let permit = permits.try_acquire(Access::Read).unwrap();
    let pool = Pool::new();
    let mut lease = Lease::new(reader, permit, pool);
    let _ = lease.start().unwrap();
    drop(lease);
    assert!(permits.try_acquire(Access::Read).is_none());
    let soon = Instant::now() + Duration::from_secs(60);
    let waited = permits.acquire(Access::Read, soon).await;
    assert!(waited.is_ok(), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_give_way_to_requests() {
    let own = getpriority_process(None).unwrap();
    let (_directory, [mut reader, _]) = connections().await;
    let nice = Arc::new(std::sync::Mutex::new(None));
    let of_thread = nice.clone();
    let mut handle = reader.connection.lock_handle().await.unwrap();
    handle.set_progress_handler(1, move || {
        *of_thread.lock().unwrap() = getpriority_process(None).ok();
        true
    });
    drop(handle);
    reader.connection.execute("SELECT 1").await.unwrap();
    assert_eq!(*nice.lock().unwrap(), Some(own.max(NICE)));
    assert_eq!(getpriority_process(None).unwrap(), own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_statement_remembers_is_in_memory_and_bounded() {
    let _alone = MEMORY.write().await;
    let (_directory, [mut reader, _]) = connections_of_one().await;
    reader
        .interrupt
        .arm(Instant::now() + Duration::from_secs(60));
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 300)
        SELECT count(*) FROM (SELECT DISTINCT randomblob(4000000 + x) FROM c)";
    let error = reader.connection.execute(sql).await.unwrap_err();
    let error = reader.explain(&error);
    assert_eq!(error.kind, crate::SqlErrorKind::TooLarge, "{error:?}");
}

#[test]
fn a_statement_pays_for_what_it_takes_and_not_for_what_others_hold() {
    let interrupt = Interrupt::default();
    interrupt.arm(Instant::now() + BUSY);
    assert!(interrupt.goes_on_with(600 << 20, 590 << 20));
    assert!(!interrupt.was_out_of_memory());
    assert!(!interrupt.goes_on_with(600 << 20, 500 << 20));
    assert!(interrupt.was_out_of_memory());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_values_of_a_result_are_bounded_however_short_they_are() {
    let _others = MEMORY.read().await;
    let directory = tempfile::TempDir::new().unwrap();
    let sqlite = Sqlite::new(file(&directory));
    let permits = permits();
    let query = async |rows: usize| {
        let columns = ["NULL"; 200].join(", ");
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows}) SELECT {columns} FROM n"
        );
        let soon = Instant::now() + Duration::from_secs(60);
        let statement = Statement::new(sql, Vec::new(), soon).unwrap();
        let permit = permits.acquire(Access::Read, soon).await.unwrap();
        sqlite.query(statement, Access::Read, permit).await
    };
    assert_eq!(query(100).await.unwrap().rows.len(), 100);
    let error = query(crate::statement::MAX_VALUES / 200 + 1)
        .await
        .unwrap_err();
    assert!(error.message.contains("values"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_cannot_fill_the_hosts_memory() {
    let _alone = MEMORY.write().await;
    let (_directory, [mut reader, _]) = connections_of_one().await;
    let columns = vec!["printf('%.*c', 8000000, 'x')"; 190].join(", ");
    let sql = format!("SELECT {columns}");
    let error = reader
        .connection
        .execute(AssertSqlSafe(sql))
        .await
        .unwrap_err();
    let error = reader.explain(&error);
    assert_eq!(error.kind, crate::SqlErrorKind::TooLarge, "{error:?}");
}
