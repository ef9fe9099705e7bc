use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::{Blame, ErrorKind, Event, Name, Outcome, StepError};
use stepwell_pipeline::{DeployedStep, Dispatcher, EventMemory};
use stepwell_test_hits::hits;

use crate::support::{LONG, append, delivered, deployment, errored, request, run, step, times};

/// Events of this much data each, all of it the same memory.
fn large(id: &str, count: usize, data: &Bytes) -> DeployedStep {
    let data = data.clone();
    step(id, move |_, event| {
        let data = data.clone();
        async move { Ok(vec![Event { data, ..event }; count]) }
    })
}

/// What a namespace's runs hold together, at most this much.
fn memory(most: u64) -> (EventMemory, Arc<AtomicU64>, Arc<AtomicUsize>) {
    let (held, asked) = <(Arc<AtomicU64>, Arc<AtomicUsize>)>::default();
    let (all, asks) = (held.clone(), asked.clone());
    /// Gives back what is held.
    struct Own(Arc<AtomicU64>, u64);
    impl Drop for Own {
        fn drop(&mut self) {
            self.0.fetch_sub(self.1, Ordering::SeqCst);
        }
    }
    let memory: EventMemory = Box::new(move |namespace| {
        assert_eq!(*namespace, Name::default_namespace());
        asks.fetch_add(1, Ordering::SeqCst);
        let mut own = Own(all.clone(), 0);
        Box::new(move |bytes| {
            if own.0.load(Ordering::SeqCst) - own.1 + bytes > most {
                return Err(StepError::new(ErrorKind::Unavailable, "no memory"));
            }
            own.0.fetch_add(bytes, Ordering::SeqCst);
            own.0.fetch_sub(own.1, Ordering::SeqCst);
            own.1 = bytes;
            Ok(())
        })
    });
    (memory, held, asked)
}

async fn run_within(memory: EventMemory, steps: Vec<DeployedStep>, within: Duration) -> Outcome {
    let dispatcher = Dispatcher::new(10);
    dispatcher.set_event_memory(memory);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let request = request(&deployment(steps), within);
    dispatcher.run(permit, request).await
}

#[tokio::test]
async fn what_waits_between_steps_is_bounded_while_it_waits() {
    // Each level keeps what its step returned until the last event has gone through all others.
    let calls = Arc::new(AtomicUsize::new(0));
    let count = |id: &str, count: usize| {
        let (calls, inner) = (calls.clone(), times(id, count));
        step(id, move |call, event| {
            calls.fetch_add(1, Ordering::SeqCst);
            let inner = inner.step.clone();
            async move { inner.call(&call, event).await }
        })
    };
    let letters = ["a", "b", "c", "d", "e", "f"];
    let steps = letters.map(|id| count(id, 4_000)).into();
    let error = errored(run(steps, LONG).await);
    assert_eq!((error.kind, error.blame), (ErrorKind::Limit, Blame::Plugin));
    assert_eq!(error.step.as_deref(), Some("c"));
    assert!(error.message.contains("10000 events"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    // The same at the end of the run.
    let error = errored(run(vec![times("a", 100), times("b", 101)], LONG).await);
    assert!(error.message.contains("10000 events"), "{error}");
    assert_eq!(error.step.as_deref(), Some("b"));
    assert!(error.plugin.is_some_and(|plugin| plugin.contains('@')));
    assert_eq!(error.fault.unwrap().kind, "run_events");
    assert_eq!(
        delivered(run(vec![times("a", 10_000)], LONG).await).len(),
        10_000
    );

    let (data, before) = (Bytes::from(vec![0; 1 << 20]), hits("run_bytes"));
    let steps = letters.map(|id| large(id, 60, &data)).into();
    let error = errored(run(steps, LONG).await);
    assert_eq!(
        (error.kind, error.step.as_deref()),
        (ErrorKind::Limit, Some("c"))
    );
    assert!(error.message.contains("128MiB"), "{error}");
    assert!(hits("run_bytes") > before);
    // What one step may return passes, and what the run may end with beside it.
    let filter = step("b", |_, _| async { Ok(Vec::new()) });
    let most = Bytes::from(vec![0; 16 << 20]);
    assert!(delivered(run(vec![large("a", 4, &most), filter], LONG).await).is_empty());
}

#[tokio::test]
async fn what_runs_hold_is_taken_from_the_memory_of_all() {
    const MIB: u64 = 1 << 20;
    let (all, _, asked) = memory(10 * MIB);
    let outcome = run_within(all, vec![times("a", 100), append("b", "!")], LONG).await;
    assert_eq!(delivered(outcome).len(), 100);
    assert_eq!(asked.load(Ordering::SeqCst), 0);

    let data = Bytes::from(vec![0; 1 << 20]);
    let seen = |held: &Arc<AtomicU64>| {
        let (held, most) = (held.clone(), Arc::new(AtomicU64::new(0)));
        let seen = most.clone();
        let step = step("z", move |_, _| {
            seen.fetch_max(held.load(Ordering::SeqCst), Ordering::SeqCst);
            async { Ok(Vec::new()) }
        });
        (step, most)
    };
    let (all, held, asked) = memory(10 * MIB);
    let (last, most) = seen(&held);
    let outcome = run_within(all, vec![large("a", 9, &data), last], LONG).await;
    assert_eq!(outcome.as_str(), "filtered");
    assert_eq!(most.load(Ordering::SeqCst), 9 * MIB);
    assert_eq!(
        (asked.load(Ordering::SeqCst), held.load(Ordering::SeqCst)),
        (1, 0)
    );

    let (all, held, _) = memory(10 * MIB);
    let (last, most) = seen(&held);
    let outcome = run_within(all, vec![large("a", 12, &data), last], LONG).await;
    let error = errored(outcome);
    assert_eq!(
        (error.kind, error.step.as_deref()),
        (ErrorKind::Unavailable, Some("a"))
    );
    assert_eq!(
        (most.load(Ordering::SeqCst), held.load(Ordering::SeqCst)),
        (0, 0)
    );

    // Thousands are given back by another thread, and only when they are gone.
    let (all, held, asked) = memory(10 * MIB);
    let stuck = step("z", |_, _| std::future::pending());
    let outcome = run_within(
        all,
        vec![times("a", 9_000), stuck],
        Duration::from_millis(50),
    )
    .await;
    assert_eq!(errored(outcome).kind, ErrorKind::Timeout);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let start = Instant::now();
    while held.load(Ordering::SeqCst) > 0 {
        assert!(start.elapsed() < LONG, "never given back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
