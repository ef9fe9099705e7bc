//! `stepwell build`: a Rust project into components that know their name and version.

mod cargo;
pub(crate) mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use stepwell_core::{ByteSize, Name};
use wasm_metadata::{AddMetadata, AddMetadataField, Version};

use crate::output;
use toolchain::Choice;

/// Options of `build`.
#[derive(Args, Debug)]
pub(crate) struct BuildArgs {
    /// Directory of the project, or of a workspace with several
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Which Rust to build with: this machine's own with the target wasm32-wasip2, Debian's with the standard library's sources, or
    /// the first of them that is there
    #[arg(long, value_enum, default_value_t)]
    pub(crate) toolchain: Choice,
}

/// A component that was built.
struct Component {
    name: Name,
    version: String,
    path: PathBuf,
    size: u64,
}

/// Builds every component of the project. They are written to `stepwell/` in cargo's target directory: `DIR/target`, or where `CARGO_TARGET_DIR`
/// or cargo's configuration put it.
pub(crate) fn run(args: &BuildArgs, json: bool) -> Result<()> {
    let project = cargo::Project::read(&args.dir)?;
    let toolchain = toolchain::find(args.toolchain, &args.dir)?;
    note(&format!("building with {toolchain}"));
    let built = project.build(&toolchain)?;

    let directory = project.target_directory.join("stepwell");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let components = built
        .into_iter()
        .map(|(package, artifact)| finish(&package, &artifact, &directory))
        .collect::<Result<Vec<_>>>()?;
    if json {
        let components: Vec<_> = components
            .iter()
            .map(|c| json!({"name": c.name.as_str(), "version": c.version, "path": c.path, "size": c.size}))
            .collect();
        output::json(&json!({"toolchain": toolchain.name(), "components": components}));
        return Ok(());
    }
    for Component {
        name,
        version,
        path,
        size,
    } in &components
    {
        output::line(format!(
            "{name}@{version}  {}  {}",
            ByteSize(*size),
            path.display()
        ));
    }
    Ok(())
}

/// Writes the artifact with its name and version to where components lie.
fn finish(package: &cargo::Package, artifact: &Path, directory: &Path) -> Result<Component> {
    let name = component_name(&package.name)?;
    let bytes =
        fs::read(artifact).with_context(|| format!("cannot read {}", artifact.display()))?;
    let bytes = embed(&bytes, &name, &package.version)?;
    let path = directory.join(format!("{name}.wasm"));
    let partial = directory.join(format!(".{name}.wasm.{}", std::process::id()));
    fs::write(&partial, &bytes)
        .and_then(|()| fs::rename(&partial, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Component {
        name,
        version: package.version.clone(),
        path,
        size: bytes.len() as u64,
    })
}

/// The component with its name and version in its metadata, where `plugin push` looks for them.
fn embed(component: &[u8], name: &Name, version: &str) -> Result<Vec<u8>> {
    if component.get(..8) != Some(b"\0asm\x0d\0\x01\0") {
        bail!(
            "the linker made no component of {name}; is the toolchain's wasm-component-ld in use?"
        );
    }
    let mut metadata = AddMetadata::default();
    metadata.name = AddMetadataField::Set(name.to_string());
    metadata.version = AddMetadataField::Set(Version::new(version.to_owned()));
    metadata
        .to_wasm(component)
        .with_context(|| format!("cannot write name and version into the component {name}"))
}

/// The plugin's name for a package: the same, or the nearest that Stepwell allows.
fn component_name(package: &str) -> Result<Name> {
    if let Ok(name) = package.parse() {
        return Ok(name);
    }
    let name = Name::suggest(package).with_context(|| {
        format!(
            "the package's name '{package}' cannot be turned into a plugin's; rename the package"
        )
    })?;
    note(&format!(
        "the package '{package}' becomes the plugin '{name}': plugins' names have lower-case letters, digits and hyphens"
    ));
    Ok(name)
}

fn note(text: &str) {
    eprintln!("stepwell: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn name_and_version_can_be_read_back() {
        let name: Name = "hello".parse().unwrap();
        let once = embed(EMPTY_COMPONENT, &name, "0.9.0").unwrap();
        // A component that has a name and a version already gets the new ones.
        for bytes in [EMPTY_COMPONENT, &once] {
            let bytes = embed(bytes, &name, "1.2.3-rc.1+build").unwrap();
            let payload = wasm_metadata::Payload::from_binary(&bytes).unwrap();
            let metadata = payload.metadata();
            assert_eq!(metadata.name.as_deref(), Some("hello"));
            assert_eq!(
                metadata.version.as_ref().unwrap().to_string(),
                "1.2.3-rc.1+build"
            );
        }
    }

    #[test]
    fn a_core_module_is_no_component() {
        let name: Name = "hello".parse().unwrap();
        for bytes in [b"\0asm\x01\0\0\0".as_slice(), b"", b"\x7fELF"] {
            assert!(
                embed(bytes, &name, "1.0.0")
                    .unwrap_err()
                    .to_string()
                    .contains("no component")
            );
        }
    }

    #[test]
    fn packages_names_become_plugins_names() {
        assert_eq!(component_name("hello-2").unwrap().as_str(), "hello-2");
        assert_eq!(component_name("My_Plugin").unwrap().as_str(), "my-plugin");
        assert!(component_name("__").is_err());
    }
}
