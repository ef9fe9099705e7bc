//! Compiling, caching and loading.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use stepwell_core::Digest;
use stepwell_engine::{Engine, EngineConfig, LoadError};

use crate::support::{State, guest, host};

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
        .compile(digest, bytes.clone())
        .await
        .unwrap();
    assert!(!report.cached && report.compile_time > Duration::ZERO);
    // The next process.
    let engine = engine(dir.path());
    let plugin = engine.load(digest, never()).await.unwrap();
    assert_eq!(plugin.world().to_string(), "stepwell:pipeline/step@0.1.0");
    let report = engine.compile(digest, bytes).await.unwrap();
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
        .compile(digest, bytes.clone())
        .await
        .unwrap();
    let path = file(dir.path(), "cwasm");
    let mut code = std::fs::read(&path).unwrap();
    let middle = code.len() / 2;
    code[middle] ^= 0xff;
    std::fs::write(&path, &code).unwrap();
    let report = engine(dir.path()).compile(digest, bytes).await.unwrap();
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
        .compile(digest, Bytes::from(guest("hostile.wasm")))
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
    let error = engine.compile(Digest::of(&bytes), bytes).await.unwrap_err();
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
    std::fs::remove_dir(&place).unwrap();
    std::fs::write(&place, b"a file where the directory was").unwrap();
    let bytes = Bytes::from(guest("hostile.wasm"));
    let report = engine.compile(Digest::of(&bytes), bytes).await.unwrap();
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
