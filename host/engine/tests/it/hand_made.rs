//! Components that no compiler would make.

use std::time::Duration;

use bytes::Bytes;
use stepwell_core::{Digest, ErrorKind, Limits};
use stepwell_engine::LoadError;

use crate::support::{event, generous, host, soon};

/// A step whose core module has this text; it must define `memory`, `realloc` and `process`.
pub(crate) fn step(module: &str) -> Vec<u8> {
    step_beside(module, "")
}

/// The same, in a component that has this too.
pub(crate) fn step_beside(module: &str, beside: &str) -> Vec<u8> {
    let text = include_str!("../../../../tests/guests/step.wat");
    let text = text.replace("MODULE", module).replace("BESIDE", beside);
    wat::parse_str(text).unwrap()
}

/// A memory, an allocator that never frees, and `process` with this body.
fn simple(memory: &str, body: &str) -> Vec<u8> {
    step(&format!(
        r#"
    (memory (export "memory") {memory})
    (global $next (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    (func (export "process") (param i32) (result i32) {body})"#
    ))
}

async fn run(bytes: Vec<u8>, limits: Limits) -> Result<usize, stepwell_core::StepError> {
    let host = host();
    let plugin = host.plugin(bytes).await;
    let events = plugin
        .process(host.state(), limits, soon(), event("x"))
        .await?;
    Ok(events.len())
}

#[tokio::test]
async fn a_hand_made_step_runs() {
    // Zeroes at 16: ok, of an empty list.
    assert_eq!(
        run(simple("1", "(i32.const 16)"), generous())
            .await
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn lying_lengths_are_traps() {
    for (pointer, length) in [(0, 0x7fff_ffff), (65_536, 1), (-4, 2), (1, 1), (0, -1)] {
        let body = format!(
            "(i32.store (i32.const 20) (i32.const {pointer})) (i32.store (i32.const 24) (i32.const {length})) (i32.const 16)"
        );
        let error = run(simple("1", &body), generous()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Trap, "{pointer} {length}: {error}");
    }
    // The result itself out of bounds, out of line, of no known case.
    for at in [65_536, -8, 17] {
        let error = run(simple("1", &format!("(i32.const {at})")), generous())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Trap, "{at}: {error}");
    }
    let body = "(i32.store8 (i32.const 16) (i32.const 9)) (i32.const 16)";
    assert_eq!(
        run(simple("1", body), generous()).await.unwrap_err().kind,
        ErrorKind::Trap
    );
}

#[tokio::test]
async fn a_liars_realloc_is_a_trap() {
    let bytes = step(
        r#"
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65530))
    (func (export "process") (param i32) (result i32) (i32.const 16))"#,
    );
    assert_eq!(
        run(bytes, generous()).await.unwrap_err().kind,
        ErrorKind::Trap
    );
}

#[tokio::test]
async fn invalid_utf_8_is_a_trap() {
    // An error `invalid` whose text is one byte, 0xff; then the same with a proper letter.
    let body = |byte: &str| {
        format!(
            "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 100) (i32.const {byte}))
             (i32.store (i32.const 24) (i32.const 100)) (i32.store (i32.const 28) (i32.const 1)) (i32.const 16)"
        )
    };
    let error = run(simple("1", &body("0xff")), generous())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Trap, "{error}");
    assert!(error.message.contains("utf-8"), "{error}");
    let error = run(simple("1", &body("0x61")), generous())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Invalid, "a")
    );
}

#[tokio::test]
async fn memory_that_is_too_large_from_the_start_is_the_memory_limit() {
    let limits = Limits {
        memory: 1 << 20,
        ..generous()
    };
    let error = run(simple("17", "(i32.const 16)"), limits)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.memory"), "{error}");
    run(simple("16", "(i32.const 16)"), limits).await.unwrap();
}

#[tokio::test]
async fn many_memories_count_together() {
    let many = |pages: u32| {
        step(&format!(
            r#"
    (memory (export "memory") 1) (memory $b 1) (memory $c 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (if (i32.lt_s (memory.grow $b (i32.const {pages})) (i32.const 0)) (then unreachable))
      (if (i32.lt_s (memory.grow $c (i32.const {pages})) (i32.const 0)) (then unreachable))
      (i32.const 16))"#
        ))
    };
    let limits = Limits {
        memory: 1 << 20,
        ..generous()
    };
    run(many(6), limits).await.unwrap();
    let error = run(many(7), limits).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.memory"), "{error}");
}

