use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use wasmtime::CacheStore;

/// Compiled functions of large components, so that the second one of a language is not compiled from nothing: nearly all of it
/// is the language's own engine.
///
/// Each compilation leaves the functions that were new in one file, a pack, which appears whole and is never changed. Every
/// function carries a checksum: one that is damaged counts as missing. Packs that have not been of use for longest go first when
/// all together grow too large.
pub(crate) struct Functions(Arc<Store>);

/// Bytes of all packs.
const MOST_BYTES: u64 = 1 << 30;
/// Packs that are looked into.
const MOST_PACKS: usize = 64;

const EXTENSION: &str = "functions";
const MAGIC: &[u8; 16] = b"stepwell funcs 1";
/// Key, offset, length, checksum.
const ENTRY: usize = 32 + 8 + 4 + 16;
/// Magic, number of entries, their checksum.
const TRAILER: usize = 16 + 8 + 32;

type Key = [u8; 32];

struct Store {
    dir: PathBuf,
    packs: Vec<Pack>,
    new: Mutex<HashMap<Key, Vec<u8>>>,
}

struct Pack {
    file: File,
    path: PathBuf,
    entries: HashMap<Key, Entry>,
    used: AtomicBool,
}

#[derive(Clone, Copy)]
struct Entry {
    offset: u64,
    length: u32,
    check: [u8; 16],
}

impl Functions {
    /// Opens what former compilations have left in a directory. What cannot be read is as if it were not there.
    pub(crate) fn open(dir: &Path) -> Self {
        let mut packs = Vec::new();
        for (path, _, _) in by_age(dir).into_iter().rev().take(MOST_PACKS) {
            match Pack::open(&path) {
                Ok(pack) => packs.push(pack),
                // Nobody but this host writes here, so it is damaged, or of another version.
                Err(_) => drop(fs::remove_file(&path)),
            }
        }
        Self(Arc::new(Store {
            dir: dir.to_owned(),
            packs,
            new: Mutex::default(),
        }))
    }

    /// What the compiler asks.
    pub(crate) fn store(&self) -> Arc<dyn CacheStore> {
        self.0.clone()
    }

    /// Keeps what was new for the next compilation. Where that is not possible, nothing is lost but time.
    pub(crate) fn keep(&self) {
        let store = &self.0;
        for pack in &store.packs {
            if pack.used.load(Ordering::Relaxed) {
                let _ = pack.file.set_modified(SystemTime::now());
            }
        }
        let new = std::mem::take(&mut *store.new());
        if !new.is_empty() {
            let _ = write(&store.dir, &new);
        }
        prune(&store.dir, MOST_BYTES);
    }
}

impl Store {
    fn new(&self) -> MutexGuard<'_, HashMap<Key, Vec<u8>>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Functions").finish_non_exhaustive()
    }
}

impl CacheStore for Store {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        let key = Key::try_from(key).ok()?;
        self.packs
            .iter()
            .find_map(|pack| pack.read(&key))
            .map(Cow::Owned)
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let Ok(key) = Key::try_from(key) else {
            return false;
        };
        self.new().insert(key, value);
        true
    }
}

impl Pack {
    fn open(path: &Path) -> io::Result<Self> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let mut trailer = [0; TRAILER];
        let end = size.checked_sub(TRAILER as u64).ok_or_else(damaged)?;
        file.read_exact_at(&mut trailer, end)?;
        let (magic, rest) = trailer.split_first_chunk::<16>().ok_or_else(damaged)?;
        let (count, sum) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let length = usize::try_from(u64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(ENTRY))
            .filter(|length| *length as u64 <= end)
            .ok_or_else(damaged)?;
        let data = end - length as u64;
        let mut index = vec![0; length];
        file.read_exact_at(&mut index, data)?;
        if magic != MAGIC || *Sha256::digest(&index) != *sum {
            return Err(damaged());
        }
        let entries = index
            .chunks_exact(ENTRY)
            .map(|entry| parse(entry).ok_or_else(damaged))
            .collect::<io::Result<HashMap<_, _>>>()?;
        if entries
            .values()
            .any(|entry| entry.offset.saturating_add(u64::from(entry.length)) > data)
        {
            return Err(damaged());
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            entries,
            used: AtomicBool::new(false),
        })
    }

    fn read(&self, key: &Key) -> Option<Vec<u8>> {
        let entry = self.entries.get(key)?;
        let mut value = vec![0; entry.length as usize];
        self.file.read_exact_at(&mut value, entry.offset).ok()?;
        if check(&value) != entry.check {
            // The next compilation does without the whole of it.
            let _ = fs::remove_file(&self.path);
            return None;
        }
        self.used.store(true, Ordering::Relaxed);
        Some(value)
    }
}

fn parse(entry: &[u8]) -> Option<(Key, Entry)> {
    let (key, rest) = entry.split_first_chunk::<32>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (length, check) = rest.split_first_chunk::<4>()?;
    let entry = Entry {
        offset: u64::from_le_bytes(*offset),
        length: u32::from_le_bytes(*length),
        check: check.try_into().ok()?,
    };
    Some((*key, entry))
}

