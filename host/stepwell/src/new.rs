//! `stepwell new`: a plugin project that builds wherever it lies, since it carries the SDK's sources with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use stepwell_core::Name;

use crate::output;

/// Options of `new`.
#[derive(Args, Debug)]
pub(crate) struct NewArgs {
    /// Name of the plugin, its directory and its route
    pub(crate) name: String,
    /// Language to write it in
    #[arg(long, value_enum, default_value_t)]
    pub(crate) lang: Language,
}

/// The languages that `new` has a template for.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Language {
    /// Rust, with stepwell-sdk
    #[default]
    Rust,
}

/// The project's own files; `{{name}}` stands for the plugin's name.
const TEMPLATE: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("new/rust/Cargo.toml.in")),
    ("src/lib.rs", include_str!("new/rust/lib.rs.in")),
    ("pipeline.yaml", include_str!("new/rust/pipeline.yaml.in")),
    ("README.md", include_str!("new/rust/README.md.in")),
    (".gitignore", include_str!("new/rust/gitignore.in")),
];

/// The sources of stepwell-sdk, by their paths in the project's `stepwell-sdk/`.
const SDK: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// Names whose route the data listener keeps for itself.
const RESERVED_ROUTES: [&str; 7] = [
    "assistants",
    "langserve",
    "monitoring",
    "pinecone",
    "runs",
    "threads",
    "v2",
];

/// Names of crates that every Rust program has already.
const RUST_CRATES: [&str; 7] = [
    "alloc",
    "core",
    "proc-macro",
    "serde",
    "std",
    "stepwell-sdk",
    "test",
];

/// Makes the project in a directory below the working one.
pub(crate) fn run(args: &NewArgs, json: bool) -> Result<()> {
    let name = plugin_name(&args.name)?;
    let Language::Rust = args.lang;
    let directory = PathBuf::from(name.as_str());
    create(&directory, &name)?;
    if json {
        output::json(&json!({"name": name.as_str(), "directory": directory}));
    } else {
        output::line(format!(
            "Made the plugin {name} in {name}/. It answers on the route /{name}; try it:\n\n  \
             cd {name}\n  \
             cargo test                                          # runs the step natively\n  \
             stepwell build\n  \
             stepwell plugin push target/stepwell/{name}.wasm    # with a host running: stepwell serve\n  \
             stepwell pipeline apply pipeline.yaml\n  \
             curl -d '{{\"name\": \"Ada\"}}' http://127.0.0.1:8080/{name}"
        ));
    }
    Ok(())
}

fn plugin_name(text: &str) -> Result<Name> {
    let Ok(name) = text.parse::<Name>() else {
        let hint = Name::suggest(text).map_or_else(String::new, |name| format!("; try '{name}'"));
        bail!(
            "'{text}' cannot be a plugin's name: it is a lower-case letter, then up to 62 lower-case letters, digits and \
             hyphens{hint}"
        );
    };
    if RUST_CRATES.contains(&name.as_str()) || name.as_str().ends_with('-') {
        bail!(
            "'{name}' cannot be the name of a Rust crate here; choose another one, such as '{}-step'",
            name.as_str().trim_end_matches('-')
        );
    }
    if RESERVED_ROUTES.contains(&name.as_str()) {
        bail!(
            "the host keeps the route /{name} for itself; choose another name, such as '{name}-step'"
        );
    }
    Ok(name)
}

fn create(directory: &Path, name: &Name) -> Result<()> {
    match fs::read_dir(directory) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                bail!(
                    "{}/ exists and is not empty; choose another name, or remove it first",
                    directory.display()
                );
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => bail!("cannot make {}/: {error}", directory.display()),
    }
    for (path, text) in TEMPLATE {
        write(
            &directory.join(path),
            &text.replace("{{name}}", name.as_str()),
        )?;
    }
    for (path, text) in SDK {
        write(&directory.join("stepwell-sdk").join(path), text)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_files_and_the_whole_sdk() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("hello");
        create(&directory, &"hello".parse().unwrap()).unwrap();
        let read = |path: &str| fs::read_to_string(directory.join(path)).unwrap();
        assert!(read("Cargo.toml").contains("name = \"hello\""));
        assert!(read("pipeline.yaml").contains("path: /hello"));
        for path in TEMPLATE.map(|(path, _)| path) {
            assert!(!read(path).contains("{{"), "{path}");
        }
        assert!(read("stepwell-sdk/Cargo.toml").contains("name = \"stepwell-sdk\""));
        assert!(read("stepwell-sdk/wit/pipeline/handler.wit").contains("process"));
        assert!(read("stepwell-sdk/macros/src/lib.rs").contains("proc_macro_attribute"));
    }

    #[test]
    fn every_wit_package_of_the_sdk_is_there() {
        let (_, bindings) = SDK
            .iter()
            .find(|(path, _)| *path == "src/guest.rs")
            .unwrap();
        let directories: Vec<_> = bindings
            .lines()
            .filter_map(|line| line.trim().strip_prefix("\"wit/")?.strip_suffix("\","))
            .collect();
        assert!(directories.len() >= 7, "{directories:?}");
        for directory in directories {
            let prefix = format!("wit/{directory}/");
            assert!(
                SDK.iter().any(|(path, _)| path.starts_with(&prefix)),
                "{prefix}"
            );
        }
    }

    #[test]
    fn only_an_empty_directory_is_taken() {
        let temporary = tempfile::tempdir().unwrap();
        let name: Name = "hello".parse().unwrap();
        let directory = temporary.path().join("empty");
        fs::create_dir(&directory).unwrap();
        create(&directory, &name).unwrap();
        let error = create(&directory, &name).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        let file = temporary.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(create(&file, &name).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn names_are_checked_and_better_ones_suggested() {
        assert_eq!(plugin_name("hello-2").unwrap().as_str(), "hello-2");
        for (wrong, expected) in [
            ("My_Plugin", "try 'my-plugin'"),
            ("../evil", "try 'evil'"),
            ("", "cannot be a plugin's name"),
            ("test", "test-step"),
            ("hello-", "hello-step"),
            ("runs", "/runs"),
        ] {
            let error = plugin_name(wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
