use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::counter;
use sha2::{Digest as _, Sha256};
use stepwell_core::Digest;
use wasmtime::component::Component;

use crate::config::Flavor;
use crate::inspect::ASYNC_INSTANCES;

/// Compiled components on disk, by digest and by the compatibility of the engine that made them. The host is the only writer.
///
/// Beside each file lies its SHA-256, and what else is to be known of it.
/// What does not match its sum or is of another engine is dropped and compiled again. That is
/// why nothing here is synchronised to the disk: what a crash takes or tears is noticed. What merely cannot be read now stays.
pub(crate) struct Cache {
    dir: PathBuf,
    flavor: Flavor,
    shelf: Arc<Shelf>,
}

/// What the caches of both engines share: their room, and what is known of what they hold.
pub(crate) struct Shelf {
    base: PathBuf,
    /// What this process has checked already, or written itself.
    verified: Mutex<HashSet<(Flavor, Digest)>>,
    /// Of all files together, about; unknown until they have been counted.
    bytes: AtomicU64,
    most_bytes: u64,
}

/// Why compiled code is not loaded.
enum Unusable {
    Missing,
    /// It is damaged, or another engine's: it never will be of use.
    Unsound(String),
    /// Reading it failed, as it does when the process has too many files open. It may be sound.
    Unreadable(String),
}

/// Files that are being written, in a directory of their own: what a process left there when it was killed goes as a whole.
const UNFINISHED: &str = "unfinished";
const CODE: &str = "cwasm";
const SUM: &str = "sha256";
/// Of the sum itself, at the beginning of its file.
const SUM_BYTES: usize = 32;
/// How long the compiled code of another version of this program is kept after its last use.
const OTHER_VERSIONS: Duration = Duration::from_secs(7 * 24 * 3600);

