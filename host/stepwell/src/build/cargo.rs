//! What cargo says about a project, and cargo itself at work.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use super::toolchain::Toolchain;

/// The packages of a directory that are plugins.
pub(super) struct Project {
    manifest: PathBuf,
    /// Where cargo puts what it makes.
    pub(super) target_directory: PathBuf,
    plugins: Vec<Package>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Package {
    id: String,
    pub(super) name: String,
    pub(super) version: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Clone, Deserialize)]
struct Target {
    crate_types: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

/// A line of cargo's output.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        package_id: String,
        target: Target,
        filenames: Vec<PathBuf>,
    },
    #[serde(other)]
    Other,
}

impl Package {
    fn is_plugin(&self) -> bool {
        self.targets.iter().any(Target::is_cdylib)
    }
}

impl Target {
    fn is_cdylib(&self) -> bool {
        self.crate_types.iter().any(|kind| kind == "cdylib")
    }
}

impl Project {
    /// Asks cargo about the project in this directory.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let manifest = directory.join("Cargo.toml");
        if !manifest.is_file() {
            bail!(
                "{} has no Cargo.toml: run this in a plugin's project, or make one with 'stepwell new NAME'",
                directory.display()
            );
        }
        let manifest = manifest
            .canonicalize()
            .with_context(|| format!("cannot find {}", manifest.display()))?;
        let output = Command::new("cargo")
            .args([
                "metadata",
                "--no-deps",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(&manifest)
            .current_dir(directory)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo; install Rust from https://rustup.rs")?;
        if !output.status.success() {
            bail!(
                "cargo cannot read {}; it says why above",
                manifest.display()
            );
        }
        Self::parse(manifest, &output.stdout)
    }

    fn parse(manifest: PathBuf, metadata: &[u8]) -> Result<Self> {
        let metadata: Metadata =
            serde_json::from_slice(metadata).context("cannot read what 'cargo metadata' says")?;
        // A directory with a package of its own means that package; one with a workspace alone, all of its packages.
        let mut packages = metadata.packages;
        if packages
            .iter()
            .any(|package| package.manifest_path == manifest)
        {
            packages.retain(|package| package.manifest_path == manifest);
        }
        let (plugins, others): (Vec<_>, Vec<_>) =
            packages.into_iter().partition(Package::is_plugin);
        if plugins.is_empty() {
            let names: Vec<_> = others.iter().map(|package| package.name.as_str()).collect();
            bail!(
                "{} makes no component: no library of it ({}) is a cdylib; add this to the plugin's Cargo.toml:\n\n[lib]\n\
                 crate-type = [\"cdylib\", \"rlib\"]\n",
                manifest.display(),
                names.join(", ")
            );
        }
        Ok(Self {
            manifest,
            target_directory: metadata.target_directory,
            plugins,
        })
    }

    /// Runs cargo, whose progress and errors go to stderr, and gives the file that each package became.
    pub(super) fn build(&self, toolchain: &Toolchain) -> Result<Vec<(Package, PathBuf)>> {
        let mut command = toolchain.cargo();
        command
            .args([
                "--message-format=json-render-diagnostics",
                "--manifest-path",
            ])
            .arg(&self.manifest);
        for package in &self.plugins {
            command.args(["--package", &package.name]);
        }
        if let Some(directory) = self.manifest.parent() {
            command.current_dir(directory);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let mut artifacts = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line.context("cannot read cargo's output")?;
                // Lines that are no messages come from build scripts and mean nothing here.
                if let Ok(Message::CompilerArtifact {
                    package_id,
                    target,
                    filenames,
                }) = serde_json::from_str(&line)
                    && target.is_cdylib()
                {
                    artifacts.push((package_id, filenames));
                }
            }
        }
        let status = child.wait().context("cannot wait for cargo")?;
        if !status.success() {
            bail!("cargo could not build the plugin; it says why above");
        }
        self.plugins
            .iter()
            .map(|package| {
                let file = artifacts
                    .iter()
                    .filter(|(id, _)| *id == package.id)
                    .flat_map(|(_, files)| files)
                    .find(|file| {
                        file.extension()
                            .is_some_and(|extension| extension == "wasm")
                    });
                let file =
                    file.ok_or_else(|| anyhow!("cargo made no .wasm file of {}", package.name))?;
                Ok((package.clone(), file.clone()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn package(name: &str, crate_types: &[&str]) -> Value {
        json!({
            "id": name, "name": name, "version": "1.0.0", "manifest_path": format!("/p/{name}/Cargo.toml"),
            "targets": [{"crate_types": crate_types}, {"crate_types": ["bin"]}],
        })
    }

    fn parse(manifest: &str, packages: &[Value]) -> Result<Vec<String>> {
        let metadata = json!({"packages": packages, "target_directory": "/p/target"}).to_string();
        let project = Project::parse(manifest.into(), metadata.as_bytes())?;
        Ok(project
            .plugins
            .into_iter()
            .map(|package| package.name)
            .collect())
    }

    #[test]
    fn a_package_is_built_alone_and_a_workspace_whole() {
        let packages = [
            package("a", &["cdylib", "rlib"]),
            package("b", &["cdylib"]),
            package("c", &["lib"]),
        ];
        assert_eq!(parse("/p/b/Cargo.toml", &packages).unwrap(), ["b"]);
        assert_eq!(parse("/p/Cargo.toml", &packages).unwrap(), ["a", "b"]);
    }

    #[test]
    fn what_is_no_cdylib_is_refused_with_the_lines_to_add() {
        let packages = [package("a", &["cdylib"]), package("c", &["lib"])];
        for (manifest, packages) in [
            ("/p/c/Cargo.toml", packages.as_slice()),
            ("/p/Cargo.toml", &packages[1..]),
        ] {
            let error = parse(manifest, packages).unwrap_err().to_string();
            assert!(
                error.contains("crate-type = [\"cdylib\", \"rlib\"]"),
                "{error}"
            );
            assert!(error.contains("(c)"), "{error}");
        }
    }

    #[test]
    fn a_directory_without_a_project_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let error = Project::read(empty.path()).err().unwrap().to_string();
        assert!(error.contains("stepwell new"), "{error}");
    }
}
