use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared as SharedFuture};
use metrics::{counter, histogram};
use stepwell_core::{Digest, show_duration};
use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::cache::from_memory;
use crate::config::Flavor;
use crate::inspect::{Refused, World, flavor, target};
use crate::machine::{Machine, Machines};
use crate::plugin::{Code, Plugin};
use crate::step::{Input, Output, StepPre};
use crate::store::StoreState;
use crate::{function, service};

/// Why a component cannot be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The component itself is at fault.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Compiling takes too long.
    #[error("compiling the component took more than {}; the setting is limits.compile", show_duration(*.limit))]
    TooSlow {
        /// `limits.compile`.
        limit: Duration,
    },
    /// The component is not compiled, and its bytes cannot be had.
    #[error("cannot read the component {digest}: {reason}")]
    Unreadable {
        /// The component.
        digest: Digest,
        /// What its store said.
        reason: String,
    },
    /// The bytes are not those of the digest.
    #[error("the stored bytes of the component {digest} are damaged: upload it again")]
    Damaged {
        /// The component.
        digest: Digest,
    },
    /// The host's fault.
    #[error("cannot compile the component {digest}: {reason}")]
    Host {
        /// The component.
        digest: Digest,
        /// What went wrong.
        reason: String,
    },
}

/// Loads components, each once however many ask for it, and compiles those that are not in the cache.
pub(crate) struct Loader<S: StoreState> {
    pub(crate) machines: Machines<S>,
    pub(crate) compile_timeout: Duration,
    pub(crate) compiling: Arc<Semaphore>,
    pub(crate) plugins: Mutex<HashMap<Digest, Entry<S>>>,
}

type Loading<S> = SharedFuture<BoxFuture<'static, Result<Arc<Plugin<S>>, LoadError>>>;

pub(crate) enum Entry<S: StoreState> {
    Loading(Loading<S>),
    /// Whoever deployed it keeps it; when nobody does any more, its code is unmapped.
    Loaded(Weak<Plugin<S>>),
}

