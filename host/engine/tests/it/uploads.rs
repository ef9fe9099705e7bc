//! Uploads that are made to cost much: each is settled in bounded time, by a refusal that says why.

use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::{Digest, ErrorKind};
use stepwell_engine::{LoadError, Refused};

use crate::support::{Host, event, generous, host, soon};

/// Far more than any of them takes, far less than what they are after.
const BOUND: Duration = Duration::from_secs(20);

fn number(mut value: u64, to: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        to.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return;
        }
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![id];
    number(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// A vector of `count` items of which only these bytes are there.
fn counted(count: u64, items: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    number(count, &mut bytes);
    bytes.extend_from_slice(items);
    bytes
}

fn module(sections: &[Vec<u8>]) -> Vec<u8> {
    [&b"\0asm\x01\0\0\0"[..], &sections.concat()].concat()
}

fn component(sections: &[Vec<u8>]) -> Vec<u8> {
    [&b"\0asm\x0d\0\x01\0"[..], &sections.concat()].concat()
}

fn of_module(sections: &[Vec<u8>]) -> Vec<u8> {
    component(&[section(1, &module(sections))])
}

fn refused(host: &Host, bytes: &[u8]) -> Refused {
    let began = Instant::now();
    let refused = host.engine.inspect(bytes).unwrap_err();
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert!(refused.message.len() < 20_000 && refused.hint.is_some());
    refused
}

fn broken(host: &Host, bytes: &[u8]) {
    let refused = refused(host, bytes);
    assert!(
        ["invalid-component", "truncated"].contains(&refused.code),
        "{refused}"
    );
}

#[test]
fn counts_that_nothing_stands_behind_are_refused() {
    let host = host();
    for id in 1..12 {
        for count in [1_000, u64::from(u32::MAX)] {
            let bomb = component(&[section(id, &counted(count, &[0x40]))]);
            broken(&host, &bomb);
            let bomb = of_module(&[section(id, &counted(count, &[0x60]))]);
            broken(&host, &bomb);
        }
    }
}

#[test]
fn more_functions_exports_and_locals_than_anyone_needs_are_refused() {
    let host = host();
    let functype = section(1, &counted(1, &[0x60, 0, 0]));
    let functions = section(3, &counted(1_000_001, &vec![0; 1_000_001]));
    let bomb = of_module(&[functype.clone(), functions]);
    assert_eq!(refused(&host, &bomb).code, "invalid-component");

    // A million types, each of its own.
    let types = section(1, &counted(1_000_001, &[0x60, 0, 0].repeat(1_000_001)));
    assert_eq!(
        refused(&host, &of_module(&[types])).code,
        "invalid-component"
    );

    let mut exports = Vec::new();
    for n in 0..200_000_u64 {
        let name = n.to_string();
        number(name.len() as u64, &mut exports);
        exports.extend_from_slice(name.as_bytes());
        exports.extend_from_slice(&[0, 0]);
    }
    let bomb = of_module(&[
        functype,
        section(3, &counted(1, &[0])),
        section(7, &counted(200_000, &exports)),
        section(10, &counted(1, &[2, 0, 0x0b])),
    ]);
    // So many are allowed, but nothing is exported by the component.
    assert_eq!(refused(&host, &bomb).code, "unknown-world");
}

#[test]
fn a_hundred_thousand_imports_are_named_in_part() {
    let host = host();
    let mut imports = Vec::new();
    for n in 0..100_000_u64 {
        let name = format!("acme:bomb/i{n}@1.0.0");
        imports.push(0);
        number(name.len() as u64, &mut imports);
        imports.extend_from_slice(name.as_bytes());
        // Each an instance of the one type there is.
        imports.extend_from_slice(&[5, 0]);
    }
    let bomb = component(&[
        // An instance type that exports one function.
        section(
            7,
            &counted(1, &[0x42, 2, 1, 0x40, 0, 1, 0, 4, 0, 1, b'f', 1, 0]),
        ),
        section(10, &counted(100_000, &imports)),
    ]);
    let refused = refused(&host, &bomb);
    assert!(
        ["unknown-import", "invalid-component"].contains(&refused.code),
        "{refused}"
    );
}

#[test]
fn giant_names_are_refused() {
    let host = host();
    let mut import = vec![0];
    number(5_000_000, &mut import);
    import.extend_from_slice(&vec![b'a'; 5_000_000]);
    import.extend_from_slice(&[1, 0]);
    let bomb = component(&[
        section(7, &counted(1, &[0x40, 0, 1, 0])),
        section(10, &counted(1, &import)),
    ]);
    assert_eq!(refused(&host, &bomb).code, "invalid-component");
}

#[test]
fn types_that_grow_without_end_are_refused() {
    let host = host();
    // Each is a tuple of two of the one before: the last would have 2^60 fields.
    let mut types = vec![0x70, 1, 0x7d];
    for previous in 0..60 {
        types.extend_from_slice(&[0x6f, 2, previous, previous]);
    }
    let types = [&[0x6f, 1, 0x7d][..], &types[3..]].concat();
    let bomb = component(&[section(7, &counted(61, &types))]);
    let error = refused(&host, &bomb);
    assert_eq!(error.code, "invalid-component");

    // Lists of lists of lists.
    let mut types = vec![0x70, 0x7d];
    for previous in 0..50_000_u64 {
        types.push(0x70);
        number(previous, &mut types);
    }
    let bomb = component(&[section(7, &counted(50_001, &types))]);
    refused(&host, &bomb);
}

#[tokio::test]
async fn recursion_in_core_types_is_refused() {
    let host = host();
    // Two structs that hold each other: of a proposal that the host does not run.
    let bytes = step(&format!(
        r#"(rec (type $a (struct (field (ref null $b)))) (type $b (struct (field (ref null $a)))))
           (memory (export "memory") 1) {REST}"#
    ));
    let bytes = Bytes::from(bytes);
    let error = match host.engine.inspect(&bytes) {
        Err(refused) => refused,
        Ok(_) => match host.engine.compile("test", Digest::of(&bytes), bytes).await {
            Err(LoadError::Refused(refused)) => refused,
            outcome => panic!("{outcome:?}"),
        },
    };
    assert_eq!(error.code, "invalid-component");
}

/// A component that is a step as far as its core module goes.
fn step(module: &str) -> Vec<u8> {
    crate::hand_made::step(module)
}

const REST: &str = r#"
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) (i32.const 16))"#;

