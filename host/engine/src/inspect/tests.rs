use super::world::HANDLER;
use super::*;

fn interfaces() -> Interfaces {
    Interfaces::new(&["stepwell:vector/index@0.1.0".into()])
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {text})")).unwrap()
}

fn check(bytes: &[u8]) -> Result<Inspection, Refused> {
    inspect(bytes, &interfaces())
}

fn code(bytes: &[u8]) -> &'static str {
    check(bytes).unwrap_err().code
}

/// Exports a function under this instance's name.
fn exporting(instance: &str) -> String {
    format!(
        r#"(core module $m (func (export "f"))) (core instance $i (instantiate $m))
           (func $f (canon lift (core func $i "f"))) (instance $h (export "handle" (func $f)))
           (export "{instance}" (instance $h))"#
    )
}

const FUNCTION: &str = "wasi:http/incoming-handler@0.2.3";

#[test]
fn an_http_function_is_accepted_with_its_release() {
    let text = format!(
        r#"(import "wasi:random/random@0.2.1" (instance (export "get-random-u64" (func (result u64))))) {}"#,
        exporting(FUNCTION)
    );
    let found = check(&component(&text)).unwrap();
    assert_eq!(found.world.to_string(), "wasi:http/proxy@0.2.3");
    assert_eq!(found.imports, ["wasi:random/random@0.2.1"]);
    assert_eq!(found.exports, [FUNCTION]);
    assert_eq!((found.name, found.version), (None, None));
}

#[test]
fn name_and_version_come_from_the_metadata() {
    let text = format!(
        r#"$digit-reader (@custom "version" "1.2.3") {}"#,
        exporting(FUNCTION)
    );
    let found = check(&component(&text)).unwrap();
    assert_eq!(found.name.as_deref(), Some("digit-reader"));
    assert_eq!(found.version.as_deref(), Some("1.2.3"));
    // Those of what is inside do not count.
    let text = format!(
        r#"(component $inner (@custom "version" "9.9.9")) {}"#,
        exporting(FUNCTION)
    );
    let found = check(&component(&text)).unwrap();
    assert_eq!((found.name, found.version), (None, None));
}

#[test]
fn a_step_is_accepted_and_types_need_no_provider() {
    let text = format!(
        r#"(import "stepwell:pipeline/types@0.1.0" (instance (type $r (record (field "a" u8))) (export "event" (type (eq $r)))))
           (import "acme:types/types@9.0.0" (instance (type $r (list u8)) (export "t" (type (eq $r)))))
           (import "stepwell:vector/index@0.1.0" (instance (export "f" (func)))) {}"#,
        exporting(HANDLER)
    );
    assert_eq!(check(&component(&text)).unwrap().world, World::Step);
}

#[test]
fn what_is_no_component_says_what_it_is() {
    for (bytes, expected, hint) in [
        (&b""[..], "not-wasm", "body"),
        (b"hello", "not-wasm", "wasm32-wasip2"),
        (b"\x7fELF\x02\x01", "not-wasm", ".cwasm"),
        (b"PK\x03\x04", "not-wasm", "unpack"),
        (b"\x1f\x8b\x08", "not-wasm", "unpack"),
        (b"\n (module)", "not-wasm", "wasm-tools parse"),
        (b"\0as", "truncated", "again"),
        (b"\0asm\x01\0", "truncated", "again"),
        (
            b"\0asm\x01\0\0\0",
            "core-module",
            "wasm-tools component new",
        ),
        (b"\0asm\x0c\0\x01\0", "invalid-component", "toolchain"),
        (
            b"\0asm\x0d\0\x01\0\xff\x00",
            "invalid-component",
            "validate",
        ),
    ] {
        let refused = check(bytes).unwrap_err();
        assert_eq!(refused.code, expected, "{bytes:?}");
        assert!(refused.hint.as_ref().unwrap().contains(hint), "{refused:?}");
    }
    assert_eq!(
        code(&wat::parse_str("(module (func))").unwrap()),
        "core-module"
    );
}

#[test]
fn a_cut_file_is_truncated_or_at_least_refused() {
    let bytes = component(&exporting(FUNCTION));
    assert!(check(&bytes).is_ok());
    let codes: Vec<&str> = (1..bytes.len())
        .map(|end| check(&bytes[..end]).map_or_else(|refused| refused.code, |_| "accepted"))
        .collect();
    assert_eq!(codes[bytes.len() / 2], "truncated");
    // Cut between two sections it is a whole component, with less in it.
    let whole = codes
        .iter()
        .filter(|code| ["unknown-world", "accepted"].contains(code))
        .count();
    assert!(whole < 12, "{codes:?}");
    assert_eq!(
        codes.iter().filter(|code| **code == "truncated").count(),
        codes.len() - whole,
        "{codes:?}"
    );
}

#[test]
fn a_component_that_ends_with_what_is_in_it_is_whole() {
    for text in [
        "(core module (func))",
        "(component (core module (func)))",
        "(component)",
    ] {
        assert_eq!(code(&component(text)), "unknown-world", "{text}");
    }
}

