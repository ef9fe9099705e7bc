use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::host::{Host, deploy, variant};
use super::{Outcome, RowArgs, milliseconds, ratio};
use crate::output::note;
use crate::servers::{Programs, command, said};

/// So long nobody calls a guest before an upload: compilers give way to calls, and after the last one for a second.
const REST: Duration = Duration::from_millis(1500);

pub(super) async fn run(programs: &Programs, args: &RowArgs) -> Result<Outcome> {
    args.check()?;
    let host = Host::start(programs).await?;
    let mut admin = host.admin().await?;
    let mut caller = host.caller().await?;
    let component = programs.component("hello-http")?;
    let (mut answered, mut uploaded) = (Vec::new(), Vec::new());
    let (mut alone, mut with_epochs) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        note(&format!("upload {round} of {}", args.rounds));
        // Other bytes each time: nothing of it has been compiled before.
        let bytes = variant(&component, round);
        let (name, path) = (format!("upload-{round}"), format!("/upload-{round}"));
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        deploy(&mut admin, "default", &name, "GET", &path, &bytes).await?;
        let deployed = began.elapsed();
        caller.must("GET", &path, b"").await?;
        answered.push(milliseconds(began.elapsed()));
        uploaded.push(milliseconds(deployed));
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &bytes)?;
        for (flags, times) in [(&[][..], &mut alone), (&["--epochs"], &mut with_epochs)] {
            tokio::time::sleep(REST).await;
            let mut compile = command(&programs.own, &["compile"]);
            let time = said("compile", compile.args(flags).arg(file.path())).await?;
            times.push(String::from_utf8(time)?.trim().parse()?);
        }
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
    outcome.notes.push(format!(
        "wasmtime alone takes {:.2}× as long for code that can be interrupted, which the host's guests are",
        ratio(&with_epochs, &alone)
    ));
    outcome.side("wasmtime: Component::new of the same bytes", "ms", alone);
    outcome.side("wasmtime: the same with epochs", "ms", with_epochs);
    Ok(outcome)
}

/// Compiles a component as wasmtime does by default, but for epochs, and answers the milliseconds that took.
pub(crate) fn compile(file: &Path, epochs: bool) -> Result<f64> {
    let failed = |error: wasmtime::Error| anyhow!("{error:#}");
    let bytes = std::fs::read(file)?;
    let engine = wasmtime::Engine::new(wasmtime::Config::new().epoch_interruption(epochs));
    let engine = engine.map_err(failed)?;
    let began = Instant::now();
    let component = wasmtime::component::Component::new(&engine, &bytes).map_err(failed)?;
    let took = milliseconds(began.elapsed());
    drop(component);
    Ok(took)
}
