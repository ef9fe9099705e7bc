use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{ErrorKind, Name};
use stepwell_pipeline::{Dispatcher, NotAdmitted};
use tokio::sync::Notify;

use crate::support::{Ends, LONG, append, delivered, deployment, failing, gated, request, times};

#[tokio::test]
async fn a_caller_that_hangs_up_cannot_stop_a_run() {
    for inline in [false, true] {
        let (begun, go, done) = (Arc::default(), Arc::default(), Arc::default());
        let deployment = deployment(vec![gated(&begun, &go, &done)]);
        let dispatcher = Dispatcher::new(1);
        let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
        let caller = tokio::spawn({
            let (dispatcher, request) = (dispatcher.clone(), request(&deployment, LONG));
            async move {
                if inline {
                    dispatcher.run_inline(permit, request).await
                } else {
                    dispatcher.run(permit, request).await
                }
            }
        });
        begun.notified().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert!(
            dispatcher.admit(&Name::default_namespace()).is_err(),
            "the run still holds its permit"
        );
        go.notify_one();
        done.notified().await;
        assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    }
}

#[tokio::test]
async fn permits_bound_the_runs_under_way() {
    let (begun, go, done) = (Arc::default(), Arc::default(), Arc::default());
    let deployment = deployment(vec![gated(&begun, &go, &done)]);
    let dispatcher = Dispatcher::new(1);
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let busy = NotAdmitted::Busy {
        retry_after: Duration::from_secs(1),
    };
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(busy)
    );
    let request = request(&deployment, LONG);
    let run = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { dispatcher.run(permit, request).await }
    });
    begun.notified().await;
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(busy)
    );
    go.notify_one();
    assert_eq!(run.await.unwrap().as_str(), "delivered");
    assert!(dispatcher.admit(&Name::default_namespace()).is_ok());
}

#[tokio::test]
async fn a_drain_waits_and_names_what_did_not_end() {
    let (begun, go, done): (Arc<Notify>, Arc<Notify>, _) =
        (Arc::default(), Arc::default(), Arc::default());
    let deployment = deployment(vec![gated(&begun, &go, &done)]);
    let dispatcher = Dispatcher::new(10);
    let request = request(&deployment, LONG);
    let id = request.run;
    let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
    let run = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { dispatcher.run(permit, request).await }
    });
    begun.notified().await;
    dispatcher.close();
    assert_eq!(
        dispatcher.admit(&Name::default_namespace()).err(),
        Some(NotAdmitted::ShuttingDown)
    );
    let soon = Instant::now() + Duration::from_millis(50);
    assert_eq!(dispatcher.drained(soon).await, [format!("p {id}")]);
    go.notify_one();
    assert!(dispatcher.drained(Instant::now() + LONG).await.is_empty());
    assert_eq!(run.await.unwrap().as_str(), "delivered");
}

#[tokio::test]
async fn the_observer_hears_of_each_run_once() {
    let ends = Arc::new(Ends::default());
    let dispatcher = Dispatcher::with(10, None, Some(ends.clone()));
    let calls = Arc::default();
    let bad = deployment(vec![failing("b", ErrorKind::Failed, 1, &calls)]);
    for expected in [
        ("failed", Some("b: failure 0".to_owned())),
        ("delivered", None),
    ] {
        let request = request(&bad, LONG);
        let id = request.run;
        dispatcher
            .run(
                dispatcher.admit(&Name::default_namespace()).unwrap(),
                request,
            )
            .await;
        let heard = std::mem::take(&mut *ends.0.lock().unwrap());
        assert_eq!(heard, [(id, expected.0, expected.1)]);
    }
}

#[tokio::test]
async fn thousands_of_runs_side_by_side() {
    let dispatcher = Dispatcher::new(5000);
    let deployment = deployment(vec![times("a", 2), append("b", "!")]);
    let runs = (0..5000).map(|_| {
        let permit = dispatcher.admit(&Name::default_namespace()).unwrap();
        dispatcher.run(permit, request(&deployment, LONG))
    });
    for outcome in futures::future::join_all(runs).await {
        assert_eq!(delivered(outcome), ["x0!", "x1!"]);
    }
    for _ in 0..5000 {
        assert!(dispatcher.admit(&Name::default_namespace()).is_ok());
    }
}