fn check(value: &[u8]) -> [u8; 16] {
    let mut check = [0; 16];
    for (to, from) in check.iter_mut().zip(Sha256::digest(value)) {
        *to = from;
    }
    check
}

fn write(dir: &Path, new: &HashMap<Key, Vec<u8>>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir)?;
    let mut writer = BufWriter::new(file.as_file_mut());
    let mut index = Vec::with_capacity(new.len() * ENTRY);
    let mut offset = 0u64;
    for (key, value) in new {
        let Ok(length) = u32::try_from(value.len()) else {
            continue;
        };
        writer.write_all(value)?;
        index.extend_from_slice(key);
        index.extend_from_slice(&offset.to_le_bytes());
        index.extend_from_slice(&length.to_le_bytes());
        index.extend_from_slice(&check(value));
        offset += u64::from(length);
    }
    let sum = Sha256::digest(&index);
    writer.write_all(&index)?;
    writer.write_all(MAGIC)?;
    writer.write_all(&((index.len() / ENTRY) as u64).to_le_bytes())?;
    writer.write_all(&sum)?;
    writer.flush()?;
    drop(writer);
    file.persist(dir.join(format!("{}.{EXTENSION}", hex::encode(sum))))?;
    Ok(())
}

/// Packs with their sizes, the one that was not used for longest first.
fn by_age(dir: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut packs: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let metadata = entry.metadata().ok()?;
            let used = metadata.modified().ok()?;
            (path.extension()? == EXTENSION).then_some((path, metadata.len(), used))
        })
        .collect();
    packs.sort_by_key(|(_, _, used)| *used);
    packs
}

fn prune(dir: &Path, most: u64) {
    let packs = by_age(dir);
    let mut total: u64 = packs.iter().map(|(_, size, _)| size).sum();
    for (path, size, _) in packs {
        if total <= most {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total = total.saturating_sub(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(dir: &Path, key: u8) -> Option<Vec<u8>> {
        let functions = Functions::open(dir);
        functions.0.get(&[key; 32]).map(Cow::into_owned)
    }

    fn put(dir: &Path, values: &[(u8, &[u8])]) {
        let functions = Functions::open(dir);
        for (key, value) in values {
            assert!(functions.0.insert(&[*key; 32], value.to_vec()));
        }
        functions.keep();
    }

    fn packs(dir: &Path) -> Vec<PathBuf> {
        by_age(dir).into_iter().map(|(path, _, _)| path).collect()
    }

    #[test]
    fn what_one_compilation_keeps_the_next_finds() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/when/needed");
        assert_eq!(get(&dir, 1), None);
        put(&dir, &[(1, b"one"), (2, b"")]);
        put(&dir, &[(3, b"three")]);
        assert_eq!(packs(&dir).len(), 2);
        for (key, value) in [(1, &b"one"[..]), (2, b""), (3, b"three")] {
            assert_eq!(get(&dir, key).as_deref(), Some(value));
        }
        assert_eq!(get(&dir, 4), None);
        let functions = Functions::open(&dir);
        assert!(functions.0.get(b"no key").is_none());
        assert!(!functions.0.insert(b"no key", Vec::new()));
    }

    #[test]
    fn damaged_packs_count_as_missing_and_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 6] = [
            ("a function", |bytes| bytes[1] ^= 1),
            ("the index", |bytes| bytes[5] ^= 1),
            ("the magic", |bytes| {
                let at = bytes.len() - TRAILER;
                bytes[at] ^= 1;
            }),
            ("the count", |bytes| {
                let at = bytes.len() - TRAILER + 16;
                bytes[at..at + 8].fill(0xff);
            }),
            ("the length", |bytes| bytes.truncate(bytes.len() / 2)),
            ("everything", Vec::clear),
        ];
        for (what, damage) in damages {
            put(dir, &[(1, b"one")]);
            assert_eq!(get(dir, 1).as_deref(), Some(&b"one"[..]), "{what}");
            let path = packs(dir).remove(0);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(get(dir, 1), None, "{what}");
            assert!(packs(dir).is_empty(), "{what}");
        }
    }

    #[test]
    fn the_packs_of_no_use_for_longest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let hour = std::time::Duration::from_secs(3600);
        for key in [1, 2, 3] {
            put(dir, &[(key, &[key; 1000])]);
            // Each older than the one before it.
            for path in packs(dir) {
                let file = File::options().write(true).open(path).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                file.set_modified(before - hour).unwrap();
            }
        }
        // Of use again.
        let functions = Functions::open(dir);
        assert!(functions.0.get(&[1; 32]).is_some());
        functions.keep();
        prune(dir, 2500);
        assert_eq!(get(dir, 2), None);
        assert!(get(dir, 1).is_some() && get(dir, 3).is_some());
    }
}
