use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;

use crate::host::Host;
use crate::picture::{self, Picture};
use crate::report::{Answer, Answered};
use crate::scans::Scan;

/// Requests under way at once.
const CONCURRENCY: usize = 8;

/// Speaks to the host's two listeners.
pub(crate) struct Client {
    http: reqwest::Client,
    data: String,
    admin: String,
}

#[derive(Deserialize)]
struct Readiness {
    status: String,
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    status: String,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Indexed {
    indexed: u64,
}

impl Client {
    pub(crate) fn new(host: &Host) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            http,
            data: host.data.clone(),
            admin: host.admin.clone(),
        })
    }

    /// Waits until every part of the host is well: the model is loaded, the topics are there, all bindings answer.
    pub(crate) async fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let reply = self
                .http
                .get(format!("{}/readyz", self.admin))
                .send()
                .await?;
            let readiness: Readiness =
                serde_json::from_slice(&reply.bytes().await?).context("/readyz")?;
            let unwell = readiness.parts.iter().filter(|part| part.status != "ok");
            let unwell: Vec<String> = unwell
                .map(|part| {
                    format!(
                        "{} is {}: {}",
                        part.name,
                        part.status,
                        part.reason.as_deref().unwrap_or("no reason given")
                    )
                })
                .collect();
            if readiness.status == "ok" {
                return Ok(());
            }
            if Instant::now() > end
                || unwell
                    .iter()
                    .any(|part| part.starts_with("models/") && part.contains(" is down"))
            {
                bail!("the host is {}: {}", readiness.status, unwell.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts training scans into the vector index.
    pub(crate) async fn index(&self, batch: &[Scan]) -> Result<u64> {
        let scan = |scan: &Scan| json!({"id": format!("train-{}", scan.id), "label": scan.label, "pixels": scan.pixels});
        let scans: Vec<_> = batch.iter().map(scan).collect();
        let request = self
            .http
            .post(format!("{}/scans", self.data))
            .json(&json!({"scans": scans}));
        let indexed: Indexed = answer(request).await.context("POST /scans")?;
        Ok(indexed.indexed)
    }

    /// Sends each scan as a picture and collects the answers, in the scans' order.
    pub(crate) async fn read_all(
        &self,
        scans: &[Scan],
        progress: impl Fn(usize),
    ) -> Result<Answered> {
        let pictures: Vec<Picture> = scans
            .iter()
            .enumerate()
            .map(|(position, scan)| picture::of(position, scan))
            .collect();
        let start = Instant::now();
        let answers: Vec<(Answer, Duration)> =
            stream::iter(scans.iter().zip(pictures).enumerate())
                .map(|(position, (scan, picture))| async move {
                    self.read(position, scan, picture).await
                })
                .buffered(CONCURRENCY)
                .enumerate()
                .map(|(count, answer)| {
                    progress(count + 1);
                    answer
                })
                .try_collect()
                .await?;
        let elapsed = start.elapsed();
        let (answers, latencies): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        Ok(Answered::new(scans, answers, elapsed).with_latencies(latencies))
    }

    async fn read(
        &self,
        position: usize,
        scan: &Scan,
        picture: Picture,
    ) -> Result<(Answer, Duration)> {
        let request = self
            .http
            .post(format!("{}/digits/heldout", self.data))
            .header("content-type", picture.media_type)
            .body(picture.bytes);
        let start = Instant::now();
        let answer = answer(request).await.with_context(|| {
            format!(
                "{} (number {position}, {})",
                scan.name(),
                picture.media_type
            )
        })?;
        Ok((answer, start.elapsed()))
    }
}

async fn answer<T: for<'de> Deserialize<'de>>(request: reqwest::RequestBuilder) -> Result<T> {
    let reply = request.send().await?;
    let status = reply.status();
    let body = reply.bytes().await?;
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    serde_json::from_slice(&body).with_context(|| {
        format!(
            "not the answer expected: {}",
            String::from_utf8_lossy(&body)
        )
    })
}
