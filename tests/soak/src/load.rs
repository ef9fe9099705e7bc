use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures::StreamExt as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::{Body, RequestBuilder, StatusCode};
use stepwell_tests::{Reply, send};

use crate::expected::State;
use crate::target::Visit;
use crate::{Soak, keepers, scans};

/// Calls pipelines, well and badly, and looks at every answer.
pub(crate) async fn caller(soak: Arc<Soak>, mut rng: StdRng) {
    while !soak.stop.is_cancelled() {
        let pass = soak.gate.pass().await;
        let Some(visit) = soak.target.visit() else {
            drop(pass);
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let result = match rng.random_range(0..10) {
            0..4 => step(&soak, &visit, &mut rng).await,
            4..6 => function(&soak, &visit, &mut rng).await,
            6 => service(&soak, &visit, &mut rng).await,
            7 => keepers::call(&soak, &visit, &mut rng).await,
            _ => scans::show(&soak, &visit, &mut rng).await,
        };
        if let Err(error) = result
            && soak.target.undisturbed(&visit)
        {
            soak.findings.wrong(format!("{error:#}"));
        }
    }
}

/// What a guest is told to do, and what must come of it.
const DEEDS: [(&str, u16); 12] = [
    ("spin", 500),
    ("allocate:200000000", 500),
    ("trap", 500),
    ("panic", 500),
    ("exit", 500),
    ("recurse:100000000", 500),
    ("output:2000000", 500),
    ("handles:20000", 500),
    ("invalid:no", 422),
    ("unavailable:later", 503),
    ("failed:no", 500),
    ("log:50", 200),
];

async fn step(soak: &Soak, visit: &Visit, rng: &mut StdRng) -> Result<()> {
    let Some(pipeline) = soak
        .pipelines
        .get(rng.random_range(0..soak.pipelines.len()))
    else {
        return Ok(());
    };
    let path = format!("/{}", pipeline.name);
    let since = pipeline.since();
    let absent = |reply: &Reply| {
        reply.status == StatusCode::NOT_FOUND && pipeline.allows(since, State::Absent)
    };
    match rng.random_range(0..100) {
        0..45 => {
            let reply = send(visit.event(&path, "1", "config:tag")).await?;
            if absent(&reply) || busy(&reply) {
                return Ok(());
            }
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            let tag = body
                .strip_prefix("Ok(Some(\"")
                .and_then(|rest| rest.strip_suffix("\"))"))
                .and_then(|tag| tag.parse().ok());
            match tag {
                Some(tag) if pipeline.allows(since, State::Tagged(tag)) => {
                    soak.findings.count("answered by a deployed revision");
                    Ok(())
                }
                _ => bail!(
                    "{}: {} '{body}', which none of {} answers",
                    pipeline.name,
                    reply.status,
                    pipeline.shown(since)
                ),
            }
        }
        45..75 => {
            let body = random_bytes(rng, 64 << 10);
            let reply = send(visit.event(&path, "1", "echo").body(body.clone())).await?;
            if absent(&reply) || busy(&reply) {
                return Ok(());
            }
            ensure!(
                reply.status == StatusCode::OK && reply.body == body,
                "echo of {} bytes: {} and {} bytes",
                body.len(),
                reply.status,
                reply.body.len()
            );
            soak.findings.count("echoed");
            Ok(())
        }
        75..88 => {
            let (deed, status) = DEEDS
                .get(rng.random_range(0..DEEDS.len()))
                .copied()
                .unwrap_or_default();
            let reply = send(visit.event(&path, "1", deed)).await?;
            if absent(&reply) || busy(&reply) {
                return Ok(());
            }
            // A busy machine may take its time from a guest before its CPU budget is used.
            let late = reply.status == StatusCode::GATEWAY_TIMEOUT && status == 500;
            ensure!(
                reply.status.as_u16() == status || late,
                "{deed}: {} {}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            );
            ensure!(
                !reply.header("stepwell-run-id").is_empty(),
                "{deed}: no run id"
            );
            soak.findings.count(&format!("{deed}: {status}"));
            Ok(())
        }
        88..92 => {
            let reply = send(visit.event(&path, "1", "echo").body(vec![0; 2 << 20])).await?;
            if absent(&reply) || busy(&reply) {
                return Ok(());
            }
            ensure!(
                reply.status == StatusCode::PAYLOAD_TOO_LARGE,
                "2 MiB: {}",
                reply.status
            );
            soak.findings.count("too large refused");
            Ok(())
        }
        92..97 => abandoned(soak, visit.event(&path, "1", "sleep:300"), rng).await,
        _ => {
            let reply = send(visit.http.get(format!("{}/nowhere", visit.data))).await?;
            ensure!(reply.status == StatusCode::NOT_FOUND, "{}", reply.status);
            soak.findings.count("no route");
            Ok(())
        }
    }
}

async fn function(soak: &Soak, visit: &Visit, rng: &mut StdRng) -> Result<()> {
    let at = |path: &str| format!("{}{path}", visit.data);
    match rng.random_range(0..100) {
        0..50 => {
            let body = random_bytes(rng, 256 << 10);
            let reply = send(visit.http.post(at("/echo")).body(streamed(&body))).await?;
            if busy(&reply) {
                return Ok(());
            }
            ensure!(
                reply.status == StatusCode::OK && reply.body == body,
                "streamed echo of {} bytes: {} and {} bytes",
                body.len(),
                reply.status,
                reply.body.len()
            );
            soak.findings.count("streamed and echoed");
            Ok(())
        }
        50..60 => {
            let reply = send(visit.http.get(at("/spin"))).await?;
            if busy(&reply) {
                return Ok(());
            }
            ensure!(reply.status.is_server_error(), "spin: {}", reply.status);
            soak.findings.count("spinning function stopped");
            Ok(())
        }
        60..80 => {
            let body = random_bytes(rng, 256 << 10);
            let half = body.len() / 2;
            let pieces = vec![
                Ok(body.get(..half).unwrap_or_default().to_vec()),
                Err(std::io::Error::other("the caller went away")),
            ];
            let request = visit
                .http
                .post(at("/echo"))
                .body(Body::wrap_stream(futures::stream::iter(pieces)));
            // Whatever comes of it on this side, the host must be none the worse.
            let _ = request.send().await;
            soak.findings.count("request broken off");
            Ok(())
        }
        _ => abandoned(soak, visit.http.get(at("/big/900000")), rng).await,
    }
}

/// Instances that answer several requests at once: what one of these does ends the others of its instance, if it is bad.
async fn service(soak: &Soak, visit: &Visit, rng: &mut StdRng) -> Result<()> {
    let path = match rng.random_range(0..100) {
        0..40 => "/about",
        40..60 => "/sleep/20",
        60..70 => "/linger/50",
        70..80 => "/fields/3",
        80..85 => "/streams/50",
        85..90 => "/flood/20",
        90..93 => "/unfinished",
        93..96 => "/trap-midway",
        96..98 => "/trap",
        _ => {
            return abandoned(
                soak,
                visit.http.get(format!("{}/sleep/400", visit.data)),
                rng,
            )
            .await;
        }
    };
    let request = visit.http.get(format!("{}{path}", visit.data));
    let reply = match send(request).await {
        Ok(reply) => reply,
        // Its own guest's doing, or that of another request of the same instance. A head may go with its body.
        Err(error) if is_broken_off(&error) => {
            soak.findings.count("service: broken off");
            return Ok(());
        }
        Err(error) => return Err(error.context(path)),
    };
    let status = reply.status.as_u16();
    let text = String::from_utf8_lossy(&reply.body);
    let is_right = match path {
        "/about" => text.contains("Method::Get") && text.ends_with("/about"),
        "/sleep/20" => text.parse::<u64>().is_ok_and(|calls| calls <= 200),
        "/linger/50" => text == "hello",
        "/fields/3" => text == "3",
        "/streams/50" => text == "50",
        "/flood/20" => text == "logged",
        _ => false,
    };
    match status {
        200 => ensure!(is_right, "{path}: '{text}'"),
        429 | 500 | 502 | 503 | 504 => {}
        _ => bail!("{path}: {status} '{text}'"),
    }
    soak.findings.count(&format!("service {path}: {status}"));
    Ok(())
}

/// Whether a response ended before its end.
fn is_broken_off(error: &anyhow::Error) -> bool {
    let ended = |error: &reqwest::Error| error.is_body() || error.is_decode();
    error.downcast_ref().is_some_and(ended)
        || format!("{error:#}").contains("connection closed before message completed")
}

/// A caller who hangs up.
async fn abandoned(soak: &Soak, request: RequestBuilder, rng: &mut StdRng) -> Result<()> {
    let patience = Duration::from_micros(rng.random_range(0..30_000));
    let reading = async {
        let mut body = request.send().await?.bytes_stream();
        while body.next().await.transpose()?.is_some() {}
        anyhow::Ok(())
    };
    match tokio::time::timeout(patience, reading).await {
        Ok(result) => result,
        Err(_) => {
            soak.findings.count("caller hung up");
            Ok(())
        }
    }
}

/// No permit just then: an answer that is always allowed.
fn busy(reply: &Reply) -> bool {
    reply.status == StatusCode::TOO_MANY_REQUESTS && !reply.header("retry-after").is_empty()
}

fn random_bytes(rng: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..most)];
    rng.fill(bytes.as_mut_slice());
    bytes
}

fn streamed(bytes: &[u8]) -> Body {
    let pieces: Vec<std::io::Result<Vec<u8>>> = bytes
        .chunks(10_000)
        .map(|piece| Ok(piece.to_vec()))
        .collect();
    Body::wrap_stream(futures::stream::iter(pieces))
}
