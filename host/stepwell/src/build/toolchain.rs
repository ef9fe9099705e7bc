//! Finds a Rust that builds for wasm32-wasip2: the machine's own, with rustup fetching the target where it can, or Debian's.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Result, bail};
use clap::ValueEnum;

const TARGET: &str = "wasm32-wasip2";

/// Which toolchain to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The first that is there
    #[default]
    Auto,
    /// The machine's own, with rustup's target
    Rustup,
    /// Debian's rustc-web, which builds the standard library itself
    Debian,
}

/// A way to build guests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// `cargo` as it is, which has the target's standard library.
    Own,
    /// Debian's rustc and cargo.
    Debian {
        /// The directory with rust-lld and wasm-component-ld of some rustup toolchain.
        tools: PathBuf,
    },
}

/// Where Debian's packages put things.
struct Debian {
    bin: PathBuf,
    /// wasi-libc.
    libc: PathBuf,
}

impl Toolchain {
    /// The word in `--json`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Own => "rustup",
            Self::Debian { .. } => "debian",
        }
    }

    /// `cargo build` with all that this way needs.
    pub(super) fn cargo(&self) -> Command {
        let build = ["build", "--release", "--target", TARGET];
        let Self::Debian { tools } = self else {
            let mut command = Command::new("cargo");
            command.args(build);
            return command;
        };
        let debian = Debian::installed();
        let mut path = OsString::from(tools);
        for directory in [
            tools.join("gcc-ld").into_os_string(),
            env::var_os("PATH").unwrap_or_default(),
        ] {
            path.push(":");
            path.push(directory);
        }
        let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
        flags.push(" -C link-self-contained=no -L ");
        flags.push(&debian.libc);
        let mut command = Command::new(debian.bin.join("cargo"));
        command
            .args(build)
            .arg("-Zbuild-std=std,panic_abort")
            .env("PATH", path)
            .env("RUSTC", debian.bin.join("rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "CARGO_TARGET_WASM32_WASIP2_LINKER",
                tools.join("wasm-component-ld"),
            )
            .env("RUSTFLAGS", flags)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN");
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => write!(f, "the installed Rust and its target {TARGET}"),
            Self::Debian { .. } => write!(
                f,
                "Debian's Rust, which builds the standard library for {TARGET} from its sources"
            ),
        }
    }
}

/// Finds the toolchain for a project; rustup may fetch the target meanwhile.
pub(crate) fn find(choice: Choice, directory: &Path) -> Result<Toolchain> {
    let mut reasons = Vec::new();
    if choice != Choice::Debian {
        if has_target(directory) {
            return Ok(Toolchain::Own);
        }
        match add_target(directory) {
            Ok(()) if has_target(directory) => return Ok(Toolchain::Own),
            Ok(()) => reasons.push(format!("rustup added {TARGET}, but rustc does not find it")),
            Err(reason) => reasons.push(reason),
        }
    }
    if choice != Choice::Rustup {
        match Debian::installed().toolchain(directory) {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => reasons.push(reason),
        }
    }
    bail!(
        "nothing here builds for {TARGET}:\n  - {}\nInstall Rust from https://rustup.rs and run 'rustup target add {TARGET}', or on Debian\n  \
         apt-get install --no-install-recommends rustc-web cargo-web rust-web-src wasi-libc",
        reasons.join("\n  - ")
    );
}

/// Whether the rustc that is used in this directory has the target's standard library.
fn has_target(directory: &Path) -> bool {
    let libraries = print(
        Path::new("rustc"),
        &["--print", "target-libdir", "--target", TARGET],
        directory,
    );
    libraries.is_some_and(|libraries| has_std(Path::new(&libraries)))
}

fn has_std(libraries: &Path) -> bool {
    fs::read_dir(libraries).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    })
}

fn add_target(directory: &Path) -> Result<(), String> {
    super::note(&format!("asking rustup for the target {TARGET}"));
    let status = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(directory)
        .stdout(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("'rustup target add {TARGET}' failed")),
        Err(_) => Err(format!(
            "the installed Rust has no target {TARGET}, and there is no rustup to fetch it"
        )),
    }
}

impl Debian {
    fn installed() -> Self {
        Self {
            bin: PathBuf::from("/usr/bin"),
            libc: PathBuf::from("/usr/lib/wasm32-wasi"),
        }
    }

