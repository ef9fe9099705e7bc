use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;

use super::host::{Host, deploy, variant};
use super::{Outcome, milliseconds, ratio};
use crate::client::Client;
use crate::output::note;
use crate::report::middle;
use crate::servers::Programs;

#[derive(Args, Clone, Debug)]
pub(crate) struct DensityArgs {
    /// Plugins that are deployed
    #[arg(long, default_value_t = 10_000)]
    plugins: usize,
    /// Those of them that are in use, at most half
    #[arg(long, default_value_t = 100)]
    used: usize,
    /// Print one JSON value
    #[arg(long)]
    pub(super) json: bool,
}

impl DensityArgs {
    pub(super) fn new(json: bool) -> Self {
        Self {
            plugins: 10_000,
            used: 100,
            json,
        }
    }
}

/// Calls of each component in use that are measured.
const CALLS: usize = 20;
/// Components that are called once, after everything else.
const COLD: usize = 20;

pub(super) async fn run(programs: &Programs, args: &DensityArgs) -> Result<Outcome> {
    let real = args.used + COLD;
    ensure!(
        args.used > 0 && real * 2 <= args.plugins && args.plugins <= 1_000_000,
        "--plugins {} and --used {} do not fit together",
        args.plugins,
        args.used
    );
    let mut host = Host::start(programs).await?;
    let mut admin = host.admin().await?;
    let echo = programs.component("echo")?;
    let tiny = wat::parse_str(TINY)?;

    note(&format!("deploying {real} components of Rust"));
    for number in 0..real {
        let component = variant(&echo, number);
        let (name, path) = (format!("real-{number}"), format!("/real-{number}"));
        deploy(&mut admin, "default", &name, "POST", &path, &component).await?;
    }
    let mut caller = host.caller().await?;
    let before = call_used(&mut caller, args.used).await?;
    let resident_before = host.resident()?;
    let mut deploys = Vec::new();
    for number in real..args.plugins {
        if number % 1000 == 0 {
            note(&format!("{number} of {} are deployed", args.plugins));
        }
        let component = variant(&tiny, number);
        let (name, path) = (format!("tiny-{number}"), format!("/tiny-{number}"));
        let began = Instant::now();
        deploy(&mut admin, "default", &name, "POST", &path, &component).await?;
        deploys.push(milliseconds(began.elapsed()));
    }
    // The host has closed a connection that was idle for so long.
    let mut caller = host.caller().await?;
    let after = call_used(&mut caller, args.used).await?;
    let resident_after = host.resident()?;

    note("restarting");
    host.restart(programs).await?;
    let started = milliseconds(host.started_in);
    host.settled().await?;
    let mut caller = host.caller().await?;
    call_used(&mut caller, args.used).await?;
    let restarted = call_used(&mut caller, args.used).await?;
    let resident_restarted = host.resident()?;
    let mut cold = Vec::new();
    for number in args.used..real {
        let began = Instant::now();
        caller
            .must("POST", &format!("/real-{number}"), b"cold")
            .await?;
        cold.push(milliseconds(began.elapsed()));
    }

    let mut outcome = Outcome::new(format!(
        "{} plugins deployed, {} in use ({} KiB each; the others have {} bytes)",
        args.plugins,
        args.used,
        echo.len() >> 10,
        tiny.len()
    ));
    let tenth = (deploys.len() / 10).max(1);
    let first: Vec<f64> = deploys.iter().take(tenth).copied().collect();
    let last: Vec<f64> = deploys.iter().rev().take(tenth).copied().collect();
    outcome.goal(
        "resident after a restart, with those in use",
        resident_restarted,
        1024.0,
        " MiB",
    );
    outcome.goal("a cold one answers in", middle(cold.clone()), 5.0, " ms");
    outcome.goal(
        "calls with all beside calls with few",
        ratio(&after, &before),
        1.2,
        "×",
    );
    outcome.goal(
        "the last tenth of deployments beside the first",
        ratio(&last, &first),
        3.0,
        "×",
    );
    outcome.side(
        format!("calls of those in use, {real} deployed"),
        "ms",
        before,
    );
    outcome.side(
        format!("calls of those in use, {} deployed", args.plugins),
        "ms",
        after,
    );
    outcome.side("the same after a restart", "ms", restarted);
    outcome.side("first call of one that is cold", "ms", cold);
    outcome.side(
        format!("resident, {real} deployed"),
        "MiB",
        vec![resident_before],
    );
    outcome.side(
        format!("resident, {} deployed", args.plugins),
        "MiB",
        vec![resident_after],
    );
    outcome.side("resident after a restart", "MiB", vec![resident_restarted]);
    outcome.side("upload and apply, the first tenth", "ms", first);
    outcome.side("upload and apply, the last tenth", "ms", last);
    outcome.side("start to ready with all", "ms", vec![started]);
    Ok(outcome)
}

/// Calls each component in use several times, in turns; the time of each call.
async fn call_used(caller: &mut Client, used: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(used * CALLS);
    for _ in 0..CALLS {
        for number in 0..used {
            let began = Instant::now();
            let answer = caller
                .must("POST", &format!("/real-{number}"), b"hello")
                .await?;
            times.push(milliseconds(began.elapsed()));
            ensure!(answer == b"hello", "another answer");
        }
    }
    Ok(times)
}

/// A step that filters every event.
const TINY: &str = r#"
(component
  (import "stepwell:pipeline/types@0.1.0" (instance $types
    (type $pair (tuple string string))
    (type $event' (record
      (field "id" string) (field "source" string) (field "type" string)
      (field "subject" (option string)) (field "time" (option string)) (field "datacontenttype" (option string))
      (field "extensions" (list $pair)) (field "data" (list u8))))
    (export "event" (type $event (eq $event')))
    (type $error' (variant (case "invalid" string) (case "unavailable" string) (case "failed" string)))
    (export "error" (type $error (eq $error')))
  ))
  (alias export $types "event" (type $event))
  (alias export $types "error" (type $error))
  (core module $m
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    (func (export "process") (param i32) (result i32) (i32.const 16)))
  (core instance $i (instantiate $m))
  (type $events (list $event))
  (type $result (result $events (error $error)))
  (func $process (param "input" $event) (result $result)
    (canon lift (core func $i "process") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (instance $handler (export "process" (func $process)))
  (export "stepwell:pipeline/handler@0.1.0" (instance $handler))
)"#;
