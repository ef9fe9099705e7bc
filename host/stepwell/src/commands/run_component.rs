//! `stepwell run-component`: one component by itself, without a catalog or a pipeline. A developer's tool: the component gets what the
//! flags give.

mod outgoing;

use std::future::ready;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use stepwell_core::{Digest, ErrorKind, Limits, StepError, parse_duration, parse_size};
use stepwell_engine::{
    Command, Engine, EngineConfig, Environment, LogSink, LogStream, Plugin, Refused, StoreBase,
    StoreState, Surroundings, is_command,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::outgoing::Outgoing;
use crate::client::Failure;
use crate::{input, output};

/// Options of `run-component`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunComponentArgs {
    /// The component: an HTTP function (wasi:http 0.2 or 0.3) or a command (wasi:cli 0.2 or 0.3)
    pub(crate) file: PathBuf,
    /// Address that an HTTP function is served on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) addr: String,
    /// Environment variable of the component, and entry of its wasi:config; may be repeated
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Directory that the component may read and write; may be repeated
    #[arg(long, value_name = "HOST::GUEST", value_parser = directory)]
    pub(crate) dir: Vec<(PathBuf, String)>,
    /// Let the component open sockets, look up names and send HTTP requests
    #[arg(long)]
    pub(crate) network: bool,
    /// CPU time of a command or of one request, such as 500ms (default: no limit)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) cpu: Option<Duration>,
    /// Time of a command or of one request, such as 30s (default: no limit)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) wall: Option<Duration>,
    /// Memory of a command or of one request, such as 64MiB (default: no limit)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// Arguments of a command
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

/// A time that nothing reaches, and that can still be added to now.
const EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long requests may go on after the signal to stop.
const GRACE: Duration = Duration::from_secs(25);

/// Runs the component until it ends, or until a signal.
pub(crate) fn run(args: &RunComponentArgs, json: bool) -> Result<ExitCode, Failure> {
    let bytes = input::read(&args.file, input::MOST_BYTES)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let is_command = is_command(&bytes).map_err(|why| refused(&args.file, &why))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        if is_command {
            command(args, &bytes).await
        } else {
            serve(args, bytes.into(), json)
                .await
                .map(|()| ExitCode::SUCCESS)
        }
    });
    // Reading stdin cannot be given up.
    runtime.shutdown_background();
    Ok(code?)
}

fn refused(file: &Path, why: &Refused) -> anyhow::Error {
    let hint = why.hint.as_deref().unwrap_or_default();
    anyhow!("{}: {why}; {hint}", file.display())
}

impl RunComponentArgs {
    fn limits(&self) -> Limits {
        Limits {
            cpu: self.cpu.unwrap_or(EVER),
            wall: self.wall.unwrap_or(EVER),
            memory: self.memory.unwrap_or(u64::MAX),
            output: u64::MAX,
        }
    }

    /// What is given twice counts as it was given last.
    fn environment(&self) -> Vec<(String, String)> {
        let mut entries: Vec<(String, String)> = Vec::new();
        for (key, value) in &self.env {
            match entries.iter_mut().find(|(known, _)| known == key) {
                Some((_, before)) => before.clone_from(value),
                None => entries.push((key.clone(), value.clone())),
            }
        }
        entries
    }

    fn surroundings(&self) -> Surroundings {
        let name = self.file.file_name().unwrap_or_default();
        let mut arguments = vec![name.to_string_lossy().into_owned()];
        arguments.extend(self.args.iter().cloned());
        Surroundings {
            arguments,
            environment: self.environment(),
            directories: self.dir.clone(),
            network: self.network,
        }
    }
}

async fn command(args: &RunComponentArgs, bytes: &[u8]) -> Result<ExitCode> {
    let outgoing = Outgoing::new(args.network)?;
    let command = Command::compile(bytes).map_err(|why| refused(&args.file, &why))?;
    let code = command
        .run(&args.surroundings(), args.limits(), outgoing.hooks())
        .await?;
    Ok(ExitCode::from(code))
}

/// An HTTP function and what each of its calls gets.
struct Function {
    plugin: Arc<Plugin<State>>,
    limits: Limits,
    surroundings: Surroundings,
    environment: Arc<Environment>,
    outgoing: Outgoing,
}

struct State(StoreBase);

