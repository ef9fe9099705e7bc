use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stepwell_core::{Blame, ErrorKind, Outcome};
use stepwell_pipeline::Retry;

use crate::support::{LONG, append, delivered, errored, failing, run, step, times};

fn retry(attempts: u32, backoff: Duration, errors: &[ErrorKind]) -> Option<Retry> {
    Some(Retry {
        attempts,
        backoff,
        errors: errors.to_vec(),
    })
}

#[tokio::test]
async fn steps_run_in_order() {
    let steps = vec![append("a", "1"), append("b", "2"), append("c", "3")];
    assert_eq!(delivered(run(steps, LONG).await), ["x123"]);
}

#[tokio::test]
async fn what_follows_a_fan_out_runs_once_for_each_in_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let last = step("last", move |_, event| {
        log.lock().unwrap().push(event.data.clone());
        async move { Ok(vec![event]) }
    });
    let steps = vec![times("a", 2), times("b", 3), last];
    let expected = ["x00", "x01", "x02", "x10", "x11", "x12"];
    assert_eq!(delivered(run(steps, LONG).await), expected);
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn no_event_ends_the_run_as_filtered() {
    let calls = Arc::new(AtomicUsize::new(0));
    let steps = vec![times("a", 0), failing("b", ErrorKind::Failed, 99, &calls)];
    let outcome = run(steps, LONG).await;
    assert_eq!(outcome.as_str(), "filtered");
    assert_eq!(delivered(outcome), Vec::<String>::new());
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_error_names_its_step_and_ends_the_run() {
    let (calls, after) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    let steps = vec![
        append("a", "1"),
        failing("b", ErrorKind::Invalid, 9, &calls),
        failing("c", ErrorKind::Failed, 0, &after),
    ];
    let Outcome::Rejected(error) = run(steps, LONG).await else {
        panic!("an invalid event is rejected")
    };
    assert_eq!(error.step.as_deref(), Some("b"));
    assert_eq!(after.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_step_is_tried_again_as_its_policy_says() {
    let kinds = [ErrorKind::Unavailable, ErrorKind::Trap];
    let millisecond = Duration::from_millis(1);
    // (kind, failures, attempts) → calls, whether it is delivered
    for (kind, failures, attempts, calls, good) in [
        (ErrorKind::Unavailable, 2, 3, 3, true),
        (ErrorKind::Trap, 1, 3, 2, true),
        (ErrorKind::Unavailable, 3, 3, 3, false),
        (ErrorKind::Failed, 1, 3, 1, false),
        (ErrorKind::Invalid, 1, 3, 1, false),
        (ErrorKind::Unavailable, 1, 1, 1, false),
    ] {
        let counter = Arc::new(AtomicUsize::new(0));
        let mut step = failing("a", kind, failures, &counter);
        step.retry = retry(attempts, millisecond, &kinds);
        let outcome = run(vec![step], LONG).await;
        assert_eq!(
            counter.load(Ordering::SeqCst),
            calls,
            "{kind} {failures} {attempts}"
        );
        assert_eq!(
            matches!(outcome, Outcome::Delivered(_)),
            good,
            "{kind} {failures} {attempts}"
        );
    }
}

#[tokio::test]
async fn retries_end_with_the_runs_time() {
    let counter = Arc::new(AtomicUsize::new(0));
    let mut step = failing("a", ErrorKind::Unavailable, usize::MAX, &counter);
    step.retry = retry(
        u32::MAX,
        Duration::from_secs(3600),
        &[ErrorKind::Unavailable],
    );
    let started = Instant::now();
    let error = errored(run(vec![step], Duration::from_millis(300)).await);
    // The last error says more than that time was up, and no pause is begun that would outlast the run.
    assert!(
        matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_steps_timeout_bounds_its_retries() {
    let counter = Arc::new(AtomicUsize::new(0));
    let calls = counter.clone();
    let mut slow = step("slow", move |call, _| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(call.remaining() <= Duration::from_millis(100));
            tokio::time::sleep(LONG).await;
            Ok(vec![])
        }
    });
    slow.timeout = Some(Duration::from_millis(100));
    slow.retry = retry(5, Duration::from_millis(1), &ErrorKind::ALL);
    let error = errored(run(vec![slow], LONG).await);
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.message, "the step's timeout of 100ms was up");
    assert_eq!(error.step.as_deref(), Some("slow"));
    assert_eq!(counter.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_run_ends_at_its_deadline() {
    let mut slow = step("slow", |_, _| async {
        tokio::time::sleep(LONG).await;
        Ok(vec![])
    });
    slow.timeout = Some(LONG);
    let error = errored(run(vec![append("a", "1"), slow], Duration::from_millis(100)).await);
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.message, "the run's time was up");
    assert_eq!(error.step.as_deref(), Some("slow"));
}

#[tokio::test]
async fn a_panic_in_a_step_is_an_error_of_the_run() {
    #[allow(unreachable_code, reason = "the type of a future that panics")]
    let steps = vec![step("a", |_, _| async {
        panic!("a bug");
        Ok(vec![])
    })];
    let error = errored(run(steps, LONG).await);
    assert_eq!((error.kind, error.blame), (ErrorKind::Failed, Blame::Host));
    assert_eq!(error.step.as_deref(), Some("a"));
    assert!(!error.message.contains("a bug"));
}

#[tokio::test]
async fn a_run_of_many_calls_gives_way_to_others() {
    // One thread, and calls that never wait.
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    let steps = vec![times("a", 1_000), append("b", "!")];
    assert_eq!(delivered(run(steps, LONG).await).len(), 1_000);
    let turns = turns.load(Ordering::SeqCst);
    other.abort();
    assert!(turns > 200, "{turns}");
}

#[tokio::test]
async fn a_fan_out_is_bounded() {
    let nothing = step("c", |_, _| async { Ok(Vec::new()) });
    let steps = vec![times("a", 200), times("b", 200), nothing];
    let error = errored(run(steps, LONG).await);
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("10000 calls"), "{error}");
    assert!(error.plugin.is_some_and(|plugin| plugin.contains('@')));
    assert_eq!(error.fault.unwrap().kind, "run_calls");

    let large = step("large", |_, mut event| async move {
        event.data = vec![0; 1 << 20].into();
        Ok(vec![event; 100])
    });
    let error = errored(run(vec![large], LONG).await);
    assert_eq!(error.kind, ErrorKind::Limit);
    assert!(error.message.contains("64MiB"), "{error}");
}
