//! The invariants of `ARCHITECTURE.md` that can be read off manifests and sources.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use stepwell_tests::repository;

/// Directories that are no source: build products and data.
const SKIPPED: [&str; 3] = ["target", ".git", "__pycache__"];

fn files(directory: &Path, extension: &str, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
            files(&path, extension, all);
        } else if path.extension().is_some_and(|found| found == extension) {
            all.push(path);
        }
    }
}

/// Rust sources below a directory: path and text without comment lines.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    files(&repository().join(below), "rs", &mut all);
    assert!(!all.is_empty(), "{below} has sources");
    all.into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let code = code.collect::<Vec<_>>().join("\n");
            (path.strip_prefix(repository()).unwrap().to_owned(), code)
        })
        .collect()
}

/// The host's crates: directory and the names of what they depend on when they run.
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let mut manifests = Vec::new();
    files(&repository().join("host"), "toml", &mut manifests);
    manifests.retain(|path| path.ends_with("Cargo.toml"));
    manifests
        .into_iter()
        .map(|path| {
            let directory = path.parent().unwrap().strip_prefix(repository()).unwrap();
            (directory.to_str().unwrap().to_owned(), dependencies(&path))
        })
        .collect()
}

/// What `[dependencies]` and its like for targets and builds name; tests may know more.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(manifest).unwrap();
    let mut names = BTreeSet::new();
    let mut wanted = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            wanted = section.ends_with("dependencies") && !section.contains("dev-");
            if let Some((_, name)) = section
                .split_once("dependencies.")
                .filter(|_| !section.contains("dev-"))
            {
                names.insert(name.to_owned());
            }
        } else if wanted && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn crates_know_no_more_than_they_may() {
    let crates = crates();
    let refuse = |directory: &str, prefixes: &[&str]| {
        let found: Vec<_> = crates[directory]
            .iter()
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        assert!(found.is_empty(), "{directory} must not know {found:?}");
    };
    let transports = ["axum", "hyper", "rdkafka", "reqwest", "tonic"];
    for directory in [
        "host/core",
        "host/document",
        "host/engine",
        "host/pipeline",
        "host/catalog",
    ] {
        refuse(directory, &transports);
    }
    let web_assembly = ["wasmtime", "wasmparser"];
    for directory in [
        "host/core",
        "host/document",
        "host/pipeline",
        "host/catalog",
        "host/api",
        "host/triggers/http",
        "host/triggers/kafka",
    ] {
        refuse(directory, &web_assembly);
    }
    refuse(
        "host/core",
        &["tokio", "stepwell-", "sqlx", "redis", "tensorflow"],
    );
    refuse(
        "host/engine",
        &["stepwell-pipeline", "sqlx", "redis", "tensorflow"],
    );
    refuse(
        "host/pipeline",
        &["stepwell-engine", "sqlx", "redis", "tensorflow"],
    );
    refuse("host/triggers/http", &["rdkafka"]);
    refuse("host/triggers/kafka", &["hyper", "axum"]);
    refuse(
        "host/api",
        &["stepwell-engine", "sqlx", "redis", "tensorflow"],
    );
}

#[test]
fn knowledge_points_one_way() {
    let crates = crates();
    let ours = |directory: &str| -> BTreeSet<&str> {
        crates[directory]
            .iter()
            .filter_map(|name| name.strip_prefix("stepwell-"))
            .collect()
    };
    for (directory, allowed) in [
        ("host/core", &[][..]),
        ("host/document", &["core"]),
        ("host/engine", &["core"]),
        ("host/catalog", &["core"]),
        ("host/api", &["core"]),
        ("host/pipeline", &["core", "document"]),
        ("host/triggers/http", &["core", "pipeline"]),
        ("host/triggers/kafka", &["core", "pipeline"]),
    ] {
        let beyond: Vec<_> = ours(directory)
            .into_iter()
            .filter(|name| !allowed.contains(name))
            .collect();
        assert!(beyond.is_empty(), "{directory} knows {beyond:?}");
    }
    let interfaces: Vec<_> = crates
        .keys()
        .filter(|name| name.starts_with("host/interfaces/"))
        .collect();
    assert!(interfaces.len() >= 5, "{interfaces:?}");
    for directory in interfaces {
        assert_eq!(ours(directory), BTreeSet::from(["core"]), "{directory}");
    }
}

