//! What every world's linker has: all of WASI 0.2's `wasi:cli/imports`, `wasi:http` and `wasi:config`.

use wasmtime::Result;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::cli::WasiCli;
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksCtxView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, io, random, sockets};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView};
use wasmtime_wasi_config::WasiConfig;
use wasmtime_wasi_http::WasiHttp;
use wasmtime_wasi_http::p2::bindings::http;

use crate::held;
use crate::store::StoreState;
use crate::timers::{HasTimers, Timers};

/// The version of every WASI 0.2 interface that is linked; the linker takes any other 0.2 release for it.
pub(crate) const WASI: &str = "0.2.12";

/// The interfaces of WASI 0.2 that [`add_wasi`] links, without their version.
pub(crate) const WASI_INTERFACES: [&str; 29] = [
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
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// A pre-release matches exactly or not at all.
pub(crate) const WASI_CONFIG: &str = "wasi:config/store@0.2.0-rc.1";

pub(crate) fn add_wasi<S: StoreState>(l: &mut Linker<S>) -> Result<()> {
    io::error::add_to_linker::<S, HasTable>(l, table)?;
    io::poll::add_to_linker::<S, HasTable>(l, table)?;
    io::streams::add_to_linker::<S, HasTable>(l, table)?;

    clocks::wall_clock::add_to_linker::<S, WasiClocks>(l, clocks_of)?;
    clocks::monotonic_clock::add_to_linker::<S, HasTimers>(l, |s| Timers(clocks_of(s)))?;

    random::random::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;
    random::insecure::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;
    random::insecure_seed::add_to_linker::<S, WasiRandom>(l, |s| s.base().wasi().ctx.random())?;

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

    filesystem::types::add_to_linker::<S, WasiFilesystem>(l, files_of)?;
    filesystem::preopens::add_to_linker::<S, WasiFilesystem>(l, files_of)?;

    sockets::tcp::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::udp::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::tcp_create_socket::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::udp_create_socket::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::instance_network::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    sockets::ip_name_lookup::add_to_linker::<S, WasiSockets>(l, sockets_of)?;
    let options = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<S, WasiSockets>(l, &options, sockets_of)?;

    let options = http::types::LinkOptions::default();
    http::types::add_to_linker::<S, WasiHttp>(l, &options, |s| s.base().http())?;
    http::outgoing_handler::add_to_linker::<S, WasiHttp>(l, |s| s.base().http())?;
    held::count(l)?;

    wasmtime_wasi_config::add_to_linker(l, |s: &mut S| {
        WasiConfig::new(&s.base().environment.variables)
    })
}

fn table<S: StoreState>(s: &mut S) -> &mut ResourceTable {
    &mut s.base().table
}

pub(crate) fn clocks_of<S: StoreState>(s: &mut S) -> WasiClocksCtxView<'_> {
    let view = s.base().wasi();
    WasiClocksCtxView {
        ctx: view.ctx.clocks(),
        table: view.table,
    }
}

pub(crate) fn files_of<S: StoreState>(s: &mut S) -> WasiFilesystemCtxView<'_> {
    let view = s.base().wasi();
    WasiFilesystemCtxView {
        ctx: view.ctx.filesystem(),
        table: view.table,
    }
}

pub(crate) fn sockets_of<S: StoreState>(s: &mut S) -> WasiSocketsCtxView<'_> {
    let view = s.base().wasi();
    WasiSocketsCtxView {
        ctx: view.ctx.sockets(),
        table: view.table,
    }
}

struct HasTable;

impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

pub(crate) struct HasEnvironment;

impl HasData for HasEnvironment {
    type Data<'a> = EnvironmentView<'a>;
}

/// `wasi:cli/environment` over entries that all calls of a step share: nothing is copied for guests that do not ask.
pub(crate) struct EnvironmentView<'a>(pub(crate) &'a [(String, String)]);

impl cli::environment::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> Result<Vec<(String, String)>> {
        Ok(self.0.to_vec())
    }

    fn get_arguments(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn initial_cwd(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}
