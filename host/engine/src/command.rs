use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use stepwell_core::{Limits, show_duration};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use crate::clock::{CpuClock, timed};
use crate::config::{Allocation, Flavor, wasmtime_config};
use crate::epoch::Ticker;
use crate::inspect::{Refused, command};
use crate::meter::{Exceeded, Meter};
use crate::rest::Activity;

/// A `wasi:cli/command` component, of WASI 0.2 or 0.3: a program that runs once and by itself. It takes no part in pipelines.
pub struct Command {
    engine: wasmtime::Engine,
    component: Component,
    linker: Linker<State>,
    world: CommandWorld,
}

/// What a program that runs by itself may see of the machine: this and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Its arguments, the first of them its name.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// Directories of the host, and what it knows them as.
    pub directories: Vec<(PathBuf, String)>,
    /// Whether it may open sockets and look up names.
    pub network: bool,
}

/// Why a command did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A directory that it should see cannot be opened.
    #[error("cannot open the directory {path}: {reason}")]
    Directory {
        /// The directory.
        path: String,
        /// What the operating system said.
        reason: String,
    },
    /// It ran into a limit.
    #[error("{0}")]
    Limit(String),
    /// It trapped, or could not be started.
    #[error("{0}")]
    Failed(String),
}

/// Which export makes it a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandWorld {
    /// `wasi:cli/run@0.2.x`.
    V02,
    /// `wasi:cli/run@0.3.x`, which is async.
    V03,
}

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    egress: Box<dyn WasiHttpHooks>,
    meter: Meter,
}

impl Surroundings {
    /// Adds what they allow to a context that allows nothing.
    pub(crate) fn apply(&self, builder: &mut WasiCtxBuilder) -> Result<(), CommandError> {
        for (host, guest) in &self.directories {
            builder
                .preopened_dir(host, guest, FsPerms::ReadWrite)
                .map_err(|error| CommandError::Directory {
                    path: host.display().to_string(),
                    reason: error.root_cause().to_string(),
                })?;
        }
        if self.network {
            builder
                .inherit_network()
                .allow_tcp(true)
                .allow_udp(true)
                .allow_ip_name_lookup(true);
        } else {
            builder
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false);
        }
        Ok(())
    }
}

impl Command {
    /// Compiles a command in memory; nothing is kept of it.
    ///
    /// # Errors
    /// [`Refused`]: it is no component, no command, or imports something else than WASI.
    pub fn compile(bytes: &[u8]) -> Result<Self, Refused> {
        let Some(world) = command(bytes)? else {
            return Err(Refused::new(
                "unknown-world",
                "the component is no command: it does not export wasi:cli/run",
                "commands export wasi:cli/run@0.2.x or wasi:cli/run@0.3.0",
            ));
        };
        let invalid = |error: wasmtime::Error| {
            Refused::new(
                "invalid-component",
                format!("the component cannot be run: {error:#}"),
                "rebuild it, and check it with wasm-tools validate",
            )
        };
        let config = wasmtime_config(Flavor::Concurrent, Allocation::OnDemand);
        let engine = wasmtime::Engine::new(&config).map_err(invalid)?;
        let component = Component::new(&engine, bytes).map_err(invalid)?;
        let mut linker = Linker::new(&engine);
        add_everything(&mut linker).map_err(invalid)?;
        linker.instantiate_pre(&component).map_err(|error| {
            Refused::new(
                "unknown-import",
                format!("the component imports what is not there: {error:#}"),
                "a command may import WASI 0.2 and 0.3, and wasi:http",
            )
        })?;
        Ok(Self {
            engine,
            component,
            linker,
            world,
        })
    }

    /// Runs it with this process's standard streams, and answers its exit code. Its HTTP requests go through `egress`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn run(
        &self,
        surroundings: &Surroundings,
        limits: Limits,
        egress: Box<dyn WasiHttpHooks>,
    ) -> Result<u8, CommandError> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .inherit_stdio()
            .args(&surroundings.arguments)
            .envs(&surroundings.environment);
        surroundings.apply(&mut builder)?;
        let state = State {
            table: ResourceTable::new(),
            wasi: builder.build(),
            http: WasiHttpCtx::new(),
            egress,
            meter: Meter::new(limits, None),
        };
        let failed = |error: &dyn std::fmt::Display| CommandError::Failed(error.to_string());
        let mut store = Store::try_new(&self.engine, state).map_err(|error| failed(&error))?;
        store.limiter(|state| &mut state.meter);
        let clock = Arc::new(CpuClock::new(limits.cpu, None));
        let of_callback = clock.clone();
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| match of_callback.used() > limits.cpu {
            true => Err(wasmtime::Error::new(Exceeded::Cpu(limits.cpu))),
            false => Ok(UpdateDeadline::Yield(1)),
        });
        let ticker =
            Ticker::start(&self.engine, &Activity::new()).map_err(|error| failed(&error))?;
        let _ticking = ticker.ticking();

        let guest = timed(&clock, self.call(&mut store));
        let outcome = match Instant::now().checked_add(limits.wall) {
            Some(until) => tokio::time::timeout_at(until.into(), guest).await,
            None => Ok(guest.await),
        };
        match outcome {
            Ok(Ok(code)) => Ok(code),
            Ok(Err(error)) => self.blame(&error, &store),
            Err(_) => Err(CommandError::Limit(format!(
                "the command took more than its {}",
                show_duration(limits.wall)
            ))),
        }
    }

    async fn call(&self, store: &mut Store<State>) -> wasmtime::Result<u8> {
        let outcome = match self.world {
            CommandWorld::V02 => {
                use wasmtime_wasi::p2::bindings::Command;
                let command =
                    Command::instantiate_async(&mut *store, &self.component, &self.linker).await?;
                command.wasi_cli_run().call_run(store).await?
            }
            CommandWorld::V03 => {
                use wasmtime_wasi::p3::bindings::Command;
                let command =
                    Command::instantiate_async(&mut *store, &self.component, &self.linker).await?;
                store
                    .run_concurrent(async |accessor| {
                        command.wasi_cli_run().call_run(accessor).await
                    })
                    .await??
            }
        };
        Ok(u8::from(outcome.is_err()))
    }

    fn blame(&self, error: &wasmtime::Error, store: &Store<State>) -> Result<u8, CommandError> {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            // As the operating system does it.
            return Ok(exit.0.to_le_bytes()[0]);
        }
        let exceeded = error.downcast_ref::<Exceeded>().copied();
        if let Some(exceeded) = exceeded.or(store.data().meter.refused) {
            return Err(CommandError::Limit(exceeded.to_string()));
        }
        Err(CommandError::Failed(format!(
            "the command failed: {error:?}"
        )))
    }
}

/// All of WASI 0.2 and 0.3.
fn add_everything(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    wasmtime_wasi::p3::add_to_linker(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut *self.egress,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}