#[tokio::test]
async fn a_memory_of_four_gigabytes_from_the_start_is_the_memory_limit_when_called() {
    let host = host();
    let bytes = step(&format!(r#"(memory (export "memory") 65536) {REST}"#));
    let plugin = host.plugin(bytes).await;
    let error = plugin
        .process(host.state(), generous(), soon(), event("x"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("limits.memory"), "{error}");
}

#[tokio::test]
async fn data_at_the_end_of_the_world_costs_no_more_than_it_has() {
    let host = host();
    let bytes = step(&format!(
        r#"(memory (export "memory") 65536) (data (i32.const 0xfffffff0) "x") {REST}"#
    ));
    // Whether or not it is accepted, no image of four gigabytes is made of it.
    let began = Instant::now();
    let bytes = Bytes::from(bytes);
    let _ = host.engine.compile("test", Digest::of(&bytes), bytes).await;
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn code_that_is_nested_deeply_or_branches_widely_is_compiled_or_refused() {
    let host = host();
    let deep = format!("{}{}", "(block ".repeat(5_000), ")".repeat(5_000));
    let wide = format!("(block (br_table {} (i32.const 0)))", "0 ".repeat(50_000));
    let chain = format!(
        "{} drop",
        "i32.const 1 i32.const 2 i32.add drop ".repeat(50_000) + "i32.const 1"
    );
    for (name, body) in [("deep", deep), ("wide", wide), ("long", chain)] {
        let bytes = Bytes::from(step(&format!(
            r#"(memory (export "memory") 1) (func $bomb {body}) {REST}"#
        )));
        let began = Instant::now();
        match host.engine.compile("test", Digest::of(&bytes), bytes).await {
            Ok(_) => {}
            Err(LoadError::Refused(refused)) => {
                assert_eq!(refused.code, "invalid-component", "{name}")
            }
            Err(error) => panic!("{name}: {error}"),
        }
        assert!(began.elapsed() < BOUND * 3, "{name}: {:?}", began.elapsed());
    }
}
