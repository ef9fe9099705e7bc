//! Steps whose calls share instances: what they share, with whom, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use stepwell_core::{ErrorKind, Event, Limits, Reuse, StepError};
use stepwell_engine::{Kept, LogStream, Plugin};

use crate::support::{Host, Lines, State, data, event, generous, guest, host, host_of, soon};

/// A plugin with the instances that one step of it keeps.
struct Step {
    host: Arc<Host>,
    plugin: Arc<Plugin<State>>,
    kept: Kept<State>,
}

const FOR_EVER: Reuse = Reuse {
    max_calls: u32::MAX,
    idle: Duration::from_secs(3600),
    concurrency: 1,
};

impl Step {
    async fn new(host: &Arc<Host>, limits: Limits, reuse: Reuse) -> Self {
        let plugin = host.plugin(guest("keepsake.wasm")).await;
        Self {
            host: host.clone(),
            kept: plugin.keep(limits, reuse),
            plugin,
        }
    }

    async fn call(&self, what: &str) -> Result<String, StepError> {
        self.send(event(what)).await
    }

    async fn send(&self, event: Event) -> Result<String, StepError> {
        let calling = self.host.calling();
        let outcome = self.kept.process(&self.plugin, &calling, soon(), event);
        outcome.await.map(|events| data(&events))
    }

    /// The number of the call within its instance.
    async fn count(&self) -> u32 {
        self.call("count").await.unwrap().parse().unwrap()
    }
}

async fn step(limits: Limits, reuse: Reuse) -> Step {
    Step::new(&Arc::new(host()), limits, reuse).await
}

#[tokio::test]
async fn calls_of_one_step_follow_each_other_in_one_instance() {
    let step = step(generous(), FOR_EVER).await;
    for call in 1..=5 {
        assert_eq!(step.count().await, call);
    }
    assert_eq!(step.kept.idle(), 1);
    // The same plugin in a fresh instance, and in the instances of another step.
    let fresh = step.host.call(&step.plugin, generous(), "count").await;
    assert_eq!(data(&fresh.unwrap()), "1");
    let other = Step::new(&step.host, generous(), FOR_EVER).await;
    assert!(Arc::ptr_eq(&other.plugin, &step.plugin));
    assert_eq!(other.count().await, 1);
    assert_eq!(step.count().await, 6);
}

#[tokio::test]
async fn an_instance_ends_with_its_last_call() {
    let reuse = Reuse {
        max_calls: 3,
        ..FOR_EVER
    };
    let step = step(generous(), reuse).await;
    let mut counts = Vec::new();
    for _ in 0..7 {
        counts.push(step.count().await);
    }
    assert_eq!(counts, [1, 2, 3, 1, 2, 3, 1]);
}