#[test]
fn a_resource_that_is_only_named_again_needs_nobody() {
    let named = |again: &str| {
        component(&format!(
            r#"(import "wasi:io/error@0.2.0" (instance $io (export "error" (type (sub resource)))))
               (alias export $io "error" (type $error))
               (import "acme:thing/handler@1.0.0" (instance {again})) {}"#,
            exporting(HANDLER)
        ))
    };
    let accepted = named(r#"(export "mine" (type (eq $error)))"#);
    assert_eq!(check(&accepted).unwrap().world, World::Step);
    for again in [
        r#"(export "mine" (type (eq $error))) (export "other" (type (sub resource)))"#,
        r#"(export "mine" (type (eq $error))) (export "f" (func))"#,
    ] {
        let refused = check(&named(again)).unwrap_err();
        assert_eq!(refused.code, "unknown-import");
        assert!(refused.message.contains("acme:thing/handler@1.0.0"));
    }
}

#[test]
fn every_unknown_import_is_named_with_the_nearest() {
    let text = format!(
        r#"(import "wasi:random/random@0.3.0-rc-2025-09-16" (instance (export "f" (func))))
           (import "acme:thing/foo@1.0.0" (instance (export "f" (func))))
           (import "stepwell:vector/index@0.2.0" (instance (export "f" (func))))
           (import "bare" (func))
           (import "acme:res/r@1.0.0" (instance (export "r" (type (sub resource)))))
           (import "wasi:random/random@0.2.0" (instance (export "get-random-u64" (func (result u64))))) {}"#,
        exporting(HANDLER)
    );
    let refused = check(&component(&text)).unwrap_err();
    assert_eq!(refused.code, "unknown-import");
    for part in [
        "wasi:random/random@0.3.0-rc-2025-09-16 (the host has wasi:random/random@0.3.0)",
        "acme:thing/foo@1.0.0 (the host has nothing like it)",
        "stepwell:vector/index@0.2.0 (the host has stepwell:vector/index@0.1.0)",
        "bare (",
        "acme:res/r@1.0.0 (",
    ] {
        assert!(
            refused.message.contains(part),
            "{part}: {}",
            refused.message
        );
    }
    assert!(
        !refused.message.contains("wasi:random/random@0.2.0 "),
        "{}",
        refused.message
    );
    assert!(
        refused
            .hint
            .unwrap()
            .contains("rebuild the component for 0.3.0")
    );
    // Imports come first, so that a component without any known export hears of them too.
    assert_eq!(
        code(&component(r#"(import "foo:bar/baz" (func))"#)),
        "unknown-import"
    );
}

#[test]
fn unknown_worlds_hear_which_are_accepted() {
    for (export, needle) in [
        ("acme:thing/run@1.0.0", "acme:thing/run@1.0.0"),
        ("wasi:cli/run@0.2.0", "command"),
        ("stepwell:pipeline/batch-handler@0.1.0", "batch-step"),
        ("stepwell:pipeline/handler@0.2.0", "0.2.0"),
        ("wasi:http/handler@0.4.0", "0.4.0"),
        ("wasi:http/incoming-handler@0.2.0-rc-2023-11-10", "0.2.0-rc"),
    ] {
        let refused = check(&component(&exporting(export))).unwrap_err();
        assert_eq!(refused.code, "unknown-world", "{export}");
        assert!(refused.message.contains(needle), "{refused}");
        assert!(
            refused
                .hint
                .unwrap()
                .contains("stepwell:pipeline/step@0.1.0")
        );
    }
    assert!(
        check(&component(""))
            .unwrap_err()
            .message
            .contains("exports nothing")
    );
    // A release candidate hears which release it should be.
    let candidate = "wasi:http/handler@0.3.0-rc-2025-09-16";
    let refused = check(&component(&exporting(candidate))).unwrap_err();
    assert_eq!(refused.code, "unknown-world");
    assert!(refused.message.contains("0.3.0-rc-2025-09-16"), "{refused}");
    assert!(refused.hint.unwrap().contains("for 0.3.0 itself"));
}

#[test]
fn a_function_of_wasi_0_3_is_accepted() {
    let found = check(&component(&exporting("wasi:http/handler@0.3.0"))).unwrap();
    assert_eq!(found.world.to_string(), "wasi:http/service@0.3.0");
    assert!(found.world.is_function());
    let text = format!(
        r#"(import "stepwell:vector/index@0.1.0" (instance (export "f" (func)))) {}"#,
        exporting("wasi:http/handler@0.3.0")
    );
    assert_eq!(code(&component(&text)), "unknown-import");
}

#[test]
fn the_flavour_is_that_of_what_is_in_it() {
    let lean = component(&exporting(FUNCTION));
    assert_eq!(flavor(&lean), Ok(LEAN));
    for text in [
        r#"(import "wasi:random/random@0.3.0" (instance (export "get-random-u64" (func (result u64)))))"#,
        r#"(type (stream u8))"#,
        r#"(import "a:b/c@1.0.0" (func async (result u32)))"#,
        r#"(component (core func (canon waitable-set.new)))"#,
    ] {
        let bytes = component(&format!("{text} {}", exporting(HANDLER)));
        assert_eq!(flavor(&bytes), Ok((Flavor::Concurrent, 1)), "{text}");
    }
    // What no engine takes is the lean one's to refuse.
    assert_eq!(flavor(b"\0asm\x0d\0\x01\0\xff\x00"), Ok(LEAN));
}

#[test]
fn an_async_component_may_take_a_stack_for_each_instance_with_code() {
    let of = |number: usize| {
        let part = r#"(component $c (core module $none) (core instance (instantiate $none)) (core func (canon waitable-set.new)))"#;
        let parts = "(instance (instantiate $c))".repeat(number);
        flavor(&component(&format!(
            "{part} {parts} {}",
            exporting(HANDLER)
        )))
    };
    // And one for what exports the function.
    assert_eq!(of(1), Ok((Flavor::Concurrent, 2)));
    assert_eq!(of(7), Ok((Flavor::Concurrent, 8)));
    assert_eq!(of(8).unwrap_err().code, "too-large");
}

#[test]
fn flags_in_streams_are_refused() {
    let text = format!(
        r#"(core module $heap (memory (export "m") 1)) (core instance $heap (instantiate $heap))
           (type $f (flags "a")) (type $s (stream $f))
           (core func (canon stream.write $s async (memory (core memory $heap "m")))) {}"#,
        exporting(HANDLER)
    );
    let bytes = component(&text);
    for refused in [check(&bytes).unwrap_err(), flavor(&bytes).unwrap_err()] {
        assert_eq!(refused.code, "invalid-component");
        assert!(refused.message.contains("flags"), "{refused}");
    }
}

#[test]
fn an_http_function_imports_wasi_alone() {
    let text = format!(
        r#"(import "stepwell:vector/index@0.1.0" (instance (export "f" (func)))) {}"#,
        exporting(FUNCTION)
    );
    let refused = check(&component(&text)).unwrap_err();
    assert_eq!(refused.code, "unknown-import");
    assert!(refused.message.contains("wasi:* only"), "{refused}");
}

#[test]
fn a_command_is_one_that_is_nothing_else() {
    // Two exports of one function each, in components of their own so that their names do not clash.
    let exporting_all = |names: &[&str]| {
        let parts: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                format!(
                    r#"(component $c{i} {}) (instance $n{i} (instantiate $c{i}))
                       (export "{name}" (instance $n{i} "{name}"))"#,
                    exporting(name)
                )
            })
            .collect();
        component(&parts.join("\n"))
    };
    for (exports, expected, world) in [
        (&["wasi:cli/run@0.2.3"][..], true, Some(CommandWorld::V02)),
        (&["wasi:cli/run@0.3.0"], true, Some(CommandWorld::V03)),
        (
            &["wasi:cli/run@0.2.3", "wasi:cli/run@0.3.0"],
            true,
            Some(CommandWorld::V03),
        ),
        (
            &["wasi:cli/run@0.2.3", "wasi:http/handler@0.3.0"],
            false,
            Some(CommandWorld::V02),
        ),
        (&["wasi:cli/run@0.3.0-rc-2025-09-16"], false, None),
        (&[FUNCTION], false, None),
    ] {
        let bytes = exporting_all(exports);
        assert_eq!(is_command(&bytes), Ok(expected), "{exports:?}");
        assert_eq!(command(&bytes), Ok(world), "{exports:?}");
    }
    assert_eq!(is_command(b"rubbish").unwrap_err().code, "not-wasm");
}

#[test]
fn too_large_names_both_sizes() {
    let refused = glance(&[0; 3000], 2048).unwrap_err();
    assert_eq!(refused.code, "too-large");
    assert!(
        refused.message.contains("2.9 KiB") && refused.message.contains("2KiB"),
        "{refused}"
    );
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    // Each component holds the next; the lengths are those of what is inside.
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..20_000 {
        let mut outer = b"\0asm\x0d\0\x01\0\x04".to_vec();
        let mut length = bytes.len();
        loop {
            let low = (length & 0x7f) as u8;
            length >>= 7;
            outer.push(if length == 0 { low } else { low | 0x80 });
            if length == 0 {
                break;
            }
        }
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert_eq!(code(&bytes), "invalid-component");
}

#[test]
fn mutated_bytes_never_panic() {
    let text = format!(
        r#"$name (@custom "version" "1.0.0")
           (import "stepwell:pipeline/types@0.1.0" (instance (type $r (record (field "a" u8))) (export "event" (type (eq $r)))))
           (component $c (core module (memory 1) (func (loop (br 0)))))
           {}"#,
        exporting(HANDLER)
    );
    let good = component(&text);
    assert!(check(&good).is_ok());
    // A small generator of our own, so that a failure can be repeated.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap()
    };
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            match random() % 4 {
                0 => bytes[at] ^= 1 << (random() % 8),
                1 => bytes[at] = u8::try_from(random() % 256).unwrap(),
                2 => bytes.insert(at, u8::try_from(random() % 256).unwrap()),
                _ => {
                    bytes.remove(at);
                }
            }
        }
        accepted += usize::from(check(&bytes).is_ok());
    }
    assert!(accepted < 20_000);
}
