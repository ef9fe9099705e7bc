//! Compiling, caching and loading.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::{Blame, Digest, ErrorKind};
use stepwell_engine::{Engine, EngineConfig, Fetch, LoadError};

use crate::support::{State, event, generous, guest, host, soon};

fn engine(dir: &Path) -> Engine<State> {
    let mut config = EngineConfig::new(dir);
    config.instances = 10;
    Engine::new(config, |_| Ok(())).unwrap()
}

async fn never() -> Result<Bytes, String> {
    Err("the bytes must not be needed".to_owned())
}

fn file(dir: &Path, extension: &str) -> PathBuf {
    walk(dir)
        .into_iter()
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .unwrap()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[tokio::test]
async fn a_component_is_compiled_once_and_then_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Bytes::from(guest("hostile.wasm"));
    let digest = Digest::of(&bytes);
    let report = engine(dir.path())
        .compile("default", digest, bytes.clone())
        .await
        .unwrap();
    assert!(!report.cached && report.compile_time > Duration::ZERO);
    // The next process.
    let engine = engine(dir.path());
    let plugin = engine.load(digest, never()).await.unwrap();
    assert_eq!(plugin.world().to_string(), "stepwell:pipeline/step@0.1.0");
    let report = engine.compile("default", digest, bytes).await.unwrap();
    assert!(report.cached);
    engine.forget(&digest);
    drop(plugin);
    let error = engine.load(digest, never()).await.unwrap_err();
    assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn damaged_code_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Bytes::from(guest("hostile.wasm"));
    let digest = Digest::of(&bytes);
    engine(dir.path())
        .compile("default", digest, bytes.clone())
        .await
        .unwrap();
    let path = file(dir.path(), "cwasm");
    let mut code = std::fs::read(&path).unwrap();
    let middle = code.len() / 2;
    code[middle] ^= 0xff;
    std::fs::write(&path, &code).unwrap();
    let report = engine(dir.path())
        .compile("default", digest, bytes)
        .await
        .unwrap();
    assert!(!report.cached);
    assert_ne!(std::fs::read(&path).unwrap(), code);
    engine(dir.path()).load(digest, never()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_compile_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let bytes = Bytes::from(guest("hostile.wasm"));
    let digest = Digest::of(&bytes);
    let loads: Vec<_> = (0..16)
        .map(|_| {
            let (engine, bytes) = (engine.clone(), bytes.clone());
            tokio::spawn(async move {
                engine
                    .load(digest, async move { Ok::<_, String>(bytes) })
                    .await
                    .unwrap()
            })
        })
        .collect();
    let mut plugins = Vec::new();
    for load in loads {
        plugins.push(load.await.unwrap());
    }
    assert!(
        plugins
            .iter()
            .all(|plugin| std::sync::Arc::ptr_eq(plugin, &plugins[0]))
    );
}

#[tokio::test]
async fn other_bytes_than_the_digests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let digest = Digest::of(b"something else");
    let error = engine
        .compile("default", digest, Bytes::from(guest("hostile.wasm")))
        .await
        .unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(&digest.to_string()), "{error}");
}

#[tokio::test]
async fn compiling_ends_with_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.instances = 10;
    config.compile_timeout = Duration::from_millis(1);
    let engine = Engine::<State>::new(config, |_| Ok(())).unwrap();
    let bytes = Bytes::from(guest("hostile.wasm"));
    let error = engine
        .compile("default", Digest::of(&bytes), bytes)
        .await
        .unwrap_err();
    assert!(matches!(error, LoadError::TooSlow { .. }), "{error}");
    assert!(
        error.to_string().contains("1ms") && error.to_string().contains("limits.compile"),
        "{error}"
    );
}

#[tokio::test]
async fn what_cannot_be_kept_is_run_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let place = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, b"a file where the directory was").unwrap();
    let bytes = Bytes::from(guest("hostile.wasm"));
    let report = engine
        .compile("default", Digest::of(&bytes), bytes)
        .await
        .unwrap();
    assert!(!report.cached);
}

#[tokio::test]
async fn inspecting_and_loading_agree() {
    let host = host();
    for (name, world) in [
        ("hostile.wasm", "stepwell:pipeline/step@0.1.0"),
        ("hostile-http.wasm", "wasi:http/proxy@0.2.12"),
        ("clocks.wasm", "stepwell:pipeline/step@0.1.0"),
        ("service.wasm", "wasi:http/service@0.3.0"),
    ] {
        let bytes = guest(name);
        let inspection = host.engine.inspect(&bytes).unwrap();
        assert_eq!(inspection.world.to_string(), world);
        assert!(
            inspection
                .imports
                .iter()
                .any(|import| import.starts_with("wasi:io/"))
        );
        let plugin = host.plugin(bytes).await;
        assert_eq!(*plugin.world(), inspection.world);
    }
}

fn variant(name: &str) -> Bytes {
    // A custom section changes the digest and nothing else.
    let mut bytes = guest("echo.wasm");
    bytes.extend([
        0,
        1 + u8::try_from(name.len()).unwrap(),
        u8::try_from(name.len()).unwrap(),
    ]);
    bytes.extend(name.as_bytes());
    Bytes::from(bytes)
}

