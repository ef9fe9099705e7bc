use std::time::Instant;

use anyhow::Result;

use super::host::{Host, deploy, variant};
use super::{Outcome, RowArgs, milliseconds, ratio};
use crate::output::note;
use crate::servers::{Programs, command, said};

pub(super) async fn run(programs: &Programs, args: &RowArgs) -> Result<Outcome> {
    args.check()?;
    let host = Host::start(programs).await?;
    let mut admin = host.admin().await?;
    let mut caller = host.caller().await?;
    let component = programs.component("hello-http")?;
    let (mut answered, mut uploaded, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        note(&format!("upload {round} of {}", args.rounds));
        // Other bytes each time: nothing of it has been compiled before.
        let bytes = variant(&component, round);
        let (name, path) = (format!("upload-{round}"), format!("/upload-{round}"));
        let began = Instant::now();
        deploy(&mut admin, "default", &name, "GET", &path, &bytes).await?;
        let deployed = began.elapsed();
        caller.must("GET", &path, b"").await?;
        answered.push(milliseconds(began.elapsed()));
        uploaded.push(milliseconds(deployed));
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &bytes)?;
        let mut compile = command(&programs.own, &["compile"]);
        let time = said("compile", compile.arg(file.path())).await?;
        alone.push(String::from_utf8(time)?.trim().parse()?);
    }
    let mut outcome = Outcome::new(format!(
        "an upload of {} KiB, with its deployment, to the first answer",
        component.len() >> 10
    ));
    outcome.goal(
        "upload to answer, beside compiling alone",
        ratio(&answered, &alone),
        1.2,
        "×",
    );
    outcome.side("stepwell: upload, apply, first answer", "ms", answered);
    outcome.side("of it: upload and apply", "ms", uploaded);
    outcome.side("wasmtime: Component::new of the same bytes", "ms", alone);
    Ok(outcome)
}

/// Compiles a component as wasmtime does by default, and answers the milliseconds that took.
pub(crate) fn compile(file: &std::path::Path) -> Result<f64> {
    let bytes = std::fs::read(file)?;
    let engine = wasmtime::Engine::default();
    let began = Instant::now();
    let component = wasmtime::component::Component::new(&engine, &bytes)
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let took = milliseconds(began.elapsed());
    drop(component);
    Ok(took)
}
