//! Guests of so much memory that one instruction takes as long as many calls: to fill it, or to give it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::{CpuAccount, Digest, ErrorKind, Limits, Reuse};
use stepwell_engine::{Bind, Engine, EngineConfig, Environment, LogSink, LogStream};
use stepwell_engine::{Plugin, StoreBase, StoreState};

use crate::hand_made;
use crate::support::{event, generous, guest, host, soon};

/// Bytes that are filled, of so many pages.
const BYTES: u32 = 400 << 20;
const PAGES: u32 = BYTES >> 16;

fn limits() -> Limits {
    Limits {
        memory: 500 << 20,
        ..generous()
    }
}

/// A step with a memory of so many pages, and this body.
fn step(pages: u32, body: &str) -> Vec<u8> {
    hand_made::step(&format!(
        r#"
    (memory (export "memory") {pages})
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      {body}
      (i32.const 16))"#
    ))
}

fn grow_and_fill() -> Vec<u8> {
    step(
        1,
        &format!(
            "(if (i32.eq (memory.size) (i32.const 1)) (then (drop (memory.grow (i32.const {PAGES})))))
             (memory.fill (i32.const 65536) (i32.const 1) (i32.const {BYTES}))"
        ),
    )
}

fn fill() -> Vec<u8> {
    step(
        PAGES + 1,
        &format!("(memory.fill (i32.const 65536) (i32.const 1) (i32.const {BYTES}))"),
    )
}

#[tokio::test]
async fn one_instruction_is_charged_in_full_and_ends_the_call() {
    let host = host();
    for bytes in [grow_and_fill(), fill()] {
        let plugin = host.plugin(bytes).await;
        let account = Arc::new(CpuAccount::default());
        let mut state = host.state();
        state.base().charge_to(account.clone());
        let limits = Limits {
            cpu: Duration::from_millis(20),
            ..limits()
        };
        let error = plugin
            .process(state, limits, soon(), event("x"))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit, "{error}");
        assert!(error.message.contains("limits.cpu"), "{error}");
        assert!(
            account.used() > Duration::from_millis(40),
            "{:?}",
            account.used()
        );

        // An instance that was kept goes with it.
        let kept = plugin.keep(limits, Reuse::default());
        let calling = host.calling();
        let call = kept.process(&plugin, &calling, soon(), event("x"));
        assert_eq!(call.await.unwrap_err().kind, ErrorKind::Limit);
        assert_eq!(kept.idle(), 0);
    }
}

/// Whether the runtime's only thread is free while this goes on. It may be kept from running now and then, but not each time.
async fn goes_on_elsewhere(mut work: impl AsyncFnMut()) -> bool {
    for _ in 0..5 {
        let (gap, took) = longest_gap(work()).await;
        if gap < took / 3 {
            return true;
        }
        eprintln!("{gap:?} of {took:?}");
    }
    false
}

/// How long that thread was busy with something else, at most, while this went on, and how long it went on.
async fn longest_gap(work: impl Future<Output = ()>) -> (Duration, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let of_task = stop.clone();
    let watch = tokio::spawn(async move {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !of_task.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    });
    let began = Instant::now();
    work.await;
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    (watch.await.unwrap(), took)
}

#[tokio::test]
async fn it_is_filled_where_nobody_waits_for_it() {
    let host = host();
    let (growing, large) = (
        host.plugin(grow_and_fill()).await,
        host.plugin(fill()).await,
    );
    for plugin in [&growing, &large] {
        let elsewhere = goes_on_elsewhere(async || {
            // Another step each time, of which nothing is known yet.
            let state = host.state_of(&Arc::new(Environment::default()));
            let call = plugin.process(state, limits(), soon(), event("x"));
            call.await.unwrap();
        });
        assert!(elsewhere.await);
    }
}

/// Tells on which thread a store is dropped.
struct Told(StoreBase, Sender<String>);

impl StoreState for Told {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let _ = self.1.send(name);
    }
}

struct Silent;

impl LogSink for Silent {
    fn line(&self, _: LogStream, _: &str) {}
}

struct Telling(Sender<String>);

impl Bind<Told> for Telling {
    fn fresh(&self) -> Told {
        let base = StoreBase::new(Arc::default(), Arc::new(Silent));
        Told(base, self.0.clone())
    }

    fn renew(&self, state: &mut Told) {
        state.0.rebind(Arc::new(Silent));
    }
}

/// An engine of few instances, and a step that holds so many pages.
async fn telling(pages: u32) -> (Engine<Told>, Arc<Plugin<Told>>, Telling, Receiver<String>) {
    let cache = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(cache.path());
    config.instances = 1;
    let engine = Engine::new(config, |_| Ok(())).unwrap();
    let plugin = load(&engine, step(pages, "")).await;
    let (sender, names) = channel();
    (engine, plugin, Telling(sender), names)
}

async fn load(engine: &Engine<Told>, bytes: Vec<u8>) -> Arc<Plugin<Told>> {
    let bytes = Bytes::from(bytes);
    let fetched = bytes.clone();
    let fetch = async move { Ok::<_, String>(fetched) };
    engine.load(Digest::of(&bytes), fetch).await.unwrap()
}

fn name(names: &Receiver<String>) -> String {
    names.recv_timeout(Duration::from_secs(10)).unwrap()
}

#[tokio::test]
async fn whoever_needs_room_does_not_clear_it() {
    let here = thread::current().name().unwrap().to_owned();
    for (pages, who) in [(1, here.as_str()), (PAGES, "idle-instances")] {
        let (engine, plugin, telling, names) = telling(pages).await;
        let kept = plugin.keep(limits(), Reuse::default());
        let call = kept.process(&plugin, &telling, soon(), event("x"));
        call.await.unwrap();
        assert_eq!(kept.idle(), 1);
        // There is one slot, and the idle instance has it.
        let other = load(&engine, step(2, "")).await;
        let call = other.process(telling.fresh(), limits(), soon(), event("x"));
        call.await.unwrap();
        assert_eq!(kept.idle(), 0);
        assert_eq!(name(&names), who, "{pages}");
    }
}

#[tokio::test]
async fn whoever_hangs_up_does_not_clear_it() {
    let here = thread::current().name().unwrap().to_owned();
    for (bytes, who) in [(1_000, here.as_str()), (100_000_000, "guest-slow")] {
        let (engine, _, telling, names) = telling(1).await;
        let hostile = load(&engine, guest("hostile.wasm")).await;
        let kept = hostile.keep(limits(), Reuse::default());
        let allocate = event(&format!("allocate:{bytes}"));
        let call = kept.process(&hostile, &telling, soon(), allocate);
        call.await.unwrap();
        assert_eq!(kept.idle(), 1);
        let sleep = kept.process(&hostile, &telling, soon(), event("sleep:60000"));
        let waited = tokio::time::timeout(Duration::from_millis(200), sleep);
        assert!(waited.await.is_err());
        assert_eq!(name(&names), who, "{bytes}");
    }
}
