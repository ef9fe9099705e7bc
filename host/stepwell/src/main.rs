//! `stepwell`: the host, and the command line that speaks to it.
//!
//! This crate is the composition root: the only one that names every concrete type. `serve.rs` puts them together.

mod access;
mod ahead;
mod allocator;
mod build;
mod cli;
mod client;
mod commands;
mod config;
mod deployer;
mod doctor;
mod factory;
mod files;
mod guest;
mod input;
mod jwks;
mod lines;
mod management;
mod new;
mod output;
mod reach;
mod readiness;
mod refusals;
mod runtimes;
mod series;
mod serve;
mod services;
mod spans;
mod sweeping;
mod taken;
mod telemetry;
mod tls;
mod validity;
mod waiting;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::client::{Client, Failure};

fn main() -> ExitCode {
    // Before anything else: this one is started for each upload, and is to cost it next to nothing.
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments
        .next_if(|first| first == serve::COMPILE_WORKER)
        .is_some()
    {
        return stepwell_engine::compile_worker(arguments);
    }
    // TLS everywhere is rustls with ring; several libraries ask for the process's provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let json = cli.client.json;
    let is_host = matches!(cli.command, Command::Serve(_));
    match run(cli) {
        Ok(code) => code,
        Err(failure) if is_host => {
            // Somebody waits for a host to end, even if nobody reads why it does.
            let said = lines::say(LAST_WORDS, move || failed(&failure, json));
            said.unwrap_or(ExitCode::FAILURE)
        }
        Err(failure) => failed(&failure, json),
    }
}

/// Time for somebody to read why a host ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn failed(failure: &Failure, json: bool) -> ExitCode {
    // What cannot be printed there is said here.
    if json && !output::is_lost() {
        output::json(&failure.to_json());
    } else {
        // A function's own answer may be what failed.
        let lines = failure.to_string();
        let lines: Vec<String> = lines.lines().map(output::clean).collect();
        eprintln!("error: {}", lines.join("\n"));
    }
    ExitCode::from(failure.exit_code())
}

/// Arguments that make no command; help and version come this way too.
fn misused(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let message = text.trim().trim_start_matches("error: ");
        return failed(&Failure::Usage(message.to_owned()), true);
    }
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.client.json;
    if let Command::RunComponent(args) = &cli.command {
        return commands::run_component::run(args, json);
    }
    let done = match cli.command {
        Command::Serve(args) => return Ok(serve::run(args).map(|()| ExitCode::SUCCESS)?),
        Command::New(args) => Ok(new::run(&args, json)?),
        Command::Build(args) => Ok(build::run(&args, json)?),
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(speak(cli.client, command, json)),
    };
    done.and_then(|()| output::finish())
        .map(|()| ExitCode::SUCCESS)
}

/// Commands that speak to a host, or to what it depends on.
async fn speak(client: cli::ClientArgs, command: Command, json: bool) -> Result<(), Failure> {
    if let Command::Doctor(args) = command {
        return doctor::run(args, json).await;
    }
    let client = Client::new(&client)?;
    match command {
        Command::Plugin(command) => commands::plugin::run(&client, command, json).await,
        Command::Pipeline(command) => commands::pipeline::run(&client, command, json).await,
        Command::Invoke(args) => commands::invoke::run(&client, args, json).await,
        Command::Model(command) => commands::model::run(&client, command, json).await,
        Command::Logs(args) => commands::logs::run(&client, args, json).await,
        Command::Namespace(command) => commands::namespace::run(&client, command, json).await,
        Command::Token(command) => commands::token::run(&client, command, json).await,
        Command::Audit(args) => commands::audit::run(&client, args, json).await,
        Command::Serve(_)
        | Command::New(_)
        | Command::Build(_)
        | Command::RunComponent(_)
        | Command::Doctor(_) => Ok(()),
    }
}
