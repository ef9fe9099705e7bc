use std::sync::Arc;

use reqwest::StatusCode;
use stepwell_tests::{Config, send};

use crate::support::{PROBE, ask, assert_problem, event, probe};

#[tokio::test]
async fn a_busy_host_says_when_to_come_back() {
    let host = Arc::new(probe(&Config::with("[limits]\nconcurrent_runs = 1\n")).await);
    host.apply("probe", &PROBE.replace("wall: 3s", "wall: 10s"))
        .await
        .unwrap();
    let busy = {
        let host = host.clone();
        tokio::spawn(async move {
            loop {
                // It may be the one that is refused at first.
                let status = ask(&host, "sleep:3000").await.status;
                if status != StatusCode::TOO_MANY_REQUESTS {
                    return status;
                }
            }
        })
    };
    let refused = loop {
        let reply = ask(&host, "echo").await;
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            break reply;
        }
        assert!(!busy.is_finished(), "it was never busy");
    };
    assert_problem(&refused, 429, "busy");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    let hits = "stepwell_limit_hits_total{limit=\"concurrent_runs\"}";
    assert!(host.metric(hits).await.unwrap() >= 1.0);
    assert_eq!(busy.await.unwrap(), StatusCode::OK);
    assert_eq!(ask(&host, "echo").await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_for_which_there_is_no_room_are_refused_and_counted() {
    let host = probe(&Config::with("[limits]\nbodies = \"1MiB\"\n")).await;
    let large = PROBE.replace("max_body: 1KiB, timeout", "max_body: 4MiB, timeout");
    host.apply("probe", &large).await.unwrap();
    let send_so_much = async |bytes: usize| {
        let request = event(&host, "drop").body(vec![b'x'; bytes]);
        send(request).await.unwrap()
    };
    assert_eq!(send_so_much(900 << 10).await.status, StatusCode::NO_CONTENT);
    let refused = send_so_much(1200 << 10).await;
    assert_problem(&refused, 429, "busy");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    let hits = "stepwell_limit_hits_total{limit=\"bodies\"}";
    assert_eq!(host.metric(hits).await.unwrap(), 1.0);
    assert_eq!(host.metric("stepwell_http_body_bytes").await.unwrap(), 0.0);
    assert_eq!(send_so_much(900 << 10).await.status, StatusCode::NO_CONTENT);
}
