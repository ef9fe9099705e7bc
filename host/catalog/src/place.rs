//! The file that an SQLite catalog is in.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::CatalogError;

/// Where the file is, and which one it was when it was opened. A file that is removed lives on without a name as long as it is
/// open: changes would be acknowledged, and lost at the next start.
pub(crate) struct Place {
    path: PathBuf,
    known: OnceLock<Identity>,
}

/// Device and number.
type Identity = (u64, u64);

impl Place {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            known: OnceLock::new(),
        }
    }

    /// Remembers the file that is there now; only the first call counts.
    pub(crate) fn remember(&self) {
        if let Some(identity) = identity(&self.path) {
            self.known.get_or_init(|| identity);
        }
    }

    /// Whether it is still there.
    pub(crate) fn check(&self) -> Result<(), CatalogError> {
        let Some(known) = self.known.get() else {
            return Ok(());
        };
        if identity(&self.path) == Some(*known) {
            return Ok(());
        }
        let reason = "its file was removed or replaced while the host runs: stop the host, put the file in its place, and start it again";
        Err(CatalogError::unavailable(reason))
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn identity(_path: &Path) -> Option<Identity> {
    None
}
