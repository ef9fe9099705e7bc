use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use stepwell_core::Digest;
use wasmtime::component::Component;

use crate::config::Flavor;

/// Compiled components on disk, by digest and by the compatibility of the engine that made them. The host is the only writer.
///
/// A file appears whole or not at all (temporary file, fsync, rename), and beside it lies its SHA-256. What cannot be read, does
/// not match its sum or is of another engine counts as missing: it is compiled again.
pub(crate) struct Cache {
    dir: PathBuf,
    /// What this process has checked already, or written itself.
    verified: Mutex<HashSet<Digest>>,
}

const TEMPORARY: &str = ".tmp-";

impl Cache {
    pub(crate) fn open(base: &Path, flavor: Flavor, engine: &wasmtime::Engine) -> io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let dir = base.join(format!("{}-{:016x}", flavor.as_str(), hasher.finish()));
        fs::create_dir_all(&dir)?;
        // Left behind by a process that was killed while it wrote.
        for entry in fs::read_dir(&dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self {
            dir,
            verified: Mutex::default(),
        })
    }

    /// Whether there is compiled code of this component for an engine of this flavour, be it of another release.
    pub(crate) fn holds(base: &Path, flavor: Flavor, digest: &Digest) -> bool {
        let (prefix, file) = (format!("{}-", flavor.as_str()), file_name(digest));
        fs::read_dir(base).is_ok_and(|directories| {
            directories.flatten().any(|directory| {
                directory.file_name().to_string_lossy().starts_with(&prefix)
                    && directory.path().join(&file).exists()
            })
        })
    }

    /// The compiled component, mapped into memory. Reads and hashes the whole file the first time: call it off the request's path.
    pub(crate) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        if !path.exists() {
            return None;
        }
        match self.verify(digest, &path).and_then(|()| map(engine, &path)) {
            Ok(component) => Some(component),
            Err(reason) => {
                tracing::warn!(%digest, reason, "a compiled component cannot be used, it is compiled again");
                self.remove(digest);
                None
            }
        }
    }

    /// Stores what this engine compiled.
    pub(crate) fn store(&self, digest: &Digest, compiled: &[u8]) -> io::Result<()> {
        // The sum goes first: a component without one counts as missing.
        self.write(&self.sum_path(digest), &Sha256::digest(compiled))?;
        self.write(&self.path(digest), compiled)?;
        fs::File::open(&self.dir)?.sync_all()?;
        self.lock().insert(*digest);
        Ok(())
    }

    pub(crate) fn remove(&self, digest: &Digest) {
        self.lock().remove(digest);
        let _ = fs::remove_file(self.path(digest));
        let _ = fs::remove_file(self.sum_path(digest));
    }

    fn verify(&self, digest: &Digest, path: &Path) -> Result<(), String> {
        if self.lock().contains(digest) {
            return Ok(());
        }
        let expected =
            fs::read(self.sum_path(digest)).map_err(|error| format!("its checksum: {error}"))?;
        let actual = sum(path).map_err(|error| error.to_string())?;
        if expected != actual {
            return Err("its checksum does not match".into());
        }
        self.lock().insert(*digest);
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(file_name(digest))
    }

    fn sum_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.sha256", digest.hex()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}.cwasm", digest.hex())
}

fn sum(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().to_vec()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

fn map(engine: &wasmtime::Engine, path: &Path) -> Result<Component, String> {
    #[allow(unsafe_code, reason = "there is no other way to load compiled code")]
    // SAFETY: the file is one that this host wrote: nobody else writes to the cache's directory, its checksum was compared with
    // the one stored beside it, and it is replaced by renaming alone, so the mapped bytes never change. wasmtime itself checks
    // that an engine with the same settings made it.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| format!("{error:#}"))
}

/// Loads what this process has just compiled, where it cannot be kept on disk.
pub(crate) fn from_memory(
    engine: &wasmtime::Engine,
    compiled: &[u8],
) -> wasmtime::Result<Component> {
    #[allow(unsafe_code, reason = "there is no other way to load compiled code")]
    // SAFETY: the bytes come straight from this engine's own compiler.
    unsafe {
        Component::deserialize(engine, compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Allocation, wasmtime_config};

    fn engine(flavor: Flavor) -> wasmtime::Engine {
        wasmtime::Engine::new(&wasmtime_config(flavor, Allocation::OnDemand)).unwrap()
    }

    fn compiled(engine: &wasmtime::Engine) -> (Digest, Vec<u8>) {
        let bytes = wat::parse_str(
            "(component (core module $m (func (export \"f\"))) (core instance (instantiate $m)))",
        )
        .unwrap();
        (
            Digest::of(&bytes),
            engine.precompile_component(&bytes).unwrap(),
        )
    }

    #[test]
    fn what_was_stored_is_loaded_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let (digest, code) = compiled(&engine);
        let cache = Cache::open(dir.path(), Flavor::Lean, &engine).unwrap();
        assert!(cache.load(&engine, &digest).is_none());
        cache.store(&digest, &code).unwrap();
        assert!(cache.load(&engine, &digest).is_some());
        let next = Cache::open(dir.path(), Flavor::Lean, &engine).unwrap();
        assert!(next.load(&engine, &digest).is_some());
        next.remove(&digest);
        assert!(next.load(&engine, &digest).is_none());
    }

    #[test]
    fn damaged_files_count_as_missing_and_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let (digest, code) = compiled(&engine);
        for damage in ["flip", "cut", "no sum", "empty"] {
            Cache::open(dir.path(), Flavor::Lean, &engine)
                .unwrap()
                .store(&digest, &code)
                .unwrap();
            let cache = Cache::open(dir.path(), Flavor::Lean, &engine).unwrap();
            let path = cache.path(&digest);
            match damage {
                "flip" => {
                    let mut bytes = code.clone();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
                "cut" => fs::write(&path, &code[..code.len() / 2]).unwrap(),
                "no sum" => fs::remove_file(cache.sum_path(&digest)).unwrap(),
                _ => fs::write(&path, b"").unwrap(),
            }
            assert!(cache.load(&engine, &digest).is_none(), "{damage}");
            assert!(!path.exists(), "{damage}");
        }
    }

    #[test]
    fn another_engines_code_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let (lean, concurrent) = (engine(Flavor::Lean), engine(Flavor::Concurrent));
        let (digest, code) = compiled(&concurrent);
        let cache = Cache::open(dir.path(), Flavor::Lean, &lean).unwrap();
        assert_ne!(
            cache.dir,
            Cache::open(dir.path(), Flavor::Concurrent, &concurrent)
                .unwrap()
                .dir
        );
        // Even where it lies in the wrong place with the right sum.
        cache.store(&digest, &code).unwrap();
        assert!(cache.load(&lean, &digest).is_none());
    }

    #[test]
    fn leftovers_of_a_killed_process_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let cache = Cache::open(dir.path(), Flavor::Lean, &engine).unwrap();
        let leftover = cache.dir.join(".tmp-abc");
        fs::write(&leftover, b"half").unwrap();
        Cache::open(dir.path(), Flavor::Lean, &engine).unwrap();
        assert!(!leftover.exists());
    }
}