#[tokio::test]
async fn an_instance_ends_with_its_idle_time() {
    let reuse = Reuse {
        idle: Duration::from_millis(50),
        ..FOR_EVER
    };
    let step = step(generous(), reuse).await;
    assert_eq!(step.count().await, 1);
    // Nobody asks for it: it ends by itself.
    let patience = Instant::now() + Duration::from_secs(20);
    while step.kept.idle() > 0 {
        assert!(Instant::now() < patience, "the instance is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(step.count().await, 1);
}

#[tokio::test]
async fn traps_limits_and_timeouts_end_an_instance() {
    let limits = Limits {
        cpu: Duration::from_millis(100),
        memory: 16 << 20,
        output: 100_000,
        ..generous()
    };
    let step = step(limits, FOR_EVER).await;
    for (what, kind) in [
        ("trap", ErrorKind::Trap),
        ("spin:60000", ErrorKind::Limit),
        ("grow:1073741824", ErrorKind::Limit),
        ("output:200000", ErrorKind::Limit),
        ("output:1000000", ErrorKind::Limit),
    ] {
        assert_eq!(step.count().await, 1, "before {what}");
        assert_eq!(step.count().await, 2, "before {what}");
        let error = step.call(what).await.unwrap_err();
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert_eq!(step.kept.idle(), 0, "after {what}");
    }
    let limits = Limits {
        wall: Duration::from_secs(2),
        ..generous()
    };
    let slow = Step::new(&step.host, limits, FOR_EVER).await;
    assert_eq!(slow.count().await, 1);
    let error = slow.call("sleep:60000").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(slow.count().await, 1);
    // A refused growth that the guest copes with is a limit that was reached all the same.
    assert_eq!(step.count().await, 1);
    assert_eq!(step.call("try-grow:33554432").await.unwrap(), "false");
    assert_eq!(step.count().await, 1);
    // What a guest reports of an event is no trap.
    let error = step.call("invalid:bad digit").await.unwrap_err();
    assert_eq!(error.message, "bad digit");
    assert_eq!(step.count().await, 3);
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_ends_its_instance() {
    let step = step(generous(), FOR_EVER).await;
    assert_eq!(step.count().await, 1);
    for what in ["sleep:60000", "spin:60000"] {
        let call = step.call(what);
        let dropped = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(dropped.is_err());
        assert_eq!(step.kept.idle(), 0, "{what}");
        assert_eq!(step.count().await, 1, "{what}");
    }
    // A future that was never polled took nothing.
    drop(step.call("count"));
    assert_eq!(step.count().await, 2);
}

#[tokio::test]
async fn handles_that_belong_to_a_call_end_the_instance_with_it() {
    let step = step(generous(), FOR_EVER).await;
    for (what, next) in [
        ("keep-pollable", 1),
        // These are nothing of the call's.
        ("keep-stream", 3),
        ("keep-fields", 5),
    ] {
        step.call(what).await.unwrap();
        assert_eq!(step.count().await, next, "{what}");
    }
    // Not for ever, though.
    for _ in 0..300 {
        step.call("keep-fields").await.unwrap();
    }
    assert!(step.count().await < 100);
}

/// Bytes that stand nowhere by chance, as they travel.
fn secret() -> Event {
    let plain = *b"the quick brown secret of 64 bytes, which nobody else may learn!";
    Event {
        data: plain.iter().map(|byte| byte ^ 0x5a).collect(),
        ..event("write")
    }
}

fn scanning() -> Event {
    Event {
        r#type: "scan".into(),
        ..secret()
    }
}

#[tokio::test]
async fn the_memory_of_a_discarded_instance_is_gone() {
    // One slot, so that the next instance has the memory of the one before.
    let host = Arc::new(host_of(1));
    let kept = Step::new(&host, generous(), FOR_EVER).await;
    let found = async |step: &Step| step.send(scanning()).await.unwrap();
    kept.send(secret()).await.unwrap();
    let copies: u32 = found(&kept).await.parse().unwrap();
    assert!(copies > 60_000, "an instance that is kept has it: {copies}");

    // Another step's instance takes the slot of the one that is idle.
    let other = Step::new(&host, generous(), FOR_EVER).await;
    assert_eq!(found(&other).await, "0");
    assert_eq!(kept.kept.idle(), 0);

    // After a trap, a cancelled call, its last call; and the same for fresh instances.
    kept.send(secret()).await.unwrap();
    kept.call("trap").await.unwrap_err();
    assert_eq!(found(&kept).await, "0");
    kept.send(secret()).await.unwrap();
    let call = kept.call("sleep:60000");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), call)
            .await
            .is_err()
    );
    assert_eq!(found(&kept).await, "0");
    let once = Reuse {
        max_calls: 1,
        ..FOR_EVER
    };
    let once = Step::new(&host, generous(), once).await;
    once.send(secret()).await.unwrap();
    assert_eq!(found(&once).await, "0");
    let fresh = async |event: Event| {
        let outcome = kept.plugin.process(host.state(), generous(), soon(), event);
        data(&outcome.await.unwrap())
    };
    fresh(secret()).await;
    assert_eq!(fresh(scanning()).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_instance_takes_two_calls_at_once() {
    let step = step(generous(), FOR_EVER).await;
    for _ in 0..3 {
        let calls = (0..64).map(|_| step.call("serial:20"));
        for outcome in join_all(calls).await {
            outcome.unwrap();
        }
    }
    let instances = step.kept.idle();
    assert!((1..=64).contains(&instances), "{instances}");
    // One after the other they need only one, the one that was used last.
    let first = step.count().await;
    for call in 1..10 {
        assert_eq!(step.count().await, first + call);
    }
    assert_eq!(step.kept.idle(), instances);
}

#[tokio::test]
async fn what_a_guest_says_belongs_to_the_call_in_which_it_says_it() {
    let step = step(generous(), FOR_EVER).await;
    let logs: [Arc<Lines>; 3] = Default::default();
    for (lines, what) in logs
        .iter()
        .zip(["say:one", "mutter:without a newline", "say:three"])
    {
        let calling = step.host.calling_with(lines);
        let outcome = step
            .kept
            .process(&step.plugin, &calling, soon(), event(what));
        outcome.await.unwrap();
    }
    let said = logs.each_ref().map(|lines| lines.all());
    let line = |stream, text: &str| vec![(stream, text.to_owned())];
    assert_eq!(
        said,
        [
            line(LogStream::Stdout, "one"),
            line(LogStream::Stderr, "without a newline"),
            line(LogStream::Stdout, "three")
        ]
    );
    assert_eq!(step.count().await, 4);

    // Each call has the whole allowance, and one notice if that is not enough.
    let long = "x".repeat(8000);
    for (lines, calls) in [(Arc::<Lines>::default(), 1), (Arc::default(), 12)] {
        for _ in 0..calls {
            let calling = step.host.calling_with(&lines);
            let say = event(&format!("say:{long}"));
            let outcome = step.kept.process(&step.plugin, &calling, soon(), say);
            outcome.await.unwrap();
        }
        assert_eq!(lines.all().len(), calls);
    }
}

#[tokio::test]
async fn each_call_has_its_own_budget_and_time_and_the_same_configuration() {
    let limits = Limits {
        cpu: Duration::from_millis(100),
        wall: Duration::from_secs(5),
        ..Limits::default()
    };
    let step = step(limits, FOR_EVER).await;
    for call in 1..=5 {
        assert_eq!(step.call("spin:60").await.unwrap(), call.to_string());
    }
    for call in 6..=9 {
        assert_eq!(step.call("sleep:1500").await.unwrap(), call.to_string());
    }
    for _ in 0..3 {
        let found = step.call("config:neighbours").await.unwrap();
        assert_eq!(found, r#"Ok(Some("5"))"#);
    }
    // A time that is up leaves the instance alone when the guest was not called.
    let calling = step.host.calling();
    let late = step
        .kept
        .process(&step.plugin, &calling, Instant::now(), event("count"));
    let error = late.await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(
        error.message.contains("before the guest was called"),
        "{error}"
    );
    assert_eq!(step.count().await, 13);
}

#[tokio::test]
async fn the_memory_limit_is_that_of_the_instance() {
    let limits = Limits {
        memory: 24 << 20,
        ..generous()
    };
    let step = step(limits, FOR_EVER).await;
    let mut outcomes = Vec::new();
    for _ in 0..6 {
        outcomes.push(step.call("grow:8388608").await.is_ok());
    }
    // What the calls of one instance keep adds up; then the next instance begins anew.
    assert_eq!(outcomes, [true, true, false, true, true, false]);
    for _ in 0..6 {
        let fresh = step.host.call(&step.plugin, limits, "grow:8388608").await;
        fresh.unwrap();
    }
}

#[tokio::test]
async fn idle_instances_make_room_for_calls() {
    let host = Arc::new(host_of(4));
    let kept = Step::new(&host, generous(), FOR_EVER).await;
    let calls = (0..4).map(|_| kept.call("serial:100"));
    join_all(calls)
        .await
        .into_iter()
        .for_each(|outcome| drop(outcome.unwrap()));
    assert_eq!(kept.kept.idle(), 4);
    // The oldest first, one for each call.
    for left in [3, 3] {
        host.call(&kept.plugin, generous(), "count").await.unwrap();
        assert_eq!(kept.kept.idle(), left);
    }
    // All at once, too.
    let calls = (0..16).map(|_| host.call(&kept.plugin, generous(), "sleep:20"));
    for outcome in join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(kept.kept.idle(), 0);
}

#[tokio::test]
async fn an_instance_is_not_kept_while_calls_wait_for_its_slot() {
    let host = Arc::new(host_of(1));
    let one = Step::new(&host, generous(), FOR_EVER).await;
    let other = Step::new(&host, generous(), FOR_EVER).await;
    // The second waits while the first one works, and must not wait for its hour to be over.
    let both = async { tokio::join!(one.call("sleep:200"), other.call("sleep:200")) };
    let (first, second) = tokio::time::timeout(Duration::from_secs(30), both)
        .await
        .unwrap();
    assert_eq!((first.unwrap(), second.unwrap()), ("1".into(), "1".into()));
    assert_eq!((one.kept.idle(), other.kept.idle()), (0, 1));
    for _ in 0..20 {
        assert_eq!(one.count().await, 1);
        assert_eq!(other.count().await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_steps_share_few_slots_and_nobody_waits_for_ever() {
    let host = Arc::new(host_of(3));
    let steps: Vec<_> = join_all((0..8).map(|_| Step::new(&host, generous(), FOR_EVER))).await;
    let steps = Arc::new(steps);
    let tasks: Vec<_> = (0..24)
        .map(|task| {
            let steps = steps.clone();
            tokio::spawn(async move {
                for call in 0..40 {
                    let step = &steps[(task + call) % steps.len()];
                    step.call("count").await.unwrap();
                }
            })
        })
        .collect();
    let all = join_all(tasks);
    for task in tokio::time::timeout(Duration::from_secs(50), all)
        .await
        .unwrap()
    {
        task.unwrap();
    }
}

#[tokio::test]
async fn the_instances_of_a_step_that_is_gone_are_gone() {
    let host = Arc::new(host_of(1));
    let step = Step::new(&host, generous(), FOR_EVER).await;
    assert_eq!(step.count().await, 1);
    let plugin = step.plugin.clone();
    drop(step);
    // Its slot is free without anyone having to take it away.
    let deadline = Instant::now() + Duration::from_secs(30);
    let outcome = plugin.process(host.state(), generous(), deadline, event("count"));
    assert_eq!(outcome.await.unwrap()[0].data, Bytes::from_static(b"1"));
}
