//! What instances that answer several calls do beside their calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use stepwell_core::{CpuAccount, ErrorKind, Limits, Lingering, Reuse, StepError};
use stepwell_engine::{Bind, Body, Kept, Plugin, StoreState};
use tokio::runtime;
use tokio::time::{sleep, timeout};

use crate::support::{Host, State, generous, guest, host, soon};

/// A step of the guest `service`, whose calls are charged to one account.
struct Step {
    host: Arc<Host>,
    plugin: Arc<Plugin<State>>,
    kept: Kept<State>,
    account: Arc<CpuAccount>,
}

async fn steps(limits: Limits, number: usize) -> Vec<Arc<Step>> {
    let reuse = Reuse {
        concurrency: 20,
        ..Reuse::default()
    };
    steps_of(limits, reuse, number).await
}

async fn steps_of(limits: Limits, reuse: Reuse, number: usize) -> Vec<Arc<Step>> {
    let host = Arc::new(host());
    let plugin = host.plugin(guest("service.wasm")).await;
    let account = Arc::new(CpuAccount::default());
    (0..number)
        .map(|_| {
            Arc::new(Step {
                host: host.clone(),
                plugin: plugin.clone(),
                kept: plugin.keep(limits, reuse),
                account: account.clone(),
            })
        })
        .collect()
}

impl Bind<State> for Step {
    fn fresh(&self) -> State {
        let mut state = self.host.state();
        state.base().charge_to(self.account.clone());
        state
    }

    fn renew(&self, state: &mut State) {
        state.base().rebind(self.host.lines.clone());
    }
}

impl Step {
    async fn response(&self, path: &str) -> Result<Response<Body>, StepError> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().uri(path).body(body).unwrap();
        self.kept.handle(&self.plugin, self, soon(), request).await
    }

    async fn get(&self, path: &str) -> Result<Bytes, StepError> {
        let response = self.response(path).await?;
        Ok(response.into_body().collect().await.unwrap().to_bytes())
    }
}

#[test]
fn a_guest_that_spins_when_its_calls_are_over_holds_no_thread_and_ends() {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let limits = Limits {
        cpu: Duration::from_millis(100),
        ..generous()
    };
    let steps = runtime.block_on(async {
        let steps = steps(limits, 2).await;
        for step in &steps {
            assert_eq!(step.get("/linger-spin/500").await.unwrap(), "hello");
        }
        steps
    });
    let turns = Arc::new(AtomicU32::new(0));
    let counted = turns.clone();
    runtime.spawn(async move {
        loop {
            sleep(Duration::from_millis(10)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    // By then the engine's clock has gone to sleep, and both guests have begun to spin.
    thread::sleep(Duration::from_secs(1));
    let before = turns.load(Ordering::Relaxed);
    thread::sleep(Duration::from_secs(2));
    let more = turns.load(Ordering::Relaxed) - before;
    if more < 20 {
        // It would wait for its threads.
        runtime.shutdown_background();
        panic!("{more} turns in two seconds");
    }
    let used = steps[0].account.used();
    assert!(used >= Duration::from_millis(200), "{used:?}");
    assert!(used < Duration::from_millis(600), "{used:?}");
    for step in &steps {
        let count = runtime.block_on(step.get("/count")).unwrap();
        assert_eq!(count, "1", "the instance has not ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_does_after_its_last_call_is_done_in_that_calls_place() {
    for (max_calls, keeps) in [(1, true), (2, false)] {
        let reuse = Reuse {
            concurrency: 20,
            max_calls,
            ..Reuse::default()
        };
        let steps = steps_of(generous(), reuse, 1).await;
        let (step, kept) = (&steps[0], Arc::new(()));
        let mut response = step.response("/linger/500").await.unwrap();
        if let Some(lingering) = response.extensions_mut().remove::<Lingering>() {
            lingering.keep(kept.clone());
        }
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "hello");
        let logged = || {
            step.host
                .lines
                .all()
                .iter()
                .any(|(_, line)| line == "lingered")
        };
        assert!(!logged());
        assert_eq!(Arc::strong_count(&kept) == 2, keeps);
        let ended = async {
            while Arc::strong_count(&kept) == 2 || !logged() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), ended).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_do_not_pay_for_a_spin_beside_them() {
    let limits = Limits {
        cpu: Duration::from_millis(100),
        ..generous()
    };
    let step = steps(limits, 1).await.remove(0);
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let step = step.clone();
            tokio::spawn(async move { step.get("/sleep/40000").await })
        })
        .collect();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(step.get("/spin-beside").await.unwrap(), "hello");
    // Each of these brings a fraction of what is burnt meanwhile, on a busy machine too.
    let steady = step.clone();
    let steady = tokio::spawn(async move {
        loop {
            let _ = steady.get("/count").await;
            sleep(Duration::from_millis(2500)).await;
        }
    });
    let ended = timeout(Duration::from_secs(30), join_all(waiting)).await;
    steady.abort();
    for outcome in ended.expect("the spin goes on for ever") {
        let error = outcome.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit);
        assert!(error.message.contains("limits.cpu"), "{error}");
    }
}

#[tokio::test]
async fn guests_that_spin_beside_their_calls_do_so_in_the_slow_lane() {
    let limits = Limits {
        cpu: Duration::from_millis(300),
        wall: Duration::from_secs(10),
        ..generous()
    };
    let steps = steps(limits, 32).await;
    for step in &steps {
        assert_eq!(step.get("/linger-spin/2000").await.unwrap(), "hello");
    }
    sleep(Duration::from_millis(2200)).await;
    let mut times = Vec::new();
    for _ in 0..40 {
        let began = Instant::now();
        sleep(Duration::from_millis(1)).await;
        times.push(began.elapsed());
    }
    times.sort();
    // Each turn of this thread would last for a turn of every guest.
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(20), "{median:?}");
}
