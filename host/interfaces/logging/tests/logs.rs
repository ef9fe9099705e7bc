//! What guests log can be found, filtered and followed, and can harm nobody.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stepwell_core::{Call, ErrorKind, Fault, Grants, RunId, StepError, StepScope};
use stepwell_logging::{
    CALL_BYTES, CallLog, Followed, Level, LogBudget, LogCapacity, LogEntry, LogFilter, LogStore,
    MAX_MESSAGE, Source,
};

fn call(pipeline: &str, step: &str) -> Call {
    call_in("default", pipeline, step)
}

fn call_in(namespace: &str, pipeline: &str, step: &str) -> Call {
    let scope = StepScope {
        namespace: namespace.parse().unwrap(),
        pipeline: pipeline.parse().unwrap(),
        revision: 3,
        step: step.parse().unwrap(),
        plugin: "plugin@1.2.3".to_owned(),
        digest: None,
        grants: Grants::default(),
        config: Vec::new(),
        cpu: Arc::default(),
    };
    Call {
        scope: Arc::new(scope),
        run: RunId::new(),
        deadline: Instant::now() + Duration::from_secs(10),
    }
}

fn log(store: &Arc<LogStore>, pipeline: &str, step: &str) -> CallLog {
    CallLog::new(store.clone(), call(pipeline, step))
}

fn messages(entries: &[Arc<LogEntry>]) -> Vec<&str> {
    entries.iter().map(|entry| entry.message.as_str()).collect()
}

fn all(store: &LogStore) -> Vec<Arc<LogEntry>> {
    let limit = Some(usize::MAX);
    store.query(&LogFilter {
        limit,
        ..LogFilter::default()
    })
}

