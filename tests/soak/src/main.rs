//! Hours of random uploads, deploys, kills and load, and after each the question whether anything was wrong: an answer of a
//! revision that was not deployed, an answer nobody gave, what one namespace has in another's hands, an acknowledged write that is
//! gone, a record without its answer, a run or a permit that never ended, memory that only grows.
//!
//! Everything random comes from one seed, which the report names.

mod chaos;
mod deploys;
mod expected;
mod findings;
mod keepers;
mod load;
mod records;
mod rest;
mod scans;
mod standing;
mod target;
mod tenants;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::expected::Expected;
use crate::findings::{Findings, note};
use crate::rest::{Gate, Rest};
use crate::scans::Scans;
use crate::target::Target;

/// Random uploads, deploys, kills and load; an error when any answer was wrong or anything leaked
#[derive(Clone, Debug, Parser)]
#[command(name = "stepwell-soak")]
pub(crate) struct Args {
    /// How long: the first half with kills, the second without, when memory must stay flat
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// What everything random comes from (default: the time)
    #[arg(long)]
    seed: Option<u64>,
    /// Pipelines that are deployed and called
    #[arg(long, default_value_t = 6)]
    pipelines: usize,
    /// Requests at once
    #[arg(long, default_value_t = 16)]
    callers: usize,
    /// Seconds between two kills
    #[arg(long, default_value_t = 8)]
    kill_every: u64,
}

/// Pictures that are shown to the digit reader, few enough that each is shown often.
const PICTURES: usize = 100;

/// What all tasks share.
pub(crate) struct Soak {
    pub(crate) target: Target,
    pub(crate) pipelines: Vec<Expected>,
    pub(crate) scans: Scans,
    pub(crate) findings: Findings,
    pub(crate) gate: Gate,
    pub(crate) stop: CancellationToken,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&args, seed))
}

async fn run(args: &Args, seed: u64) -> Result<()> {
    note(&format!(
        "seed {seed}, {} s, {} pipelines, {} callers",
        args.seconds, args.pipelines, args.callers
    ));
    let mut host = standing::host().await?;
    let soak = Arc::new(Soak {
        target: Target::new(&host),
        pipelines: (0..args.pipelines)
            .map(|index| Expected::new(format!("tagged-{index}")))
            .collect(),
        scans: Scans::new(PICTURES)?,
        findings: Findings::default(),
        gate: Gate::default(),
        stop: CancellationToken::new(),
    });
    let mut seeds = StdRng::seed_from_u64(seed);
    let tasks = TaskTracker::new();
    for index in 0..args.pipelines {
        let rng = StdRng::from_rng(&mut seeds);
        tasks.spawn(deploys::deployer(soak.clone(), index, rng));
    }
    for _ in 0..args.callers {
        let rng = StdRng::from_rng(&mut seeds);
        tasks.spawn(load::caller(soak.clone(), rng));
    }
    tasks.spawn(tenants::tenant(soak.clone(), StdRng::from_rng(&mut seeds)));
    tasks.spawn(records::producer(
        soak.clone(),
        StdRng::from_rng(&mut seeds),
    ));
    tasks.close();

    let half = Duration::from_secs(args.seconds) / 2;
    let pause = Duration::from_secs(args.kill_every.max(1));
    chaos::kills(&soak, &mut host, half, pause, StdRng::from_rng(&mut seeds)).await?;
    note("no more kills: memory must stay flat from now on");
    let mut rests = Vec::new();
    let started = Instant::now();
    while started.elapsed() < half {
        tokio::time::sleep(half / 8).await;
        rests.push(Rest::take(&soak, &host).await?);
    }
    soak.stop.cancel();
    tasks.wait().await;
    let last = Rest::take(&soak, &host).await?;
    rests.push(last);
    Rest::judge(&rests, &soak.findings);
    if let Some(visit) = soak.target.visit() {
        scans::judge(&visit, &soak.scans, &soak.findings).await?;
    }
    match host.stop() {
        Ok(0) => {}
        Ok(code) => soak
            .findings
            .wrong(format!("the host ended with exit code {code}")),
        Err(error) => soak
            .findings
            .wrong(format!("the host did not stop: {error:#}")),
    }
    for rest in &rests {
        note(&rest.to_string());
    }
    let wrong = soak.findings.report();
    if wrong > 0 {
        bail!("{wrong} finding(s); run it again with --seed {seed}");
    }
    note("nothing wrong");
    Ok(())
}
