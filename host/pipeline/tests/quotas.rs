#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! What a namespace may use, and that it costs its neighbours nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use stepwell_core::{
    Call, CpuAccount, ErrorKind, Event, Grants, Name, Outcome, Quotas, RunId, StepError, StepScope,
    TraceContext,
};
use stepwell_pipeline::{
    Deployed, DeployedStep, Deployment, Dispatcher, NotAdmitted, Permit, Retry, RunRequest, Step,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn quota(dispatcher: &Dispatcher, namespace: &str, quotas: Quotas) {
    dispatcher.set_quotas(HashMap::from([(name(namespace), quotas)]));
}

#[track_caller]
fn refused(admitted: Result<Permit, NotAdmitted>, expected: &str) -> Duration {
    match admitted.err() {
        Some(NotAdmitted::Quota { quota, retry_after }) => {
            assert_eq!(quota, expected);
            retry_after
        }
        other => panic!("{expected}: {other:?}"),
    }
}

#[tokio::test]
async fn runs_at_once_are_bounded_and_a_change_forgets_none() {
    let dispatcher = Dispatcher::new(100);
    let tenant = name("tenant");
    let two = Quotas {
        concurrent_runs: Some(2),
        ..Quotas::default()
    };
    let first = dispatcher.admit(&tenant).unwrap();
    quota(&dispatcher, "tenant", two);
    let second = dispatcher.admit(&tenant).unwrap();
    refused(dispatcher.admit(&tenant), "concurrent_runs");
    assert!(dispatcher.admit(&name("other")).is_ok(), "of nobody else");
    drop(first);
    let third = dispatcher.admit(&tenant).unwrap();
    refused(dispatcher.admit(&tenant), "concurrent_runs");
    quota(
        &dispatcher,
        "tenant",
        Quotas {
            concurrent_runs: Some(0),
            ..Quotas::default()
        },
    );
    drop((second, third));
    refused(dispatcher.admit(&tenant), "concurrent_runs");
    dispatcher.set_quotas(HashMap::new());
    assert!(dispatcher.admit(&tenant).is_ok());
}

#[tokio::test]
async fn runs_in_a_second_are_bounded() {
    let dispatcher = Dispatcher::new(100);
    let tenant = name("tenant");
    quota(
        &dispatcher,
        "tenant",
        Quotas {
            runs_per_second: Some(5),
            ..Quotas::default()
        },
    );
    let began = Instant::now();
    let mut admitted = Vec::new();
    while admitted.len() < 12 {
        match dispatcher.admit(&tenant) {
            Ok(_) => admitted.push(began.elapsed()),
            refusal => {
                let wait = refused(refusal, "runs_per_second");
                assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    // Of any six in a row the last comes a second after the first, but for a slice of the window.
    for six in admitted.windows(6) {
        assert!(
            six[5] - six[0] >= Duration::from_millis(900),
            "{admitted:?}"
        );
    }
    assert!(dispatcher.admit(&name("other")).is_ok(), "of nobody else");
}

#[tokio::test]
async fn cpu_time_of_the_last_minute_is_bounded() {
    let dispatcher = Dispatcher::new(100);
    let (tenant, pipeline) = (name("tenant"), name("p"));
    let account = dispatcher.cpu_account(&tenant, &pipeline);
    // What was used before anybody looked is nothing of the last minute.
    account.charge(Duration::from_secs(100));
    quota(
        &dispatcher,
        "tenant",
        Quotas {
            cpu_per_minute: Some(Duration::from_secs(2)),
            ..Quotas::default()
        },
    );
    assert!(dispatcher.admit(&tenant).is_ok());
    account.charge(Duration::from_millis(1_500));
    assert!(dispatcher.admit(&tenant).is_ok());
    let other_pipeline = dispatcher.cpu_account(&tenant, &name("q"));
    other_pipeline.charge(Duration::from_millis(500));
    let wait = refused(dispatcher.admit(&tenant), "cpu_per_minute");
    assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60));
    assert!(dispatcher.admit(&name("other")).is_ok(), "of nobody else");
    assert_eq!(account.used(), Duration::from_millis(101_500));
    assert!(Arc::ptr_eq(
        &account,
        &dispatcher.cpu_account(&tenant, &pipeline)
    ));
}

#[tokio::test]
async fn a_namespace_alone_may_take_everything_and_one_among_others_three_quarters() {
    let dispatcher = Dispatcher::new(8);
    let (one, other) = (name("one"), name("other"));
    let mut taken: Vec<Permit> = (0..8).map(|_| dispatcher.admit(&one).unwrap()).collect();
    let busy = |admitted: Result<Permit, NotAdmitted>| {
        matches!(admitted.err(), Some(NotAdmitted::Busy { .. }))
    };
    assert!(busy(dispatcher.admit(&one)));
    // From now on there is another one, and what ends is not given to the first again.
    assert!(busy(dispatcher.admit(&other)));
    taken.pop();
    assert!(busy(dispatcher.admit(&one)));
    let others = dispatcher.admit(&other).unwrap();
    taken.pop();
    assert!(busy(dispatcher.admit(&one)), "six are its share");
    taken.pop();
    taken.push(dispatcher.admit(&one).unwrap());
    drop((taken, others));
    // Whoever was promised more has it.
    quota(
        &dispatcher,
        "one",
        Quotas {
            concurrent_runs: Some(8),
            ..Quotas::default()
        },
    );
    let all: Vec<_> = (0..8).map(|_| dispatcher.admit(&one).unwrap()).collect();
    assert_eq!(all.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_at_its_quota_does_not_slow_another() {
    let dispatcher = Dispatcher::new(100);
    quota(
        &dispatcher,
        "greedy",
        Quotas {
            runs_per_second: Some(3),
            concurrent_runs: Some(1),
            cpu_per_minute: Some(Duration::from_secs(1)),
            ..Quotas::default()
        },
    );
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let greedy: Vec<_> = (0..4)
        .map(|_| {
            let (dispatcher, stop, asked) = (dispatcher.clone(), stop.clone(), asked.clone());
            tokio::spawn(async move {
                let greedy = name("greedy");
                while !stop.load(Ordering::Relaxed) {
                    drop(dispatcher.admit(&greedy));
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let modest = name("modest");
    let mut waits = Vec::new();
    while waits.len() < 2_000 || asked.load(Ordering::Relaxed) < 10_000 {
        let began = Instant::now();
        let permit = dispatcher.admit(&modest).expect("nothing is in its way");
        waits.push(began.elapsed());
        drop(permit);
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in greedy {
        task.await.unwrap();
    }
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    assert!(p99 < Duration::from_millis(50), "{p99:?}");
}

/// Uses so much CPU time, and returns the event so many times, or fails.
struct Uses {
    account: Arc<CpuAccount>,
    time: Duration,
    returns: usize,
    calls: Arc<AtomicU64>,
}

#[async_trait]
impl Step for Uses {
    async fn call(&self, _: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.account.charge(self.time);
        match self.returns {
            0 => Err(StepError::new(ErrorKind::Failed, "on purpose")),
            returns => Ok(vec![event; returns]),
        }
    }
}

/// Starts a run of an event that becomes so many, each of which takes a second.
fn start(
    dispatcher: &Dispatcher,
    returns: usize,
    within: Duration,
    calls: &Arc<AtomicU64>,
) -> impl Future<Output = Outcome> + Send + 'static {
    let (namespace, pipeline) = (name("tenant"), name("p"));
    let account = dispatcher.cpu_account(&namespace, &pipeline);
    let step = |id: &str, time, returns, retry| DeployedStep {
        scope: Arc::new(StepScope {
            namespace: namespace.clone(),
            pipeline: pipeline.clone(),
            revision: 1,
            step: name(id),
            plugin: "uses@1.0.0".into(),
            digest: None,
            grants: Grants::default(),
            config: Vec::new(),
            cpu: account.clone(),
        }),
        step: Arc::new(Uses {
            account: account.clone(),
            time,
            returns,
            calls: calls.clone(),
        }),
        timeout: None,
        retry,
    };
    let steps = match returns {
        0 => {
            let retry = Retry {
                attempts: 50,
                backoff: Duration::from_millis(1),
                errors: vec![ErrorKind::Failed],
            };
            vec![step("fails", Duration::from_secs(1), 0, Some(retry))]
        }
        _ => vec![
            step("many", Duration::ZERO, returns, None),
            step("each", Duration::from_secs(1), 1, None),
        ],
    };
    let deployment = Arc::new(Deployment {
        namespace: namespace.clone(),
        name: pipeline.clone(),
        revision: 1,
        triggers: Vec::new(),
        body: Deployed::Steps(steps),
    });
    let request = RunRequest {
        deployment,
        run: RunId::new(),
        trigger: "http",
        event: Event {
            id: "1".into(),
            source: "/test".into(),
            r#type: "test".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            extensions: Vec::new(),
            data: Bytes::new(),
        },
        deadline: Instant::now() + within,
        trace: TraceContext::default(),
    };
    let permit = dispatcher.admit(&namespace).unwrap();
    let dispatcher = dispatcher.clone();
    async move { dispatcher.run(permit, request).await }
}

fn cpu(seconds: u64) -> Quotas {
    Quotas {
        cpu_per_minute: Some(Duration::from_secs(seconds)),
        ..Quotas::default()
    }
}

#[tokio::test]
async fn a_run_does_not_go_on_beyond_the_quota_of_cpu_time() {
    for returns in [20, 0] {
        let dispatcher = Dispatcher::new(10);
        quota(&dispatcher, "tenant", cpu(3));
        let calls = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let outcome = start(&dispatcher, returns, Duration::from_secs(20), &calls).await;
        let Outcome::Errored(error) = outcome else {
            panic!("{outcome:?}")
        };
        // There is nothing to wait for within its time.
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("cpu_seconds_per_minute"), "{error}");
        let first = if returns > 0 { 1 } else { 0 };
        assert_eq!(calls.load(Ordering::SeqCst), 3 + first, "{returns}");
    }
}

#[tokio::test]
async fn a_run_waits_for_cpu_time_as_long_as_it_may() {
    let dispatcher = Dispatcher::new(10);
    quota(&dispatcher, "tenant", cpu(3));
    let calls = Arc::new(AtomicU64::new(0));
    let run = start(&dispatcher, 8, Duration::from_secs(300), &calls);
    let run = tokio::spawn(run);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    assert!(!run.is_finished());
    // More of it, or none of the quota at all, and it goes on.
    quota(&dispatcher, "tenant", cpu(5));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(calls.load(Ordering::SeqCst), 6);
    dispatcher.set_quotas(HashMap::new());
    let outcome = tokio::time::timeout(Duration::from_secs(20), run).await;
    let outcome = outcome.expect("it goes on").unwrap();
    assert!(matches!(&outcome, Outcome::Delivered(events) if events.len() == 8));
    assert_eq!(calls.load(Ordering::SeqCst), 9);
}

#[tokio::test]
async fn what_is_left_of_the_quota_is_looked_at_again_as_it_is_used() {
    // Others use it too, between two calls of a run that began with much left.
    let dispatcher = Dispatcher::new(10);
    quota(&dispatcher, "tenant", cpu(1_000));
    let calls = Arc::new(AtomicU64::new(0));
    let run = start(&dispatcher, 20, Duration::from_secs(20), &calls);
    dispatcher
        .cpu_account(&name("tenant"), &name("other"))
        .charge(Duration::from_secs(995));
    let outcome = run.await;
    assert!(matches!(outcome, Outcome::Errored(_)), "{outcome:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 6);
}
