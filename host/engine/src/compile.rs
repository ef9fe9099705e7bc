use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{counter, gauge, histogram};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;
use stepwell_core::Digest;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use crate::chores::Chores;
use crate::config::Flavor;
use crate::load::{LoadError, refused, refused_text};
use crate::queue::{Lane, Queue, Slot};
use crate::worker::{EXIT_HOST, EXIT_REFUSED, Order};

/// How components are compiled.
#[derive(Clone, Debug)]
pub enum CompileBy {
    /// On a thread of this process, for tests and small tools: nothing stops it once it has begun, and what it allocates
    /// counts here.
    InProcess,
    /// By a program that calls [`compile_worker`](crate::compile_worker) with what follows these arguments: a process of its
    /// own for each component, with the lowest priority, a bound on its memory, and killed when its time is up.
    Program {
        /// The program.
        path: PathBuf,
        /// Its first arguments.
        arguments: Vec<OsString>,
    },
}

/// What compiling is allowed.
#[derive(Clone, Debug)]
pub(crate) struct CompileLimits {
    pub(crate) time: Duration,
    pub(crate) memory: u64,
    pub(crate) threads: usize,
}

/// Compiles components, a few at a time. No upload can hurt it: not by its size, not by the time it takes, not by crashing it.
pub(crate) struct Compiler {
    by: CompileBy,
    limits: CompileLimits,
    queue: Arc<Queue>,
    chores: Arc<Chores>,
    /// Where the functions of large components are kept; none: nowhere.
    functions: Option<PathBuf>,
}

/// Compiled code, and how long that took.
pub(crate) struct Compiled {
    pub(crate) code: Vec<u8>,
    pub(crate) took: Duration,
}

/// Bytes of what a compiler may say before it ends.
const REPORT: u64 = 4096;

impl Compiler {
    pub(crate) fn new(
        by: CompileBy,
        limits: CompileLimits,
        queue: Arc<Queue>,
        chores: Arc<Chores>,
        functions: Option<PathBuf>,
    ) -> Self {
        Self {
            by,
            limits,
            queue,
            chores,
            functions,
        }
    }

    /// Compiles the component of this digest for an engine of this flavour, in its lane's turn.
    pub(crate) async fn compile(
        &self,
        engine: &wasmtime::Engine,
        flavor: Flavor,
        digest: Digest,
        bytes: Bytes,
        lane: Lane,
    ) -> Result<Compiled, LoadError> {
        let slot = tokio::time::timeout(self.limits.time, self.queue.slot(lane)).await;
        let Ok(Ok(slot)) = slot else {
            counter!("stepwell_compile_failures_total", "reason" => "busy").increment(1);
            return Err(LoadError::Busy);
        };
        gauge!("stepwell_compiling").increment(1);
        let began = Instant::now();
        let outcome = match &self.by {
            CompileBy::InProcess => self.in_process(engine.clone(), digest, bytes, slot).await,
            CompileBy::Program { path, arguments } => {
                let mut command = Command::new(path);
                command.args(arguments);
                let order = Order {
                    flavor,
                    engine: crate::cache::fingerprint(engine),
                    memory: self.limits.memory,
                    // A backstop for a compiler that nobody is left to kill: the clock on the wall is what counts.
                    cpu: self.limits.time.saturating_mul(
                        u32::try_from(self.limits.threads.saturating_add(1)).unwrap_or(u32::MAX),
                    ),
                    functions: self.functions.clone(),
                };
                let outcome = self.by_program(command, &order, digest, bytes).await;
                drop(slot);
                outcome
            }
        };
        gauge!("stepwell_compiling").decrement(1);
        let took = began.elapsed();
        match outcome {
            Ok(code) => {
                histogram!("stepwell_compile_seconds").record(took.as_secs_f64());
                Ok(Compiled { code, took })
            }
            Err(error) => {
                counter!("stepwell_compile_failures_total", "reason" => error.reason())
                    .increment(1);
                Err(error)
            }
        }
    }

