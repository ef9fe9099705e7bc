use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::pin::pin;
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
use crate::inspect::{Inspection, Refused};
use crate::interfaces::Interfaces;
use crate::load::LoadError;
use crate::queue::{Lane, Queue, Slot};
use crate::rest::{Activity, Follower};
use crate::worker::{
    ALONE, Bounds, EXIT_CODE, EXIT_HOST, For, GIVE_WAY, LARGE, Order, Report, arguments,
};

/// How components are compiled.
#[derive(Clone, Debug)]
pub enum CompileBy {
    /// On a thread of this process, for tests and small tools: nothing stops it once it has begun, and what it allocates
    /// counts here.
    InProcess,
    /// By a program that calls [`compile_worker`](crate::compile_worker) with what follows these arguments: a process of its
    /// own for each component, with a low priority, a bound on its memory, and killed when its time is up.
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

/// Checks and compiles components, a few at a time. No upload can hurt it: not by its size, not by the time it takes, not by crashing
/// it.
pub(crate) struct Compiler {
    by: CompileBy,
    limits: CompileLimits,
    queue: Arc<Queue>,
    chores: Arc<Chores>,
    activity: Activity,
    /// Where the functions of large components are kept; none: nowhere.
    functions: Option<PathBuf>,
}

/// Compiled code, what it is for, and how long that took.
pub(crate) struct Compiled {
    /// None: it was not to be checked.
    pub(crate) inspection: Option<Inspection>,
    pub(crate) code: Vec<u8>,
    pub(crate) r#for: For,
    pub(crate) took: Duration,
}

/// Bytes of what a compiler may say before it fails.
const LAST_WORDS: u64 = 4096;

/// Bytes of code for each byte of a component, and for one of no bytes: far more than any compiler of a language makes.
const CODE_OF_A_BYTE: u64 = 16;
const CODE_OF_NOTHING: u64 = 32 << 20;

fn most_code(component: &Bytes) -> u64 {
    CODE_OF_NOTHING + CODE_OF_A_BYTE * component.len() as u64
}

impl Compiler {
    pub(crate) fn new(
        by: CompileBy,
        limits: CompileLimits,
        queue: Arc<Queue>,
        chores: Arc<Chores>,
        activity: Activity,
        functions: Option<PathBuf>,
    ) -> Self {
        Self {
            by,
            limits,
            queue,
            chores,
            activity,
            functions,
        }
    }

    /// Compiles the component of this digest in its lane's turn, and checks it before, as an upload that may import these interfaces.
    pub(crate) async fn compile(
        &self,
        digest: Digest,
        bytes: Bytes,
        lane: Lane,
        check: Option<Interfaces>,
    ) -> Result<Compiled, LoadError> {
        let order = Order {
            check,
            compile: true,
            functions: self.functions.clone(),
        };
        let (report, code, took) = self.carry_out(order, digest, bytes, lane).await?;
        histogram!("stepwell_compile_seconds").record(took.as_secs_f64());
        let r#for = report.compiled.ok_or_else(|| half_done(digest))?;
        Ok(Compiled {
            inspection: report.inspection,
            code,
            r#for,
            took,
        })
    }

    /// Checks an upload only.
    pub(crate) async fn check(
        &self,
        digest: Digest,
        bytes: Bytes,
        lane: Lane,
        interfaces: Interfaces,
    ) -> Result<Inspection, LoadError> {
        let order = Order {
            check: Some(interfaces),
            compile: false,
            functions: None,
        };
        let (report, ..) = self.carry_out(order, digest, bytes, lane).await?;
        report.inspection.ok_or_else(|| half_done(digest))
    }

