//! What a compiler learns of the calls beside it.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::Digest;
use stepwell_engine::CompileBy;

use crate::support::{generous, guest, host_with};

/// Writes down what precedes the component, whenever that has changed, until it is killed.
fn writing_down(path: &Path) -> CompileBy {
    let script = format!(
        "while sleep 0.01; do
            now=$(od -An -tu1 -N1 /proc/self/fd/0)
            [ \"$now\" = \"$last\" ] || echo $now >> '{}'
            last=$now
        done",
        path.display()
    );
    CompileBy::Program {
        path: "/bin/sh".into(),
        arguments: ["-c", &script].map(OsString::from).to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_told_when_guests_are_called_and_when_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let shared = |compile_by| {
        host_with(|config| {
            config.cache_dir = dir.path().join("cache");
            config.compile_by = compile_by;
        })
    };
    let hostile = guest("hostile.wasm");
    shared(CompileBy::InProcess).plugin(hostile.clone()).await;
    let host = shared(writing_down(&said));
    let plugin = host.plugin(hostile).await;

    let unknown = Bytes::from(guest("echo.wasm"));
    let digest = Digest::of(&unknown);
    let compiler = tokio::spawn({
        let engine = host.engine.clone();
        async move { engine.compile("default", digest, unknown).await }
    });
    let is_said = async |expected: &str| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let now = std::fs::read_to_string(&said).unwrap_or_default();
            if now.split_whitespace().last() == Some(expected) {
                return now;
            }
            assert!(Instant::now() < end, "{now:?}, and not {expected}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    is_said("0").await;
    let call = host.call(&plugin, generous(), "sleep:2000");
    let (call, _) = tokio::join!(call, is_said("1"));
    call.unwrap();
    is_said("0").await;
    compiler.abort();
}
