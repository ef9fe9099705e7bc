//! Compiling in a process of its own. This program is that process too: it runs itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test code"
)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::Digest;
use stepwell_engine::{
    CompileBy, Engine, EngineConfig, LoadError, StoreBase, StoreState, compile_worker,
};

struct State(StoreBase);

impl StoreState for State {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments
        .next_if(|first| first == "compile-worker")
        .is_some()
    {
        return compile_worker(arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        code_compiled_there_runs_here().await;
        println!("code_compiled_there_runs_here ... ok");
        what_the_compiler_refuses_is_said_as_in_process().await;
        println!("what_the_compiler_refuses_is_said_as_in_process ... ok");
        a_compiler_that_takes_too_long_is_killed_and_its_slot_comes_back().await;
        println!("a_compiler_that_takes_too_long_is_killed_and_its_slot_comes_back ... ok");
        one_that_takes_too_much_memory_ends_alone().await;
        println!("one_that_takes_too_much_memory_ends_alone ... ok");
        one_that_crashes_ends_alone().await;
        println!("one_that_crashes_ends_alone ... ok");
        as_many_wait_as_may_and_the_rest_is_told().await;
        println!("as_many_wait_as_may_and_the_rest_is_told ... ok");
        the_functions_of_a_large_component_are_kept().await;
        println!("the_functions_of_a_large_component_are_kept ... ok");
        an_engine_of_another_build_is_refused().await;
        println!("an_engine_of_another_build_is_refused ... ok");
    });
    ExitCode::SUCCESS
}

fn config(dir: &Path) -> EngineConfig {
    EngineConfig {
        instances: 10,
        compile_concurrency: 1,
        compile_by: CompileBy::Program {
            path: std::env::current_exe().unwrap(),
            arguments: vec!["compile-worker".into()],
        },
        ..EngineConfig::new(dir)
    }
}

/// The worker, after what a shell does first.
fn after(script: &str) -> CompileBy {
    let own = std::env::current_exe().unwrap();
    let script = format!("{script}\nexec '{}' compile-worker \"$@\"", own.display());
    CompileBy::Program {
        path: "/bin/sh".into(),
        arguments: ["-c", &script, "sh"].map(OsString::from).to_vec(),
    }
}

fn engine(config: EngineConfig) -> Engine<State> {
    Engine::new(config, |_| Ok(())).unwrap()
}

fn guest(name: &str) -> Bytes {
    let dir = std::env::var_os("STEPWELL_GUESTS").map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").unwrap())
                .join(".cache/stepwell/guest-target/stepwell")
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    Bytes::from(
        std::fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; `make guests` builds it", path.display())),
    )
}

async fn compile(engine: &Engine<State>, bytes: &Bytes) -> Result<(), LoadError> {
    let report = engine
        .compile("default", Digest::of(bytes), bytes.clone())
        .await?;
    assert!(!report.cached && report.compile_time > Duration::ZERO);
    Ok(())
}

async fn code_compiled_there_runs_here() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = guest("echo.wasm");
    compile(&engine(config(dir.path())), &bytes).await.unwrap();
    // The next process has it, and needs no bytes.
    let engine = engine(config(dir.path()));
    let nothing = async { Err::<Bytes, _>("not needed") };
    let plugin = engine.load(Digest::of(&bytes), nothing).await.unwrap();
    assert_eq!(plugin.world().to_string(), "stepwell:pipeline/step@0.1.0");
}

async fn what_the_compiler_refuses_is_said_as_in_process() {
    let rubbish = Bytes::from_static(b"\0asm\x0d\0\x01\0rubbish");
    let mut said = Vec::new();
    for compile_by in [CompileBy::InProcess, config(Path::new("")).compile_by] {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(EngineConfig {
            compile_by,
            ..config(dir.path())
        });
        let error = compile(&engine, &rubbish).await.unwrap_err();
        assert!(matches!(error, LoadError::Refused(_)), "{error:?}");
        said.push(error.to_string());
    }
    assert_eq!(said[0], said[1]);
}

async fn a_compiler_that_takes_too_long_is_killed_and_its_slot_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("flag");
    let pid = dir.path().join("pid");
    let script = format!(
        "if mkdir '{}' 2>/dev/null; then echo $$ > '{}'; exec sleep 100; fi",
        flag.display(),
        pid.display()
    );
    let engine = engine(EngineConfig {
        compile_timeout: Duration::from_secs(2),
        compile_by: after(&script),
        ..config(dir.path())
    });
    let bytes = guest("echo.wasm");
    let error = compile(&engine, &bytes).await.unwrap_err();
    assert!(matches!(error, LoadError::TooSlow { .. }), "{error:?}");
    assert!(error.to_string().contains("limits.compile"), "{error}");
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "it is gone");
    // The machine may be busy: what counts is that there is a slot.
    for attempt in 0.. {
        match compile(&engine, &bytes).await {
            Err(LoadError::TooSlow { .. }) if attempt < 10 => {}
            outcome => return outcome.unwrap(),
        }
    }
}