/// Gives the bytes of components and counts how often.
fn store(components: &[Bytes]) -> (Fetch, Arc<AtomicUsize>) {
    let components: HashMap<Digest, Bytes> = components
        .iter()
        .map(|bytes| (Digest::of(bytes), bytes.clone()))
        .collect();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = fetched.clone();
    let fetch: Fetch = Arc::new(move |digest| {
        let (bytes, count) = (components.get(&digest).cloned(), count.clone());
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
            bytes.ok_or_else(|| "it is gone".to_owned())
        })
    });
    (fetch, fetched)
}

#[tokio::test]
async fn the_components_used_least_make_room_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.instances = 10;
    config.loaded_components = 2;
    let engine = Engine::<State>::new(config, |_| Ok(())).unwrap();
    let components = ["a", "b", "c"].map(variant);
    let (fetch, fetched) = store(&components);
    let handles = components
        .each_ref()
        .map(|bytes| engine.handle(Digest::of(bytes), fetch.clone()));
    assert_eq!(
        fetched.load(Ordering::Relaxed),
        0,
        "nothing is loaded before it is called"
    );
    let mut seen = Vec::new();
    for index in [0, 1, 0, 2] {
        seen.push(Arc::downgrade(&handles[index].get(soon()).await.unwrap()));
    }
    assert_eq!(fetched.load(Ordering::Relaxed), 3);
    let alive = [&seen[0], &seen[1], &seen[3]].map(|plugin| plugin.strong_count() > 0);
    assert_eq!(
        alive,
        [true, false, true],
        "the second was used least lately"
    );
    // A call under way keeps what it uses.
    let in_use = handles[1].get(soon()).await.unwrap();
    handles[0].get(soon()).await.unwrap();
    handles[2].get(soon()).await.unwrap();
    let state = host().state();
    let events = in_use
        .process(state, generous(), soon(), event("x"))
        .await
        .unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        fetched.load(Ordering::Relaxed),
        3,
        "compiled code was mapped again"
    );
    drop(handles);
    assert_eq!(
        seen.iter()
            .filter(|plugin| plugin.strong_count() > 0)
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_components_are_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.instances = 10;
    config.loaded_components = 2;
    let engine = Engine::<State>::new(config, |_| Ok(())).unwrap();
    let components: Vec<Bytes> = ["a", "b", "c", "d", "e"].map(variant).to_vec();
    let (fetch, fetched) = store(&components);
    for bytes in &components {
        engine
            .compile("default", Digest::of(bytes), bytes.clone())
            .await
            .unwrap();
    }
    let host = Arc::new(host());
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let handles: Vec<_> = components
                .iter()
                .map(|bytes| engine.handle(Digest::of(bytes), fetch.clone()))
                .collect();
            let host = host.clone();
            tokio::spawn(async move {
                for round in 0..50 {
                    let handle = &handles[(caller + round) % handles.len()];
                    let plugin = handle.get(soon()).await.unwrap();
                    host.call(&plugin, generous(), "x").await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(
        fetched.load(Ordering::Relaxed),
        0,
        "nothing was compiled again"
    );
}

#[tokio::test]
async fn damaged_code_is_compiled_again_while_its_first_caller_waits() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = variant("a");
    let digest = Digest::of(&bytes);
    engine(dir.path())
        .compile("default", digest, bytes.clone())
        .await
        .unwrap();
    std::fs::write(file(dir.path(), "cwasm"), b"rubbish").unwrap();
    let engine = engine(dir.path());
    let (fetch, fetched) = store(&[bytes]);
    let handle = engine.handle(digest, fetch);
    let past = handle.get(Instant::now()).await.unwrap_err();
    assert_eq!((past.kind, past.blame), (ErrorKind::Timeout, Blame::Host));
    handle.get(soon()).await.unwrap();
    assert_eq!(fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_component_that_cannot_be_had_says_so_to_each_caller_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = variant("a");
    let digest = Digest::of(&bytes);
    let engine = engine(dir.path());
    let (nowhere, _) = store(&[]);
    let handle = engine.handle(digest, nowhere.clone());
    for _ in 0..2 {
        let error = handle.get(soon()).await.unwrap_err();
        assert_eq!(
            (error.kind, error.blame),
            (ErrorKind::Unavailable, Blame::Host)
        );
        assert!(error.message.contains("it is gone"), "{error}");
    }
    let error = engine.prepare(digest, &nowhere).await.unwrap_err();
    assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
    engine.compile("default", digest, bytes).await.unwrap();
    handle.get(soon()).await.unwrap();
}

#[tokio::test]
async fn what_is_prepared_needs_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = variant("a");
    let digest = Digest::of(&bytes);
    let (fetch, fetched) = store(&[bytes]);
    engine(dir.path()).prepare(digest, &fetch).await.unwrap();
    assert_eq!(fetched.load(Ordering::Relaxed), 1, "compiled ahead");
    let next = engine(dir.path());
    next.prepare(digest, &fetch).await.unwrap();
    next.handle(digest, fetch).get(soon()).await.unwrap();
    assert_eq!(fetched.load(Ordering::Relaxed), 1, "mapped");
}
