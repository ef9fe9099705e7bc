//! Guests that mean harm, each with its own error, each with a harmless twin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stepwell_core::{Blame, CpuAccount, ErrorKind, Event, Limits, StepError};
use stepwell_engine::{LogStream, Plugin, StoreState as _};
use stepwell_test_hits::hits;

use crate::support::{Host, State, data, event, generous, guest, host, host_with, soon};

async fn hostile() -> (Host, Arc<Plugin<State>>) {
    let host = host();
    let plugin = host.plugin(guest("hostile.wasm")).await;
    (host, plugin)
}

fn error(outcome: Result<Vec<Event>, StepError>, kind: ErrorKind, needles: &[&str]) {
    let error = outcome.expect_err("the call must fail");
    assert_eq!(error.kind, kind, "{error}");
    for needle in needles {
        assert!(
            error.message.contains(needle),
            "'{needle}' is not in: {error}"
        );
    }
    let first = error.message.chars().next().unwrap();
    assert!(
        first.is_lowercase() && !error.message.ends_with('.'),
        "{error}"
    );
}

#[tokio::test]
async fn an_event_comes_back_as_it_went() {
    let (host, plugin) = hostile().await;
    assert_eq!(plugin.world().to_string(), "stepwell:pipeline/step@0.1.0");
    let events = host.call(&plugin, generous(), "echo").await.unwrap();
    assert_eq!(events, [event("echo")]);
    assert!(
        host.call(&plugin, generous(), "drop")
            .await
            .unwrap()
            .is_empty()
    );
    let events = host.call(&plugin, generous(), "repeat:2").await.unwrap();
    assert_eq!(events, [event("repeat:2"), event("repeat:2")]);
    let events = host.call(&plugin, generous(), "status:201").await.unwrap();
    assert_eq!(events[0].extension("httpstatus"), Some("201"));
    let seen = data(&host.call(&plugin, generous(), "extensions").await.unwrap());
    assert_eq!(seen, r#"[("partitionkey", "k")]"#);
    let events = host.call(&plugin, generous(), "events:3").await.unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(events[2].id, "42");
}

#[tokio::test]
async fn a_guests_own_errors_keep_their_kind_and_text() {
    let (host, plugin) = hostile().await;
    for (kind, blame) in [
        (ErrorKind::Invalid, Blame::Caller),
        (ErrorKind::Unavailable, Blame::Dependency),
        (ErrorKind::Failed, Blame::Plugin),
    ] {
        let error = host
            .call(&plugin, generous(), &format!("{kind}:bad digit"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind, error.blame, error.message.as_str()),
            (kind, blame, "bad digit")
        );
    }
}

#[tokio::test]
async fn an_endless_loop_ends_with_its_cpu_budget() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    };
    for what in ["spin", "call-host"] {
        error(
            host.call(&plugin, limits, what).await,
            ErrorKind::Limit,
            &["50ms", "CPU", "limits.cpu"],
        );
    }
    let limits = Limits {
        cpu: Duration::from_secs(20),
        ..generous()
    };
    host.call(&plugin, limits, "spin-for:20").await.unwrap();
}

#[tokio::test]
async fn cpu_time_is_charged_to_an_account() {
    let (host, plugin) = hostile().await;
    let account = Arc::new(CpuAccount::default());
    for (what, least) in [("spin", 45), ("sleep:300", 0)] {
        let limits = Limits {
            cpu: Duration::from_millis(50),
            ..generous()
        };
        let before = account.used();
        let mut state = host.state();
        state.base().charge_to(account.clone());
        let outcome = plugin.process(state, limits, soon(), event(what)).await;
        assert_eq!(outcome.is_err(), what == "spin");
        let charged = account.used() - before;
        assert!(
            charged >= Duration::from_millis(least) && charged < Duration::from_secs(2),
            "{what}: {charged:?}"
        );
    }
}

#[tokio::test]
async fn waiting_costs_no_cpu() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        cpu: Duration::from_millis(100),
        ..generous()
    };
    host.call(&plugin, limits, "sleep:600").await.unwrap();
    // They waited where no request is read.
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    assert!(names.into_iter().any(|name| name.trim() == "guest-timers"));
}

