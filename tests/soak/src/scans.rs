use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use stepwell_tests::{Scan, pgm, scans, send};

use crate::Soak;
use crate::findings::Findings;
use crate::target::{Visit, unexpected};

/// Pictures that the digit reader is shown again and again. Each is looked at by the model, the index, the database and the
/// key-value store, and the reply says how often it was seen: acknowledged events must be in that number, whatever happened since.
pub(crate) struct Scans {
    all: Vec<Scan>,
    seen: Mutex<HashMap<usize, Seen>>,
}

#[derive(Clone, Default)]
struct Seen {
    /// Events that were sent.
    sent: u64,
    /// Events that were answered.
    answered: u64,
    /// The last of these.
    last: Option<String>,
    /// What it was read as; a model does not change its mind.
    digit: Option<Value>,
}

impl Scans {
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut all = scans("heldout")?;
        all.truncate(count);
        Ok(Self {
            all,
            seen: Mutex::default(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<usize, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, index: usize, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(self.seen().entry(index).or_default())
    }
}

/// Shows the digit reader a picture, as a new event or one that it has answered already.
pub(crate) async fn show(soak: &Soak, visit: &Visit, rng: &mut StdRng) -> Result<()> {
    let scans = &soak.scans;
    let index = rng.random_range(0..scans.all.len());
    let id = format!("{:016x}", rng.random::<u64>());
    let before = scans.change(index, |seen| {
        seen.sent += 1;
        seen.clone()
    });
    let Some((seen, digit)) = ask(visit, scans, index, &id).await? else {
        return Ok(());
    };
    let sent = scans.change(index, |now| {
        now.answered += 1;
        now.last = Some(id);
        now.digit.get_or_insert_with(|| digit.clone());
        now.sent
    });
    ensure!(
        (before.answered + 1..=sent).contains(&seen),
        "picture {index} was seen {seen} times, after {} acknowledged events and {sent} sent ones",
        before.answered
    );
    ensure!(
        before.digit.as_ref().is_none_or(|before| *before == digit),
        "picture {index} was read as {:?} and now as {digit}",
        before.digit
    );
    soak.findings.count("picture read, and counted");
    Ok(())
}

/// When nobody shows anything any more: no event that was acknowledged counts again, or is forgotten.
pub(crate) async fn judge(visit: &Visit, scans: &Scans, findings: &Findings) -> Result<()> {
    let all: Vec<(usize, Seen)> = {
        let seen = scans.seen();
        seen.iter().map(|(at, seen)| (*at, seen.clone())).collect()
    };
    for (index, seen) in all {
        let Some(last) = seen.last else { continue };
        let (now, _) = ask(visit, scans, index, &last)
            .await?
            .context("a host at rest is busy")?;
        if !(seen.answered..=seen.sent).contains(&now) {
            findings.wrong(format!(
                "picture {index} was seen {now} times in the end, {} events were acknowledged and {} sent",
                seen.answered, seen.sent
            ));
        }
        findings.count("picture whose count is right in the end");
    }
    Ok(())
}

/// How often the picture was seen and what it was read as; none when the host is busy or its model is not loaded yet.
async fn ask(visit: &Visit, scans: &Scans, index: usize, id: &str) -> Result<Option<(u64, Value)>> {
    let scan = scans.all.get(index).context("no such picture")?;
    let request = visit
        .event("/digits/soak", id, "scan")
        .header("content-type", "image/x-portable-graymap");
    let reply = send(request.body(pgm(&scan.pixels))).await?;
    match reply.status.as_u16() {
        200 => {}
        429 | 503 | 504 => return Ok(None),
        _ => return Err(unexpected(&reply)),
    }
    let answer = reply.json();
    let seen = answer.get("seen").and_then(Value::as_u64);
    let digit = answer.get("digit").cloned();
    Ok(Some((
        seen.context("no count")?,
        digit.context("no digit")?,
    )))
}