    /// This way, if all of its parts are there; else the first that is missing.
    fn toolchain(&self, directory: &Path) -> Result<Toolchain, String> {
        for (part, package) in [
            (self.bin.join("rustc"), "rustc-web"),
            (self.bin.join("cargo"), "cargo-web"),
            (self.libc.join("libc.a"), "wasi-libc"),
        ] {
            if !part.is_file() {
                return Err(format!(
                    "Debian's {package} is not installed ({} is missing)",
                    part.display()
                ));
            }
        }
        let sysroot = print(&self.bin.join("rustc"), &["--print", "sysroot"], directory)
            .ok_or_else(|| format!("{} does not run", self.bin.join("rustc").display()))?;
        if !Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/std")
            .is_dir()
        {
            return Err(format!(
                "Debian's rust-web-src is not installed ({sysroot} has no library sources)"
            ));
        }
        let tools = toolchain_directories(directory)
            .into_iter()
            .chain([PathBuf::from(sysroot)])
            .find_map(|toolchain| linkers(&toolchain))
            .ok_or("wasm-component-ld is missing: any Rust toolchain of rustup has it")?;
        Ok(Toolchain::Debian { tools })
    }
}

/// The toolchain in use, then all others of rustup.
fn toolchain_directories(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = print(Path::new("rustc"), &["--print", "sysroot"], directory)
        .map(PathBuf::from)
        .into_iter()
        .collect();
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    if let Some(entries) = rustup.and_then(|rustup| fs::read_dir(rustup.join("toolchains")).ok()) {
        found.extend(entries.flatten().map(|entry| entry.path()));
    }
    found
}

/// The directory of a toolchain that has both linkers.
fn linkers(toolchain: &Path) -> Option<PathBuf> {
    let hosts = fs::read_dir(toolchain.join("lib/rustlib")).ok()?;
    hosts
        .flatten()
        .map(|host| host.path().join("bin"))
        .find(|bin| bin.join("wasm-component-ld").is_file() && bin.join("gcc-ld/wasm-ld").exists())
}

fn print(program: &Path, arguments: &[&str], directory: &Path) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_part_of_debian_is_named_with_its_package() {
        let root = tempfile::tempdir().unwrap();
        let debian = Debian {
            bin: root.path().join("bin"),
            libc: root.path().join("lib"),
        };
        let reason = || debian.toolchain(root.path()).unwrap_err();
        assert!(reason().contains("rustc-web"));
        fs::create_dir_all(&debian.bin).unwrap();
        fs::write(debian.bin.join("rustc"), "").unwrap();
        assert!(reason().contains("cargo-web"));
        fs::write(debian.bin.join("cargo"), "").unwrap();
        assert!(reason().contains("wasi-libc"));
        fs::create_dir_all(&debian.libc).unwrap();
        fs::write(debian.libc.join("libc.a"), "").unwrap();
        assert!(reason().contains("does not run"));
    }

    #[test]
    fn a_target_is_there_when_its_standard_library_is() {
        let libraries = tempfile::tempdir().unwrap();
        assert!(!has_std(libraries.path()));
        assert!(!has_std(&libraries.path().join("none")));
        fs::write(libraries.path().join("libstd-0123.rlib"), "").unwrap();
        assert!(has_std(libraries.path()));
    }

    #[test]
    fn debians_cargo_gets_its_compiler_linker_and_flags() {
        let tools = PathBuf::from("/tools");
        let command = Toolchain::Debian { tools }.cargo();
        let value = |name: &str| {
            let (_, value) = command.get_envs().find(|(key, _)| *key == name)?;
            Some(value?.to_string_lossy().into_owned())
        };
        assert_eq!(command.get_program(), "/usr/bin/cargo");
        assert_eq!(value("RUSTC").unwrap(), "/usr/bin/rustc");
        assert_eq!(
            value("CARGO_TARGET_WASM32_WASIP2_LINKER").unwrap(),
            "/tools/wasm-component-ld"
        );
        assert!(value("PATH").unwrap().starts_with("/tools:/tools/gcc-ld:"));
        assert!(
            value("RUSTFLAGS")
                .unwrap()
                .ends_with("-C link-self-contained=no -L /usr/lib/wasm32-wasi")
        );
        assert!(
            command
                .get_args()
                .any(|argument| argument == "-Zbuild-std=std,panic_abort")
        );
    }
}