#[tokio::test]
async fn neighbours_progress_beside_an_endless_loop() {
    // One thread: only the guest's yielding lets anyone else run.
    let (host, plugin) = hostile().await;
    let host = Arc::new(host);
    let spinning = {
        let (host, plugin) = (host.clone(), plugin.clone());
        tokio::spawn(async move {
            let limits = Limits {
                cpu: Duration::from_secs(2),
                ..generous()
            };
            host.call(&plugin, limits, "spin").await
        })
    };
    tokio::task::yield_now().await;
    let mut served = 0;
    while !spinning.is_finished() && served < 20 {
        assert_eq!(
            host.call(&plugin, generous(), "echo").await.unwrap().len(),
            1
        );
        served += 1;
    }
    assert_eq!(served, 20, "the neighbour had to wait for the loop to end");
    error(spinning.await.unwrap(), ErrorKind::Limit, &["limits.cpu"]);
}

#[tokio::test]
async fn sleeping_for_ever_ends_with_the_wall_limit_or_the_deadline() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        wall: Duration::from_millis(200),
        ..generous()
    };
    error(
        host.call(&plugin, limits, "sleep:3600000").await,
        ErrorKind::Timeout,
        &["200ms", "limits.wall"],
    );
    error(
        host.call(&plugin, limits, "spin").await,
        ErrorKind::Timeout,
        &["200ms", "limits.wall"],
    );
    host.call(&plugin, generous(), "sleep:10").await.unwrap();

    let deadline = Instant::now() + Duration::from_millis(200);
    let outcome = plugin
        .process(host.state(), generous(), deadline, event("sleep:3600000"))
        .await;
    error(outcome, ErrorKind::Timeout, &["timeout"]);
    let outcome = plugin
        .process(host.state(), generous(), Instant::now(), event("echo"))
        .await;
    error(
        outcome,
        ErrorKind::Timeout,
        &["before the guest was called"],
    );
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_the_guest() {
    let (host, plugin) = hostile().await;
    let call = host.call(&plugin, generous(), "log:1");
    drop(call);
    let outcome = tokio::time::timeout(
        Duration::from_millis(50),
        host.call(&plugin, generous(), "spin"),
    )
    .await;
    assert!(outcome.is_err());
    assert_eq!(host.lines.all(), []);
    assert_eq!(
        host.call(&plugin, generous(), "echo").await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_memory_bomb_ends_with_the_memory_limit() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        memory: 16 << 20,
        ..generous()
    };
    error(
        host.call(&plugin, limits, "allocate:1073741824").await,
        ErrorKind::Limit,
        &["16MiB", "memory", "limits.memory"],
    );
    host.call(&plugin, limits, "allocate:8388608")
        .await
        .unwrap();
    // A guest that copes is left alone.
    let events = host
        .call(&plugin, limits, "try-allocate:1073741824")
        .await
        .unwrap();
    assert_eq!(data(&events), "false");
    let events = host.call(&plugin, limits, "reach:15").await.unwrap();
    assert_eq!(data(&events), "15");
    error(
        host.call(&plugin, limits, "reach:17").await,
        ErrorKind::Limit,
        &["limits.memory"],
    );
    // The limit may be large.
    let limits = Limits {
        memory: 1 << 30,
        ..generous()
    };
    host.call(&plugin, limits, "allocate:134217728")
        .await
        .unwrap();
}

#[tokio::test]
async fn deep_recursion_is_a_trap() {
    let (host, plugin) = hostile().await;
    error(
        host.call(&plugin, generous(), "recurse:100000000").await,
        ErrorKind::Trap,
        &["call stack exhausted", "recurse"],
    );
    assert_eq!(
        data(
            &host
                .call(&plugin, generous(), "recurse:1000")
                .await
                .unwrap()
        ),
        "1000"
    );
}

