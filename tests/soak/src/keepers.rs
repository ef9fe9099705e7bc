use anyhow::{Result, bail, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::StatusCode;
use stepwell_tests::send;

use crate::Soak;
use crate::standing::{KEEPERS, MAX_CALLS};
use crate::target::{Visit, unexpected};

/// What secrets travel with: see the guest `keepsake`.
const MASK: u8 = 0x5a;

/// Calls a step whose instances are reused, in one of two namespaces: none may have more calls than it should, two at once, or
/// anything of the other namespace.
pub(crate) async fn call(soak: &Soak, visit: &Visit, rng: &mut StdRng) -> Result<()> {
    let (own, other) = match (KEEPERS, rng.random_bool(0.5)) {
        ([own, other], true) | ([other, own], false) => (own, other),
    };
    let (kind, body) = match rng.random_range(0..100) {
        0..40 => ("count", Vec::new()),
        40..55 => ("config:tag", Vec::new()),
        55..65 => ("serial:2", Vec::new()),
        65..75 => ("write", secret(own)),
        75..78 => ("scan", secret(other)),
        78..82 => ("keep-pollable", Vec::new()),
        82..86 => ("keep-fields", Vec::new()),
        86..90 => ("grow:1000000", Vec::new()),
        90..93 => ("mutter:something", Vec::new()),
        93..96 => ("trap", Vec::new()),
        96..98 => ("spin:1500", Vec::new()),
        _ => ("output:2000000", Vec::new()),
    };
    let path = format!("/@{own}/keeper");
    let reply = send(visit.event(&path, "1", kind).body(body)).await?;
    let text = String::from_utf8_lossy(&reply.body);
    match (reply.status, kind) {
        (StatusCode::OK, "config:tag") => ensure!(
            text == format!("Ok(Some(\"{own}\"))"),
            "{own}: its configuration is {text}"
        ),
        (StatusCode::OK, "scan") => ensure!(
            text == "0",
            "{own}: its memory has the secret of {other} {text} times"
        ),
        (StatusCode::OK, "trap" | "output:2000000") => bail!("{own}: {kind} ended well"),
        (StatusCode::OK, _) => {
            let calls: u64 = text.parse()?;
            ensure!(
                (1..=MAX_CALLS).contains(&calls),
                "{own}: {kind} was call {calls} of its instance"
            );
        }
        // No room, no time, or one of its limits: memory that it keeps is its own fault, and traps are asked for.
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _)
        | (StatusCode::GATEWAY_TIMEOUT, _)
        | (
            StatusCode::INTERNAL_SERVER_ERROR,
            "write" | "scan" | "grow:1000000" | "trap" | "spin:1500" | "output:2000000",
        ) => {}
        _ => return Err(unexpected(&reply).context(format!("{own}: {kind}"))),
    }
    let kind = kind.split(':').next().unwrap_or_default();
    soak.findings
        .count(&format!("kept {kind}: {}", reply.status.as_u16()));
    Ok(())
}

/// Masked, so that no request leaves it in anybody's memory.
fn secret(namespace: &str) -> Vec<u8> {
    let secret = format!("the secret of {namespace}");
    secret.bytes().map(|byte| byte ^ MASK).collect()
}
