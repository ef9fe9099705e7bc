use axum::body::Body;
use axum::http::Method;
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::client::Client;

#[tokio::test(flavor = "current_thread")]
async fn requests_are_counted_by_route_method_and_status() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    stepwell_api::describe_metrics();

    let client = Client::guarded().bearing("right");
    for name in ["a", "b"] {
        client
            .get(&format!("/api/v1/namespaces/default/plugins/{name}"))
            .await;
    }
    client.get("/made/up/by/a/caller").await;
    let odd = Method::from_bytes(b"MADE-UP").unwrap();
    client.send(odd, "/livez", &[], Body::empty()).await;
    let refused = Client::guarded();
    refused.get("/api/v1/models").await;

    let text = recorder.handle().render();
    for line in [
        r#"{route="/api/v1/namespaces/{ns}/plugins/{name}",method="GET",status="404"} 2"#,
        r#"{route="unmatched",method="GET",status="404"} 1"#,
        r#"{route="/livez",method="other",status="405"} 1"#,
        r#"{route="/api/v1/models",method="GET",status="401"} 1"#,
    ] {
        let line = format!("stepwell_api_requests_total{line}");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(text.contains("# HELP stepwell_api_requests_total"));
    assert!(text.contains("# TYPE stepwell_api_request_seconds"));
    assert!(!text.contains("caller") && !text.contains("MADE-UP"));
}