impl StoreState for State {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

/// Stdout has the address and nothing else.
struct Stderr;

impl LogSink for Stderr {
    fn line(&self, _: LogStream, text: &str) {
        say(text);
    }
}

/// Writes a line to stderr, which may be closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn serve(args: &RunComponentArgs, bytes: Bytes, json: bool) -> Result<()> {
    if !args.args.is_empty() {
        bail!("an HTTP function takes no arguments");
    }
    // Before anything else, so that no signal comes too soon.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cache = tempfile::tempdir().context("cannot make a temporary directory")?;
    let engine = Engine::<State>::new(
        EngineConfig {
            max_component: u64::MAX,
            compile_timeout: EVER,
            host_call_bytes: u64::MAX,
            log_bytes: usize::MAX,
            guest_memory: u64::MAX,
            ..EngineConfig::new(cache.path())
        },
        |_| Ok(()),
    )?;
    let inspection = engine
        .inspect(&bytes)
        .map_err(|why| refused(&args.file, &why))?;
    if !inspection.world.is_function() {
        bail!(
            "{}: the component targets {}, a step of pipelines: run-component runs HTTP functions (wasi:http) and commands (wasi:cli); \
             'stepwell plugin push' uploads steps",
            args.file.display(),
            inspection.world
        );
    }
    let listener = TcpListener::bind(&args.addr)
        .await
        .with_context(|| format!("cannot listen on {}", args.addr))?;
    let address = listener.local_addr()?;
    let digest = Digest::of(&bytes);
    let plugin = engine
        .load(digest, ready(Ok::<_, std::convert::Infallible>(bytes)))
        .await?;
    let function = Arc::new(Function {
        plugin,
        limits: args.limits(),
        surroundings: args.surroundings(),
        environment: Arc::new(
            Environment::new(args.environment()).called(args.file.display().to_string()),
        ),
        outgoing: Outgoing::new(args.network)?,
    });
    // A directory that cannot be opened is said now, not with the first request.
    function.state()?;

    let app = Router::new().fallback(move |request| {
        let function = function.clone();
        async move { function.answer(request).await }
    });
    let url = format!("http://{address}/");
    // The first line of stderr, where test runners look for the address.
    say(&format!("Serving HTTP on {url}"));
    match json {
        true => output::line(json!({"event": "ready", "url": url}).to_string()),
        false => output::line(&url),
    }
    // What the engine has to say, of guests that fail after their responses.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // Without it, a streamed response waits for the client's delayed acknowledgements.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        ended = &mut server => return Ok(ended??),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(stop);
    tokio::select! {
        ended = tokio::time::timeout(GRACE, server) => match ended {
            Ok(ended) => Ok(ended??),
            Err(_) => bail!("requests were still under way {} s after the signal to stop", GRACE.as_secs()),
        },
        _ = terminate.recv() => bail!("stopped at once by a second signal"),
        _ = interrupt.recv() => bail!("stopped at once by a second signal"),
    }
}

impl Function {
    fn state(&self) -> Result<State> {
        let mut base = StoreBase::within(
            &self.surroundings,
            self.environment.clone(),
            Arc::new(Stderr),
        )?;
        base.set_egress(self.outgoing.hooks());
        Ok(State(base))
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let outcome = match self.state() {
            Ok(state) => {
                let deadline = Instant::now() + EVER;
                self.plugin
                    .handle(state, self.limits, deadline, request)
                    .await
            }
            Err(error) => Err(StepError::new(ErrorKind::Unavailable, error.to_string())),
        };
        match outcome {
            // Its head has left: the caller sees that the body breaks off, and why is said here alone.
            Ok(response) => response.map(|body| {
                Body::new(body.map_err(|error| {
                    say(&format!("error: the response's body broke off: {error}"));
                    error
                }))
            }),
            Err(error) => {
                say(&format!("error: {error}"));
                let status = match error.kind {
                    ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
                    ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                (status, format!("{error}\n")).into_response()
            }
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("an environment variable is written KEY=VALUE".to_owned()),
    }
}

fn directory(text: &str) -> Result<(PathBuf, String), String> {
    match text.split_once("::") {
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() => {
            Ok((host.into(), guest.to_owned()))
        }
        None if !text.is_empty() => Ok((text.into(), text.to_owned())),
        _ => {
            Err("a directory is written HOST::GUEST, or HOST for the same name in both".to_owned())
        }
    }
}