#[test]
fn entries_say_who_and_where() {
    let store = Arc::new(LogStore::default());
    let call = call("digits", "decode");
    let log = CallLog::new(store.clone(), call.clone());
    log.log(Level::Warn, "png", "odd size");
    log.line(Level::Info, Source::Stdout, "hello");
    let entries = all(&store);
    let json = serde_json::to_value(&*entries[0]).unwrap();
    assert_eq!(json["level"], "warn");
    assert_eq!(json["namespace"], "default");
    assert_eq!(json["pipeline"], "digits");
    assert_eq!(json["revision"], 3);
    assert_eq!(json["step"], "decode");
    assert_eq!(json["plugin"], "plugin@1.2.3");
    assert_eq!(json["run_id"], call.run.to_string());
    assert_eq!(json["context"], "png");
    assert_eq!(json["message"], "odd size");
    assert_eq!(json["source"], "log");
    assert!(json["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        serde_json::to_value(&*entries[1]).unwrap()["source"],
        "stdout"
    );
}

#[test]
fn filters() {
    let store = Arc::new(LogStore::default());
    let first = log(&store, "a", "one");
    let second = log(&store, "b", "two");
    for level in Level::ALL {
        first.log(level, "", level.as_str());
    }
    second.log(Level::Info, "", "other");
    let find = |filter: LogFilter| {
        let entries = store.query(&filter);
        entries
            .iter()
            .map(|entry| entry.message.clone())
            .collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_owned());
    let level = Some(Level::Error);
    assert_eq!(
        find(LogFilter {
            level,
            ..LogFilter::default()
        }),
        ["error", "critical"]
    );
    assert_eq!(
        find(LogFilter {
            pipeline: some("b"),
            ..LogFilter::default()
        }),
        ["other"]
    );
    assert_eq!(
        find(LogFilter {
            step: some("two"),
            ..LogFilter::default()
        }),
        ["other"]
    );
    let limit = Some(2);
    assert_eq!(
        find(LogFilter {
            limit,
            ..LogFilter::default()
        }),
        ["critical", "other"]
    );
    for none in [
        LogFilter {
            namespace: some("elsewhere"),
            ..LogFilter::default()
        },
        LogFilter {
            pipeline: some("b"),
            step: some("one"),
            ..LogFilter::default()
        },
        LogFilter {
            run: some("x"),
            ..LogFilter::default()
        },
        LogFilter {
            limit: Some(0),
            ..LogFilter::default()
        },
    ] {
        assert!(find(none.clone()).is_empty(), "{none:?}");
    }
}

#[test]
fn a_failed_run_says_why() {
    let store = LogStore::default();
    let call = call("digits", "classify");
    let fault = Fault {
        kind: "unreachable-code-reached".to_owned(),
        backtrace: vec!["inner".to_owned(), "outer".to_owned()],
    };
    let error = StepError::new(ErrorKind::Trap, "unreachable executed")
        .at_step("classify")
        .of_plugin("classify-digit@1.0.0")
        .with_fault(fault.clone());
    let scope = &call.scope;
    store.run_error(&scope.namespace, &scope.pipeline, 3, call.run, &error);
    let run = Some(call.run.to_string());
    let found = store.query(&LogFilter {
        run,
        ..LogFilter::default()
    });
    assert_eq!(found[0].message, "unreachable executed");
    assert_eq!(
        (found[0].level, found[0].source),
        (Level::Error, Source::Run)
    );
    assert_eq!(found[0].step.as_deref(), Some("classify"));
    assert_eq!(found[0].plugin.as_deref(), Some("classify-digit@1.0.0"));
    assert_eq!(found[0].fault.as_deref(), Some(&fault));
    let json = serde_json::to_value(&*found[0]).unwrap();
    assert_eq!(json["fault"]["backtrace"][1], "outer");
    let line = found[0].to_string();
    assert!(
        line.contains("digits/classify") && line.contains("[trap] unreachable"),
        "{line}"
    );
}

#[test]
fn the_reason_of_a_failed_run_is_cut_to_length() {
    let store = LogStore::default();
    let call = call("digits", "classify");
    let error = StepError::new(ErrorKind::Failed, "é".repeat(1 << 20));
    let scope = &call.scope;
    store.run_error(&scope.namespace, &scope.pipeline, 3, call.run, &error);
    let found = store.query(&LogFilter::default());
    let (kept, left_out) = (8 << 10, (2 << 20) - (16 << 10));
    assert_eq!(
        found[0].message,
        format!("{} … ({left_out} more bytes)", "é".repeat(kept))
    );
}

#[test]
fn a_flood_is_cut_off_with_one_note() {
    let store = Arc::new(LogStore::default());
    let log = log(&store, "p", "s");
    let line = "x".repeat(1_000);
    for n in 0..1_000 {
        match n % 3 {
            0 => log.log(Level::Error, "", &line),
            1 => log.line(Level::Info, Source::Stdout, &line),
            _ => log.clone().line(Level::Warn, Source::Stderr, &line),
        }
    }
    let entries = all(&store);
    let kept: usize = entries.iter().map(|entry| entry.message.len()).sum();
    assert!(kept <= CALL_BYTES + 200, "{kept}");
    assert!(kept > CALL_BYTES / 2, "{kept}");
    let notes = entries
        .iter()
        .filter(|entry| entry.message.contains("left out"));
    assert_eq!(notes.count(), 1);
    // The next call starts afresh.
    let next = CallLog::new(store.clone(), call("p", "s"));
    next.log(Level::Info, "", "heard");
    assert_eq!(all(&store).last().unwrap().message, "heard");
}

#[test]
fn empty_messages_are_not_free() {
    let store = Arc::new(LogStore::default());
    let log = CallLog::with_budget(store.clone(), call("p", "s"), LogBudget::new(1_000));
    for _ in 0..10_000 {
        log.log(Level::Info, "", "");
    }
    assert!(all(&store).len() < 20);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let store = Arc::new(LogStore::default());
    let text = "€".repeat(MAX_MESSAGE);
    log(&store, "p", "s").log(Level::Info, &text, &text);
    let entry = all(&store).pop().unwrap();
    assert!(entry.message.len() < MAX_MESSAGE + 40 && entry.context.len() <= 256);
    assert!(entry.message.ends_with("more bytes)"));
}

#[test]
fn the_store_is_bounded_and_the_oldest_make_room() {
    let capacity = LogCapacity {
        entries: 10,
        bytes: usize::MAX,
    };
    let store = Arc::new(LogStore::new(capacity));
    for n in 0..25 {
        log(&store, "p", "s").log(Level::Info, "", &n.to_string());
    }
    let expected: Vec<String> = (15..25).map(|n: i32| n.to_string()).collect();
    assert_eq!(messages(&all(&store)), expected);

    let capacity = LogCapacity {
        entries: 1_000,
        bytes: 100_000,
    };
    let store = Arc::new(LogStore::new(capacity));
    for _ in 0..100 {
        log(&store, "p", "s").log(Level::Info, "", &"x".repeat(10_000));
    }
    let kept: usize = all(&store).iter().map(|entry| entry.message.len()).sum();
    assert!((50_000..=100_000).contains(&kept), "{kept}");
}

#[tokio::test]
async fn followers_see_what_comes_and_miss_nothing_between() {
    let store = Arc::new(LogStore::default());
    let log = log(&store, "p", "s");
    log.log(Level::Info, "", "before");
    log.log(Level::Debug, "", "too quiet");
    let filter = LogFilter {
        level: Some(Level::Info),
        ..LogFilter::default()
    };
    let (past, mut stream) = store.follow(filter);
    assert_eq!(messages(&past), ["before"]);
    log.log(Level::Debug, "", "too quiet");
    log.log(Level::Info, "", "after");
    let Some(Followed::Entry(entry)) = stream.next().await else {
        panic!("no entry")
    };
    assert_eq!(entry.message, "after");
    drop((log, store));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_slow_follower_loses_entries_is_told_and_holds_nobody_up() {
    let store = Arc::new(LogStore::default());
    let mut stream = store.subscribe(LogFilter::default());
    for n in 0..5_000 {
        log(&store, "p", "s").log(Level::Info, "", &n.to_string());
    }
    let Some(Followed::Missed(missed)) = stream.next().await else {
        panic!("it cannot have seen all")
    };
    let Some(Followed::Entry(entry)) = stream.next().await else {
        panic!("no entry")
    };
    assert_eq!(entry.message, missed.to_string());
}

fn of(namespace: &str) -> LogFilter {
    LogFilter {
        namespace: Some(namespace.to_owned()),
        limit: Some(usize::MAX),
        ..LogFilter::default()
    }
}

#[tokio::test]
async fn a_namespace_that_floods_costs_the_others_nothing() {
    let store = Arc::new(LogStore::default());
    let quiet = CallLog::new(store.clone(), call_in("quiet", "p", "s"));
    quiet.log(Level::Info, "", "before");
    let (past, mut stream) = store.follow(of("quiet"));
    assert_eq!(messages(&past), ["before"]);
    // As an anonymous caller does whose events are rejected, with what the guest quotes of them.
    let loud = call_in("loud", "p", "s");
    for n in 0..12_000 {
        let quoted = "x".repeat(if n < 11_000 { 10 } else { 200_000 });
        let error = StepError::new(ErrorKind::Invalid, quoted);
        let scope = &loud.scope;
        store.run_error(&scope.namespace, &scope.pipeline, 3, loud.run, &error);
        if n % 1_000 == 0 {
            quiet.log(Level::Info, "", &n.to_string());
        }
    }
    let kept = store.query(&of("quiet"));
    assert_eq!(kept.len(), 13, "{:?}", messages(&kept));
    for expected in &kept[1..] {
        let Some(Followed::Entry(entry)) = stream.next().await else {
            panic!("a line was missed")
        };
        assert_eq!(entry.message, expected.message);
    }
    // The loud one has what is left, and the whole is bounded.
    let loud = store.query(&of("loud"));
    assert!(loud.last().unwrap().message.ends_with("more bytes)"));
    let bytes: usize = all(&store).iter().map(|entry| entry.message.len()).sum();
    assert!((8 << 20..=16 << 20).contains(&bytes), "{bytes}");
}

#[test]
fn room_is_made_by_whoever_holds_most_and_the_order_stays() {
    let capacity = LogCapacity {
        entries: 12,
        bytes: usize::MAX,
    };
    let store = Arc::new(LogStore::new(capacity));
    for n in 0..40 {
        // One of four entries is of `b`, one of `c`.
        let namespace = ["a", "b", "a", "c"][n % 4];
        let log = CallLog::new(store.clone(), call_in(namespace, "p", "s"));
        log.log(Level::Info, "", &n.to_string());
    }
    let held = ["a", "b", "c"].map(|namespace| store.query(&of(namespace)).len());
    assert_eq!(held, [4, 4, 4]);
    assert_eq!(messages(&store.query(&of("a"))), ["32", "34", "36", "38"]);
    assert_eq!(messages(&store.query(&of("b"))), ["25", "29", "33", "37"]);
    let newest = store.query(&LogFilter {
        limit: Some(3),
        ..LogFilter::default()
    });
    assert_eq!(messages(&newest), ["37", "38", "39"]);
    // As many namespaces as there may be entries, and more: the oldest of them are gone altogether.
    for n in 0..100 {
        let log = CallLog::new(store.clone(), call_in(&format!("n{n}"), "p", "s"));
        log.log(Level::Info, "", "only");
    }
    assert_eq!(all(&store).len(), 12);
}

#[test]
fn terminals_and_the_hosts_log_get_no_control_characters() {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let store = Arc::new(LogStore::default());
    tracing::subscriber::with_default(subscriber, || {
        log(&store, "p", "s").log(Level::Critical, "c\x1b[0m", "\x1b[2Jx\r\nERROR forged");
    });
    let entry = all(&store).pop().unwrap();
    // Kept as it came; shown harmlessly.
    assert_eq!(entry.message, "\x1b[2Jx\r\nERROR forged");
    let line = entry.to_string();
    assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert_eq!(written.lines().count(), 1, "{written}");
    assert!(
        !written.trim_end().contains(|c: char| c.is_control()),
        "{written:?}"
    );
    assert!(
        written.contains("ERROR stepwell::guest") && written.contains("step=\"s\""),
        "{written}"
    );
}
