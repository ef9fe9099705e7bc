use std::collections::HashMap;
use std::time::Duration;

use stepwell_core::{Name, Quotas};
use stepwell_pipeline::Dispatcher;

use super::{deployment, inspect, post, send, spec, steps, trigger_on};

#[tokio::test]
async fn a_quota_that_is_used_up_is_429_and_says_when_to_come_again() {
    let dispatcher = Dispatcher::new(8);
    let trigger = trigger_on(
        dispatcher.clone(),
        &[deployment(spec("POST", "/p"), 1, steps(vec![inspect()]))],
    );
    let namespace = Name::default_namespace();
    for quotas in [
        Quotas {
            runs_per_second: Some(0),
            ..Quotas::default()
        },
        Quotas {
            concurrent_runs: Some(0),
            ..Quotas::default()
        },
        Quotas {
            cpu_per_minute: Some(Duration::ZERO),
            ..Quotas::default()
        },
    ] {
        dispatcher.set_quotas(HashMap::from([(namespace.clone(), quotas)]));
        let reply = send(&trigger, post("/p"), "").await;
        reply.assert_problem(429, "quota");
        let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    dispatcher.set_quotas(HashMap::new());
    assert_eq!(send(&trigger, post("/p"), "").await.status, 200);
}
