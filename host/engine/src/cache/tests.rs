use super::*;
use crate::config::{Allocation, wasmtime_config};

fn engine(flavor: Flavor) -> wasmtime::Engine {
    wasmtime::Engine::new(&wasmtime_config(flavor, Allocation::OnDemand)).unwrap()
}

fn open(dir: &Path, engine: &wasmtime::Engine) -> Cache {
    Cache::open(&Shelf::new(dir, u64::MAX), Flavor::Lean, engine).unwrap()
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
    cache.store(&digest, &code, 3).unwrap();
    assert!(cache.load(&engine, &digest).is_some());
    let next = open(dir.path(), &engine);
    assert!(next.load(&engine, &digest).is_some());
    assert_eq!(next.stacks(&digest), 3);
    // As former versions wrote it.
    fs::write(next.sum_path(&digest), Sha256::digest(&code)).unwrap();
    assert!(open(dir.path(), &engine).load(&engine, &digest).is_some());
    assert_eq!(next.stacks(&digest), ASYNC_INSTANCES);
    next.remove(&digest);
    assert!(next.load(&engine, &digest).is_none());
}

#[test]
fn damaged_files_count_as_missing_and_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(Flavor::Lean);
    let (digest, code) = compiled(&engine);
    for damage in [
        "flip",
        "cut",
        "no sum",
        "empty",
        "directory",
        "pipe",
        "sum is a pipe",
    ] {
        open(dir.path(), &engine).store(&digest, &code, 1).unwrap();
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
            "directory" => {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                fs::write(path.join("x"), b"x").unwrap();
            }
            "pipe" => make_pipe(&path),
            "sum is a pipe" => make_pipe(&cache.sum_path(&digest)),
            _ => fs::write(&path, b"").unwrap(),
        }
        assert!(cache.load(&engine, &digest).is_none(), "{damage}");
        assert!(!path.exists(), "{damage}");
        assert!(!cache.sum_path(&digest).exists(), "{damage}");
    }
}

/// A named pipe in a file's place, which nobody ever writes to.
fn make_pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    fs::remove_file(path).unwrap();
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn what_cannot_be_read_just_now_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(Flavor::Lean);
    let (digest, code) = compiled(&engine);
    open(dir.path(), &engine).store(&digest, &code, 1).unwrap();
    let cache = open(dir.path(), &engine);
    // Too many files are open, or whatever else keeps a sound file from being read.
    cache.put_by(&digest, &io::Error::from_raw_os_error(24).into());
    assert!(cache.load(&engine, &digest).is_some());
    // Nobody may resolve a link that leads to itself, not even root: both files are there and cannot be opened.
    for path in [cache.path(&digest), cache.sum_path(&digest)] {
        let sound = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let next = open(dir.path(), &engine);
        assert!(next.load(&engine, &digest).is_none() && !next.verify_now(&digest));
        assert!(fs::symlink_metadata(&path).is_ok(), "it is still there");
        fs::remove_file(&path).unwrap();
        fs::write(&path, sound).unwrap();
    }
    let next = open(dir.path(), &engine);
    assert!(next.load(&engine, &digest).is_some());
}

#[test]
fn a_cache_whose_directory_was_removed_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(Flavor::Lean);
    let (digest, code) = compiled(&engine);
    let cache = open(&dir.path().join("cache"), &engine);
    cache.store(&digest, &code, 1).unwrap();
    fs::remove_dir_all(dir.path().join("cache")).unwrap();
    assert!(cache.load(&engine, &digest).is_none());
    assert!(!cache.is_verified(&digest), "it is not there any more");
    cache.store(&digest, &code, 1).unwrap();
    assert!(cache.load(&engine, &digest).is_some());
}

#[test]
fn both_engines_share_the_room() {
    let dir = tempfile::tempdir().unwrap();
    let engines = [Flavor::Lean, Flavor::Concurrent].map(|flavor| (flavor, engine(flavor)));
    let (_, code) = compiled(&engines[0].1);
    let shelf = Shelf::new(dir.path(), code.len() as u64 * 5 / 2);
    let [lean, concurrent] =
        engines.map(|(flavor, engine)| Cache::open(&shelf, flavor, &engine).unwrap());
    let digests = [b"a", b"b", b"c"].map(|name| Digest::of(name));
    lean.store(&digests[0], &code, 1).unwrap();
    let then = SystemTime::now() - Duration::from_secs(3600);
    let file = fs::File::options().write(true).open(lean.path(&digests[0]));
    file.unwrap().set_modified(then).unwrap();
    for digest in &digests[1..] {
        concurrent.store(digest, &code, 1).unwrap();
    }
    assert!(!lean.path(&digests[0]).exists() && !lean.is_verified(&digests[0]));
    assert!(
        digests[1..]
            .iter()
            .all(|digest| concurrent.path(digest).exists())
    );
}

#[test]
fn another_engines_code_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (lean, concurrent) = (engine(Flavor::Lean), engine(Flavor::Concurrent));
    let (digest, code) = compiled(&concurrent);
    let cache = open(dir.path(), &lean);
    assert_ne!(
        cache.dir,
        Cache::open(&cache.shelf, Flavor::Concurrent, &concurrent)
            .unwrap()
            .dir
    );
    // Even where it lies in the wrong place with the right sum.
    cache.store(&digest, &code, 1).unwrap();
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
    open(dir.path(), &engine).store(&digest, &code, 1).unwrap();
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
    let shelf = Shelf::new(dir.path(), most);
    let cache = Cache::open(&shelf, Flavor::Lean, &engine).unwrap();
    let digests = [b"a", b"b", b"c"].map(|name| Digest::of(name));
    for (age, digest) in [3, 2].into_iter().zip(&digests) {
        cache.store(digest, &code, 1).unwrap();
        let file = fs::File::options().write(true).open(cache.path(digest));
        let then = SystemTime::now() - Duration::from_secs(age * 3600);
        file.unwrap().set_modified(then).unwrap();
    }
    // The older one is of use again.
    assert!(cache.load(&engine, &digests[0]).is_some());
    cache.store(&digests[2], &code, 1).unwrap();
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
