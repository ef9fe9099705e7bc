use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What installs libtensorflow.
pub const INSTALL_COMMAND: &str = "deploy/setup.sh tensorflow";

/// The file that is opened. The framework library must be beside it.
const FILE: &str = "libtensorflow.so";

/// Where `deploy/setup.sh` puts it, within the cache directory.
const CACHED: &str = "libtensorflow-2.21.0";

/// The variable by which the `tensorflow` crate is told a directory; it takes no argument.
const DIRECTORY_VARIABLE: &str = "TENSORFLOW_DIR";

/// `models.library`: where libtensorflow is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LibraryConfig {
    /// `auto`: looked for in `STEPWELL_TENSORFLOW`, `TENSORFLOW_DIR`, the cache directory, beside the executable (`lib/`),
    /// then where the system keeps libraries.
    #[default]
    Auto,
    /// This file, or `libtensorflow.so` in this directory, and nowhere else.
    Path(PathBuf),
}

/// There is no libtensorflow. The message is for everybody; where it was looked for is for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("libtensorflow not found: install it with '{INSTALL_COMMAND}'")]
pub struct LibraryNotFound {
    /// The places, in order.
    pub looked_in: Vec<PathBuf>,
}

impl LibraryConfig {
    /// The directory that holds `libtensorflow.so`, without loading it.
    ///
    /// # Errors
    /// [`LibraryNotFound`].
    pub fn find(&self) -> Result<PathBuf, LibraryNotFound> {
        let looked_in = self.candidates();
        let found = looked_in
            .iter()
            .find(|directory| directory.join(FILE).is_file())
            .cloned();
        let system = || match self {
            Self::Auto => tensorflow::library::find()?.parent().map(Path::to_owned),
            Self::Path(_) => None,
        };
        found.or_else(system).ok_or(LibraryNotFound { looked_in })
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let directory_of = |path: PathBuf| match path.file_name() {
            Some(name) if name == FILE => path.parent().map(Path::to_owned).unwrap_or_default(),
            _ => path,
        };
        let variable = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        match self {
            Self::Path(path) => vec![directory_of(path.clone())],
            Self::Auto => {
                let cache = variable("STEPWELL_CACHE")
                    .or_else(|| Some(variable("HOME")?.join(".cache/stepwell")))
                    .map(|cache| cache.join(CACHED));
                let beside = std::env::current_exe()
                    .ok()
                    .and_then(|executable| Some(executable.parent()?.join("lib")));
                [
                    variable("STEPWELL_TENSORFLOW").map(directory_of),
                    variable(DIRECTORY_VARIABLE),
                    cache,
                    beside,
                ]
                .into_iter()
                .flatten()
                .collect()
            }
        }
    }
}

/// The proof that libtensorflow is loaded in this process. It stays loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Library(());

/// libtensorflow cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(transparent)]
    NotFound(#[from] LibraryNotFound),
    /// It is there, but does not load; says why, with paths.
    #[error("libtensorflow cannot be loaded: {0}")]
    Broken(String),
}

/// What this process has done about the library so far.
static PROCESS: Mutex<Process> = Mutex::new(Process {
    directory: None,
    loaded: false,
});

struct Process {
    directory: Option<PathBuf>,
    loaded: bool,
}

impl Library {
    /// Tells the `tensorflow` crate where the library is, or where it is expected. Call it early: it sets environment
    /// variables, once unless the library is later found elsewhere.
    pub(crate) fn point_at(config: &LibraryConfig) {
        let (directory, there) = match config.find() {
            Ok(directory) => (Some(directory), true),
            Err(missing) => (missing.looked_in.into_iter().next(), false),
        };
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = process.loaded || (process.directory.is_some() && !there);
        if settled || process.directory == directory {
            return;
        }
        if let Some(path) = &directory {
            #[allow(
                unsafe_code,
                reason = "the crate takes the directory from the environment only"
            )]
            // SAFETY: readers in Rust share the standard library's lock with this. Readers in C do not, which is why hosts
            // call this from `Models::start`, before they start threads that read the environment.
            unsafe {
                if std::env::var_os("TF_CPP_MIN_LOG_LEVEL").is_none() {
                    // Its notices are no part of the host's log.
                    std::env::set_var("TF_CPP_MIN_LOG_LEVEL", "2");
                }
                std::env::set_var(DIRECTORY_VARIABLE, path);
            }
        }
        process.directory = directory;
    }

    /// Loads the library unless this process has it already. Takes a second or two.
    ///
    /// # Errors
    /// [`LibraryError`]; trying again later is allowed.
    pub(crate) fn load(config: &LibraryConfig) -> Result<Self, LibraryError> {
        config.find()?;
        Self::point_at(config);
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if !process.loaded {
            tensorflow::library::load().map_err(LibraryError::Broken)?;
            process.loaded = true;
        }
        Ok(Self(()))
    }

    /// The version of the library that is loaded.
    pub(crate) fn version(self) -> String {
        tensorflow::version().unwrap_or_else(|_| "unknown".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_path_is_the_only_place() {
        let directory = tempfile::tempdir().unwrap();
        let config = LibraryConfig::Path(directory.path().into());
        let missing = config.find().unwrap_err();
        assert_eq!(missing.looked_in, [directory.path()]);
        assert_eq!(
            missing.to_string(),
            "libtensorflow not found: install it with 'deploy/setup.sh tensorflow'"
        );
        std::fs::write(directory.path().join(FILE), b"").unwrap();
        assert_eq!(config.find().unwrap(), directory.path());
        let file = LibraryConfig::Path(directory.path().join(FILE));
        assert_eq!(file.find().unwrap(), directory.path());
    }
}
