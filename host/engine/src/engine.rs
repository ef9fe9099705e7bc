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
use crate::chores::Chores;
use crate::compile::{CompileLimits, Compiler};
use crate::config::{Allocation, EngineConfig, Flavor, wasmtime_engine};
use crate::epoch::Ticker;
use crate::handle::{Fetch, Handle};
use crate::inspect::{Inspection, Refused, inspect};
use crate::interfaces::Interfaces;
use crate::link::add_wasi;
use crate::load::{LoadError, Loader};
use crate::plugin::Plugin;
use crate::queue::{Lane, Queue};
use crate::residents::Residents;
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
    /// How long the compiler took, its process included; zero when the component had been compiled before.
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
        let flavor = Flavor::Lean;
        let cache = Cache::open(&config.cache_dir, flavor, &engine, config.cache_bytes)
            .map_err(|error| EngineError(format!("the cache of compiled components: {error}")))?;
        let ticker =
            Ticker::start(&engine).map_err(|error| EngineError(format!("its clock: {error}")))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let chores = Chores::start(cores / 2)
            .map_err(|error| EngineError(format!("its threads: {error}")))?;
        let compiler = Compiler::new(
            config.compile_by,
            CompileLimits {
                time: config.compile_timeout,
                memory: config.compile_memory,
                threads: cores,
            },
            Queue::new(config.compile_concurrency, config.compile_queue),
            Some(config.cache_dir.join("functions")),
        );
        let shared = Shared {
            engine,
            ticker,
            slots: Arc::new(Semaphore::new(slots as usize)),
            host_call_bytes: config.host_call_bytes,
            log_bytes: config.log_bytes,
            calls: counter!("stepwell_guest_calls_total"),
        };
        Ok(Self {
            loader: Arc::new(Loader {
                shared: Arc::new(shared),
                flavor,
                linker,
                cache: Arc::new(cache),
                compiler: Arc::new(compiler),
                residents: Arc::new(Residents::new(
                    config.loaded_components,
                    config.loaded_bytes,
                )),
                chores: Arc::new(chores),
                plugins: Mutex::default(),
            }),
            interfaces: Arc::new(Interfaces::new(&config.interfaces)),
            max_component: config.max_component,
        })
    }

    /// Checks an upload without compiling it. It takes milliseconds for large components: call it off the async threads, or
    /// [`Engine::examine`].
    ///
    /// # Errors
    /// [`Refused`], with the code that the management API answers.
    pub fn inspect(&self, bytes: &[u8]) -> Result<Inspection, Refused> {
        inspect(bytes, &self.interfaces, self.max_component)
    }

    /// Hashes and checks an upload, on threads that give way to requests.
    ///
    /// # Errors
    /// [`Refused`], as [`Engine::inspect`].
    pub async fn examine(&self, bytes: Bytes) -> Result<(Digest, Inspection), Refused> {
        let engine = self.clone();
        let chore = move || {
            let inspection = engine.inspect(&bytes)?;
            Ok((Digest::of(&bytes), inspection))
        };
        self.loader.chores.run(chore).await.unwrap_or_else(|| {
            Err(Refused::new(
                "invalid-component",
                "the component cannot be read: checking it failed".to_owned(),
                "rebuild it, and check it with wasm-tools validate",
            ))
        })
    }

    /// Compiles a tenant's component into the cache and checks that it links. Doing it again costs little.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn compile(
        &self,
        tenant: &str,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<CompileReport, LoadError> {
        let lane = Lane::Tenant(tenant.to_owned());
        let bytes = ready(Ok::<_, LoadError>(bytes));
        let plugin = self.loader.load(digest, lane, bytes).await?;
        Ok(CompileReport {
            compile_time: plugin.compiled_in.unwrap_or_default(),
            cached: plugin.compiled_in.is_none(),
        })
    }

    /// The component, ready to be called: mapped from the cache, or compiled from what `fetch` gives if it is not there. It is
    /// loaded once however many ask, and unloaded when the last one drops it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load<F, E>(&self, digest: Digest, fetch: F) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        self.loader.load(digest, Lane::Calls, fetch).await
    }

    /// The component as a deployment holds it: nothing is read until it is called, and it is unloaded when thousands of others
    /// are called more often.
    pub fn handle(&self, digest: Digest, fetch: Fetch) -> Handle<S> {
        Handle {
            digest,
            fetch,
            seat: self.loader.residents.seat(digest),
            loader: self.loader.clone(),
        }
    }

    /// Makes sure, ahead of its first call, that a component can be loaded: its compiled code is checked, or compiled from what
    /// `fetch` gives. It waits for nothing but what the host does ahead.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn prepare(&self, digest: Digest, fetch: &Fetch) -> Result<(), LoadError> {
        self.loader.prepare(digest, fetch(digest)).await
    }

    /// Drops compiled code that is no longer of use. It takes a while where there is much: called once, after the start.
    pub async fn tidy(&self) {
        let cache = self.loader.cache.clone();
        self.loader.chores.run(move || cache.tidy()).await;
    }

    /// Drops a component from the cache. Calls of those that have it loaded go on.
    pub fn forget(&self, digest: &Digest) {
        self.loader.forget(digest);
    }

    /// Sets the gauges of what is in use now; called before metrics are rendered.
    pub fn record_use(&self) {
        let shared = &self.loader.shared;
        let (components, bytes) = self.loader.residents.loaded();
        gauge!("stepwell_components_loaded").set(components as f64);
        gauge!("stepwell_components_loaded_bytes").set(bytes as f64);
        gauge!("stepwell_compile_waiting").set(self.loader.compiler.waiting() as f64);
        gauge!("stepwell_guest_calls_active").set(shared.ticker.calls() as f64);
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
    describe_counter!(
        "stepwell_compile_cache_dropped_total",
        "Compiled components that were dropped to make room on disk."
    );
    describe_counter!(
        "stepwell_compile_failures_total",
        "Components that were not compiled, by reason."
    );
    describe_gauge!("stepwell_compiling", "Components that are being compiled.");
    describe_gauge!(
        "stepwell_compile_waiting",
        "Components that wait to be compiled."
    );
    describe_gauge!("stepwell_components_loaded", "Components in memory.");
    describe_gauge!(
        "stepwell_components_loaded_bytes",
        Unit::Bytes,
        "Compiled code of the components in memory; it is mapped, and resident as far as it is used."
    );
    describe_counter!(
        "stepwell_components_evicted_total",
        "Components that were unloaded to make room for others."
    );
    describe_histogram!(
        "stepwell_compile_seconds",
        Unit::Seconds,
        "Time that compiling a component took."
    );
    describe_gauge!("stepwell_guest_calls_active", "Calls of guests under way.");
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
