//! Components that take more of what instances share than others, on a host that has little of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Blame, ErrorKind, Limits, Reuse};
use stepwell_engine::{Environment, Kept, Plugin};
use stepwell_test_hits::hits;

use crate::hand_made::step_beside;
use crate::support::{Host, State, event, generous, host_of, soon};

/// A step with this after its own memory, and this beside its core instance.
pub(crate) fn step(module: &str, beside: &str, body: &str) -> Vec<u8> {
    let module = format!(
        r#"
    (memory (export "memory") 1)
    {module}
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) {body})"#
    );
    step_beside(&module, beside)
}

const SPIN: &str = "(loop $again (br $again)) (unreachable)";
/// Returns no events.
const RETURN: &str = "(i32.const 16)";

fn short() -> Limits {
    Limits {
        cpu: Duration::from_millis(500),
        ..generous()
    }
}

async fn call(host: &Host, plugin: &Plugin<State>) -> Result<(), stepwell_core::StepError> {
    let call = plugin.process(host.state(), short(), soon(), event("x"));
    call.await.map(drop)
}

/// Whether a call of a step with this is served while another such call holds what it takes, and how long it has to wait.
async fn waits(slots: u32, module: &str, beside: &str) -> Duration {
    let host = Arc::new(host_of(slots));
    let spinning = host.plugin(step(module, beside, SPIN)).await;
    let other = host.plugin(step(module, beside, RETURN)).await;
    let of_spin = host.clone();
    let spin = tokio::spawn(async move { call(&of_spin, &spinning).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!spin.is_finished());
    let began = Instant::now();
    call(&host, &other).await.unwrap();
    let waited = began.elapsed();
    assert_eq!(spin.await.unwrap().unwrap_err().kind, ErrorKind::Limit);
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_memories_or_tables_waits_for_them() {
    let memories = "(memory 1)".repeat(2);
    let waited = waits(4, &memories, "").await;
    assert!(waited > Duration::from_millis(200), "{waited:?}");
    let tables = "(table 1 funcref)".repeat(9);
    let waited = waits(4, &tables, "").await;
    assert!(waited > Duration::from_millis(200), "{waited:?}");
    // There are enough for both.
    waits(6, &memories, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_stacks_waits_for_them() {
    // Two more components with code, each of which may wait on a stack of its own.
    let part = "(component $c (core module $none) (core instance (instantiate $none)) (core func (canon waitable-set.new)))";
    let parts = format!("{part} {}", "(instance (instantiate $c))".repeat(2));
    let waited = waits(5, "", &parts).await;
    assert!(waited > Duration::from_millis(200), "{waited:?}");
    waits(6, "", &parts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_core_instances_for_all() {
    let instances = format!(
        "(core module $empty) {}",
        "(core instance (instantiate $empty))".repeat(150)
    );
    waits(2, "", &instances).await;
}

#[tokio::test]
async fn what_takes_more_than_there_is_is_refused_in_time() {
    let (host, before) = (host_of(2), hits("instances"));
    let plugin = host.plugin(step(&"(memory 1)".repeat(3), "", RETURN)).await;
    let error = call(&host, &plugin).await.unwrap_err();
    assert!(hits("instances") > before);
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

/// A step that takes up five slots, with this body.
fn large(body: &str) -> Vec<u8> {
    step(&"(memory 1)".repeat(4), "", body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_leaves_a_quarter_of_the_instances_to_the_others() {
    let host = Arc::new(host_of(20));
    let step_of = |namespace| Arc::new(Environment::default().of(host.engine.tenant(namespace)));
    let (one, two) = (step_of("one"), step_of("two"));
    let spinning = host.plugin(large(SPIN)).await;
    let small = host.plugin(step("", "", RETURN)).await;
    let kept = small.keep(generous(), Reuse::default());
    let in_kept = async || {
        let calling = host.calling_as(&two);
        kept.process(&small, &calling, soon(), event("x")).await
    };
    in_kept().await.unwrap();

    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (plugin, state) = (spinning.clone(), host.state_of(&one));
            tokio::spawn(async move {
                let call = plugin.process(state, generous(), soon(), event("x"));
                call.await.map(drop)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Five are left for others, and what waits for its own namespace is in nobody's way.
    for _ in 0..20 {
        let call = small.process(host.state_of(&two), generous(), soon(), event("x"));
        let served = tokio::time::timeout(Duration::from_secs(5), call).await;
        served.expect("the other namespace waits").unwrap();
        // Nor does it end what others keep.
        in_kept().await.unwrap();
        assert_eq!(kept.idle(), 1);
    }
    let soon_up = Instant::now() + Duration::from_millis(100);
    let call = small.process(host.state_of(&one), generous(), soon_up, event("x"));
    let error = call.await.unwrap_err();
    assert_eq!(
        (error.kind, error.blame),
        (ErrorKind::Unavailable, Blame::Host)
    );
    assert!(
        error.message.contains("three quarters of the 20"),
        "{error}"
    );
    for call in calls {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test]
async fn a_namespace_that_has_its_part_ends_its_own_idle_instances() {
    let host = host_of(20);
    let step_of = |namespace| Arc::new(Environment::default().of(host.engine.tenant(namespace)));
    let (one, two) = (step_of("one"), step_of("two"));
    let large = host.plugin(large(RETURN)).await;
    let call = async |kept: &Kept<State>, step: &Arc<Environment>| {
        let calling = host.calling_as(step);
        let call = kept.process(&large, &calling, soon(), event("x"));
        call.await.unwrap();
    };
    let kept: [_; 5] = std::array::from_fn(|_| large.keep(generous(), Reuse::default()));
    call(&kept[0], &two).await;
    for kept in &kept[1..] {
        call(kept, &one).await;
    }
    // The oldest of all is another's.
    let idle = kept.each_ref().map(Kept::idle);
    assert_eq!((idle[0], idle[1], idle[4]), (1, 0, 1), "{idle:?}");
}
