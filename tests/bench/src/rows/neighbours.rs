use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use tokio::task::JoinSet;

use super::host::{Host, deploy, load};
use super::{Outcome, RowArgs, SECONDS, ratio};
use crate::client::Client;
use crate::load::Measured;
use crate::output::note;
use crate::servers::Programs;

#[derive(Args, Clone, Debug)]
#[command(mut_arg("rounds", |rounds| rounds.default_value("9")))]
pub(crate) struct NeighboursArgs {
    #[command(flatten)]
    pub(super) row: RowArgs,
    /// Seconds of each measurement
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
    /// Requests a second of the one that behaves well
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Callers of the hostile one, each of whom calls again when it has its answer
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// What the hostile one does, as in tests/guests/hostile/cases.rs: all that are known to hurt where nothing stops them
    #[arg(long, default_values_t = HARM.map(str::to_owned))]
    harm: Vec<String>,
}

/// Compute, call the host for ever, allocate, recurse, write, flood the log, hold handles, poll many, hold headers, make events, wait.
const HARM: [&str; 11] = [
    "spin",
    "call-host",
    "allocate:60000000",
    "recurse:100000000",
    "output:7000000",
    "log:100000",
    "handles:100000",
    "pollables:900",
    "fields:1000",
    "events:100000",
    "sleep:60000",
];

impl NeighboursArgs {
    pub(super) fn new(row: RowArgs) -> Self {
        Self {
            row,
            seconds: SECONDS,
            rate: 500.0,
            callers: 32,
            harm: HARM.map(str::to_owned).to_vec(),
        }
    }
}

const CALM: &str = "/calm";
/// Where the route `/harm` of its namespace is.
const HOSTILE: &str = "/@hostile/harm";

pub(super) async fn run(programs: &Programs, args: &NeighboursArgs) -> Result<Outcome> {
    args.row.check()?;
    ensure!(
        (1..=512).contains(&args.callers),
        "--callers is not within 1 to 512"
    );
    let host = Host::start(programs).await?;
    let mut admin = host.admin().await?;
    let namespace = "/api/v1/namespaces/hostile";
    admin.must("PUT", namespace, b"{}").await?;
    let echo = programs.component("echo")?;
    deploy(&mut admin, "default", "calm", "POST", CALM, &echo).await?;
    let hostile = programs.component("hostile")?;
    deploy(&mut admin, "hostile", "hostile", "POST", "/harm", &hostile).await?;

    for harm in &args.harm {
        let (status, answer) = harm_once(&mut host.caller().await?, harm).await?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(
            status != 404 && !answer.contains("no such behaviour"),
            "--harm {harm}: {status} {answer}"
        );
    }
    // What the machine allows: a native handler beside the same callers.
    let native = programs.native(false).await?;
    let both = async || {
        let own = host.load(programs, CALM, args.rate, args.seconds).await?;
        let of_native = load(programs, native.address, "/echo", args.rate, args.seconds);
        anyhow::Ok((own, of_native.await?))
    };
    let mut alone = Vec::new();
    let mut beside = vec![Vec::new(); args.harm.len()];
    for round in 1..=args.row.rounds {
        note(&format!("alone, round {round} of {}", args.row.rounds));
        alone.push(both().await?);
        for (harm, beside) in args.harm.iter().zip(&mut beside) {
            note(&format!("{harm}, round {round} of {}", args.row.rounds));
            let mut callers = JoinSet::new();
            for _ in 0..args.callers {
                callers.spawn(call(host.data, harm.clone()));
            }
            let measured = both().await;
            // What goes wrong with a caller is wrong with the measurement: they go on for ever otherwise.
            if let Some(ended) = callers.try_join_next() {
                ended??;
            }
            beside.push(measured?);
        }
    }

    let p99 = |measured: &[(Measured, Measured)]| -> (Vec<f64>, Vec<f64>) {
        let p99 = |(own, native): &(Measured, Measured)| (own.p99_us, native.p99_us);
        measured.iter().map(p99).unzip()
    };
    let (calm, native_calm) = p99(&alone);
    let mut outcome = Outcome::new(format!(
        "p99 of {} requests a second, alone and while {} callers have a guest of another namespace do harm",
        args.rate, args.callers
    ));
    outcome.side("alone", "µs", calm.clone());
    for (harm, measured) in args.harm.iter().zip(&beside) {
        outcome.side(harm.as_str(), "µs", p99(measured).0);
    }
    outcome.side("native axum, alone", "µs", native_calm.clone());
    for (harm, measured) in args.harm.iter().zip(&beside) {
        outcome.side(format!("native axum, {harm}"), "µs", p99(measured).1);
    }
    for (harm, measured) in args.harm.iter().zip(&beside) {
        let (own, of_native) = p99(measured);
        let what = format!(
            "{harm}, beside alone (a native handler: {:.2}×)",
            ratio(&of_native, &native_calm)
        );
        outcome.goal(what, ratio(&own, &calm), 2.0, "×");
    }
    Ok(outcome)
}

/// Has the hostile guest do harm, again and again. Its refusals are answers too.
async fn call(address: SocketAddr, harm: String) -> Result<()> {
    loop {
        let mut client = Client::connect(address).await?;
        // A connection on which something went wrong is closed by the host, and a refused one at once.
        while harm_once(&mut client, &harm).await.is_ok() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn harm_once(client: &mut Client, harm: &str) -> Result<(u16, Vec<u8>)> {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/neighbours"),
        ("ce-type", harm),
    ];
    client.ask_with(&headers, "POST", HOSTILE, b"").await
}
