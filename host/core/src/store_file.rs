use std::path::{Path, PathBuf};

use crate::{BindingKind, ByteSize};

/// The largest file of an embedded store unless its binding says otherwise.
pub const STORE_SIZE: u64 = 1 << 30;

/// Bytes that the log beside a store's file keeps once it was moved into the file.
pub const LOG_AT_REST: u64 = 16 << 20;

/// Free bytes of a disk below which it is full.
const NO_ROOM: u64 = 1 << 20;

/// The SQLite file of an embedded store, and how large it may become.
#[derive(Clone, Debug)]
pub struct StoreFile {
    /// What the binding is for.
    pub kind: BindingKind,
    /// The operator's name for it.
    pub binding: String,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that it may have.
    pub max_size: u64,
}

impl StoreFile {
    /// The pages that the file may have, of this size: as many as it has already, if those are more. With less, SQLite would not
    /// use again what becomes free behind them.
    pub fn pages(&self, page_size: u64, already: u64) -> u64 {
        (self.max_size / page_size.max(1)).max(already).max(1)
    }

    /// Why something could not be written for which there was no room, as the guest is told; none: the disk is full.
    pub fn full(&self) -> Option<String> {
        (free(&self.path)? >= NO_ROOM).then(|| {
            format!(
                "the store is full: the binding '{name}' may have {size}; delete something, or have the operator raise bindings.{kind}.{name}.max_size",
                name = self.binding,
                size = ByteSize(self.max_size),
                kind = self.kind,
            )
        })
    }

    /// Bytes of the log beside the file, in which writes are until they are moved into it.
    pub fn log_size(&self) -> u64 {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        std::fs::metadata(log).map_or(0, |log| log.len())
    }

    /// Whether the log has become as large as the file may be: SQLite begins it anew only while nobody reads from it.
    pub fn log_is_full(&self) -> bool {
        self.log_size() > self.max_size.max(LOG_AT_REST)
    }
}

/// Bytes that are free where this file is.
fn free(path: &Path) -> Option<u64> {
    let of = rustix::fs::statvfs(path).ok()?;
    Some(of.f_bavail.saturating_mul(of.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_says_which_and_how_to_mend_it() {
        let directory = std::env::temp_dir();
        let mut store = StoreFile {
            kind: BindingKind::Keyvalue,
            binding: "main".to_owned(),
            path: directory,
            max_size: 3 << 20,
        };
        let why = store.full().unwrap();
        assert!(why.contains("'main' may have 3MiB"), "{why}");
        assert!(why.contains("bindings.keyvalue.main.max_size"), "{why}");
        assert_eq!(store.pages(4096, 12), 768);
        assert_eq!(store.pages(4096, 1000), 1000);
        assert_eq!(store.pages(1 << 30, 0), 1);
        // Nothing is known of what is not there.
        store.path = "/nowhere/at/all".into();
        assert_eq!(store.full(), None);
        assert_eq!(store.log_size(), 0);
    }
}
