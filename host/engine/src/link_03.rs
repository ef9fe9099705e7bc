//! What the concurrent engine's linker has beside WASI 0.2: the same of WASI 0.3.

use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi::cli::WasiCli;
use wasmtime_wasi::clocks::WasiClocks;
use wasmtime_wasi::filesystem::WasiFilesystem;
use wasmtime_wasi::p3::bindings::{cli, clocks, filesystem, random, sockets};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::sockets::WasiSockets;
use wasmtime_wasi_http::WasiHttp;
use wasmtime_wasi_http::p3::bindings::http;

use crate::held;
use crate::link::{EnvironmentView, HasEnvironment, clocks_of, files_of, sockets_of};
use crate::store::StoreState;
use crate::timers::{HasTimers, Timers};

/// The version of every WASI 0.3 interface that is linked; the linker takes any other 0.3 release for it.
pub(crate) const WASI_03: &str = "0.3.0";

/// The interfaces of WASI 0.3 that [`add_wasi_03`] links, without their version.
pub(crate) const WASI_03_INTERFACES: [&str; 22] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

pub(crate) fn add_wasi_03<S: StoreState>(l: &mut Linker<S>) -> Result<()> {
    cli::environment::add_to_linker::<S, HasEnvironment>(l, |s| {
        EnvironmentView(&s.base().environment.entries)
    })?;
    cli::exit::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::stdin::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::stdout::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::stderr::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::terminal_input::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::terminal_output::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::terminal_stdin::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::terminal_stdout::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;
    cli::terminal_stderr::add_to_linker::<S, WasiCli>(l, |s| s.base().cli())?;

    clocks::types::add_to_linker::<S, WasiClocks>(l, clocks_of)?;
    clocks::monotonic_clock::add_to_linker::<S, HasTimers>(l, |s| Timers(clocks_of(s)))?;
    clocks::system_clock::add_to_linker::<S, WasiClocks>(l, clocks_of)?;

    random::random::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;
    random::insecure::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;
    random::insecure_seed::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;

    filesystem::types::add_to_linker::<S, WasiFilesystem>(l, files_of)?;
    filesystem::preopens::add_to_linker::<S, WasiFilesystem>(l, files_of)?;

    sockets::types::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::ip_name_lookup::add_to_linker::<S, WasiSockets>(l, sockets_of)?;

    http::types::add_to_linker::<S, WasiHttp>(l, |s| s.base().http())?;
    http::client::add_to_linker::<S, WasiHttp>(l, |s| s.base().http())?;
    held::count_03(l)
}

impl cli::environment::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> Result<Vec<(String, String)>> {
        Ok(self.0.to_vec())
    }

    fn get_arguments(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn get_initial_cwd(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}
