use std::ffi::OsString;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rayon::ThreadPool;
use rustix::io::pread;
use rustix::process::{Resource, Rlimit, getppid, getrlimit, setpriority_process, setrlimit};
use serde::{Deserialize, Serialize};

use crate::cache::fingerprint;
use crate::chores::NICENESS;
use crate::config::{Allocation, Flavor, wasmtime_config};
use crate::functions::Functions;
use crate::inspect::{Inspection, Refused, flavor, inspect};
use crate::interfaces::Interfaces;
use crate::load::{refused_text, text};
use crate::turns::{Paces, STACK, yielding_threads};

/// Something is wrong that is not the component's fault; standard error says what.
pub(crate) const EXIT_HOST: i32 = 11;
/// There is more code than there may be. The signal for it may be one that the host ignores, and then this process does too.
pub(crate) const EXIT_CODE: i32 = 12;

/// What a compiler's standard input begins with, before what it reads, and what is written there again when it changes: whether the
/// host is at rest.
pub(crate) const ALONE: u8 = 0;
pub(crate) const GIVE_WAY: u8 = 1;

/// How often a compiler looks there.
const LOOK: Duration = Duration::from_millis(5);

/// What a compiler is asked to do with a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The interfaces that it may import, where it is to be checked as an upload.
    pub(crate) check: Option<Interfaces>,
    pub(crate) compile: bool,
    /// Where the functions of large components are kept; not every path can be written as JSON.
    #[serde(skip)]
    pub(crate) functions: Option<PathBuf>,
}

/// What a compiler's process must not take more of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    pub(crate) memory: u64,
    pub(crate) cpu: Duration,
    /// Bytes of the code.
    pub(crate) code: u64,
}

/// What came of it, beside the code.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// None: it was not to be checked.
    pub(crate) inspection: Option<Inspection>,
    /// None: it was not to be compiled.
    pub(crate) compiled: Option<For>,
}

/// What the code is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct For {
    pub(crate) flavor: Flavor,
    /// Of the engine that made it: one that differs would refuse it.
    pub(crate) engine: String,
    /// How many stacks an instance may take.
    pub(crate) stacks: u32,
}

/// Bytes from which on a component's functions are worth keeping: small ones are compiled faster than these are looked up.
pub(crate) const LARGE: usize = 2 << 20;

/// The life of a compiler's process: it reads one component from standard input, writes what came of it to standard output and ends.
/// `arguments` are those that [`CompileBy::Program`](crate::CompileBy) adds.
pub fn compile_worker(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = parse(arguments)
        .and_then(|(order, bounds)| {
            let paces = Arc::new(Paces::new(!is_alone()));
            let threads = threads(paces.clone())?;
            // Stacks are none of the component's doing.
            bounds.confine(threads.current_num_threads().saturating_mul(STACK) as u64)?;
            attend(paces)?;
            Ok((order, threads))
        })
        .map_err(Failure::from)
        .and_then(|(order, threads)| threads.install(|| order.answer()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::TooMuchCode) => exit(EXIT_CODE),
        Err(Failure::Host(what)) => {
            let _ = std::io::stderr().write_all(what.as_bytes());
            exit(EXIT_HOST)
        }
    }
}

/// Those that compile, which begin with the priority of this one.
fn threads(paces: Arc<Paces>) -> Result<ThreadPool, String> {
    setpriority_process(None, NICENESS)
        .map_err(|error| failed("the priority cannot be set", error))?;
    yielding_threads(paces).map_err(|error| failed("no threads can be started", error))
}

/// Whether the host is at rest, as it says before the component, as long as this process lives.
fn is_alone() -> bool {
    let mut said = [GIVE_WAY];
    // Where nothing can be said there may be somebody.
    let _ = pread(std::io::stdin(), &mut said, 0);
    said == [ALONE]
}

/// Has the threads give way, or not, as the host says from time to time; and ends the process when the host is gone.
fn attend(paces: Arc<Paces>) -> Result<(), String> {
    let host = getppid();
    let attend = move || {
        // Whoever is left behind by a host that was killed ends too.
        while getppid() == host {
            paces.give_way(!is_alone());
            thread::sleep(LOOK);
        }
        std::process::exit(EXIT_HOST);
    };
    thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(attend)
        .map_err(|error| failed("no thread can be started", error))?;
    Ok(())
}

enum Failure {
    Host(String),
    TooMuchCode,
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Self::Host(what)
    }
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

