use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::compile::CompileBy;
use crate::inspect::ASYNC_INSTANCES;
use crate::memory::half_of_the_machine;

/// What an [`Engine`](crate::Engine) is made with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Directory of the compiled components; the host is its only writer.
    pub cache_dir: PathBuf,
    /// Bytes of the largest component that is accepted (`limits.component`).
    pub max_component: u64,
    /// Time that compiling one component may take (`limits.compile`).
    pub compile_timeout: Duration,
    /// Bytes of memory that compiling one component may take (`limits.compile_memory`).
    pub compile_memory: u64,
    /// Components that are compiled side by side.
    pub compile_concurrency: usize,
    /// Components that may wait to be compiled; a few more of tenants that have none waiting.
    pub compile_queue: usize,
    /// How components are compiled.
    pub compile_by: CompileBy,
    /// Bytes of compiled code that are kept on disk (`limits.cache`).
    pub cache_bytes: u64,
    /// Components that stay loaded between calls (`limits.loaded_components`).
    pub loaded_components: usize,
    /// Bytes of their compiled code.
    pub loaded_bytes: u64,
    /// Instances that live at once; further calls wait.
    pub instances: u32,
    /// Bytes of the linear memories of all instances together (`limits.guest_memory`).
    pub guest_memory: u64,
    /// Bytes that one call between guest and host may carry (a call's output may always be as large as its limit).
    pub host_call_bytes: u64,
    /// Bytes of stdout and stderr that one call may log; the rest is dropped with one notice.
    pub log_bytes: usize,
    /// Full names of the interfaces that `link` adds, such as `stepwell:vector/index@0.1.0`: uploads are checked against them
    /// and hints name them. WASI's own need not be listed.
    pub interfaces: Vec<String>,
}

impl EngineConfig {
    /// The defaults, with the cache in this directory.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cache_dir: cache_dir.into(),
            max_component: 64 << 20,
            compile_timeout: Duration::from_secs(120),
            compile_memory: 4 << 30,
            // One compilation already uses every core while it generates code.
            compile_concurrency: (cores / 2).max(1),
            compile_queue: 64,
            compile_by: CompileBy::InProcess,
            cache_bytes: 10 << 30,
            loaded_components: 1000,
            loaded_bytes: 8 << 30,
            instances: 1000,
            guest_memory: half_of_the_machine(),
            host_call_bytes: 16 << 20,
            log_bytes: 64 << 10,
            interfaces: Vec::new(),
        }
    }
}

/// Which of the two engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Flavor {
    /// For components that are not async: half the cost of a call.
    Lean,
    /// For WASI 0.3 and async components; made when the first of them is deployed.
    Concurrent,
}

impl Flavor {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Concurrent => "concurrent",
        }
    }
}

/// How instances get their memories, tables and stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocation {
    /// From slots that are mapped ahead, of which so many stay warm while nobody uses them.
    Pool { instances: u32, warm: u32 },
    /// By `mmap`, for each call: where the address space is too small for a pool.
    OnDemand,
}

/// Elements of the largest table.
pub(crate) const TABLE_ELEMENTS: usize = 100_000;
/// Core instances that one component may consist of.
pub(crate) const CORE_INSTANCES: u32 = 200;
/// Memories that one component may define.
pub(crate) const MEMORIES: u32 = 20;
/// Tables that one component may define.
pub(crate) const TABLES: u32 = 40;

/// Bytes of the host's own records of one instance: its imports, globals and function references.
const RECORDS: usize = 1 << 20;

/// Tables that the pool has for each slot.
const TABLES_OF_A_SLOT: u32 = 4;

/// How many slots an instance of a component takes up: as many as it takes of what the pool has a number of for each, and as it may
/// take stacks. Calls wait for them, so that a few instances of many memories cannot exhaust the pool under everybody else, and
/// what all stacks together hold is bounded: it counts as nobody's memory, and stays when the calls are over.
pub(crate) fn slots_of(component: &Component, stacks: u32) -> u32 {
    let needed = component.resources_required();
    // None: it imports core modules, which nobody gives it.
    let slots = needed.map_or(MEMORIES, |needed| {
        let for_tables = needed.num_tables.div_ceil(TABLES_OF_A_SLOT);
        needed.num_memories.max(for_tables).max(1)
    });
    slots.max(stacks)
}

/// The only place where a `wasmtime::Config` is made. Compiling and loading use the same one: a stray setting would make every
/// cached artefact miss.
pub(crate) fn wasmtime_config(flavor: Flavor, allocation: Allocation) -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(match flavor {
            Flavor::Lean => false,
            Flavor::Concurrent => true,
        })
        .epoch_interruption(true)
        // The guest's share of a fiber's 2 MiB stack; what is left is for host functions.
        .max_wasm_stack(512 << 10)
        .async_stack_size(2 << 20);
    config.allocation_strategy(match allocation {
        Allocation::Pool { instances, warm } => {
            let mut pool = pool(instances, warm);
            if flavor == Flavor::Concurrent {
                // A call may have several stacks there: one for each of its component instances that waits.
                pool.total_stacks(instances.saturating_mul(ASYNC_INSTANCES));
            }
            InstanceAllocationStrategy::Pooling(pool)
        }
        Allocation::OnDemand => InstanceAllocationStrategy::OnDemand,
    });
    config
}

