//! Requests a second and latencies of the host beside a native handler and `wasmtime serve`, in one run.
//!
//! Everything is measured by turns, several rounds, on the same machine in the same minutes: what counts are the ratios.

mod bench;
mod client;
mod load;
mod machine;
mod native;
mod output;
mod report;
mod reuse;
mod rows;
mod servers;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "stepwell-bench",
    about = "Measures the host beside a native handler and wasmtime serve"
)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    bench: BenchArgs,
}

/// How long to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    /// Measurements of each kind and server, taken by turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections at once
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// What runs as a process of its own.
#[derive(Subcommand)]
enum Part {
    /// Serve the native handlers
    #[command(hide = true)]
    Native {
        /// By hyper alone, without axum
        #[arg(long)]
        hyper: bool,
    },
    /// Send load to one server
    #[command(hide = true)]
    Load(load::LoadArgs),
    /// Compile a component
    #[command(hide = true)]
    Compile {
        /// The component
        file: std::path::PathBuf,
        /// As the host does, so that its guests can be interrupted
        #[arg(long)]
        epochs: bool,
    },
    #[command(flatten)]
    Row(rows::Row),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Part::Load(args)) = cli.part {
        let measured = load::run(&args)?;
        output::line(&serde_json::to_string(&measured)?);
        return Ok(());
    }
    if let Some(Part::Compile { file, epochs }) = &cli.part {
        output::line(&rows::compile(file, *epochs)?.to_string());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.part {
            Some(Part::Native { hyper: true }) => native::serve_hyper().await,
            Some(Part::Native { hyper: false }) => native::serve().await,
            part => {
                let mut terminate = signal(SignalKind::terminate())?;
                // What is dropped here takes its processes with it.
                tokio::select! {
                    result = measure(part, &cli.bench) => result,
                    _ = terminate.recv() => anyhow::bail!("stopped by a signal"),
                    _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped by a signal"),
                }
            }
        }
    })
}

/// One row, or everything.
async fn measure(part: Option<Part>, args: &BenchArgs) -> Result<()> {
    if let Some(Part::Row(row)) = part {
        return row.run().await;
    }
    bench::run(args).await?;
    for row in rows::Row::all(args.json) {
        row.run().await?;
    }
    Ok(())
}
