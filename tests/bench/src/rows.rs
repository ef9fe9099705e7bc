//! The measurements beside requests a second: each a command of its own, which prints both sides.

mod cold_start;
mod density;
mod host;
mod idle;
mod neighbours;
mod storm;
mod upload;

pub(crate) use upload::compile;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::machine::Machine;
use crate::output::line;
use crate::report::middle;
use crate::servers::Programs;

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Row {
    /// The first call after a restart
    ColdStart(cold_start::ColdStartArgs),
    /// From an upload to the first answer, beside compiling alone
    Upload(RowArgs),
    /// Ten thousand deployed plugins
    Density(density::DensityArgs),
    /// What a host costs that does nothing
    Idle(RowArgs),
    /// Requests during an upload storm
    Storm(storm::StormArgs),
    /// Requests beside hostile guests
    Neighbours(neighbours::NeighboursArgs),
}

/// Seconds of one of many measurements: the p99 of each moves by half from one to the next.
const SECONDS: f64 = 2.0;

/// How often to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct RowArgs {
    /// Measurements of each side, taken by turns
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Print one JSON value
    #[arg(long)]
    pub(crate) json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    title: String,
    sides: Vec<Side>,
    goals: Vec<Goal>,
    /// What is worth knowing besides.
    notes: Vec<String>,
}

/// One thing that was measured, in the order of the rounds.
#[derive(Debug, Serialize)]
struct Side {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

/// What it should be.
#[derive(Debug, Serialize)]
struct Goal {
    what: String,
    value: f64,
    most: f64,
    unit: &'static str,
}

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

impl Row {
    /// Those that `make bench` runs.
    pub(crate) fn all(json: bool) -> Vec<Self> {
        let rows = |rounds| RowArgs { rounds, json };
        vec![
            Self::ColdStart(cold_start::ColdStartArgs::new(rows(5))),
            Self::Upload(rows(5)),
            Self::Idle(rows(5)),
            Self::Storm(storm::StormArgs::new(rows(15))),
            Self::Neighbours(neighbours::NeighboursArgs::new(rows(9))),
            Self::Density(density::DensityArgs::new(json)),
        ]
    }

    pub(crate) async fn run(&self) -> Result<()> {
        let programs = Programs::find()?;
        let machine = Machine::look(&programs.stepwell, &programs.wasmtime);
        let (outcome, json) = match self {
            Self::ColdStart(args) => (cold_start::run(&programs, args).await?, args.row.json),
            Self::Upload(args) => (upload::run(&programs, args).await?, args.json),
            Self::Density(args) => (density::run(&programs, args).await?, args.json),
            Self::Idle(args) => (idle::run(&programs, args).await?, args.json),
            Self::Storm(args) => (storm::run(&programs, args).await?, args.row.json),
            Self::Neighbours(args) => (neighbours::run(&programs, args).await?, args.row.json),
        };
        if json {
            let report = Report {
                machine: &machine,
                outcome: &outcome,
            };
            line(&serde_json::to_string_pretty(&report)?);
        } else {
            for text in machine.lines() {
                line(&text);
            }
            outcome.print();
        }
        Ok(())
    }
}

impl RowArgs {
    fn check(&self) -> Result<()> {
        ensure!(
            (1..=100).contains(&self.rounds),
            "--rounds {} is not within 1 to 100",
            self.rounds
        );
        Ok(())
    }
}

impl Outcome {
    fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            sides: Vec::new(),
            goals: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn side(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<f64>) {
        self.sides.push(Side {
            name: name.into(),
            unit,
            values,
        });
    }

    fn goal(&mut self, what: impl Into<String>, value: f64, most: f64, unit: &'static str) {
        self.goals.push(Goal {
            what: what.into(),
            value,
            most,
            unit,
        });
    }

    fn print(&self) {
        line("");
        line(&self.title);
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_header(["", "median", "least", "most", "rounds"]);
        for side in &self.sides {
            let least = side.values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = side
                .values
                .iter()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            table.add_row([
                side.name.clone(),
                format!("{:.2} {}", middle(side.values.clone()), side.unit),
                format!("{least:.2}"),
                format!("{most:.2}"),
                side.values.len().to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        line(&table.to_string());
        for note in &self.notes {
            line(note);
        }
        for goal in &self.goals {
            let Goal {
                what,
                value,
                most,
                unit,
            } = goal;
            let met = if value <= most { "met" } else { "NOT met" };
            line(&format!(
                "{what}: {value:.2}{unit}, goal at most {most}{unit}: {met}"
            ));
        }
    }
}

/// The median of the rounds' ratios.
fn ratio(above: &[f64], below: &[f64]) -> f64 {
    middle(
        above
            .iter()
            .zip(below)
            .map(|(above, below)| above / below)
            .collect(),
    )
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
