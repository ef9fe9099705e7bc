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
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::Digest;
use stepwell_engine::{
    CompileBy, Engine, EngineConfig, Fetch, LoadError, StoreBase, StoreState, compile_worker,
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
        small_ones_take_one_thread_each_while_others_wait().await;
        println!("small_ones_take_one_thread_each_while_others_wait ... ok");
        the_concurrent_engine_has_threads_of_the_usual_priority().await;
        println!("the_concurrent_engine_has_threads_of_the_usual_priority ... ok");
        the_functions_of_a_large_component_are_kept().await;
        println!("the_functions_of_a_large_component_are_kept ... ok");
        an_engine_of_another_build_is_refused().await;
        println!("an_engine_of_another_build_is_refused ... ok");
        uploads_that_cost_much_to_read_end_alone().await;
        println!("uploads_that_cost_much_to_read_end_alone ... ok");
        uploads_of_too_much_are_refused().await;
        println!("uploads_of_too_much_are_refused ... ok");
        what_was_compiled_before_is_still_checked().await;
        println!("what_was_compiled_before_is_still_checked ... ok");
        a_compiler_gives_way().await;
        println!("a_compiler_gives_way ... ok");
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

/// It begins as a component does.
const RUBBISH: &[u8] = b"\0asm\x0d\0\x01\0rubbish";

async fn what_the_compiler_refuses_is_said_as_in_process() {
    let rubbish = Bytes::from_static(RUBBISH);
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
    // The machine may be busy, and refusing takes little: what counts is that there is a slot.
    let rubbish = Bytes::from_static(RUBBISH);
    for attempt in 0.. {
        match compile(&engine, &rubbish).await.unwrap_err() {
            LoadError::TooSlow { .. } if attempt < 10 => {}
            error => return assert!(matches!(error, LoadError::Refused(_)), "{error:?}"),
        }
    }
}

async fn one_that_takes_too_much_memory_ends_alone() {
    let dir = tempfile::tempdir().unwrap();
    let small = engine(EngineConfig {
        compile_memory: 16 << 20,
        ..config(dir.path())
    });
    // One function, whose parts are all in memory at once while it is compiled.
    let body = "(i32.store (local.get 0) (i32.load (local.get 0)))".repeat(100_000);
    let module = wat::parse_str(format!("(module (memory 1) (func (param i32) {body}))")).unwrap();
    let mut bytes = guest("echo.wasm").to_vec();
    bytes.push(1);
    bytes.extend(leb(module.len()));
    bytes.extend(module);
    let bytes = Bytes::from(bytes);
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

/// The guest as one that nobody has compiled yet.
fn variant(name: u8) -> Bytes {
    let mut bytes = guest("echo.wasm").to_vec();
    bytes.extend([0, 2, 1, name]);
    Bytes::from(bytes)
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

/// A component that is large by bytes that are no code; its functions are those of the guest.
fn large(name: u8) -> Bytes {
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
}

async fn small_ones_take_one_thread_each_while_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (gate, threads) = (dir.path().join("gate"), dir.path().join("threads"));
    let script = format!(
        "echo $RAYON_NUM_THREADS >> '{}'\nwhile [ ! -e '{}' ]; do sleep 0.05; done",
        threads.display(),
        gate.display()
    );
    let engine = engine(EngineConfig {
        compile_by: after(&script),
        ..config(dir.path())
    });
    let mut uploads = Vec::new();
    for bytes in [variant(b'a'), variant(b'b'), large(b'c'), variant(b'd')] {
        let engine = engine.clone();
        uploads.push(tokio::spawn(async move { compile(&engine, &bytes).await }));
        // The next one comes later, and waits.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    std::fs::write(gate, b"").unwrap();
    for upload in uploads {
        upload.await.unwrap().unwrap();
    }
    let cores = std::thread::available_parallelism().unwrap();
    // The first is alone when it begins, the third is large, and nobody waits any more for the last one.
    assert_eq!(
        std::fs::read_to_string(threads).unwrap(),
        format!("{cores}\n1\n{cores}\n{cores}\n")
    );
}

/// Compiling, and what is done about it beside, has a low priority, and a thread passes its own on to those that it starts.
async fn the_concurrent_engine_has_threads_of_the_usual_priority() {
    let dir = tempfile::tempdir().unwrap();
    let service = guest("service.wasm");
    let usual = rustix::process::getpriority_process(None).unwrap();
    for restarted in [false, true] {
        let before = own_threads();
        let engine = engine(config(dir.path()));
        if restarted {
            let nothing: Fetch = Arc::new(|_| Box::pin(async { Err("it is in the cache".into()) }));
            let digest = Digest::of(&service);
            engine.prepare(digest, &nothing).await.unwrap();
        } else {
            compile(&engine, &service).await.unwrap();
        }
        let of_clocks = || -> Vec<_> {
            let threads = own_threads().into_iter();
            let new = threads.filter(|one| !before.contains(one));
            new.filter(|(_, name, _)| name == "epoch").collect()
        };
        // A thread begins under the name of the one that starts it.
        let end = Instant::now() + Duration::from_secs(30);
        while of_clocks().len() < 2 {
            assert!(
                Instant::now() < end,
                "one of each engine: {:?}",
                of_clocks()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let of_clocks = of_clocks();
        assert_eq!(of_clocks.len(), 2, "one of each engine: {of_clocks:?}");
        for (_, _, niceness) in of_clocks {
            assert_eq!(niceness, usual);
        }
    }
}

/// The threads of this process: which one, its name, and how nice it is.
fn own_threads() -> Vec<(OsString, String, i32)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let read = |thread: std::fs::DirEntry| {
        let of_thread = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        let (before, after) = of_thread.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let niceness = after.split(' ').nth(17)?.parse().ok()?;
        Some((thread.file_name(), name.to_owned(), niceness))
    };
    threads.filter_map(read).collect()
}

async fn the_functions_of_a_large_component_are_kept() {
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
    let script = format!(
        "'{}' compile-worker \"$@\" | LC_ALL=C sed 's/\"engine\":\"[0-9a-f]*\"/\"engine\":\"0123456789abcdef\"/'; exit",
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

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

/// Instance types within instance types, this deep: reading them takes a part of the stack for each.
fn nested_types(depth: usize) -> Bytes {
    let mut section = vec![1];
    for _ in 0..depth {
        section.extend([0x42, 1, 1]);
    }
    section.extend([0x42, 0]);
    let mut bytes = b"\0asm\x0d\0\x01\0\x07".to_vec();
    bytes.extend(leb(section.len()));
    bytes.extend(section);
    Bytes::from(bytes)
}

fn component(text: &str) -> Bytes {
    Bytes::from(wat::parse_str(format!("(component {text})")).unwrap())
}

fn exports(count: usize, of: &str) -> String {
    (0..count)
        .map(|n| format!("(export \"a{n}\" (func {of}))"))
        .collect()
}

/// Each instantiation copies all that the component exports.
fn copied_exports() -> Bytes {
    let many = exports(20_000, "$f");
    let instances = "(instance (instantiate $c (with \"x\" (func $f))))".repeat(100);
    component(&format!(
        "(component $c (import \"x\" (func $f)) {many}) (import \"f\" (func $f)) {instances}"
    ))
}

/// Each instantiation compares one type of many exports with another.
fn compared_types() -> Bytes {
    let many = exports(50_000, "(type 0)");
    let instances = "(instance (instantiate $c (with \"x\" (instance $i))))".repeat(990);
    component(&format!(
        "(type $a (instance (type (func)) {many}))
         (component $c (type $b (instance (type (func)) {many})) (import \"x\" (instance (type $b))))
         (component $d (import \"i\" (instance $i (type $a))) {instances})"
    ))
}

async fn uploads_that_cost_much_to_read_end_alone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineConfig {
        compile_timeout: Duration::from_secs(3),
        compile_memory: 256 << 20,
        ..config(dir.path())
    });
    let upload = |bytes: Bytes| {
        let engine = engine.clone();
        async move {
            let digest = engine.receive(bytes.clone()).await.unwrap();
            engine.compile("a", digest, bytes).await.unwrap_err()
        }
    };
    let error = upload(nested_types(200_000)).await;
    assert!(matches!(error, LoadError::Crashed { .. }), "{error:?}");
    let error = upload(copied_exports()).await;
    assert!(matches!(error, LoadError::TooBig { .. }), "{error:?}");
    let error = upload(compared_types()).await;
    assert!(matches!(error, LoadError::TooSlow { .. }), "{error:?}");
    compile(&engine, &guest("echo.wasm")).await.unwrap();
}

async fn uploads_of_too_much_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(config(dir.path()));
    let many = exports(1_001, "$f");
    let many = component(&format!("(import \"f\" (func $f)) {many}"));
    // Of as many instances each may wait on a stack of its own.
    let code = "(core module $m) (core instance (instantiate $m))";
    let inner = format!("(component $c {code} (type $s (stream u8)))");
    let instances = "(instance (instantiate $c))".repeat(9);
    let handler = r#"(core module $h (func (export "f"))) (core instance $h (instantiate $h))
         (func $f (canon lift (core func $h "f"))) (instance $i (export "handle" (func $f)))
         (export "wasi:http/handler@0.3.0" (instance $i))"#;
    let crowd = component(&format!("{inner} {instances} {handler}"));
    for (bytes, word) in [(many, "1001 exports"), (crowd, "8 instances")] {
        let error = compile(&engine, &bytes).await.unwrap_err();
        let LoadError::Refused(refused) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(refused.code, "too-large");
        assert!(refused.message.contains(word), "{refused}");
    }
    for end in ["kill -XFSZ $$", "exit 12"] {
        let engine = self::engine(EngineConfig {
            compile_by: after(end),
            ..config(dir.path())
        });
        let error = compile(&engine, &guest("echo.wasm")).await.unwrap_err();
        assert!(matches!(error, LoadError::TooMuchCode { .. }), "{error:?}");
    }
}

async fn what_was_compiled_before_is_still_checked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(config(dir.path()));
    let bytes = guest("echo.wasm");
    let digest = engine.receive(bytes.clone()).await.unwrap();
    let first = engine.compile("a", digest, bytes.clone()).await.unwrap();
    let second = engine.compile("b", digest, bytes).await.unwrap();
    assert!(!first.cached && second.cached);
    assert_eq!(first.inspection, second.inspection);
    assert!(!first.inspection.imports.is_empty());
}

/// Its threads have a low priority, and timers that interrupt them.
async fn a_compiler_gives_way() {
    let bounds = r#"{"memory":4294967296,"cpu":{"secs":100,"nanos":0},"code":1000000000}"#;
    let mut compiler = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["compile-worker", r#"{"check":null,"compile":true}"#, bounds])
        .env("RAYON_NUM_THREADS", "3")
        // It waits for its component, and all that it sets up is there.
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let place = PathBuf::from(format!("/proc/{}", compiler.id()));
    let timers = || {
        let timers = std::fs::read_to_string(place.join("timers")).unwrap();
        timers
            .lines()
            .filter(|line| line.starts_with("ID:"))
            .count()
    };
    let end = Instant::now() + Duration::from_secs(30);
    while timers() < 3 {
        assert!(Instant::now() < end, "{} of 3 threads", timers());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The 19th field; the name of a program may have spaces, and is in brackets.
    let stat = std::fs::read_to_string(place.join("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    assert_eq!(fields.split(' ').nth(16), Some("10"));
    drop(compiler.stdin.take());
    assert!(
        compiler.wait().unwrap().success(),
        "nothing is no component, and it says so"
    );
}
