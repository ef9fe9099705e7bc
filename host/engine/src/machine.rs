use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use metrics::counter;
use stepwell_core::Digest;
use tokio::sync::Semaphore;
use wasmtime::component::Linker;

use crate::cache::{Cache, Shelf};
use crate::call::Shared;
use crate::config::{Allocation, EngineConfig, Flavor, warm_slots, wasmtime_engine};
use crate::engine::EngineError;
use crate::epoch::Ticker;
use crate::idle::Idle;
use crate::lane::SlowLane;
use crate::link::add_wasi;
use crate::link_03::add_wasi_03;
use crate::memory::GuestMemory;
use crate::rest::Activity;
use crate::store::StoreState;

/// Adds what the host offers beside WASI.
pub(crate) type Link<S> = Box<dyn Fn(&mut Linker<S>) -> wasmtime::Result<()> + Send + Sync>;

/// One of the two engines, with what its components link against and where they are kept once compiled.
pub(crate) struct Machine<S: StoreState> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) linker: Linker<S>,
    pub(crate) cache: Cache,
}

impl<S: StoreState> Machine<S> {
    /// How many stacks an instance of a component in the cache may take.
    pub(crate) fn stacks(&self, digest: &Digest) -> u32 {
        match self.shared.flavor {
            Flavor::Lean => 1,
            Flavor::Concurrent => self.cache.stacks(digest),
        }
    }
}

/// What both engines share.
struct Commons {
    activity: Activity,
    lane: Arc<SlowLane>,
    memory: Arc<GuestMemory>,
    shelf: Arc<Shelf>,
}

/// Both engines. The concurrent one costs twice as much for each call, and address space even when nobody uses it: it is made
/// when the first component needs it.
pub(crate) struct Machines<S: StoreState> {
    lean: Machine<S>,
    commons: Commons,
    concurrent: OnceLock<Machine<S>>,
    making: Mutex<()>,
    config: EngineConfig,
    link: Link<S>,
}

impl<S: StoreState> Machines<S> {
    pub(crate) fn new(
        config: EngineConfig,
        activity: Activity,
        link: Link<S>,
    ) -> Result<Self, EngineError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lane = SlowLane::start(threads).map_err(|error| {
            EngineError(format!(
                "the threads of guests that compute for long: {error}"
            ))
        })?;
        let commons = Commons {
            activity,
            lane: Arc::new(lane),
            memory: Arc::new(GuestMemory::new(config.guest_memory)),
            shelf: Shelf::new(&config.cache_dir, config.cache_bytes),
        };
        Ok(Self {
            lean: Machine::new(Flavor::Lean, &config, &commons, &link)?,
            commons,
            concurrent: OnceLock::new(),
            making: Mutex::default(),
            config,
            link,
        })
    }

    pub(crate) fn lean(&self) -> &Machine<S> {
        &self.lean
    }

    /// What all guests hold together.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.commons.memory
    }

    /// Those that exist.
    pub(crate) fn made(&self) -> impl Iterator<Item = &Machine<S>> {
        [&self.lean].into_iter().chain(self.concurrent.get())
    }

    /// The one of this flavour, made if need be: call it off the async threads. Its own threads begin with the priority of the one that
    /// makes it, so no chore does.
    pub(crate) fn get(&self, flavor: Flavor) -> Result<&Machine<S>, EngineError> {
        if flavor == Flavor::Lean {
            return Ok(&self.lean);
        }
        // Whoever fails leaves it to the next one to try again.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = self.concurrent.get() {
            return Ok(made);
        }
        let machine = Machine::new(flavor, &self.config, &self.commons, &self.link)?;
        tracing::info!("the engine for WASI 0.3 and async components is up");
        Ok(self.concurrent.get_or_init(|| machine))
    }

    /// The concurrent one if its cache may have this component.
    pub(crate) fn concurrent_with(&self, digest: &Digest) -> Option<&Machine<S>> {
        if self.concurrent.get().is_none()
            && !Cache::holds(&self.config.cache_dir, Flavor::Concurrent, digest)
        {
            return None;
        }
        self.get(Flavor::Concurrent)
            .inspect_err(|error| tracing::warn!(%error, "no engine for WASI 0.3 components"))
            .ok()
    }
}

impl<S: StoreState> Machine<S> {
    fn new(
        flavor: Flavor,
        config: &EngineConfig,
        commons: &Commons,
        link: &Link<S>,
    ) -> Result<Self, EngineError> {
        let fail = |error: wasmtime::Error| EngineError(format!("{error:#}"));
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let warm = warm_slots(config.instances, config.guest_memory, cores);
        let (engine, allocation) = wasmtime_engine(flavor, config.instances, warm).map_err(fail)?;
        let slots = match allocation {
            Allocation::Pool { instances, .. } => instances,
            Allocation::OnDemand => config.instances,
        };
        let mut linker = Linker::new(&engine);
        add_wasi(&mut linker).map_err(fail)?;
        if flavor == Flavor::Concurrent {
            add_wasi_03(&mut linker).map_err(fail)?;
        }
        link(&mut linker).map_err(fail)?;
        let cache = Cache::open(&commons.shelf, flavor, &engine)
            .map_err(|error| EngineError(format!("the cache of compiled components: {error}")))?;
        let ticker = Ticker::start(&engine, &commons.activity)
            .map_err(|error| EngineError(format!("its clock: {error}")))?;
        let idle =
            Idle::start().map_err(|error| EngineError(format!("its idle instances: {error}")))?;
        commons.memory.evicts(idle.evictor());
        commons.memory.interrupts(engine.weak());
        let shared = Shared {
            engine,
            ticker,
            lane: commons.lane.clone(),
            memory: commons.memory.nobodys(),
            slots: Arc::new(Semaphore::new(slots as usize)),
            all_slots: slots,
            flavor,
            idle,
            host_call_bytes: config.host_call_bytes,
            log_bytes: config.log_bytes,
            calls: counter!("stepwell_guest_calls_total"),
            started: counter!("stepwell_instances_started_total"),
            reused: counter!("stepwell_instances_reused_total"),
        };
        Ok(Self {
            shared: Arc::new(shared),
            linker,
            cache,
        })
    }
}
