//! Components that take more of what instances share than others, on a host that has little of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{ErrorKind, Limits};
use stepwell_engine::Plugin;

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
async fn there_are_core_instances_for_all() {
    let instances = format!(
        "(core module $empty) {}",
        "(core instance (instantiate $empty))".repeat(150)
    );
    waits(2, "", &instances).await;
}

#[tokio::test]
async fn what_takes_more_than_there_is_is_refused_in_time() {
    let host = host_of(2);
    let plugin = host.plugin(step(&"(memory 1)".repeat(3), "", RETURN)).await;
    let error = call(&host, &plugin).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}
