use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use super::host::{Host, deploy};
use super::{Outcome, RowArgs, milliseconds, ratio};
use crate::output::note;
use crate::servers::Programs;

#[derive(Args, Clone, Debug)]
pub(crate) struct ColdStartArgs {
    #[command(flatten)]
    pub(super) row: RowArgs,
    /// A large step component besides, such as one of JavaScript
    #[arg(long)]
    large: Option<PathBuf>,
}

impl ColdStartArgs {
    pub(super) fn new(row: RowArgs) -> Self {
        Self { row, large: None }
    }
}

pub(super) async fn run(programs: &Programs, args: &ColdStartArgs) -> Result<Outcome> {
    args.row.check()?;
    let mut outcome =
        Outcome::new("the first call after a restart, compiled code on disk and checked");
    let rust = programs.component("hello-http")?;
    measure(
        programs,
        args,
        "Rust, hello-http",
        ("GET", &rust),
        2.0,
        &mut outcome,
    )
    .await?;
    if let Some(path) = &args.large {
        let large = std::fs::read(path).with_context(|| path.display().to_string())?;
        measure(
            programs,
            args,
            "large",
            ("POST", &large),
            10.0,
            &mut outcome,
        )
        .await?;
    }
    Ok(outcome)
}

async fn measure(
    programs: &Programs,
    args: &ColdStartArgs,
    name: &str,
    (method, component): (&str, &[u8]),
    goal: f64,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut host = Host::start(programs).await?;
    deploy(
        &mut host.admin().await?,
        "default",
        "cold",
        method,
        "/cold",
        component,
    )
    .await?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 1..=args.row.rounds {
        note(&format!("{name}: restart {round} of {}", args.row.rounds));
        host.restart(programs).await?;
        host.settled().await?;
        let mut caller = host.caller().await?;
        for times in [&mut first, &mut second] {
            let began = Instant::now();
            caller.must(method, "/cold", b"").await?;
            times.push(milliseconds(began.elapsed()));
        }
    }
    outcome.goal(
        format!("{name}, first call"),
        crate::report::middle(first.clone()),
        goal,
        " ms",
    );
    outcome.notes.push(format!(
        "{name}: the first call takes {:.2}× the second",
        ratio(&first, &second)
    ));
    outcome.side(
        format!("{name} ({} KiB), first call", component.len() >> 10),
        "ms",
        first,
    );
    outcome.side(format!("{name}, second call"), "ms", second);
    Ok(())
}