#[tokio::test]
async fn traps_panics_and_exits_are_told_apart() {
    let (host, plugin) = hostile().await;
    error(
        host.call(&plugin, generous(), "trap").await,
        ErrorKind::Trap,
        &["unreachable"],
    );
    error(
        host.call(&plugin, generous(), "exit").await,
        ErrorKind::Trap,
        &["exit with status 1"],
    );
    // Nor does a guest come to a good end by saying so.
    error(
        host.call(&plugin, generous(), "exit-zero").await,
        ErrorKind::Trap,
        &["exit with status 0"],
    );
    assert_eq!(host.lines.all(), []);
    error(
        host.call(&plugin, generous(), "panic").await,
        ErrorKind::Trap,
        &["unreachable"],
    );
    let lines = host.lines.all();
    assert!(
        lines
            .iter()
            .any(|(stream, line)| *stream == LogStream::Stderr && line.contains("at the disco")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn too_much_output_ends_with_the_output_limit() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        output: 1 << 20,
        memory: 1 << 30,
        ..generous()
    };
    // Just over the limit, over what may be copied at all, and in many events.
    for what in [
        "output:1048576",
        "output:67108864",
        "output:536870912",
        "events:200000",
        "events:1000000",
    ] {
        error(
            host.call(&plugin, limits, what).await,
            ErrorKind::Limit,
            &["1MiB", "output", "limits.output"],
        );
    }
    let events = host.call(&plugin, limits, "output:1048000").await.unwrap();
    assert_eq!(events[0].data.len(), 1_048_000);
    let limits = Limits {
        output: 64 << 20,
        memory: 1 << 30,
        ..generous()
    };
    let events = host.call(&plugin, limits, "output:67000000").await.unwrap();
    assert_eq!(events[0].data.len(), 67_000_000);
}

#[tokio::test]
async fn a_log_flood_is_cut_with_one_notice() {
    let (host, plugin) = hostile().await;
    host.call(&plugin, generous(), "log:2").await.unwrap();
    assert_eq!(
        host.lines.all(),
        [
            (LogStream::Stdout, "line 0".to_owned()),
            (LogStream::Stdout, "line 1".to_owned()),
            (LogStream::Stderr, "end".to_owned()),
        ]
    );
    host.call(&plugin, generous(), "log:100000").await.unwrap();
    let lines = host.lines.all();
    let bytes: usize = lines.iter().map(|(_, line)| line.len()).sum();
    assert!(bytes < 70 << 10, "{bytes}");
    let notices = lines
        .iter()
        .filter(|(_, line)| line.contains("log output truncated: one call may log 64KiB"))
        .count();
    assert_eq!(notices, 1);
}

#[tokio::test]
async fn handles_and_host_calls_are_bounded() {
    let (host, plugin) = hostile().await;
    error(
        host.call(&plugin, generous(), "handles:100000").await,
        ErrorKind::Limit,
        &["1000", "handles"],
    );
    assert_eq!(
        data(&host.call(&plugin, generous(), "handles:100").await.unwrap()),
        "100"
    );
    error(
        host.call(&plugin, generous(), "shout:33554432").await,
        ErrorKind::Limit,
        &["16MiB", "host function"],
    );
    assert_eq!(
        data(&host.call(&plugin, generous(), "shout:1024").await.unwrap()),
        "true"
    );
}

#[tokio::test]
async fn pollables_by_the_thousand_are_bounded() {
    let (host, plugin) = hostile().await;
    let ready = data(
        &host
            .call(&plugin, generous(), "pollables:400")
            .await
            .unwrap(),
    );
    assert!(ready.parse::<usize>().unwrap() >= 1, "{ready}");
    error(
        host.call(&plugin, generous(), "pollables:100000").await,
        ErrorKind::Limit,
        &["1000", "handles"],
    );
    error(
        host.call(&plugin, generous(), "poll-nothing").await,
        ErrorKind::Trap,
        &["empty poll list"],
    );
}

#[tokio::test]
async fn what_the_host_would_have_to_hold_is_bounded() {
    let (host, plugin) = hostile().await;
    let call = async |what: &str| host.call(&plugin, generous(), what).await;
    assert_eq!(data(&call("fields:10").await.unwrap()), "10");
    // Two chunks of 64 KiB for each body that nobody reads.
    assert_eq!(data(&call("bodies:10").await.unwrap()), "1310720");
    error(
        call("fields:100000").await,
        ErrorKind::Limit,
        &["64MiB", "limits.memory"],
    );
    error(
        call("bodies:100000").await,
        ErrorKind::Limit,
        &["1000", "handles"],
    );
    // What waits in them is the guest's own memory, and that of all guests.
    let memory = Limits {
        memory: 8 << 20,
        ..generous()
    };
    let call = async |what: &str| host.call(&plugin, memory, what).await;
    assert_eq!(data(&call("bodies:40").await.unwrap()), "5242880");
    error(
        call("bodies:100").await,
        ErrorKind::Limit,
        &["8MiB", "limits.memory"],
    );
    let host = host_with(|config| config.guest_memory = 8 << 20);
    let plugin = host.plugin(guest("hostile.wasm")).await;
    let call = async |what: &str| host.call(&plugin, generous(), what).await;
    for _ in 0..5 {
        assert_eq!(data(&call("bodies:40").await.unwrap()), "5242880");
    }
    let before = hits("guest_memory");
    error(
        call("bodies:100").await,
        ErrorKind::Unavailable,
        &["limits.guest_memory"],
    );
    assert!(hits("guest_memory") > before);
}

#[tokio::test]
async fn what_the_host_would_have_to_make_is_bounded() {
    let (host, plugin) = hostile().await;
    let call = async |what: &str| host.call(&plugin, generous(), what).await;
    assert_eq!(data(&call("blast:200").await.unwrap()), "200");
    let logged: usize = host.lines.all().iter().map(|(_, line)| line.len()).sum();
    assert!(logged < 70 << 10, "{logged}");
    assert_eq!(data(&call("zeroes:1000").await.unwrap()), "true");
    error(
        call("zeroes:4294967295").await,
        ErrorKind::Trap,
        &["zeroes"],
    );
    assert_eq!(data(&call("random:100000").await.unwrap()), "100000");
    // More than the host makes at once, and less than the guest has room for.
    for more in ["random:2000000", "random:4294967295"] {
        let says = &["exceeds limit 1048576"];
        error(call(more).await, ErrorKind::Trap, says);
    }
}

#[tokio::test]
async fn forged_attributes_and_headers_are_refused() {
    let (host, plugin) = hostile().await;
    let call = async |what: &str| host.call(&plugin, generous(), what).await;
    error(
        call("attribute:aCRLFset-cookie: b").await,
        ErrorKind::Failed,
        &["control characters", "subject"],
    );
    let events = call("attribute:plain").await.unwrap();
    assert_eq!(events[0].subject.as_deref(), Some("plain"));
    let refused = data(&call("header:aCRLFset-cookie: b").await.unwrap());
    assert!(refused.contains("InvalidSyntax"), "{refused}");
    assert_eq!(data(&call("header:plain").await.unwrap()), "Ok(())");
}

#[tokio::test]
async fn a_deployer_learns_where_the_guest_was() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        cpu: Duration::from_millis(20),
        ..generous()
    };
    for (what, kind, function) in [
        ("trap", "unreachable-code-reached", "process"),
        ("recurse:100000000", "stack-overflow", "recurse"),
        ("exit", "exit", "process"),
        ("spin", "cpu", "process"),
    ] {
        let error = host.call(&plugin, limits, what).await.unwrap_err();
        let fault = error.fault.unwrap();
        assert_eq!(fault.kind, kind);
        let names = fault.backtrace;
        assert!((1..=16).contains(&names.len()), "{what}: {names:?}");
        assert!(
            names.iter().any(|name| name.contains(function)),
            "{what}: {names:?}"
        );
        assert!(
            names.iter().all(|name| !name.starts_with("_ZN")),
            "{names:?}"
        );
    }
    let own = host.call(&plugin, generous(), "failed:x").await;
    assert_eq!(own.unwrap_err().fault, None);
}