async fn one_that_takes_too_much_memory_ends_alone() {
    let dir = tempfile::tempdir().unwrap();
    let small = engine(EngineConfig {
        compile_memory: 16 << 20,
        ..config(dir.path())
    });
    let bytes = guest("hostile.wasm");
    let error = compile(&small, &bytes).await.unwrap_err();
    assert!(
        matches!(error, LoadError::TooBig { limit: 16_777_216 }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("16MiB") && error.to_string().contains("limits.compile_memory"),
        "{error}"
    );
    compile(&engine(config(dir.path())), &bytes).await.unwrap();
}

async fn one_that_crashes_ends_alone() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("flag");
    let script = format!(
        "if mkdir '{}' 2>/dev/null; then kill -SEGV $$; fi",
        flag.display()
    );
    let engine = engine(EngineConfig {
        compile_by: after(&script),
        ..config(dir.path())
    });
    let bytes = guest("echo.wasm");
    let error = compile(&engine, &bytes).await.unwrap_err();
    assert!(matches!(error, LoadError::Crashed { .. }), "{error:?}");
    assert!(error.to_string().contains("signal 11"), "{error}");
    compile(&engine, &bytes).await.unwrap();
}

async fn as_many_wait_as_may_and_the_rest_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let script = format!("while [ ! -e '{}' ]; do sleep 0.05; done", gate.display());
    let engine = engine(EngineConfig {
        compile_queue: 2,
        compile_by: after(&script),
        ..config(dir.path())
    });
    let variant = |n: u8| {
        let mut bytes = guest("echo.wasm").to_vec();
        bytes.extend([0, 2, 1, n]);
        Bytes::from(bytes)
    };
    let spawn = |n: u8, tenant: &'static str| {
        let (engine, bytes) = (engine.clone(), variant(b'a' + n));
        tokio::spawn(async move { engine.compile(tenant, Digest::of(&bytes), bytes).await })
    };
    let mut waiting = vec![spawn(0, "a")];
    let began = Instant::now();
    while Instant::now() < began + Duration::from_millis(300) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    waiting.extend([spawn(1, "a"), spawn(2, "a")]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = spawn(3, "a").await.unwrap();
    assert!(matches!(refused, Err(LoadError::Busy)), "{refused:?}");
    // Another tenant is not locked out.
    waiting.push(spawn(4, "b"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    std::fs::write(gate, b"").unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

async fn the_functions_of_a_large_component_are_kept() {
    let large = |name: u8| {
        // Bytes that are no code make it large; its functions are those of the guest.
        let mut bytes = guest("echo.wasm").to_vec();
        let size = 3u32 << 20;
        bytes.push(0);
        let mut left = size + 2;
        while left >= 0x80 {
            bytes.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
            left >>= 7;
        }
        bytes.push(u8::try_from(left).unwrap());
        bytes.extend([1, name]);
        bytes.extend(vec![0; size as usize]);
        Bytes::from(bytes)
    };
    let dir = tempfile::tempdir().unwrap();
    let sizes = || {
        let packs = std::fs::read_dir(dir.path().join("functions"));
        let packs = packs.into_iter().flatten().flatten();
        let mut sizes: Vec<_> = packs.map(|pack| pack.metadata().unwrap().len()).collect();
        sizes.sort_unstable();
        sizes
    };
    let engine = engine(config(dir.path()));
    compile(&engine, &guest("echo.wasm")).await.unwrap();
    assert!(sizes().is_empty(), "small components are not worth it");
    compile(&engine, &large(b'a')).await.unwrap();
    assert_eq!(sizes().len(), 1);
    compile(&engine, &large(b'b')).await.unwrap();
    // A few functions are not found again: the compiler does not always describe them in the same words.
    let (all, new) = (*sizes().last().unwrap(), sizes()[0]);
    assert!(
        new * 3 < all,
        "most of its functions were there: {new} of {all} bytes are new"
    );
    // And what came of it is as good as what was compiled.
    let mut code: Vec<Vec<u8>> = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
        let files = std::fs::read_dir(entry.path()).unwrap().flatten();
        let compiled = files.filter(|file| {
            file.path()
                .extension()
                .is_some_and(|found| found == "cwasm")
        });
        code.extend(compiled.map(|file| std::fs::read(file.path()).unwrap()));
    }
    assert_eq!(code.len(), 3);
    assert!(
        code.iter().all(|other| *other == code[0]),
        "the same code, however it came about"
    );
}

async fn an_engine_of_another_build_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    // The second argument is the engine that is wanted.
    let script = format!(
        "exec '{}' compile-worker \"$1\" 0123456789abcdef \"$3\" \"$4\"",
        own.display()
    );
    let engine = engine(EngineConfig {
        compile_by: after(&script),
        ..config(dir.path())
    });
    let error = compile(&engine, &guest("echo.wasm")).await.unwrap_err();
    assert!(matches!(error, LoadError::Host { .. }), "{error:?}");
    assert!(error.to_string().contains("0123456789abcdef"), "{error}");
}
