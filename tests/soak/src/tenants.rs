use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::Value;
use stepwell_tests::{guest, send};

use crate::Soak;
use crate::target::Visit;

/// Namespaces that come, work for a while and go, with everything that is theirs.
pub(crate) async fn tenant(soak: Arc<Soak>, mut rng: StdRng) {
    // Those of which nobody knows what is left, since the host was stopped under them, keep their names to themselves.
    let mut name = 0;
    while !soak.stop.is_cancelled() {
        let pass = soak.gate.pass().await;
        if let Some(visit) = soak.target.visit() {
            name += 1;
            match stay(&visit, &format!("tenant-{name}"), &mut rng).await {
                Ok(()) => soak.findings.count("namespace that came and went"),
                Err(error) if soak.target.undisturbed(&visit) => {
                    soak.findings.wrong(format!("tenant-{name}: {error:#}"));
                }
                Err(_) => {}
            }
        }
        drop(pass);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..500))).await;
    }
}

async fn stay(visit: &Visit, name: &str, rng: &mut StdRng) -> Result<()> {
    let at = format!("/namespaces/{name}");
    let quotas = r#"{"quotas": {"plugins": 2, "concurrent_runs": 100}}"#;
    visit.expect(Method::PUT, &at, quotas, &[201]).await?;
    let version = format!("{at}/plugins/tagger/versions/1.0.0");
    let bytes = guest("tagger")?;
    visit.expect(Method::PUT, &version, bytes, &[201]).await?;

    let pipeline = format!("{at}/pipelines/p");
    let path = format!("/@{name}/p");
    let revisions = rng.random_range(1..4);
    for revision in 1..=revisions {
        let document = format!(
            "stepwell: 1\nname: p\ntriggers:\n  - http: {{method: POST, path: /p}}\n\
             steps: [{{id: only, plugin: tagger@1, config: {{tag: \"-{revision}\"}}}}]\n"
        );
        visit
            .expect(Method::PUT, &pipeline, document, &[200, 201])
            .await?;
        let request = visit.event(&path, "1", "x").body(name.to_owned());
        let reply = send(request).await?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(
            matches!(reply.status.as_u16(), 429 | 504) || text == format!("{name}-{revision} "),
            "{} '{text}' of revision {revision}",
            reply.status
        );
    }

    let token = format!(r#"{{"role": "invoker", "namespace": "{name}", "name": "soak"}}"#);
    let token = visit
        .expect(Method::POST, "/tokens", token, &[201])
        .await?
        .json();
    let field = |name: &str| token.get(name).and_then(Value::as_str).unwrap_or_default();
    let url = format!("{}/api/v1{pipeline}/revisions", visit.admin);
    let shown = send(visit.http.get(url).bearer_auth(field("token"))).await?;
    ensure!(
        shown.status == 403,
        "an invoker sees revisions: {}",
        shown.status
    );

    // Nothing goes while it is used.
    for used in [&at, &version] {
        visit.expect(Method::DELETE, used, "", &[409]).await?;
    }
    let token = format!("/tokens/{}", field("id"));
    for gone in [&pipeline, &version, &token, &at] {
        visit.expect(Method::DELETE, gone, "", &[204]).await?;
    }
    visit.expect(Method::GET, &at, "", &[404]).await?;
    Ok(())
}
