use std::future::{Future, ready};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, gauge};
use stepwell_core::Digest;
use tokio::sync::Semaphore;
use wasmtime::component::Linker;

use crate::cache::Cache;
use crate::call::Shared;
use crate::config::{Allocation, EngineConfig, Flavor, wasmtime_engine};
use crate::epoch::Ticker;
use crate::idle::Idle;
use crate::inspect::{Inspection, Refused, inspect};
use crate::interfaces::Interfaces;
use crate::lane::SlowLane;
use crate::link::add_wasi;
use crate::load::{LoadError, Loader};
use crate::memory::GuestMemory;
use crate::plugin::Plugin;
use crate::store::StoreState;

/// Runs components. `S` is what the store of each call holds. Cheap to clone.
pub struct Engine<S: StoreState> {
    loader: Arc<Loader<S>>,
    interfaces: Arc<Interfaces>,
    max_component: u64,
}

/// What came of [`Engine::compile`].
#[derive(Clone, Copy, Debug)]
pub struct CompileReport {
    /// How long the compiler took; zero when the component had been compiled before.
    pub compile_time: Duration,
    /// Whether the component had been compiled before.
    pub cached: bool,
}

/// An engine that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the WebAssembly engine: {0}")]
pub struct EngineError(String);

impl<S: StoreState> Engine<S> {
    /// An engine whose guests may import WASI and what `link` adds. Made once, after the metrics recorder.
    ///
    /// # Errors
    /// [`EngineError`]: the cache's directory cannot be used, or `link` defines something twice.
    pub fn new(
        config: EngineConfig,
        link: impl FnOnce(&mut Linker<S>) -> wasmtime::Result<()>,
    ) -> Result<Self, EngineError> {
        let fail = |error: wasmtime::Error| EngineError(format!("{error:#}"));
        let (engine, allocation) = wasmtime_engine(Flavor::Lean, config.instances).map_err(fail)?;
        let slots = match allocation {
            Allocation::Pool(instances) => instances,
            Allocation::OnDemand => config.instances,
        };
        let mut linker = Linker::new(&engine);
        add_wasi(&mut linker).map_err(fail)?;
        link(&mut linker).map_err(fail)?;
        let cache = Cache::open(&config.cache_dir, Flavor::Lean, &engine)
            .map_err(|error| EngineError(format!("the cache of compiled components: {error}")))?;
        let ticker =
            Ticker::start(&engine).map_err(|error| EngineError(format!("its clock: {error}")))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lane = SlowLane::start(threads).map_err(|error| {
            EngineError(format!(
                "the threads of guests that compute for long: {error}"
            ))
        })?;
        let idle =
            Idle::start().map_err(|error| EngineError(format!("its idle instances: {error}")))?;
        let shared = Shared {
            engine,
            ticker,
            lane: Arc::new(lane),
            memory: Arc::new(GuestMemory::new(config.guest_memory)),
            slots: Arc::new(Semaphore::new(slots as usize)),
            idle,
            host_call_bytes: config.host_call_bytes,
            log_bytes: config.log_bytes,
            calls: counter!("stepwell_guest_calls_total"),
            started: counter!("stepwell_instances_started_total"),
            reused: counter!("stepwell_instances_reused_total"),
        };
        Ok(Self {
            loader: Arc::new(Loader {
                shared: Arc::new(shared),
                linker,
                cache,
                compile_timeout: config.compile_timeout,
                compiling: Arc::new(Semaphore::new(config.compile_concurrency.max(1))),
                plugins: Mutex::default(),
            }),
            interfaces: Arc::new(Interfaces::new(&config.interfaces)),
            max_component: config.max_component,
        })
    }

    /// Checks an upload without compiling it. It takes milliseconds for large components: call it off the async threads.
    ///
    /// # Errors
    /// [`Refused`], with the code that the management API answers.
    pub fn inspect(&self, bytes: &[u8]) -> Result<Inspection, Refused> {
        inspect(bytes, &self.interfaces, self.max_component)
    }

