//! Tells apart what is not even the beginning of a component.

use super::Refused;

/// Refuses it.
pub(super) fn header(bytes: &[u8]) -> Result<(), Refused> {
    const MAGIC: &[u8; 4] = b"\0asm";
    if bytes.is_empty() {
        return Err(Refused::new(
            "not-wasm",
            "the upload is empty",
            "send the component's bytes as the body",
        ));
    }
    let seen = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if !MAGIC.starts_with(seen) {
        return Err(Refused::new(
            "not-wasm",
            "the upload is not WebAssembly: it does not begin with \\0asm",
            guess(bytes),
        ));
    }
    match bytes.get(MAGIC.len()..8) {
        None => Err(truncated(bytes.len())),
        Some([1, 0, 0, 0]) => Err(Refused::new(
            "core-module",
            "the upload is a core WebAssembly module, and plugins are components",
            "build it for wasm32-wasip2 (or with `stepwell build`), or make a component of it: wasm-tools component new MODULE.wasm --adapt wasi_snapshot_preview1.wasm -o COMPONENT.wasm",
        )),
        Some([0x0d, 0, 1, 0]) => Ok(()),
        Some(version) => Err(Refused::new(
            "invalid-component",
            format!(
                "the upload has an unknown WebAssembly version: {}",
                hex::encode(version)
            ),
            "rebuild it with a current toolchain",
        )),
    }
}

fn guess(bytes: &[u8]) -> String {
    let what = match bytes {
        [0x1f, 0x8b, ..] => "it looks like gzip: unpack it first",
        [b'P', b'K', ..] => "it looks like a zip archive: unpack it first",
        [0x7f, b'E', b'L', b'F', ..] => {
            "it looks like a native program (or a compiled .cwasm): upload the .wasm file that cargo built for wasm32-wasip2"
        }
        _ if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'(') => {
            "it looks like WebAssembly text: make a binary of it with wasm-tools parse"
        }
        _ => "upload the .wasm file of a component, such as cargo builds it for wasm32-wasip2",
    };
    what.to_owned()
}

pub(super) fn truncated(length: usize) -> Refused {
    Refused::new(
        "truncated",
        format!("the upload ends in the middle of a section, after {length} bytes"),
        "upload the whole file again",
    )
}
