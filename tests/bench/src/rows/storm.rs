use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use clap::Args;

use super::host::{Host, deploy, load, variant};
use super::{Outcome, RowArgs, SECONDS, ratio};
use crate::client::Client;
use crate::load::Measured;
use crate::output::note;
use crate::servers::Programs;

#[derive(Args, Clone, Debug)]
#[command(mut_arg("rounds", |rounds| rounds.default_value("15")))]
pub(crate) struct StormArgs {
    #[command(flatten)]
    pub(super) row: RowArgs,
    /// Seconds of each measurement
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
    /// Requests a second
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Uploads at once
    #[arg(long, default_value_t = 8)]
    uploads: usize,
}

impl StormArgs {
    pub(super) fn new(row: RowArgs) -> Self {
        Self {
            row,
            seconds: SECONDS,
            rate: 500.0,
            uploads: 8,
        }
    }
}

/// Where the requests go that are measured.
const CALM: &str = "/calm";

pub(super) async fn run(programs: &Programs, args: &StormArgs) -> Result<Outcome> {
    args.row.check()?;
    ensure!(
        (1..=64).contains(&args.uploads),
        "--uploads is not within 1 to 64"
    );
    let host = Host::start(programs).await?;
    let mut admin = host.admin().await?;
    let echo = programs.component("echo")?;
    deploy(&mut admin, "default", "calm", "POST", CALM, &echo).await?;
    let uploads = Arc::new(AtomicUsize::new(0));
    // What the machine allows: a native handler beside the same compilers.
    let native = programs.native(false).await?;
    let of_native = || load(programs, native.address, "/echo", args.rate, args.seconds);
    let (mut calm, mut stormy) = (Vec::new(), Vec::new());
    let (mut native_calm, mut native_stormy) = (Vec::new(), Vec::new());
    for round in 1..=args.row.rounds {
        note(&format!("alone, round {round} of {}", args.row.rounds));
        calm.push(host.load(programs, CALM, args.rate, args.seconds).await?);
        native_calm.push(of_native().await?);
        note(&format!(
            "during a storm, round {round} of {}",
            args.row.rounds
        ));
        let over = Arc::new(AtomicBool::new(false));
        let mut storm = Vec::new();
        for _ in 0..args.uploads {
            let client = host.admin().await?;
            storm.push(tokio::spawn(upload(
                client,
                echo.clone(),
                over.clone(),
                uploads.clone(),
            )));
        }
        stormy.push(host.load(programs, CALM, args.rate, args.seconds).await?);
        native_stormy.push(of_native().await?);
        over.store(true, Ordering::Relaxed);
        for uploader in storm {
            uploader.await??;
        }
    }
    let p99 = |measured: &[Measured]| measured.iter().map(|one| one.p99_us).collect::<Vec<_>>();
    let p50 = |measured: &[Measured]| measured.iter().map(|one| one.p50_us).collect::<Vec<_>>();
    let mut outcome = Outcome::new(format!(
        "{} requests a second, alone and while {} clients upload as fast as they can ({} uploads)",
        args.rate,
        args.uploads,
        uploads.load(Ordering::Relaxed)
    ));
    outcome.goal(
        "p99 in the storm, beside alone",
        ratio(&p99(&stormy), &p99(&calm)),
        2.0,
        "×",
    );
    outcome.side("alone: p50", "µs", p50(&calm));
    outcome.side("alone: p99", "µs", p99(&calm));
    outcome.side("in the storm: p50", "µs", p50(&stormy));
    outcome.side("in the storm: p99", "µs", p99(&stormy));
    outcome.side("native axum, alone: p99", "µs", p99(&native_calm));
    outcome.side("native axum, in the storm: p99", "µs", p99(&native_stormy));
    let of_native = ratio(&p99(&native_stormy), &p99(&native_calm));
    outcome.notes.push(format!(
        "a native axum handler in the same storm: p99 {of_native:.2}× its own alone"
    ));
    Ok(outcome)
}

/// Uploads one component after the other, each with bytes that nobody has seen. A full queue is an answer too.
async fn upload(
    mut client: Client,
    component: Vec<u8>,
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let path = format!("/api/v1/namespaces/default/plugins/storm-{number}/versions/1.0.0");
        let (status, answer) = client
            .ask("PUT", &path, &variant(&component, number))
            .await?;
        ensure!(
            matches!(status, 201 | 503),
            "{status}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    Ok(())
}
