//! Puts the sources of `stepwell-sdk` into the binary, so that `stepwell new` makes projects that build anywhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What a project needs of `plugin-sdk/rust`.
const PARTS: [&str; 6] = [
    "Cargo.toml",
    "README.md",
    "src",
    "macros/Cargo.toml",
    "macros/src",
    "wit",
];

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let sdk = manifest.join("../../plugin-sdk/rust").canonicalize()?;
    // `wit` there is a symbolic link.
    println!("cargo::rerun-if-changed=../../wit");
    let mut files = Vec::new();
    for part in PARTS {
        let part_path = sdk.join(part).canonicalize()?;
        // Relative to the package: build products may be shared with another checkout, which this must not look at.
        println!("cargo::rerun-if-changed=../../plugin-sdk/rust/{part}");
        collect(&part_path, part, &mut files)?;
    }
    files.sort();

    let mut code = String::from("[\n");
    for (name, path) in files {
        let text = fs::read_to_string(path)?;
        let _ = writeln!(code, "    ({name:?}, {text:?}),");
    }
    code.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("sdk.rs"), code)
}

fn collect(path: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    // Symbolic links are followed: `wit` is one.
    if path.is_file() {
        files.push((name.to_owned(), path.canonicalize()?));
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        collect(&entry.path(), &name, files)?;
    }
    Ok(())
}