/// What engines that run the same code have in common.
pub(crate) fn fingerprint(engine: &wasmtime::Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Shelf {
    pub(crate) fn new(base: &Path, most_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            base: base.to_owned(),
            verified: Mutex::default(),
            bytes: AtomicU64::new(0),
            most_bytes,
        })
    }

    /// Drops the components that were not loaded for longest until a tenth of the room is free, if there are too many: of both
    /// engines, and of other versions of this program. One that is called again is compiled again.
    fn prune(&self) {
        let mut files: Vec<(SystemTime, u64, PathBuf, Digest)> = own_directories(&self.base)
            .flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten())
            .filter_map(|entry| {
                let path = entry.path();
                let metadata = entry.metadata().ok()?;
                let digest = format!("sha256:{}", path.file_stem()?.to_str()?);
                let is_code = path.extension()? == CODE;
                let digest = digest.parse().ok()?;
                is_code.then_some((metadata.modified().ok()?, metadata.len(), path, digest))
            })
            .collect();
        let mut total: u64 = files.iter().map(|(_, size, ..)| size).sum();
        if total > self.most_bytes {
            files.sort_by_key(|(used, ..)| *used);
            let enough = self.most_bytes / 10 * 9;
            let mut count = 0u64;
            for (_, size, path, digest) in files {
                if total <= enough {
                    break;
                }
                // Whichever engine's it was; what is there nevertheless is merely checked once more.
                self.unverified(&digest);
                remove(&path);
                remove(&path.with_extension(SUM));
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

    fn unverified(&self, digest: &Digest) {
        let mut verified = self.lock();
        for flavor in [Flavor::Lean, Flavor::Concurrent] {
            verified.remove(&(flavor, *digest));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(Flavor, Digest)>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    pub(crate) fn open(
        shelf: &Arc<Shelf>,
        flavor: Flavor,
        engine: &wasmtime::Engine,
    ) -> io::Result<Self> {
        let name = format!("{}-{}", flavor.as_str(), fingerprint(engine));
        let dir = shelf.base.join(name);
        let unfinished = dir.join(UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&unfinished)?,
        }
        Ok(Self {
            dir,
            flavor,
            shelf: shelf.clone(),
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
        let loaded = self.verify(digest, &path).and_then(|()| map(engine, &path));
        loaded
            .inspect(|_| touch(&path))
            .map_err(|unusable| self.put_by(digest, &unusable))
            .ok()
    }

    /// How many stacks an instance may take, as [`Cache::store`] was told; as many as there can be where that is not known.
    pub(crate) fn stacks(&self, digest: &Digest) -> u32 {
        let written = fs::read(self.sum_path(digest)).unwrap_or_default();
        let stacks = written
            .get(SUM_BYTES..)
            .and_then(|rest| <[u8; 4]>::try_from(rest).ok());
        stacks.map_or(ASYNC_INSTANCES, u32::from_le_bytes)
    }

    /// Whether the compiled component was found to be sound.
    pub(crate) fn is_verified(&self, digest: &Digest) -> bool {
        self.shelf.lock().contains(&(self.flavor, *digest))
    }

    /// Checks the compiled component ahead of its first use; answers whether it is there and sound.
    pub(crate) fn verify_now(&self, digest: &Digest) -> bool {
        self.verify(digest, &self.path(digest))
            .map_err(|unusable| self.put_by(digest, &unusable))
            .is_ok()
    }

    /// Stores what this engine compiled, and how many stacks each of its instances may take.
    pub(crate) fn store(&self, digest: &Digest, compiled: &[u8], stacks: u32) -> io::Result<()> {
        let mut sum = Sha256::digest(compiled).to_vec();
        sum.extend(stacks.to_le_bytes());
        // The sum goes first: a component without one counts as missing.
        let stored = self
            .write(&self.sum_path(digest), &sum)
            .and_then(|()| self.write(&self.path(digest), compiled));
        if let Err(error) = stored {
            failed("write");
            return Err(error);
        }
        self.shelf.lock().insert((self.flavor, *digest));
        let size = compiled.len() as u64;
        let shelf = &self.shelf;
        if shelf.bytes.fetch_add(size, Ordering::Relaxed) + size > shelf.most_bytes {
            shelf.prune();
        }
        Ok(())
    }

    pub(crate) fn remove(&self, digest: &Digest) {
        self.shelf.lock().remove(&(self.flavor, *digest));
        remove(&self.path(digest));
        remove(&self.sum_path(digest));
    }

    /// Drops what other versions of this program have left, and what there is too much of. It takes a while where there is much:
    /// call it once, after the start.
    pub(crate) fn tidy(&self) {
        touch(&self.dir);
        let own = self.dir.file_name();
        for other in own_directories(&self.shelf.base) {
            let unused = other.metadata().and_then(|metadata| metadata.modified());
            let old =
                unused.is_ok_and(|used| used.elapsed().is_ok_and(|unused| unused > OTHER_VERSIONS));
            if Some(other.file_name().as_os_str()) != own && old {
                tracing::info!(directory = ?other.file_name(), "dropping code that another version of this program compiled");
                let _ = fs::remove_dir_all(other.path());
            }
        }
        self.shelf.prune();
    }

    /// Does about unusable code what has to be done.
    fn put_by(&self, digest: &Digest, unusable: &Unusable) {
        match unusable {
            Unusable::Missing => {
                self.shelf.lock().remove(&(self.flavor, *digest));
            }
            Unusable::Unsound(reason) => {
                tracing::warn!(%digest, reason, "a compiled component cannot be used, it is compiled again");
                self.remove(digest);
            }
            Unusable::Unreadable(reason) => {
                tracing::warn!(%digest, reason, "a compiled component cannot be read now");
                failed("read");
            }
        }
    }

    fn verify(&self, digest: &Digest, path: &Path) -> Result<(), Unusable> {
        expect_file(path)?;
        if self.is_verified(digest) {
            return Ok(());
        }
        let sum_path = self.sum_path(digest);
        let expected = match expect_file(&sum_path) {
            Err(Unusable::Missing) => {
                return Err(Unusable::Unsound("its checksum is missing".into()));
            }
            found => found.and_then(|()| fs::read(sum_path).map_err(Unusable::from))?,
        };
        if expected.get(..SUM_BYTES) != Some(sum(path)?.as_slice()) {
            return Err(Unusable::Unsound("its checksum does not match".into()));
        }
        self.shelf.lock().insert((self.flavor, *digest));
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.dir.join(UNFINISHED);
        let file = tempfile::NamedTempFile::new_in(&unfinished).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // Somebody made room by removing the directory: it is this host's to make.
            fs::create_dir_all(&unfinished)?;
            tempfile::NamedTempFile::new_in(&unfinished)
        });
        let mut file = file?;
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
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

/// Nothing but a file is opened: a pipe would wait for its writer.
fn expect_file(path: &Path) -> Result<(), Unusable> {
    if fs::metadata(path)?.is_file() {
        return Ok(());
    }
    Err(Unusable::Unsound(format!(
        "{} is no file",
        path.file_name().unwrap_or_default().display()
    )))
}

/// Removes what lies in a file's place, whatever it is.
fn remove(path: &Path) {
    if fs::remove_file(path).is_err_and(|error| error.kind() == io::ErrorKind::IsADirectory) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Counts what the disk, or the kernel, did not let the cache do.
fn failed(operation: &'static str) {
    counter!("stepwell_compile_cache_failures_total", "operation" => operation).increment(1);
}

/// The directories that [`Cache::open`] has made, of this version of the program and of others.
fn own_directories(base: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let all = fs::read_dir(base).into_iter().flatten().flatten();
    all.filter(|dir| is_ours(&dir.path()))
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

fn map(engine: &wasmtime::Engine, path: &Path) -> Result<Component, Unusable> {
    #[allow(unsafe_code, reason = "there is no other way to load compiled code")]
    // SAFETY: the file is one that this host wrote: nobody else writes to the cache's directory, its checksum was compared with
    // the one stored beside it, and it is replaced by renaming alone, so the mapped bytes never change. wasmtime itself checks
    // that an engine with the same settings made it.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| {
        let system = |cause: &(dyn std::error::Error + 'static)| {
            cause.is::<io::Error>() || cause.is::<rustix::io::Errno>()
        };
        let reason = format!("{error:#}");
        if error.chain().any(system) {
            Unusable::Unreadable(reason)
        } else {
            Unusable::Unsound(reason)
        }
    })
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
mod tests;
