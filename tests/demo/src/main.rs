//! `stepwell-demo`: the host's main job, shown.
//!
//! Starts a host, uploads the digit reader's components, applies its pipelines, fills its vector index with the training
//! half of the scans, and sends the held-out half over HTTP and Kafka: all of it through what every user has, the command
//! line and the two listeners. The host goes on running; `--stop` ends it.

mod examples;
mod host;
mod http;
mod kafka;
mod keeper;
mod next;
mod picture;
mod place;
mod report;
mod scans;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::host::Host;
use crate::http::Client;
use crate::place::Place;
use crate::report::{Answered, Report, say};
use crate::scans::Scan;

const PLUGINS: [&str; 5] = [
    "decode-image",
    "classify-digit",
    "record",
    "index-scans",
    "hello-http",
];
/// Most scans that `index-scans` takes at once.
const BATCH: usize = 200;
/// The part of the held-out scans that must be read right.
const ENOUGH: f64 = 0.96;

/// Shows the digit reader: uploads its components, sends 898 scans over HTTP and Kafka, leaves the host running.
#[derive(Debug, Parser)]
#[command(name = "stepwell-demo")]
struct Args {
    /// What the host works with
    #[arg(long, value_enum, default_value_t = Services::Embedded)]
    services: Services,
    /// Stop the host that an earlier demo left running
    #[arg(long)]
    stop: bool,
    /// Keep services and host running (what the demo starts for itself)
    #[arg(long, hide = true)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Services {
    /// SQLite, files and a broker inside the host
    Embedded,
    /// PostgreSQL, Redis and Apache Kafka
    Real,
}

fn main() -> ExitCode {
    // Our HTTP client asks for the process's provider of cryptography, though it speaks without TLS here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let place = match Place::here() {
        Ok(place) => place,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if args.keep {
        return done(keeper::run(&place, args.services));
    }
    if args.stop {
        return done(host::stop(&place).map(|was_running| {
            say!(
                "{}",
                if was_running {
                    "the demo's host is stopped"
                } else {
                    "no host of the demo is running here"
                }
            );
        }));
    }
    let mut report = Report::default();
    match demo(&place, args.services, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report.failed(&error, &place);
            ExitCode::FAILURE
        }
    }
}

fn done(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(place: &Place, services: Services, report: &mut Report) -> Result<()> {
    // The host has the other processors.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let training = scans::read(&place.scans("train.csv"))?;
    let heldout = scans::read(&place.scans("heldout.csv"))?;

    report.phase("clean");
    let was_running = host::stop(place)?;
    place.make_fresh()?;
    report.done(if was_running {
        "an earlier demo's host stopped, demo-data made anew"
    } else {
        "demo-data made anew"
    });

    report.phase("host");
    let host = host::start(place, services)?;
    let with = match services {
        Services::Embedded => "SQLite, files and an embedded broker",
        Services::Real => "PostgreSQL, Redis and Apache Kafka",
    };
    report.done(&format!(
        "{}, with {with}",
        host.data.trim_start_matches("http://")
    ));
    if let Some(remark) = host.remark() {
        report.remark(&remark);
    }
    let client = Client::new(&host)?;

    report.phase("plugins");
    let mut bytes = 0;
    for plugin in PLUGINS {
        report.progress(plugin);
        bytes += push(place, &host, plugin)?;
    }
    report.done(&format!(
        "{} components uploaded and compiled, {} KiB",
        PLUGINS.len(),
        bytes / 1024
    ));

    report.phase("pipelines");
    let directory = place
        .checkout
        .join("plugins/pipelines")
        .display()
        .to_string();
    let applied = host.cli(place, &["pipeline", "apply", &directory])?;
    let names = applied.as_array().into_iter().flatten();
    let names: Vec<&str> = names
        .filter_map(|pipeline| pipeline.get("name")?.as_str())
        .collect();
    report.done(&format!("{} applied: {}", names.len(), names.join(", ")));

    report.phase("model");
    runtime.block_on(client.wait_until_ready(Duration::from_secs(60)))?;
    report.done("digits is loaded, the host is ready");

    report.phase("index");
    let indexed = runtime.block_on(index(&client, &training))?;
    report.done(&format!("{indexed} training scans in the vector index"));

    report.phase("http");
    let answered = runtime
        .block_on(client.read_all(&heldout, |count| report.progress(&format!("{count} scans"))))?;
    report.done(&answered.to_string());
    check(&answered, &heldout)?;

    report.phase("kafka");
    let by_kafka = kafka::read_all(&host.kafka, &heldout, |count| {
        report.progress(&format!("{count} answers"))
    })?;
    report.done(&by_kafka.to_string());
    check(&by_kafka, &heldout)?;
    let (seen, sent) = (training.len(), heldout.len());
    report.remark(&format!(
        "model and index have seen the {seen} training scans only, none of the {sent} sent"
    ));

    picture::write_samples(place, &heldout, &answered)?;
    examples::print(&heldout, &answered);
    next::print(place, &host);
    Ok(())
}

fn push(place: &Place, host: &Host, plugin: &str) -> Result<u64> {
    let file = place.guests.join(format!("{plugin}.wasm"));
    ensure!(
        file.exists(),
        "{} is missing: `make guests` builds it",
        file.display()
    );
    let pushed = host.cli(place, &["plugin", "push", &file.display().to_string()])?;
    pushed
        .get("size")
        .and_then(serde_json::Value::as_u64)
        .context("the host's answer has no size")
}

async fn index(client: &Client, training: &[Scan]) -> Result<u64> {
    let mut indexed = 0;
    for batch in training.chunks(BATCH) {
        indexed += client.index(batch).await?;
    }
    ensure!(
        indexed == training.len() as u64,
        "{indexed} of {} scans were indexed",
        training.len()
    );
    Ok(indexed)
}

/// That nothing is missing, that neighbours come from the training half, and that enough is read right.
fn check(answered: &Answered, heldout: &[Scan]) -> Result<()> {
    ensure!(
        answered.answers.len() == heldout.len(),
        "{} of {} scans were answered",
        answered.answers.len(),
        heldout.len()
    );
    for (scan, answer) in heldout.iter().zip(&answered.answers) {
        let name = scan.name();
        ensure!(!answer.neighbours.is_empty(), "{name} has no neighbours");
        if let Some(foreign) = answer
            .neighbours
            .iter()
            .find(|neighbour| !neighbour.id.starts_with("train-"))
        {
            bail!("the neighbour {} of {name} is no training scan", foreign.id);
        }
    }
    let accuracy = answered.accuracy();
    ensure!(
        accuracy >= ENOUGH,
        "{:.2} % were read right, at least {:.0} % should be",
        accuracy * 100.0,
        ENOUGH * 100.0
    );
    Ok(())
}
