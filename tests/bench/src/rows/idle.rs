use std::time::Duration;

use anyhow::Result;

use super::host::{Host, resident};
use super::{Outcome, RowArgs, milliseconds};
use crate::output::note;
use crate::report::middle;
use crate::servers::Programs;

pub(super) async fn run(programs: &Programs, args: &RowArgs) -> Result<Outcome> {
    args.check()?;
    let mut ours = (Vec::new(), Vec::new());
    let mut theirs = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        note(&format!("start {round} of {}", args.rounds));
        let host = Host::start(programs).await?;
        ours.0.push(milliseconds(host.started_in));
        tokio::time::sleep(Duration::from_secs(1)).await;
        ours.1.push(host.resident()?);
        drop(host);
        let began = std::time::Instant::now();
        let other = programs.wasmtime_serve(false).await?;
        theirs.0.push(milliseconds(began.elapsed()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        theirs.1.push(resident(other.process_id()?)?);
        other.stop().await?;
    }
    let mut outcome = Outcome::new("a host that does nothing");
    outcome.goal("start to ready", middle(ours.0.clone()), 300.0, " ms");
    outcome.goal("resident", middle(ours.1.clone()), 60.0, " MiB");
    outcome.side("stepwell, nothing deployed: start to ready", "ms", ours.0);
    outcome.side("stepwell, nothing deployed: resident", "MiB", ours.1);
    outcome.side(
        "wasmtime serve, one component, which it compiles: start to ready",
        "ms",
        theirs.0,
    );
    outcome.side("wasmtime serve: resident", "MiB", theirs.1);
    Ok(outcome)
}
