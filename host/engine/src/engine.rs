use std::future::{Future, ready};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics::gauge;
use stepwell_core::Digest;
use tokio::sync::Semaphore;
use wasmtime::PoolingAllocatorMetrics;
use wasmtime::component::Linker;

use crate::config::EngineConfig;
use crate::inspect::{Inspection, Refused, inspect};
use crate::interfaces::Interfaces;
use crate::load::{LoadError, Loader};
use crate::machine::Machines;
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
pub struct EngineError(pub(crate) String);

impl<S: StoreState> Engine<S> {
    /// An engine whose guests may import WASI and what `link` adds, which is called for each of the two linkers. Made once, after
    /// the metrics recorder.
    ///
    /// # Errors
    /// [`EngineError`]: the cache's directory cannot be used, or `link` defines something twice.
    pub fn new(
        config: EngineConfig,
        link: impl Fn(&mut Linker<S>) -> wasmtime::Result<()> + Send + Sync + 'static,
    ) -> Result<Self, EngineError> {
        let interfaces = Arc::new(Interfaces::new(&config.interfaces));
        let (max_component, compile_timeout) = (config.max_component, config.compile_timeout);
        let compiling = Arc::new(Semaphore::new(config.compile_concurrency.max(1)));
        let machines = Machines::new(config, Box::new(link))?;
        Ok(Self {
            loader: Arc::new(Loader {
                machines,
                compile_timeout,
                compiling,
                plugins: Mutex::default(),
            }),
            interfaces,
            max_component,
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
        let made = || self.loader.machines.made();
        let calls: usize = made().map(|machine| machine.shared.ticker.calls()).sum();
        gauge!("stepwell_guest_calls_active").set(calls as f64);
        let idle: usize = made().map(|machine| machine.shared.idle.count()).sum();
        gauge!("stepwell_instances_idle").set(idle as f64);
        gauge!("stepwell_guest_memory_bytes").set(self.loader.machines.memory().held() as f64);
        let pools: Vec<_> = made()
            .filter_map(|machine| machine.shared.engine.pooling_allocator_metrics())
            .collect();
        let sum = |of: fn(&PoolingAllocatorMetrics) -> f64| pools.iter().map(of).sum::<f64>();
        for (name, of) in POOL {
            gauge!(*name).set(sum(*of));
        }
    }
}

type OfPool = fn(&PoolingAllocatorMetrics) -> f64;

/// What is shown of the pools, of both engines together.
const POOL: &[(&str, OfPool)] = &[
    ("stepwell_pool_instances_active", |pool| {
        pool.component_instances() as f64
    }),
    ("stepwell_pool_memories_active", |pool| {
        pool.memories() as f64
    }),
    ("stepwell_pool_stacks_active", |pool| pool.stacks() as f64),
    ("stepwell_pool_tables_active", |pool| pool.tables() as f64),
    ("stepwell_pool_warm_memories", |pool| {
        f64::from(pool.unused_warm_memories())
    }),
    ("stepwell_pool_resident_bytes", |pool| {
        pool.unused_memory_bytes_resident() as f64
    }),
];

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