#[test]
fn wasmtime_is_configured_in_one_place() {
    let mut places = Vec::new();
    for (path, code) in sources("host") {
        let is_wasmtimes = code.contains("wasmtime::Config::new(")
            || code
                .lines()
                .filter(|line| line.contains(" Config::new(") || line.contains("(Config::new("))
                .any(|_| code.contains("use wasmtime::"));
        // An example that measures wasmtime by itself has to make its own.
        if is_wasmtimes && !path.starts_with("host/engine/examples") {
            places.push(path);
        }
    }
    assert_eq!(places, [Path::new("host/engine/src/config.rs")]);
    let (_, code) = sources("host/engine/src")
        .into_iter()
        .find(|(path, _)| path.ends_with("config.rs"))
        .unwrap();
    assert_eq!(code.matches(" Config::new(").count(), 1);
}

#[test]
fn only_the_engine_loads_compiled_code() {
    let places: Vec<_> = sources("host")
        .into_iter()
        .filter(|(_, code)| {
            code.contains("deserialize_file(") || code.contains("Component::deserialize")
        })
        .map(|(path, _)| path)
        .collect();
    assert!(!places.is_empty());
    assert!(
        places
            .iter()
            .all(|path| path.starts_with("host/engine/src")),
        "{places:?}"
    );
}

#[test]
fn each_wit_package_is_bound_once() {
    // Two versions of a package are two packages, and have directories of their own.
    let mut bound: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (path, code) in sources("host") {
        for call in code.split("bindgen!(").skip(1) {
            let (_, rest) = call.split_once("wit/").unwrap();
            let package = &rest[..rest.find('"').unwrap()];
            assert!(
                repository().join("wit").join(package).is_dir(),
                "wit/{package}"
            );
            bound
                .entry(package.to_owned())
                .or_default()
                .push(path.clone());
        }
    }
    assert!(bound.len() >= 5, "{bound:#?}");
    for (package, places) in &bound {
        assert_eq!(places.len(), 1, "wit/{package} is bound in {places:?}");
    }
}

#[test]
fn nothing_is_unsafe_without_a_reason() {
    for (path, code) in sources("host") {
        if !code.contains("unsafe {")
            && !code.contains("unsafe fn")
            && !code.contains("unsafe impl")
        {
            continue;
        }
        let allowed = code
            .split("allow(")
            .skip(1)
            .filter(|allow| allow.trim_start().starts_with("unsafe_code"));
        assert!(
            allowed.clone().count() > 0
                && allowed
                    .clone()
                    .all(|allow| allow[..200.min(allow.len())].contains("reason =")),
            "{}",
            path.display()
        );
        let whole = std::fs::read_to_string(repository().join(&path)).unwrap();
        assert!(whole.contains("SAFETY"), "{}", path.display());
    }
}

#[test]
fn the_page_lists_every_crate_and_no_other() {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, list) = page.split_once("## Where things are").unwrap();
    let block = list.split("```").nth(1).unwrap();
    let listed: BTreeSet<String> = block
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.starts_with("host/"))
        .map(str::to_owned)
        .collect();
    let there: BTreeSet<String> = crates().into_keys().collect();
    assert_eq!(listed, there);
    let workspace = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    for member in &there {
        assert!(
            workspace.contains(&format!("\"{member}\"")),
            "{member} is a member of the workspace"
        );
    }
    for line in block.lines() {
        let Some(directory) = line.split_whitespace().next() else {
            continue;
        };
        assert!(repository().join(directory).is_dir(), "{directory}");
    }
}

/// Of a guest's behaviours the compiler asks for tests; that a guest has any is asked here.
#[test]
fn each_guest_has_a_test_that_calls_it() {
    let tests: String = sources("host")
        .into_iter()
        .chain(sources("tests"))
        .filter(|(path, _)| !path.starts_with("tests/guests"))
        .map(|(_, text)| text)
        .collect();
    let guests = repository().join("tests/guests");
    let mut manifests = Vec::new();
    files(&guests, "toml", &mut manifests);
    let mut found = 0;
    for manifest in manifests {
        let directory = manifest.parent().unwrap();
        let name = directory.file_name().unwrap().to_str().unwrap();
        if directory != guests && manifest.ends_with("Cargo.toml") {
            let named = [format!("\"{name}\""), format!("\"{name}.wasm\"")];
            assert!(
                named.iter().any(|named| tests.contains(named)),
                "no test calls the guest {name}"
            );
            found += 1;
        }
    }
    assert!(found > 3, "{found}");
}

#[test]
fn nothing_unexpected_lies_at_the_top() {
    let known = [
        ".ci",
        "deploy",
        "docs",
        "host",
        "migrations",
        "plugin-sdk",
        "plugins",
        "tests",
        "wit",
        // Not of the repository: see .gitignore.
        ".git",
        "target",
        "stepwell-data",
        "demo-data",
    ];
    for entry in std::fs::read_dir(repository()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            assert!(
                known.contains(&name.as_str()),
                "{name}/ is not in ARCHITECTURE.md"
            );
        }
    }
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
    ] {
        assert!(repository().join(name).is_file(), "{name} is missing");
    }
}