#[tokio::test]
async fn the_memory_of_all_guests_together_is_bounded() {
    let host = host_with(|config| config.guest_memory = 8 << 20);
    let plugin = host.plugin(guest("hostile.wasm")).await;
    for _ in 0..10 {
        let refused = host
            .call(&plugin, generous(), "allocate:16777216")
            .await
            .unwrap_err();
        assert_eq!(
            (refused.kind, refused.blame),
            (ErrorKind::Unavailable, Blame::Host)
        );
        assert!(
            refused.message.contains("8MiB") && refused.message.contains("limits.guest_memory"),
            "{refused}"
        );
    }
    // All that was held was given back.
    for _ in 0..10 {
        host.call(&plugin, generous(), "allocate:4194304")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_guest_sees_its_configuration_and_nothing_of_the_machine() {
    let (host, plugin) = hostile().await;
    let call = async |what: &str| data(&host.call(&plugin, generous(), what).await.unwrap());
    assert_eq!(call("environment").await, "neighbours=5 args 0");
    assert_eq!(call("config:neighbours").await, r#"Ok(Some("5"))"#);
    assert_eq!(call("config:PATH").await, "Ok(None)");
    assert_eq!(call("connect").await, "Err(PermissionDenied)");
    assert!(call("files").await.starts_with("Err("));
    let fetched = call("fetch").await;
    assert!(fetched.contains("HttpRequestDenied"), "{fetched}");
}

#[tokio::test]
async fn an_instance_is_fresh_each_time() {
    let (host, plugin) = hostile().await;
    let limits = Limits {
        memory: 16 << 20,
        ..generous()
    };
    for _ in 0..20 {
        host.call(&plugin, limits, "allocate:8388608")
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_neighbour_is_served_while_every_hostile_one_runs() {
    let (host, plugin) = hostile().await;
    let host = Arc::new(host);
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let good = {
        let (host, plugin, stop, served) =
            (host.clone(), plugin.clone(), stop.clone(), served.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let events = host.call(&plugin, generous(), "echo").await.unwrap();
                assert_eq!(events, [event("echo")]);
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let limits = Limits {
        cpu: Duration::from_millis(200),
        wall: Duration::from_millis(400),
        ..Limits::default()
    };
    let bad = [
        "spin",
        "call-host",
        "sleep:3600000",
        "allocate:1073741824",
        "recurse:100000000",
        "trap",
        "panic",
        "output:8000000",
        "events:1000000",
        "handles:100000",
        "shout:33554432",
        "invalid:x",
    ];
    let calls: Vec<_> = bad
        .into_iter()
        .cycle()
        .take(bad.len() * 4)
        .map(|what| {
            let (host, plugin) = (host.clone(), plugin.clone());
            tokio::spawn(async move { host.call(&plugin, limits, what).await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
    let before = served.load(Ordering::Relaxed);
    assert!(before > 0, "the good neighbour was not served meanwhile");
    stop.store(true, Ordering::Relaxed);
    good.await.unwrap();
}

#[tokio::test]
async fn more_calls_than_slots_wait_for_their_turn() {
    let (host, plugin) = hostile().await;
    let host = Arc::new(host);
    let calls: Vec<_> = (0..250)
        .map(|_| {
            let (host, plugin) = (host.clone(), plugin.clone());
            tokio::spawn(async move { host.call(&plugin, generous(), "sleep:20").await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    // Those whose time is up before their turn are told that it is the host's doing.
    let full: Vec<_> = (0..100)
        .map(|_| {
            let (host, plugin) = (host.clone(), plugin.clone());
            tokio::spawn(async move { host.call(&plugin, generous(), "sleep:1000").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let deadline = Instant::now() + Duration::from_millis(100);
    let error = plugin
        .process(host.state(), generous(), deadline, event("echo"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.blame),
        (ErrorKind::Unavailable, Blame::Host)
    );
    for call in full {
        call.await.unwrap().unwrap();
    }
}

/// Each behaviour of the guest, and the test that is about it: one that is in its list and not here does not compile.
mod covered {
    use super::{
        a_call_that_is_dropped_ends_the_guest as log,
        a_guest_sees_its_configuration_and_nothing_of_the_machine as environment,
        a_guest_sees_its_configuration_and_nothing_of_the_machine as config,
        a_guest_sees_its_configuration_and_nothing_of_the_machine as connect,
        a_guest_sees_its_configuration_and_nothing_of_the_machine as files,
        a_guest_sees_its_configuration_and_nothing_of_the_machine as fetch,
        a_guests_own_errors_keep_their_kind_and_text as invalid,
        a_guests_own_errors_keep_their_kind_and_text as unavailable,
        a_guests_own_errors_keep_their_kind_and_text as failed,
        a_memory_bomb_ends_with_the_memory_limit as allocate,
        a_memory_bomb_ends_with_the_memory_limit as try_allocate,
        a_memory_bomb_ends_with_the_memory_limit as reach,
        an_endless_loop_ends_with_its_cpu_budget as spin,
        an_endless_loop_ends_with_its_cpu_budget as spin_for,
        an_endless_loop_ends_with_its_cpu_budget as call_host,
        an_event_comes_back_as_it_went as echo, an_event_comes_back_as_it_went as drop,
        an_event_comes_back_as_it_went as events, an_event_comes_back_as_it_went as repeat,
        an_event_comes_back_as_it_went as extensions, an_event_comes_back_as_it_went as status,
        deep_recursion_is_a_trap as recurse,
        forged_attributes_and_headers_are_refused as attribute,
        forged_attributes_and_headers_are_refused as header,
        handles_and_host_calls_are_bounded as handles, handles_and_host_calls_are_bounded as shout,
        pollables_by_the_thousand_are_bounded as pollables,
        pollables_by_the_thousand_are_bounded as poll_nothing,
        sleeping_for_ever_ends_with_the_wall_limit_or_the_deadline as sleep,
        too_much_output_ends_with_the_output_limit as output,
        traps_panics_and_exits_are_told_apart as trap,
        traps_panics_and_exits_are_told_apart as panic,
        traps_panics_and_exits_are_told_apart as exit,
        traps_panics_and_exits_are_told_apart as exit_zero,
        what_the_host_would_have_to_hold_is_bounded as fields,
        what_the_host_would_have_to_hold_is_bounded as bodies,
        what_the_host_would_have_to_make_is_bounded as blast,
        what_the_host_would_have_to_make_is_bounded as zeroes,
        what_the_host_would_have_to_make_is_bounded as random,
    };

    macro_rules! cases {
        ($($name:ident)*) => { $(const _: fn() = $name;)* };
    }
    include!("../../../../tests/guests/hostile/cases.rs");
}