    async fn carry_out(
        &self,
        order: Order,
        digest: Digest,
        bytes: Bytes,
        lane: Lane,
    ) -> Result<(Report, Vec<u8>, Duration), LoadError> {
        let _compiles = self.activity.compiles();
        let slot = tokio::time::timeout(self.limits.time, self.queue.slot(lane)).await;
        let Ok(Ok(slot)) = slot else {
            counter!("stepwell_compile_failures_total", "reason" => "busy").increment(1);
            return Err(LoadError::Busy);
        };
        gauge!("stepwell_compiling").increment(1);
        let began = Instant::now();
        let outcome = match &self.by {
            CompileBy::InProcess => self.in_process(order, digest, bytes, slot).await,
            CompileBy::Program { path, arguments } => {
                let mut command = Command::new(path);
                command.args(arguments);
                let outcome = self.by_program(command, &order, digest, bytes).await;
                drop(slot);
                outcome
            }
        };
        gauge!("stepwell_compiling").decrement(1);
        match outcome {
            Ok((report, code)) => Ok((report, code, began.elapsed())),
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
        order: Order,
        digest: Digest,
        bytes: Bytes,
        slot: Slot,
    ) -> Result<(Report, Vec<u8>), LoadError> {
        let limit = self.limits.time;
        let work = tokio::task::spawn_blocking(move || {
            // The compiler cannot be stopped: it keeps its slot until it is done, even if nobody waits any more.
            let _slot = slot;
            if Digest::of(&bytes) != digest {
                return Err(LoadError::Damaged { digest });
            }
            match order.carry_out(&bytes) {
                Ok(outcome) => outcome.map_err(LoadError::Refused),
                Err(reason) => Err(LoadError::Host { digest, reason }),
            }
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
    ) -> Result<(Report, Vec<u8>), LoadError> {
        let host = move |reason: String| LoadError::Host { digest, reason };
        let cannot =
            move |error: std::io::Error| host(format!("the compiler cannot be run: {error}"));
        let most_code = most_code(&bytes);
        let bounds = Bounds {
            memory: self.limits.memory,
            // A backstop for a compiler that nobody is left to kill: the clock on the wall is what counts.
            cpu: self.limits.time.saturating_mul(
                u32::try_from(self.limits.threads.saturating_add(1)).unwrap_or(u32::MAX),
            ),
            code: most_code,
        };
        let arguments = arguments(order, &bounds).map_err(|error| host(error.to_string()))?;
        command
            .args(arguments)
            // Neither secrets nor settings of the host are the compiler's business.
            .env_clear()
            .env("RAYON_NUM_THREADS", self.threads(&bytes).to_string())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A process begins with the priority of the thread that starts it, and beginning takes it as long as many requests.
        let runtime = Handle::current();
        let follower = self.activity.follow();
        let mut of_start = follower.clone();
        let start = move || {
            if Digest::of(&bytes) != digest {
                return Err(LoadError::Damaged { digest });
            }
            let (input, output) = files(pace(&mut of_start), &bytes)
                .map_err(|error| host(format!("no memory to pass it on: {error}")))?;
            let _entered = runtime.enter();
            let child = command
                .stdin(input.try_clone().map_err(cannot)?)
                .stdout(output.try_clone().map_err(cannot)?)
                .spawn()
                .map_err(cannot)?;
            Ok((child, input, output))
        };
        let started = self.chores.run(start).await;
        let (mut child, input, output) =
            started.ok_or_else(|| host("the compiler cannot be started".to_owned()))??;
        let limit = self.limits.time;
        let ended = telling(follower, &input, ended(&mut child));
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok((status, report))) => {
                self.judge(digest, most_code, status, &report)?;
                let written = self.chores.run(move || read(output)).await;
                written
                    .ok_or_else(|| host("reading the compiler's code failed".to_owned()))?
                    .map_err(|error| {
                        host(format!("what the compiler wrote cannot be read: {error}"))
                    })?
                    .map_err(LoadError::Refused)
            }
            Ok(Err(error)) => Err(cannot(error)),
            Err(_) => {
                // The slot is free when the process is gone.
                let _ = child.kill().await;
                Err(LoadError::TooSlow { limit })
            }
        }
    }

    /// How many threads compile a component. While others wait, a small one has one thread: it would be done little sooner with more,
    /// and requests have the other cores. A large one keeps the others waiting for long enough.
    fn threads(&self, component: &Bytes) -> usize {
        if self.queue.waiting() > 0 && component.len() < LARGE {
            1
        } else {
            self.limits.threads
        }
    }

    /// What the end of the compiler's process means.
    fn judge(
        &self,
        digest: Digest,
        most_code: u64,
        status: ExitStatus,
        report: &str,
    ) -> Result<(), LoadError> {
        if status.success() {
            return Ok(());
        }
        if status.code() == Some(EXIT_CODE) {
            return Err(LoadError::TooMuchCode { limit: most_code });
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
            return Err(LoadError::TooMuchCode { limit: most_code });
        }
        Err(LoadError::Crashed {
            reason: match signal {
                Some(signal) => format!("it ended with signal {signal}"),
                None => "it panicked".to_owned(),
            },
        })
    }
}

/// Files in memory: the pace and the component to read, which is what is read from where the file is, and a place for its code. No
/// path is passed on, and no disk can be full.
fn files(pace: u8, component: &[u8]) -> std::io::Result<(File, File)> {
    let mut input = File::from(memfd_create("component", MemfdFlags::CLOEXEC)?);
    input.write_all(&[pace])?;
    input.write_all(component)?;
    input.seek(SeekFrom::Start(1))?;
    let output = File::from(memfd_create("code", MemfdFlags::CLOEXEC)?);
    Ok((input, output))
}

/// What a compiler is told.
fn pace(follower: &mut Follower) -> u8 {
    match follower.is_at_rest() {
        true => ALONE,
        false => GIVE_WAY,
    }
}

/// Waits for a compiler, and tells it whether to give way whenever that changes.
async fn telling<T>(mut follower: Follower, input: &File, ended: impl Future<Output = T>) -> T {
    let mut ended = pin!(ended);
    loop {
        tokio::select! {
            outcome = &mut ended => return outcome,
            () = follower.changed() => {
                // Memory, which is there already. A compiler that is not told goes on as before.
                let _ = input.write_all_at(&[pace(&mut follower)], 0);
            }
        }
    }
}

/// Reads what [`Order`] says that a compiler writes.
fn read(mut output: File) -> std::io::Result<Result<(Report, Vec<u8>), Refused>> {
    output.rewind()?;
    let mut length = [0; 8];
    output.read_exact(&mut length)?;
    let mut report = Vec::new();
    let length = u64::from_le_bytes(length);
    (&mut output).take(length).read_to_end(&mut report)?;
    let report: Result<Report, Refused> = serde_json::from_slice(&report)?;
    let mut code = Vec::new();
    output.read_to_end(&mut code)?;
    Ok(report.map(|report| (report, code)))
}

fn half_done(digest: Digest) -> LoadError {
    LoadError::Host {
        digest,
        reason: "the compiler left out a part of its work".to_owned(),
    }
}

async fn ended(child: &mut Child) -> std::io::Result<(ExitStatus, String)> {
    let mut report = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(LAST_WORDS).read_to_end(&mut report).await?;
    }
    let status = child.wait().await?;
    Ok((status, String::from_utf8_lossy(&report).trim().to_owned()))
}