pub(crate) fn arguments(order: &Order, bounds: &Bounds) -> serde_json::Result<Vec<OsString>> {
    let written = [
        serde_json::to_string(order)?,
        serde_json::to_string(bounds)?,
    ];
    let functions = order.functions.clone().map(PathBuf::into_os_string);
    Ok(written
        .map(OsString::from)
        .into_iter()
        .chain(functions)
        .collect())
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Order, Bounds), String> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = match arguments.as_slice() {
        [order, bounds, functions @ ..] => (|| {
            let order: Order = serde_json::from_str(order.to_str()?).ok()?;
            let functions = functions.first().map(PathBuf::from);
            let bounds = serde_json::from_str(bounds.to_str()?).ok()?;
            Some((Order { functions, ..order }, bounds))
        })(),
        _ => None,
    };
    parsed.ok_or_else(|| {
        "this command is for the host's own use: it compiles what it reads from standard input"
            .to_owned()
    })
}

fn failed(what: &str, error: impl std::fmt::Display) -> String {
    format!("{what}: {error}")
}

impl Order {
    /// Carries it out for standard input and output: first the length of what the host reads (a [`Report`] or [`Refused`]), then that,
    /// then the code.
    fn answer(self) -> Result<(), Failure> {
        let mut component = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut component)
            .map_err(|error| failed("the component cannot be read", error))?;
        let (report, code) = match self.carry_out(&component)? {
            Ok((report, code)) => (Ok(report), code),
            Err(refused) => (Err(refused), Vec::new()),
        };
        let report =
            serde_json::to_vec(&report).map_err(|error| failed("it cannot be told", error))?;
        let mut output = std::io::stdout().lock();
        output
            .write_all(&(report.len() as u64).to_le_bytes())
            .and_then(|()| output.write_all(&report))
            .and_then(|()| output.write_all(&code))
            .and_then(|()| output.flush())
            .map_err(|error| match error.kind() {
                ErrorKind::FileTooLarge => Failure::TooMuchCode,
                _ => failed("the code cannot be written", error).into(),
            })
    }

    /// Checks and compiles a component in this process.
    pub(crate) fn carry_out(
        &self,
        component: &[u8],
    ) -> Result<Result<(Report, Vec<u8>), Refused>, String> {
        let inspection = match &self.check {
            None => None,
            Some(interfaces) => match inspect(component, interfaces) {
                Ok(inspection) => Some(inspection),
                Err(refused) => return Ok(Err(refused)),
            },
        };
        let (flavor, stacks) = match flavor(component) {
            Ok(found) => found,
            Err(refused) => return Ok(Err(refused)),
        };
        let mut report = Report {
            inspection,
            compiled: None,
        };
        if !self.compile {
            return Ok(Ok((report, Vec::new())));
        }
        let mut config = wasmtime_config(flavor, Allocation::OnDemand);
        let functions = self
            .functions
            .as_deref()
            .filter(|_| component.len() >= LARGE)
            .map(Functions::open);
        if let Some(functions) = &functions {
            config
                .enable_incremental_compilation(functions.store())
                .map_err(|error| failed("functions cannot be kept", error))?;
        }
        let engine = wasmtime::Engine::new(&config)
            .map_err(|error| failed("no engine can be made", error))?;
        let code = match engine.precompile_component(component) {
            Ok(code) => code,
            Err(error) => return Ok(Err(refused_text(&text(&error)))),
        };
        report.compiled = Some(For {
            flavor,
            engine: fingerprint(&engine),
            stacks,
        });
        if let Some(functions) = functions {
            functions.keep();
        }
        Ok(Ok((report, code)))
    }
}

impl Bounds {
    /// Takes from this process what the component it compiles must not have, before it has been read. So many bytes of memory are
    /// its own.
    fn confine(&self, own: u64) -> Result<(), String> {
        let limit = |resource, value: u64| {
            // What the host itself may not have more of, nobody gives to this process.
            let value = getrlimit(resource)
                .maximum
                .map_or(value, |most| value.min(most));
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            setrlimit(resource, limit).map_err(|error| failed("a limit cannot be set", error))
        };
        // What it may write to: neither the program nor what it maps to read counts.
        limit(Resource::Data, self.memory.saturating_add(own))?;
        limit(Resource::Fsize, self.code)?;
        limit(Resource::Cpu, self.cpu.as_secs().max(1))?;
        limit(Resource::Core, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds {
            memory: 4 << 30,
            cpu: Duration::from_secs(240),
            code: 1 << 30,
        }
    }

    #[test]
    fn an_order_is_read_as_it_was_given() {
        for order in [
            Order {
                check: Some(Interfaces::new(&["a:b/c@1.0.0".to_owned()])),
                compile: true,
                functions: Some(PathBuf::from("/a/b c")),
            },
            Order {
                check: None,
                compile: false,
                functions: None,
            },
        ] {
            let arguments = arguments(&order, &bounds()).unwrap();
            assert_eq!(parse(arguments), Ok((order, bounds())));
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for arguments in [&[][..], &["{}"], &["{}", "{}"], &["lean", "0", "1", "1"]] {
            assert!(parse(arguments.iter().map(OsString::from)).is_err());
        }
    }
}