/// Bytes that a memory can have, all of which its slot has addresses for.
pub(crate) const SLOT: usize = 4 << 30;

/// Bytes of a memory that stay resident while its slot is unused.
pub(crate) const KEPT_OF_A_SLOT: usize = 1 << 20;

/// Slots that stay warm for each core: components that are called by turns without losing what is prepared for them. Each core has its
/// share of the slots to itself.
const WARM_OF_A_CORE: u32 = 128;

/// How many slots stay warm for a component other than the one that is called. Every component that is new takes a slot that was
/// never used before until there are so many, and leaves its memory in it. On a small machine they must not hold what guests are to
/// have, an eighth of it at most.
pub(crate) fn warm_slots(instances: u32, guest_memory: u64, cores: u32) -> u32 {
    let fit = guest_memory / 8 / KEPT_OF_A_SLOT as u64;
    u32::try_from(fit)
        .unwrap_or(u32::MAX)
        .min(cores.saturating_mul(WARM_OF_A_CORE))
        .max(16)
        .min(instances)
}

/// The settings that were measured to matter: slots stay warm, and what a call dirtied is cleared in place, so that a fresh
/// instance costs neither page faults nor TLB shootdowns.
fn pool(instances: u32, warm: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // Nothing is set aside for these, so there are as many as there can be.
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES))
        .total_tables(instances.saturating_mul(TABLES_OF_A_SLOT))
        .total_memories(instances)
        .max_memory_size(SLOT)
        .total_stacks(instances)
        .max_unused_warm_slots(warm)
        .linear_memory_keep_resident(KEPT_OF_A_SLOT)
        .table_keep_resident(64 << 10)
        // Where the kernel has it (Linux 6.7 and later).
        .pagemap_scan(Enabled::Auto)
        .table_elements(TABLE_ELEMENTS)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memories_per_module(10)
        .max_tables_per_module(10)
        // Of all its core instances together; large interpreters need a few KiB.
        .max_core_instance_size(RECORDS)
        .max_component_instance_size(RECORDS);
    pool
}

/// The engine with the largest pool that the machine's address space allows.
pub(crate) fn wasmtime_engine(
    flavor: Flavor,
    instances: u32,
    warm: u32,
) -> wasmtime::Result<(wasmtime::Engine, Allocation)> {
    let of = |instances: u32| Allocation::Pool {
        instances,
        warm: warm.min(instances),
    };
    let smaller = (instances / 10).max(1);
    let mut outcome = None;
    for allocation in [of(instances), of(smaller), Allocation::OnDemand] {
        match wasmtime::Engine::new(&wasmtime_config(flavor, allocation)) {
            Ok(engine) => return Ok((engine, allocation)),
            Err(error) => {
                tracing::warn!(
                    ?allocation,
                    error = format!("{error:#}"),
                    "cannot set up guest memory this way, trying with less: is the address space of this process limited (ulimit -v)?"
                );
                outcome = Some(error);
            }
        }
    }
    Err(outcome.unwrap_or_else(|| wasmtime::Error::msg("no way to allocate guest memory")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_holds_a_thousand_instances_of_up_to_four_gigabytes() {
        let (engine, allocation) = wasmtime_engine(Flavor::Lean, 1000, 1000).unwrap();
        assert!(matches!(
            allocation,
            Allocation::Pool {
                instances: 1000,
                ..
            }
        ));
        assert!(engine.pooling_allocator_metrics().is_some());
    }

    #[test]
    fn a_small_machine_keeps_few_slots_warm() {
        assert_eq!(warm_slots(1000, 16 << 30, 16), 1000);
        assert_eq!(warm_slots(1000, 16 << 30, 2), 256);
        assert_eq!(warm_slots(1000, 1 << 30, 2), 128);
        assert_eq!(warm_slots(1000, 64 << 20, 2), 16);
        assert_eq!(warm_slots(2, u64::MAX, 2), 2);
    }

    #[test]
    fn what_is_compiled_without_a_pool_runs_in_one() {
        for flavor in [Flavor::Lean, Flavor::Concurrent] {
            let fingerprint = |allocation| {
                let config = wasmtime_config(flavor, allocation);
                crate::cache::fingerprint(&wasmtime::Engine::new(&config).unwrap())
            };
            assert_eq!(
                fingerprint(Allocation::OnDemand),
                fingerprint(Allocation::Pool {
                    instances: 10,
                    warm: 1
                })
            );
        }
    }

    #[test]
    fn the_concurrent_engine_differs_from_the_lean_one() {
        let config = wasmtime_config(Flavor::Concurrent, Allocation::OnDemand);
        assert!(wasmtime::Engine::new(&config).is_ok());
    }
}