#[tokio::test]
async fn failing_growth_does_not_make_a_guest_count_less() {
    // Grows to the limit, fails to grow absurdly many times, and tries to grow again.
    let body = r#"
      (local $n i32)
      (drop (memory.grow (i32.const 15)))
      (loop $again
        (drop (memory.grow (i32.const 65536)))
        (drop (memory.grow (i32.const -1)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 100))))
      (if (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)) (then (return (i32.const 16))))
      unreachable"#;
    let limits = Limits {
        memory: 1 << 20,
        ..generous()
    };
    let error = run(simple("1", body), limits).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit, "{error}");
}

#[tokio::test]
async fn a_table_bomb_is_a_limit() {
    let table = |elements: u32| {
        step(&format!(
            r#"
    (memory (export "memory") 1) (table $t 1 funcref)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (if (i32.lt_s (table.grow $t (ref.null func) (i32.const {elements})) (i32.const 0)) (then unreachable))
      (i32.const 16))"#
        ))
    };
    run(table(1000), generous()).await.unwrap();
    let error = run(table(1_000_000), generous()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("table elements"), "{error}");
}

#[tokio::test]
async fn a_loop_in_the_start_function_ends_with_its_cpu_budget() {
    let bytes = step(
        r#"
    (memory (export "memory") 1)
    (func $begin (loop $again (br $again)))
    (start $begin)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) (i32.const 16))"#,
    );
    let limits = Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    };
    let error = run(bytes, limits).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.cpu"), "{error}");
}

#[tokio::test]
async fn a_loop_in_realloc_ends_with_its_cpu_budget() {
    let bytes = step(
        r#"
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (loop $again (br $again)) unreachable)
    (func (export "process") (param i32) (result i32) (i32.const 16))"#,
    );
    let limits = Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    };
    let error = run(bytes, limits).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit, "{error}");
}

#[tokio::test]
async fn names_of_functions_are_made_harmless() {
    let long = "n".repeat(10_000);
    let bytes = step(&format!(
        r#"
    (memory (export "memory") 1)
    (func $"a\1b[2J\0d\0aERROR forged" unreachable)
    (func ${long} (call $"a\1b[2J\0d\0aERROR forged"))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) (call ${long}) (i32.const 16))"#
    ));
    let error = run(bytes, generous()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Trap);
    assert!(!error.message.contains(char::is_control), "{error:?}");
    let names = error.fault.unwrap().backtrace;
    assert_eq!(names[0], "a\u{fffd}[2J\u{fffd}\u{fffd}ERROR forged");
    assert!(names[1].len() < 200, "{}", names[1].len());
}

#[tokio::test]
async fn what_the_host_cannot_hold_is_refused_at_upload() {
    let host = host();
    let memories = "(memory 1)".repeat(30);
    let bytes = step(&format!(
        r#"(memory (export "memory") 1) {memories}
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) (i32.const 16))"#
    ));
    let bytes = Bytes::from(bytes);
    let error = host
        .engine
        .compile("default", Digest::of(&bytes), bytes.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Refused(refused) if refused.code == "invalid-component"),
        "{error}"
    );
}

#[tokio::test]
async fn imports_of_the_wrong_type_are_refused_at_upload() {
    let host = host();
    let text = r#"(component
      (import "wasi:random/random@0.2.0" (instance (export "get-random-u64" (func (result string)))))
      (core module $m (func (export "f")))
      (core instance $i (instantiate $m))
      (func $f (canon lift (core func $i "f")))
      (instance $h (export "handle" (func $f)))
      (export "wasi:http/incoming-handler@0.2.0" (instance $h)))"#;
    let bytes = Bytes::from(wat::parse_str(text).unwrap());
    let inspection = host.engine.inspect(&bytes).unwrap();
    assert_eq!(inspection.world.to_string(), "wasi:http/proxy@0.2.0");
    let error = host
        .engine
        .compile("default", Digest::of(&bytes), bytes)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Refused(refused) if refused.code == "unknown-import" && refused.message.contains("wasi:random/random@0.2.0")),
        "{error}"
    );
}

#[tokio::test]
async fn an_export_of_the_wrong_type_is_refused_at_upload() {
    let host = host();
    let text = r#"(component
      (core module $m (func (export "f")))
      (core instance $i (instantiate $m))
      (func $f (canon lift (core func $i "f")))
      (instance $h (export "process" (func $f)))
      (export "stepwell:pipeline/handler@0.1.0" (instance $h)))"#;
    let bytes = Bytes::from(wat::parse_str(text).unwrap());
    let error = host
        .engine
        .compile("default", Digest::of(&bytes), bytes)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Refused(refused) if refused.code == "unknown-world"),
        "{error}"
    );
}
