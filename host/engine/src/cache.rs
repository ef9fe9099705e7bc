use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::counter;
use sha2::{Digest as _, Sha256};
use stepwell_core::Digest;
use wasmtime::component::Component;

use crate::config::Flavor;

/// Compiled components on disk, by digest and by the compatibility of the engine that made them. The host is the only writer.
///
/// Beside each file lies its SHA-256. What cannot be read, does not match its sum or is of another engine counts as missing: it
/// is compiled again. That is why nothing here is synchronised to the disk: what a crash takes or tears is noticed.
pub(crate) struct Cache {
    dir: PathBuf,
    /// What this process has checked already, or written itself.
    verified: Mutex<HashSet<Digest>>,
    /// Of all files together, about; unknown until they have been counted.
    bytes: AtomicU64,
    most_bytes: u64,
}

/// Files that are being written, in a directory of their own: what a process left there when it was killed goes as a whole.
const UNFINISHED: &str = "unfinished";
const CODE: &str = "cwasm";
const SUM: &str = "sha256";
/// How long the compiled code of another version of this program is kept after its last use.
const OTHER_VERSIONS: Duration = Duration::from_secs(7 * 24 * 3600);

/// What engines that run the same code have in common.
pub(crate) fn fingerprint(engine: &wasmtime::Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Cache {
    pub(crate) fn open(
        base: &Path,
        flavor: Flavor,
        engine: &wasmtime::Engine,
        most_bytes: u64,
    ) -> io::Result<Self> {
        let dir = base.join(format!("{}-{}", flavor.as_str(), fingerprint(engine)));
        let unfinished = dir.join(UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&unfinished)?,
        }
        Ok(Self {
            dir,
            verified: Mutex::default(),
            bytes: AtomicU64::new(0),
            most_bytes,
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

    /// The compiled component, mapped into memory. Reads and hashes the whole file the first time, unless that was done ahead.
    pub(crate) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        if !path.exists() {
            return None;
        }
        match self.verify(digest, &path).and_then(|()| map(engine, &path)) {
            Ok(component) => {
                touch(&path);
                Some(component)
            }
            Err(reason) => {
                self.discard(digest, &reason);
                None
            }
        }
    }

    /// Whether the compiled component was found to be sound.
    pub(crate) fn is_verified(&self, digest: &Digest) -> bool {
        self.lock().contains(digest)
    }

    /// Checks the compiled component ahead of its first use; answers whether it is there and sound.
    pub(crate) fn verify_now(&self, digest: &Digest) -> bool {
        let path = self.path(digest);
        if !path.exists() {
            return false;
        }
        match self.verify(digest, &path) {
            Ok(()) => true,
            Err(reason) => {
                self.discard(digest, &reason);
                false
            }
        }
    }

    /// Stores what this engine compiled.
    pub(crate) fn store(&self, digest: &Digest, compiled: &[u8]) -> io::Result<()> {
        // The sum goes first: a component without one counts as missing.
        self.write(&self.sum_path(digest), &Sha256::digest(compiled))?;
        self.write(&self.path(digest), compiled)?;
        self.lock().insert(*digest);
        let size = compiled.len() as u64;
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > self.most_bytes {
            self.prune();
        }
        Ok(())
    }

    pub(crate) fn remove(&self, digest: &Digest) {
        self.lock().remove(digest);
        let _ = fs::remove_file(self.path(digest));
        let _ = fs::remove_file(self.sum_path(digest));
    }

    /// Drops what other versions of this program have left, and what there is too much of. It takes a while where there is much:
    /// call it once, after the start.
    pub(crate) fn tidy(&self) {
        touch(&self.dir);
        let own = self.dir.file_name();
        let others = self.dir.parent().map(fs::read_dir);
        for other in others.into_iter().flatten().flatten().flatten() {
            let unused = other.metadata().and_then(|metadata| metadata.modified());
            let old =
                unused.is_ok_and(|used| used.elapsed().is_ok_and(|unused| unused > OTHER_VERSIONS));
            if Some(other.file_name().as_os_str()) != own && is_ours(&other.path()) && old {
                tracing::info!(directory = ?other.file_name(), "dropping code that another version of this program compiled");
                let _ = fs::remove_dir_all(other.path());
            }
        }
        self.prune();
    }

    /// Drops the components that were not loaded for longest until a tenth of the room is free, if there are too many. One that
    /// is called again is compiled again.
    fn prune(&self) {
        let mut files: Vec<(SystemTime, u64, Digest)> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let path = entry.path();
                let metadata = entry.metadata().ok()?;
                let digest = format!("sha256:{}", path.file_stem()?.to_str()?);
                let is_code = path.extension()? == CODE;
                let file = (
                    metadata.modified().ok()?,
                    metadata.len(),
                    digest.parse().ok()?,
                );
                is_code.then_some(file)
            })
            .collect();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        if total > self.most_bytes {
            files.sort_by_key(|(used, ..)| *used);
            let enough = self.most_bytes / 10 * 9;
            let mut count = 0u64;
            for (_, size, digest) in files {
                if total <= enough {
                    break;
                }
                self.remove(&digest);
                total = total.saturating_sub(size);
                count += 1;
            }
            tracing::info!(
                components = count,
                "the cache of compiled code was full; the setting is limits.cache"
            );
            counter!("stepwell_compile_cache_dropped_total").increment(count);
        }
        self.bytes.store(total, Ordering::Relaxed);
    }

    fn discard(&self, digest: &Digest, reason: &str) {
        tracing::warn!(%digest, reason, "a compiled component cannot be used, it is compiled again");
        self.remove(digest);
    }

    fn verify(&self, digest: &Digest, path: &Path) -> Result<(), String> {
        if self.is_verified(digest) {
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
        let mut file = tempfile::NamedTempFile::new_in(self.dir.join(UNFINISHED))?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(file_name(digest))
    }

    fn sum_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.{SUM}", digest.hex()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a directory is one of those that [`Cache::open`] makes.
fn is_ours(dir: &Path) -> bool {
    dir.join(UNFINISHED).is_dir()
}

/// Remembers that something was used now.
fn touch(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
    let at = |nanoseconds| Timespec {
        tv_sec: 0,
        tv_nsec: nanoseconds,
    };
    let now = Timestamps {
        last_access: at(UTIME_OMIT),
        last_modification: at(UTIME_NOW),
    };
    // Without it, the component is merely taken for older than it is.
    let _ = utimensat(CWD, path, &now, AtFlags::empty());
}

fn file_name(digest: &Digest) -> String {
    format!("{}.{CODE}", digest.hex())
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

    fn open(dir: &Path, engine: &wasmtime::Engine) -> Cache {
        Cache::open(dir, Flavor::Lean, engine, u64::MAX).unwrap()
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
        let cache = open(dir.path(), &engine);
        assert!(cache.load(&engine, &digest).is_none());
        cache.store(&digest, &code).unwrap();
        assert!(cache.load(&engine, &digest).is_some());
        let next = open(dir.path(), &engine);
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
            open(dir.path(), &engine).store(&digest, &code).unwrap();
            let cache = open(dir.path(), &engine);
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
        let cache = open(dir.path(), &lean);
        assert_ne!(
            cache.dir,
            Cache::open(dir.path(), Flavor::Concurrent, &concurrent, 0)
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
        let cache = open(dir.path(), &engine);
        let leftover = cache.dir.join(UNFINISHED).join("half");
        fs::write(&leftover, b"half").unwrap();
        open(dir.path(), &engine);
        assert!(!leftover.exists());
    }

    #[test]
    fn what_was_checked_ahead_is_not_checked_again() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let (digest, code) = compiled(&engine);
        assert!(!open(dir.path(), &engine).verify_now(&digest));
        open(dir.path(), &engine).store(&digest, &code).unwrap();
        let cache = open(dir.path(), &engine);
        assert!(!cache.is_verified(&digest));
        assert!(cache.verify_now(&digest) && cache.is_verified(&digest));
        fs::remove_file(cache.sum_path(&digest)).unwrap();
        assert!(cache.load(&engine, &digest).is_some());
        let next = open(dir.path(), &engine);
        assert!(!next.verify_now(&digest));
        assert!(!next.path(&digest).exists());
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let (_, code) = compiled(&engine);
        let most = code.len() as u64 * 5 / 2;
        let cache = Cache::open(dir.path(), Flavor::Lean, &engine, most).unwrap();
        let digests = [b"a", b"b", b"c"].map(|name| Digest::of(name));
        for (age, digest) in [3, 2].into_iter().zip(&digests) {
            cache.store(digest, &code).unwrap();
            let file = fs::File::options().write(true).open(cache.path(digest));
            let then = SystemTime::now() - Duration::from_secs(age * 3600);
            file.unwrap().set_modified(then).unwrap();
        }
        // The older one is of use again.
        assert!(cache.load(&engine, &digests[0]).is_some());
        cache.store(&digests[2], &code).unwrap();
        let there = digests.map(|digest| cache.load(&engine, &digest).is_some());
        assert_eq!(there, [true, false, true]);
        assert!(!cache.is_verified(&digests[1]) && !cache.sum_path(&digests[1]).exists());
    }

    #[test]
    fn code_of_other_versions_goes_when_it_was_not_used_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(Flavor::Lean);
        let cache = open(dir.path(), &engine);
        let other = |name: &str, days: u64, ours: bool| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.join(if ours { UNFINISHED } else { "theirs" })).unwrap();
            let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
            fs::File::open(&path).unwrap().set_modified(then).unwrap();
            path
        };
        let (recent, old) = (other("lean-1", 6, true), other("lean-2", 8, true));
        let foreign = other("something-else", 100, false);
        let then = SystemTime::now() - Duration::from_secs(100 * 24 * 3600);
        fs::File::open(&cache.dir)
            .unwrap()
            .set_modified(then)
            .unwrap();
        cache.tidy();
        assert!(cache.dir.exists() && recent.exists() && foreign.exists());
        assert!(!old.exists());
    }
}
