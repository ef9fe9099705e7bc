use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, gauge};
use stepwell_core::Digest;
use wasmtime::PoolingAllocatorMetrics;
use wasmtime::component::Linker;

use crate::chores::Chores;
use crate::compile::{CompileLimits, Compiler};
use crate::config::EngineConfig;
use crate::handle::{Fetch, Handle};
use crate::inspect::{Inspection, Refused, glance, inspect};
use crate::interfaces::Interfaces;
use crate::load::{LoadError, Loader};
use crate::machine::Machines;
use crate::memory::Tenant;
use crate::plugin::Plugin;
use crate::queue::{Lane, Queue};
use crate::residents::Residents;
use crate::rest::Activity;
use crate::store::StoreState;
use crate::sweep::sweep;

/// Runs components. `S` is what the store of each call holds. Cheap to clone.
pub struct Engine<S: StoreState> {
    loader: Arc<Loader<S>>,
    max_component: u64,
}

/// What came of [`Engine::compile`].
#[derive(Clone, Debug)]
pub struct CompileReport {
    /// What the component is.
    pub inspection: Inspection,
    /// How long the compiler took, its process included; zero when the component had been compiled before.
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
        let interfaces = Interfaces::new(&config.interfaces);
        let max_component = config.max_component;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let chores = Chores::start(cores / 2)
            .map_err(|error| EngineError(format!("its threads: {error}")))?;
        let chores = Arc::new(chores);
        let activity = Activity::new();
        let compiler = Compiler::new(
            config.compile_by.clone(),
            CompileLimits {
                time: config.compile_timeout,
                memory: config.compile_memory,
                threads: cores,
            },
            Queue::new(config.compile_concurrency, config.compile_queue),
            chores.clone(),
            activity.clone(),
            Some(config.cache_dir.join("functions")),
        );
        let residents = Residents::new(config.loaded_components, config.loaded_bytes);
        let machines = Machines::new(config, activity, Box::new(link))?;
        Ok(Self {
            loader: Arc::new(Loader {
                machines,
                compiler: Arc::new(compiler),
                residents: Arc::new(residents),
                chores,
                interfaces,
                plugins: Mutex::default(),
            }),
            max_component,
        })
    }

    /// Checks a component in this process, without compiling it. There are components that make this take minutes, gigabytes and more
    /// stack than there is: only for those that are trusted.
    ///
    /// # Errors
    /// [`Refused`], with the code that the management API answers.
    pub fn inspect(&self, bytes: &[u8]) -> Result<Inspection, Refused> {
        glance(bytes, self.max_component)?;
        inspect(bytes, &self.loader.interfaces)
    }

    /// Hashes an upload, on threads that give way to requests, and refuses what is not even the beginning of a component.
    ///
    /// # Errors
    /// [`Refused`]: it is too large, or no component.
    pub async fn receive(&self, bytes: Bytes) -> Result<Digest, Refused> {
        glance(&bytes, self.max_component)?;
        let hashed = self.loader.chores.run(move || Digest::of(&bytes)).await;
        hashed.ok_or_else(|| {
            Refused::new(
                "invalid-component",
                "the component cannot be read: hashing it failed".to_owned(),
                "upload it again",
            )
        })
    }

    /// Checks a tenant's upload, compiles it into the cache and sees that it links, in the compiler's process. Doing it again costs
    /// little.
    ///
    /// # Errors
    /// [`LoadError`]; [`LoadError::Refused`] if the component is at fault.
    pub async fn compile(
        &self,
        tenant: &str,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<CompileReport, LoadError> {
        let (plugin, inspection) = self.loader.upload(tenant, digest, bytes).await?;
        Ok(CompileReport {
            inspection,
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

    /// Whether a component's compiled code is there and was checked.
    pub fn is_ready(&self, digest: &Digest) -> bool {
        self.loader.is_ready(digest)
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
        let loader = self.loader.clone();
        let tidy = move || loader.machines.made().for_each(|made| made.cache.tidy());
        self.loader.chores.run(tidy).await;
    }

    /// A namespace, for the environments of its steps.
    pub fn tenant(&self, namespace: &str) -> Tenant {
        self.loader.machines.memory().tenant(namespace)
    }

    /// Gives back the memory that calls have left in places which nobody uses. It blocks, and other calls wait for it: worth it when
    /// the process holds much more than its guests do.
    pub fn sweep(&self) {
        for machine in self.loader.machines.made() {
            let shared = &machine.shared;
            match sweep(&shared.engine, &shared.slots) {
                Ok(swept) => counter!("stepwell_pool_swept_total").increment(swept as u64),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "unused memory is not given back"
                    );
                }
            }
        }
    }

    /// Drops a component from the cache. Calls of those that have it loaded go on.
    pub fn forget(&self, digest: &Digest) {
        self.loader.forget(digest);
    }

    /// Sets the gauges of what is in use now; called before metrics are rendered.
    pub fn record_use(&self) {
        let (components, bytes) = self.loader.residents.loaded();
        gauge!("stepwell_components_loaded").set(components as f64);
        gauge!("stepwell_components_loaded_bytes").set(bytes as f64);
        gauge!("stepwell_compile_waiting").set(self.loader.compiler.waiting() as f64);
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
        "stepwell_compile_cache_failures_total",
        "Compiled components that could not be stored on disk, or read, by operation."
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
    describe_counter!(
        "stepwell_guests_failed_late_total",
        "Guests that failed after their responses had been answered."
    );
    describe_counter!(
        "stepwell_threads_kept_total",
        "Polls in which a guest kept a thread that other calls wait for longer than 4 ms."
    );
    describe_counter!(
        "stepwell_slow_lane_calls_total",
        "Calls that computed for so long, or whose guest has so much memory, that they went on at a low priority."
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
    describe_counter!(
        "stepwell_pool_swept_total",
        "Places of instances that were swept of memory which calls had left there."
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