    /// Compiles a component into the cache and checks that it links. Doing it again costs little.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn compile(&self, digest: Digest, bytes: Bytes) -> Result<CompileReport, LoadError> {
        let plugin = self.load(digest, ready(Ok::<_, LoadError>(bytes))).await?;
        Ok(CompileReport {
            compile_time: plugin.compiled_in.unwrap_or_default(),
            cached: plugin.compiled_in.is_none(),
        })
    }

    /// The component, ready to be called: mapped from the cache, or compiled from what `fetch` gives if it is not there. Called
    /// when something is deployed, not for each request; it is loaded once however many ask, and unloaded when the last one drops
    /// it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load<F, E>(&self, digest: Digest, fetch: F) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        self.loader.load(digest, fetch).await
    }

    /// Drops a component from the cache. Calls of those that have it loaded go on.
    pub fn forget(&self, digest: &Digest) {
        self.loader.forget(digest);
    }

    /// Sets the gauges of what is in use now; called before metrics are rendered.
    pub fn record_use(&self) {
        let shared = &self.loader.shared;
        gauge!("stepwell_guest_calls_active").set(shared.ticker.calls() as f64);
        gauge!("stepwell_instances_idle").set(shared.idle.count() as f64);
        gauge!("stepwell_guest_memory_bytes").set(shared.memory.held() as f64);
        if let Some(pool) = shared.engine.pooling_allocator_metrics() {
            gauge!("stepwell_pool_instances_active").set(pool.component_instances() as f64);
            gauge!("stepwell_pool_memories_active").set(pool.memories() as f64);
            gauge!("stepwell_pool_stacks_active").set(pool.stacks() as f64);
            gauge!("stepwell_pool_tables_active").set(pool.tables() as f64);
            gauge!("stepwell_pool_warm_memories").set(f64::from(pool.unused_warm_memories()));
            gauge!("stepwell_pool_resident_bytes").set(pool.unused_memory_bytes_resident() as f64);
        }
    }
}

impl<S: StoreState> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            loader: self.loader.clone(),
            interfaces: self.interfaces.clone(),
            max_component: self.max_component,
        }
    }
}

/// Describes this crate's metrics; called once, after the recorder is installed.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("stepwell_guest_calls_total", "Calls of guests that began.");
    describe_counter!(
        "stepwell_limit_hits_total",
        "Calls that ran into a limit, by its name."
    );
    describe_counter!(
        "stepwell_compile_cache_hits_total",
        "Components that were loaded already compiled."
    );
    describe_counter!(
        "stepwell_compile_cache_misses_total",
        "Components that had to be compiled."
    );
    describe_histogram!(
        "stepwell_compile_seconds",
        Unit::Seconds,
        "Time that compiling a component took."
    );
    describe_counter!(
        "stepwell_slow_lane_calls_total",
        "Calls that computed for so long that they went on at a low priority."
    );
    describe_gauge!(
        "stepwell_slow_lane_calls_active",
        "Calls at a low priority under way."
    );
    describe_counter!(
        "stepwell_instances_started_total",
        "Instances that were started for steps with `isolation: reuse`."
    );
    describe_counter!(
        "stepwell_instances_reused_total",
        "Calls of guests that an instance kept from an earlier call answered."
    );
    describe_counter!(
        "stepwell_instances_discarded_total",
        "Instances of steps with `isolation: reuse` that ended, by reason."
    );
    describe_gauge!("stepwell_guest_calls_active", "Calls of guests under way.");
    describe_gauge!(
        "stepwell_instances_idle",
        "Instances that wait for their step's next call."
    );
    describe_gauge!(
        "stepwell_guest_memory_bytes",
        Unit::Bytes,
        "Linear memory that all guests hold together."
    );
    describe_gauge!(
        "stepwell_pool_instances_active",
        "Component instances that live."
    );
    describe_gauge!("stepwell_pool_memories_active", "Linear memories in use.");
    describe_gauge!("stepwell_pool_stacks_active", "Guest stacks in use.");
    describe_gauge!("stepwell_pool_tables_active", "Tables in use.");
    describe_gauge!(
        "stepwell_pool_warm_memories",
        "Memory slots that are kept warm for the component that used them last."
    );
    describe_gauge!(
        "stepwell_pool_resident_bytes",
        Unit::Bytes,
        "Memory that unused slots keep resident."
    );
}