    /// How many wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    async fn in_process(
        &self,
        engine: wasmtime::Engine,
        digest: Digest,
        bytes: Bytes,
        slot: Slot,
    ) -> Result<Vec<u8>, LoadError> {
        let limit = self.limits.time;
        let work = tokio::task::spawn_blocking(move || {
            // The compiler cannot be stopped: it keeps its slot until it is done, even if nobody waits any more.
            let _slot = slot;
            if Digest::of(&bytes) != digest {
                return Err(LoadError::Damaged { digest });
            }
            engine
                .precompile_component(&bytes)
                .map_err(|error| refused(&error))
        });
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(LoadError::Crashed {
                reason: panic.to_string(),
            }),
            Err(_) => Err(LoadError::TooSlow { limit }),
        }
    }

    async fn by_program(
        &self,
        mut command: Command,
        order: &Order,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<Vec<u8>, LoadError> {
        let host = move |reason: String| LoadError::Host { digest, reason };
        let (input, output) = tokio::task::spawn_blocking(move || {
            if Digest::of(&bytes) != digest {
                return Err(LoadError::Damaged { digest });
            }
            files(&bytes).map_err(|error| host(format!("no memory to pass it on: {error}")))
        })
        .await
        .map_err(|error| host(error.to_string()))??;
        let cannot = |error: std::io::Error| host(format!("the compiler cannot be run: {error}"));
        command
            .args(order.arguments())
            // Neither secrets nor settings of the host are the compiler's business.
            .env_clear()
            .env("RAYON_NUM_THREADS", self.limits.threads.to_string())
            .stdin(input)
            .stdout(output.try_clone().map_err(cannot)?)
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A process begins with the priority of the thread that starts it, and beginning takes it as long as many requests.
        let runtime = Handle::current();
        let start = move || {
            let _entered = runtime.enter();
            command.spawn()
        };
        let started = self.chores.run(start).await;
        let mut child = started
            .ok_or_else(|| host("the compiler cannot be started".to_owned()))?
            .map_err(cannot)?;
        let limit = self.limits.time;
        match tokio::time::timeout(limit, ended(&mut child)).await {
            Ok(Ok((status, report))) => {
                self.judge(digest, status, &report)?;
                tokio::task::spawn_blocking(move || read(output))
                    .await
                    .map_err(|error| host(error.to_string()))?
                    .map_err(|error| host(format!("the compiled code cannot be read: {error}")))
            }
            Ok(Err(error)) => Err(cannot(error)),
            Err(_) => {
                // The slot is free when the process is gone.
                let _ = child.kill().await;
                Err(LoadError::TooSlow { limit })
            }
        }
    }

    /// What the end of the compiler's process means.
    fn judge(&self, digest: Digest, status: ExitStatus, report: &str) -> Result<(), LoadError> {
        if status.success() {
            return Ok(());
        }
        if status.code() == Some(EXIT_REFUSED) {
            return Err(refused_text(report));
        }
        if status.code() == Some(EXIT_HOST) {
            return Err(LoadError::Host {
                digest,
                reason: report.to_owned(),
            });
        }
        tracing::warn!(%digest, %status, report, "the compiler stopped half-way");
        let too_big = LoadError::TooBig {
            limit: self.limits.memory,
        };
        if report.contains("memory allocation of") {
            return Err(too_big);
        }
        let signal = status.signal();
        if signal == Some(Signal::XCPU.as_raw()) {
            return Err(LoadError::TooSlow {
                limit: self.limits.time,
            });
        }
        if signal == Some(Signal::XFSZ.as_raw()) {
            return Err(too_big);
        }
        Err(LoadError::Crashed {
            reason: match signal {
                Some(signal) => format!("it ended with signal {signal}"),
                None => "it panicked".to_owned(),
            },
        })
    }
}

/// Files in memory: the component to read, and a place for its code. No path is passed on, and no disk can be full.
fn files(component: &[u8]) -> std::io::Result<(File, File)> {
    let mut input = File::from(memfd_create("component", MemfdFlags::CLOEXEC)?);
    input.write_all(component)?;
    input.rewind()?;
    let output = File::from(memfd_create("code", MemfdFlags::CLOEXEC)?);
    Ok((input, output))
}

fn read(mut output: File) -> std::io::Result<Vec<u8>> {
    output.rewind()?;
    let mut code = Vec::new();
    output.read_to_end(&mut code)?;
    Ok(code)
}

async fn ended(child: &mut Child) -> std::io::Result<(ExitStatus, String)> {
    let mut report = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(REPORT).read_to_end(&mut report).await?;
    }
    let status = child.wait().await?;
    Ok((status, String::from_utf8_lossy(&report).trim().to_owned()))
}
