use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getppid, setpriority_process, setrlimit};

use crate::cache::fingerprint;
use crate::chores::NICENESS;
use crate::config::{Allocation, Flavor, wasmtime_config};
use crate::functions::Functions;

/// The component cannot be compiled; standard error says why.
pub(crate) const EXIT_REFUSED: i32 = 10;
/// Something else is wrong; standard error says what.
pub(crate) const EXIT_HOST: i32 = 11;

/// What a compiler is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) flavor: Flavor,
    /// Of the engine that will run the code: one that differs would refuse it.
    pub(crate) engine: String,
    pub(crate) memory: u64,
    pub(crate) cpu: Duration,
    pub(crate) functions: Option<PathBuf>,
}

/// Bytes from which on a component's functions are worth keeping: small ones are compiled faster than these are looked up.
const LARGE: usize = 2 << 20;

/// The life of a compiler's process: it reads one component from standard input, writes its code to standard output and ends.
/// `arguments` are those that [`CompileBy::Program`](crate::CompileBy) adds.
pub fn compile_worker(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = Order::parse(arguments)
        .and_then(|order| order.confine().map(|()| order))
        .and_then(|order| order.carry_out());
    let (code, report) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Refused(report)) => (EXIT_REFUSED, report),
        Err(Failure::Host(report)) => (EXIT_HOST, report),
    };
    let _ = std::io::stderr().write_all(report.as_bytes());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

enum Failure {
    Refused(String),
    Host(String),
}

fn host(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Host(format!("{what}: {error}"))
}

impl Order {
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            self.flavor.as_str().into(),
            self.engine.clone().into(),
            self.memory.to_string().into(),
            self.cpu.as_secs().max(1).to_string().into(),
        ];
        arguments.extend(self.functions.clone().map(PathBuf::into_os_string));
        arguments
    }

    fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let mut arguments = arguments.into_iter();
        let parsed = (|| {
            let mut text = || arguments.next()?.into_string().ok();
            Some(Self {
                flavor: Flavor::parse(&text()?)?,
                engine: text()?,
                memory: text()?.parse().ok()?,
                cpu: Duration::from_secs(text()?.parse().ok()?),
                functions: None,
            })
        })();
        let Some(order) = parsed else {
            let message = "this command is for the host's own use: it compiles what it reads from standard input";
            return Err(Failure::Host(message.to_owned()));
        };
        Ok(Self {
            functions: arguments.next().map(PathBuf::from),
            ..order
        })
    }

    /// Takes from this process what the component it compiles must not have, before it has been read.
    fn confine(&self) -> Result<(), Failure> {
        let limit = |resource, value: u64| {
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            setrlimit(resource, limit).map_err(|error| host("a limit cannot be set", error))
        };
        // What it may write to: neither the program nor what it maps to read counts.
        limit(Resource::Data, self.memory)?;
        limit(Resource::Fsize, self.memory)?;
        limit(Resource::Cpu, self.cpu.as_secs().max(1))?;
        limit(Resource::Core, 0)?;
        setpriority_process(None, NICENESS)
            .map_err(|error| host("the priority cannot be set", error))?;
        let parent = getppid();
        thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || {
                // Whoever is left behind by a host that was killed ends too.
                while getppid() == parent {
                    thread::sleep(Duration::from_millis(500));
                }
                std::process::exit(EXIT_HOST);
            })
            .map_err(|error| host("no thread can be started", error))?;
        Ok(())
    }

    fn carry_out(self) -> Result<(), Failure> {
        let mut component = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut component)
            .map_err(|error| host("the component cannot be read", error))?;
        let mut config = wasmtime_config(self.flavor, Allocation::OnDemand);
        let functions = self
            .functions
            .as_deref()
            .filter(|_| component.len() >= LARGE)
            .map(Functions::open);
        if let Some(functions) = &functions {
            config
                .enable_incremental_compilation(functions.store())
                .map_err(|error| host("functions cannot be kept", error))?;
        }
        let engine =
            wasmtime::Engine::new(&config).map_err(|error| host("no engine can be made", error))?;
        let own = fingerprint(&engine);
        if own != self.engine {
            let (own, other) = (OsStr::new(&own), OsStr::new(&self.engine));
            return Err(Failure::Host(format!(
                "this program's engine ({}) is not the host's ({}): are both of the same build?",
                own.display(),
                other.display()
            )));
        }
        let code = engine
            .precompile_component(&component)
            .map_err(|error| Failure::Refused(crate::load::text(&error)))?;
        let mut output = std::io::stdout().lock();
        output
            .write_all(&code)
            .and_then(|()| output.flush())
            .map_err(|error| host("the code cannot be written", error))?;
        if let Some(functions) = functions {
            functions.keep();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_given() {
        let order = Order {
            flavor: Flavor::Lean,
            engine: "0123".to_owned(),
            memory: 4 << 30,
            cpu: Duration::from_secs(240),
            functions: Some(PathBuf::from("/a/b c")),
        };
        assert_eq!(Order::parse(order.arguments()).ok(), Some(order.clone()));
        let without = Order {
            functions: None,
            ..order
        };
        assert_eq!(Order::parse(without.arguments()).ok(), Some(without));
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for arguments in [
            &[][..],
            &["lean"],
            &["fat", "0", "1", "1"],
            &["lean", "0", "x", "1"],
        ] {
            let arguments = arguments.iter().map(OsString::from);
            assert!(matches!(Order::parse(arguments), Err(Failure::Host(_))));
        }
    }
}
