//! What is measured, in which order.

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::BenchArgs;
use crate::load::Measured;
use crate::machine::Machine;
use crate::output::note;
use crate::report;
use crate::reuse;
use crate::servers::{Programs, Server, command, said};

/// Bytes of an echoed body.
const BODY: usize = 4096;
/// Lengths of the echoing pipelines.
const STEPS: [usize; 3] = [1, 2, 4];

/// One server doing one kind of work, and every measurement of it in the order of the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Side {
    pub(crate) name: String,
    /// As much as the server takes, all connections.
    pub(crate) full: Vec<Sample>,
    /// A fixed number of requests a second, all connections.
    pub(crate) paced: Vec<Sample>,
    /// One connection.
    pub(crate) alone: Vec<Sample>,
    #[serde(skip)]
    server: usize,
    path: String,
    body: usize,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    #[serde(flatten)]
    pub(crate) load: Measured,
    /// The server's processor time for each request.
    pub(crate) cpu_us: f64,
}

/// Sides that do the same work.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    /// What notes call it.
    #[serde(skip)]
    pub(crate) short: &'static str,
    pub(crate) title: String,
    /// Requests a second of the paced measurements: half of what the slowest side takes.
    pub(crate) rate: f64,
    pub(crate) sides: Vec<Side>,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) connections: usize,
    pub(crate) hello: Group,
    pub(crate) echo: Group,
    pub(crate) hello_reused: Group,
    pub(crate) echo_reused: Group,
}

/// Where servers stand in the list of them.
#[derive(Clone, Copy)]
pub(crate) struct Servers {
    pub(crate) axum: usize,
    pub(crate) stepwell: usize,
    pub(crate) hyper: usize,
}

/// Measures everything and prints it.
pub(crate) async fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        (0.1..=60.0).contains(&args.seconds),
        "--seconds {} is not within 0.1 to 60",
        args.seconds
    );
    ensure!(
        (1..=100).contains(&args.rounds),
        "--rounds {} is not within 1 to 100",
        args.rounds
    );
    let programs = Programs::find()?;
    let machine = Machine::look(&programs.stepwell, &programs.wasmtime);
    note("starting the servers");
    let bench = Bench {
        args,
        servers: vec![
            programs.native(false).await?,
            programs.host(&STEPS).await?,
            programs.wasmtime_serve(false).await?,
            programs.wasmtime_serve(true).await?,
            programs.native(true).await?,
        ],
        programs,
    };
    let hello = |name: &str, server| side(name, server, "/hello".into(), 0);
    let mut hello = Group {
        short: "hello-http",
        title:
            "HTTP function (hello-http, wasi:http), a fresh instance for each request: GET /hello"
                .into(),
        rate: 0.0,
        sides: vec![
            hello("stepwell", 1),
            hello("wasmtime serve, defaults", 2),
            hello("wasmtime serve, best flags", 3),
            hello("native axum", 0),
        ],
    };
    let mut echo = Group {
        short: "step",
        title: format!("step, a fresh instance for each call: POST {BODY} bytes, echoed"),
        rate: 0.0,
        sides: vec![
            side("stepwell, 1 step", 1, "/echo/1".into(), BODY),
            side("native axum", 0, "/echo".into(), BODY),
        ],
    };
    echo.sides.extend(STEPS.iter().skip(1).map(|steps| {
        side(
            &format!("stepwell, {steps} steps"),
            1,
            format!("/echo/{steps}"),
            BODY,
        )
    }));
    let servers = Servers {
        axum: 0,
        stepwell: 1,
        hyper: 4,
    };
    let [mut hello_reused, mut echo_reused] = reuse::groups(servers, &STEPS, BODY);
    for group in [&mut hello, &mut echo, &mut hello_reused, &mut echo_reused] {
        bench.measure(group).await?;
    }
    for server in bench.servers {
        server.stop().await?;
    }
    let outcome = Outcome {
        machine,
        seconds: args.seconds,
        rounds: args.rounds,
        connections: args.connections,
        hello,
        echo,
        hello_reused,
        echo_reused,
    };
    if args.json {
        crate::output::line(&serde_json::to_string_pretty(&outcome)?);
    } else {
        report::print(&outcome);
    }
    Ok(())
}

pub(crate) fn side(name: &str, server: usize, path: String, body: usize) -> Side {
    Side {
        name: name.to_owned(),
        full: Vec::new(),
        paced: Vec::new(),
        alone: Vec::new(),
        server,
        path,
        body,
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    programs: Programs,
    servers: Vec<Server>,
}

impl Bench<'_> {
    /// The sides by turns, A B C A B C: what disturbs the machine for a while disturbs all of them.
    async fn measure(&self, group: &mut Group) -> Result<()> {
        let BenchArgs {
            seconds,
            rounds,
            connections,
            ..
        } = *self.args;
        for round in 1..=rounds {
            note(&format!(
                "{}: as many as possible, round {round} of {rounds}",
                group.short
            ));
            for side in &mut group.sides {
                let sample = self.load(side, connections, seconds, None).await?;
                side.full.push(sample);
            }
        }
        let slowest = group
            .sides
            .iter()
            .map(|side| report::median(&side.full, |sample| sample.load.requests_per_second));
        group.rate = (slowest.fold(f64::INFINITY, f64::min) / 2.0).max(1.0);
        for round in 1..=rounds {
            note(&format!(
                "{}: {:.0} a second, round {round} of {rounds}",
                group.short, group.rate
            ));
            for side in &mut group.sides {
                let sample = self
                    .load(side, connections, seconds, Some(group.rate))
                    .await?;
                side.paced.push(sample);
            }
        }
        for round in 1..=rounds {
            note(&format!(
                "{}: one connection, round {round} of {rounds}",
                group.short
            ));
            for side in &mut group.sides {
                let sample = self.load(side, 1, seconds / 3.0, None).await?;
                side.alone.push(sample);
            }
        }
        Ok(())
    }

    async fn load(
        &self,
        side: &Side,
        connections: usize,
        seconds: f64,
        rate: Option<f64>,
    ) -> Result<Sample> {
        let server = self.servers.get(side.server).context("no such server")?;
        let mut load = command(&self.programs.own, &["load", "--path", &side.path]);
        load.args(["--address", &server.address.to_string()])
            .args(["--connections", &connections.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--body", &side.body.to_string()]);
        if side.body == 0 {
            let hello = format!(
                r#"{{"hello":"from a wasi:http component","method":"GET","path":"{}","query":""}}"#,
                side.path
            );
            load.args(["--expect", &hello]);
        }
        if let Some(rate) = rate {
            load.args(["--rate", &rate.to_string()]);
        }
        let before = server.processor_seconds()?;
        let answer = said(&format!("load on {}", side.name), &mut load).await?;
        let used = server.processor_seconds()? - before;
        let load: Measured = serde_json::from_slice(&answer)?;
        Ok(Sample {
            load,
            cpu_us: used * 1e6 / load.answered as f64,
        })
    }
}