impl<S: StoreState> Loader<S> {
    pub(crate) async fn load<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        fetch: F,
    ) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        match self.find_or_start(digest, fetch) {
            Ok(plugin) => Ok(plugin),
            Err(loading) => loading.await,
        }
    }

    fn find_or_start<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        fetch: F,
    ) -> Result<Arc<Plugin<S>>, Loading<S>>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let mut plugins = self.lock();
        match plugins.get(&digest) {
            Some(Entry::Loading(loading)) => Err(loading.clone()),
            Some(Entry::Loaded(plugin)) if let Some(plugin) = plugin.upgrade() => Ok(plugin),
            _ => {
                let loading = self.start(digest, fetch);
                plugins.insert(digest, Entry::Loading(loading.clone()));
                Err(loading)
            }
        }
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
        for machine in self.machines.made() {
            machine.cache.remove(digest);
        }
    }

    /// Loads as a task of its own: who asked may go away, and others may be waiting for it.
    fn start<F, E>(self: &Arc<Self>, digest: Digest, fetch: F) -> Loading<S>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let loader = self.clone();
        let task = tokio::spawn(async move {
            let outcome = loader.prepare(digest, fetch).await;
            let mut plugins = loader.lock();
            match &outcome {
                Ok(plugin) => plugins.insert(digest, Entry::Loaded(Arc::downgrade(plugin))),
                Err(_) => plugins.remove(&digest),
            };
            outcome
        });
        task.map(move |ended| {
            ended.unwrap_or_else(|error| {
                Err(LoadError::Host {
                    digest,
                    reason: format!("loading stopped: {error}"),
                })
            })
        })
        .boxed()
        .shared()
    }

    async fn prepare<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        fetch: F,
    ) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let loader = self.clone();
        let cached = blocking(digest, move || Ok(loader.cached(&digest))).await?;
        let (flavor, component, compiled_in) = match cached {
            Some((flavor, component)) => {
                counter!("stepwell_compile_cache_hits_total").increment(1);
                (flavor, component, None)
            }
            None => {
                counter!("stepwell_compile_cache_misses_total").increment(1);
                let bytes = fetch.await.map_err(|error| LoadError::Unreadable {
                    digest,
                    reason: error.to_string(),
                })?;
                let (flavor, bytes) = blocking(digest, move || Ok((flavor(&bytes), bytes))).await?;
                let (component, took) = self.compile(digest, flavor, bytes).await?;
                (flavor, component, Some(took))
            }
        };
        let machine = self.machine(digest, flavor)?;
        Ok(Arc::new(link(machine, &component, compiled_in)?))
    }

    /// Looks for compiled code; it lies in the cache of the component's flavour.
    fn cached(&self, digest: &Digest) -> Option<(Flavor, Component)> {
        let lean = self.machines.lean();
        if let Some(component) = lean.cache.load(&lean.shared.engine, digest) {
            return Some((Flavor::Lean, component));
        }
        let concurrent = self.machines.concurrent_with(digest)?;
        let component = concurrent.cache.load(&concurrent.shared.engine, digest)?;
        Some((Flavor::Concurrent, component))
    }

    fn machine(&self, digest: Digest, flavor: Flavor) -> Result<&Machine<S>, LoadError> {
        self.machines.get(flavor).map_err(|error| LoadError::Host {
            digest,
            reason: error.to_string(),
        })
    }

    async fn compile(
        self: &Arc<Self>,
        digest: Digest,
        flavor: Flavor,
        bytes: Bytes,
    ) -> Result<(Component, Duration), LoadError> {
        let limit = self.compile_timeout;
        let permit = tokio::time::timeout(limit, self.compiling.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| LoadError::Host {
                digest,
                reason: format!(
                    "the compiler was busy with other components for {}",
                    show_duration(limit)
                ),
            })?;
        let loader = self.clone();
        let work = blocking(digest, move || {
            // The compiler cannot be stopped: it keeps its permit until it is done, even if nobody waits any more.
            let _permit = permit;
            if Digest::of(&bytes) != digest {
                return Err(LoadError::Damaged { digest });
            }
            let machine = loader.machine(digest, flavor)?;
            let engine = &machine.shared.engine;
            let began = Instant::now();
            let code = engine
                .precompile_component(&bytes)
                .map_err(|error| refused(&error))?;
            let took = began.elapsed();
            histogram!("stepwell_compile_seconds").record(took.as_secs_f64());
            if took > limit {
                return Err(LoadError::TooSlow { limit });
            }
            if let Err(error) = machine.cache.store(&digest, &code) {
                tracing::warn!(%digest, %error, "cannot keep a compiled component, it will be compiled again at the next start");
            } else if let Some(component) = machine.cache.load(engine, &digest) {
                return Ok((component, took));
            }
            let component = from_memory(engine, &code).map_err(|error| refused(&error))?;
            Ok((component, took))
        });
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(LoadError::TooSlow { limit }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Entry<S>>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn link<S: StoreState>(
    machine: &Machine<S>,
    component: &Component,
    compiled_in: Option<Duration>,
) -> Result<Plugin<S>, LoadError> {
    let pre = machine
        .linker
        .instantiate_pre(component)
        .map_err(|error| LoadError::Refused(unlinkable(&error)))?;
    let engine = &machine.shared.engine;
    let exports = component.component_type();
    let found = exports
        .exports(engine)
        .find_map(|(name, item)| Some((target(name)?, item.ty)));
    let Some((world, ComponentItem::ComponentInstance(handler))) = found else {
        return Err(LoadError::Refused(worldless(&"it has no handler")));
    };
    let code = match &world {
        World::Step => typed(engine, &handler, "process", |f| {
            f.typecheck::<Input<'_>, Output>(&pre.instance_type())
        })
        .and_then(|()| StepPre::new(pre).map(Code::Step)),
        World::Http(_) => typed(engine, &handler, "handle", |f| {
            f.typecheck::<function::Input, ()>(&pre.instance_type())
        })
        .and_then(|()| ProxyPre::new(pre).map(Code::Http)),
        World::Service(_) => typed(engine, &handler, "handle", |f| {
            if !f.async_() {
                return Err(wasmtime::Error::msg("it is not async"));
            }
            f.typecheck::<service::Input, service::Output>(&pre.instance_type())
        })
        .and_then(|()| ServicePre::new(pre).map(Code::Service)),
    };
    let code = code.map_err(|error| worldless(&text(&error)))?;
    Ok(Plugin {
        world,
        code,
        shared: machine.shared.clone(),
        compiled_in,
    })
}

/// Checks the type of a function now, so that calls need not fail on it later.
fn typed(
    engine: &wasmtime::Engine,
    handler: &ComponentInstance,
    name: &str,
    check: impl FnOnce(&ComponentFunc) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    match handler.get_export(engine, name).map(|item| item.ty) {
        Some(ComponentItem::ComponentFunc(function)) => check(&function)
            .map_err(|error| error.context(format!("the function {name} has another type"))),
        _ => Err(wasmtime::Error::msg(format!(
            "the function {name} is missing"
        ))),
    }
}

fn worldless(reason: &dyn std::fmt::Display) -> Refused {
    Refused::new(
        "unknown-world",
        format!("the component does not export what its world asks for: {reason}"),
        "build it against the host's WIT packages (`stepwell new` has them)",
    )
}

async fn blocking<T: Send + 'static>(
    digest: Digest,
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(LoadError::Host {
                digest,
                reason: format!("the compiler stopped: {error}"),
            })
        })
}

/// What the compiler does not accept.
fn refused(error: &wasmtime::Error) -> LoadError {
    LoadError::Refused(Refused::new(
        "invalid-component",
        format!("the component cannot be compiled: {}", text(error)),
        "rebuild it, and check it with wasm-tools validate",
    ))
}

fn unlinkable(error: &wasmtime::Error) -> Refused {
    Refused::new(
        "unknown-import",
        format!("an import is not as the host provides it: {}", text(error)),
        "build the component against the host's WIT packages (`stepwell new` has them)",
    )
}

fn text(error: &wasmtime::Error) -> String {
    format!("{error:#}").chars().take(500).collect()
}
