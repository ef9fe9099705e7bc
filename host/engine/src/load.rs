use std::collections::HashMap;
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared as SharedFuture};
use metrics::counter;
use stepwell_core::{ByteSize, Digest, show_duration};
use wasmtime::component::Component;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::cache::{fingerprint, from_memory};
use crate::chores::Chores;
use crate::compile::{Compiled, Compiler};
use crate::config::{Flavor, slots_of};
use crate::inspect::{Inspection, Refused, World, target};
use crate::interfaces::Interfaces;
use crate::machine::{Machine, Machines};
use crate::plugin::{Code, Plugin};
use crate::queue::Lane;
use crate::residents::Residents;
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
    /// Compiling takes too much memory.
    #[error("compiling the component needs more than {} of memory; the setting is limits.compile_memory", ByteSize(*.limit))]
    TooBig {
        /// `limits.compile_memory`.
        limit: u64,
    },
    /// The code would be too large for such a component.
    #[error("the compiled code is larger than {}: as much as a component of this size may have; this limit is the host's own and has no setting", ByteSize(*.limit))]
    TooMuchCode {
        /// The bytes that it may have.
        limit: u64,
    },
    /// The compiler did not come to its end.
    #[error("the compiler failed on the component: {reason}")]
    Crashed {
        /// How it ended.
        reason: String,
    },
    /// Too many others wait to be compiled.
    #[error("too many components are waiting to be compiled")]
    Busy,
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

impl LoadError {
    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TooSlow { .. } => "time",
            Self::TooBig { .. } => "memory",
            Self::TooMuchCode { .. } => "code",
            Self::Crashed { .. } => "crash",
            Self::Busy => "busy",
            Self::Unreadable { .. } | Self::Damaged { .. } | Self::Host { .. } => "host",
        }
    }
}

/// Loads components, each once however many ask for it, and has those compiled that are not in the cache.
pub(crate) struct Loader<S: StoreState> {
    pub(crate) machines: Machines<S>,
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) residents: Arc<Residents<S>>,
    pub(crate) chores: Arc<Chores>,
    /// What components may import.
    pub(crate) interfaces: Interfaces,
    pub(crate) plugins: Mutex<HashMap<Digest, Entry<S>>>,
}

type Loading<S> = SharedFuture<BoxFuture<'static, Result<Arc<Plugin<S>>, LoadError>>>;

pub(crate) enum Entry<S: StoreState> {
    Loading(Loading<S>),
    /// Whoever uses it keeps it; when nobody does any more, its code is unmapped.
    Loaded(Weak<Plugin<S>>),
}

impl<S: StoreState> Loader<S> {
    pub(crate) async fn load<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        lane: Lane,
        fetch: F,
    ) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        match self.find_or_start(digest, lane, fetch) {
            Ok(plugin) => Ok(plugin),
            Err(loading) => loading.await,
        }
    }

    /// Sees to it that a component can be loaded from the cache: it is checked there, or compiled into it.
    pub(crate) async fn prepare<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        fetch: F,
    ) -> Result<(), LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let ready = self.is_ready(&digest)
            || self.verified(Flavor::Lean, digest).await
            || (self.has_concurrent(digest).await?
                && self.verified(Flavor::Concurrent, digest).await);
        if ready {
            return Ok(());
        }
        self.load(digest, Lane::Ahead, fetch).await.map(drop)
    }

    /// Whether the cache of an engine that is there has this component, as it was stored.
    async fn verified(self: &Arc<Self>, flavor: Flavor, digest: Digest) -> bool {
        let loader = self.clone();
        let verify = move || {
            let mut of_flavor = loader
                .machines
                .made()
                .filter(|machine| machine.shared.flavor == flavor);
            of_flavor.any(|machine| machine.cache.verify_now(&digest))
        };
        self.chores.run(verify).await == Some(true)
    }

    /// Whether there is the concurrent engine, which is made if its cache may have this component.
    async fn has_concurrent(self: &Arc<Self>, digest: Digest) -> Result<bool, LoadError> {
        let loader = self.clone();
        blocking(digest, move || {
            Ok(loader.machines.concurrent_with(&digest).is_some())
        })
        .await
    }

    pub(crate) fn is_ready(&self, digest: &Digest) -> bool {
        let mut made = self.machines.made();
        made.any(|machine| machine.cache.is_verified(digest))
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
        for machine in self.machines.made() {
            machine.cache.remove(digest);
        }
    }

    fn find_or_start<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        lane: Lane,
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
                let loading = self.start(digest, lane, fetch);
                plugins.insert(digest, Entry::Loading(loading.clone()));
                Err(loading)
            }
        }
    }

    /// Loads as a task of its own: who asked may go away, and others may be waiting for it.
    fn start<F, E>(self: &Arc<Self>, digest: Digest, lane: Lane, fetch: F) -> Loading<S>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let loader = self.clone();
        let task = tokio::spawn(async move {
            let outcome = loader.map_or_compile(digest, lane, fetch).await;
            let mut plugins = loader.lock();
            match &outcome {
                Ok(plugin) => plugins.insert(digest, Entry::Loaded(Arc::downgrade(plugin))),
                Err(_) => plugins.remove(&digest),
            };
            // Those that have gone leave little behind, and thousands of them leave much.
            if plugins.len().is_power_of_two() {
                plugins.retain(|_, entry| match entry {
                    Entry::Loading(_) => true,
                    Entry::Loaded(plugin) => plugin.strong_count() > 0,
                });
            }
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

    async fn map_or_compile<F, E>(
        self: &Arc<Self>,
        digest: Digest,
        lane: Lane,
        fetch: F,
    ) -> Result<Arc<Plugin<S>>, LoadError>
    where
        F: Future<Output = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let loader = self.clone();
        let mapped = blocking(digest, move || {
            let mapped = loader.mapped(&digest);
            mapped
                .map(|(machine, component)| link(machine, &component, machine.stacks(&digest)))
                .transpose()
        })
        .await?;
        if let Some(plugin) = mapped {
            counter!("stepwell_compile_cache_hits_total").increment(1);
            return Ok(Arc::new(plugin));
        }
        counter!("stepwell_compile_cache_misses_total").increment(1);
        let bytes = fetch.await.map_err(|error| LoadError::Unreadable {
            digest,
            reason: error.to_string(),
        })?;
        // What is no upload was checked when it was one.
        let check = matches!(lane, Lane::Tenant(_)).then(|| self.interfaces.clone());
        let compiled = self.compiler.compile(digest, bytes, lane, check).await?;
        let (loader, flavor) = (self.clone(), compiled.r#for.flavor);
        blocking(digest, move || loader.machine(digest, flavor).map(drop)).await?;
        let loader = self.clone();
        let keep_and_link = move || {
            let Compiled {
                inspection,
                code,
                r#for,
                took,
            } = compiled;
            let machine = loader.machine(digest, r#for.flavor)?;
            let own = fingerprint(&machine.shared.engine);
            if own != r#for.engine {
                return Err(LoadError::Host {
                    digest,
                    reason: format!(
                        "the compiler's engine ({}) is not the host's ({own}): are both of the same build?",
                        r#for.engine
                    ),
                });
            }
            let component = keep(machine, &digest, &code, r#for.stacks)?;
            let plugin = link(machine, &component, r#for.stacks)?;
            Ok(Arc::new(Plugin {
                compiled_in: Some(took),
                inspection,
                ..plugin
            }))
        };
        let kept = self.chores.run(keep_and_link).await;
        kept.unwrap_or_else(|| {
            Err(LoadError::Host {
                digest,
                reason: "keeping the compiled code failed".to_owned(),
            })
        })
    }

    /// Loads an upload and answers what it is. Nobody but the compiler's process looks into it.
    pub(crate) async fn upload(
        self: &Arc<Self>,
        tenant: &str,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(Arc<Plugin<S>>, Inspection), LoadError> {
        let lane = || Lane::Tenant(tenant.to_owned());
        let fetch = ready(Ok::<_, LoadError>(bytes.clone()));
        let plugin = self.load(digest, lane(), fetch).await?;
        let inspection = match plugin.inspection.clone() {
            Some(inspection) => inspection,
            // It had been compiled before.
            None => {
                let interfaces = self.interfaces.clone();
                let checked = self.compiler.check(digest, bytes, lane(), interfaces);
                checked.await?
            }
        };
        Ok((plugin, inspection))
    }

    /// Looks for compiled code; it lies in the cache of the component's flavour.
    fn mapped(&self, digest: &Digest) -> Option<(&Machine<S>, Component)> {
        let lean = self.machines.lean();
        if let Some(component) = lean.cache.load(&lean.shared.engine, digest) {
            return Some((lean, component));
        }
        let concurrent = self.machines.concurrent_with(digest)?;
        let component = concurrent.cache.load(&concurrent.shared.engine, digest)?;
        Some((concurrent, component))
    }

    fn machine(&self, digest: Digest, flavor: Flavor) -> Result<&Machine<S>, LoadError> {
        self.machines.get(flavor).map_err(|error| LoadError::Host {
            digest,
            reason: error.to_string(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Entry<S>>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep<S: StoreState>(
    machine: &Machine<S>,
    digest: &Digest,
    code: &[u8],
    stacks: u32,
) -> Result<Component, LoadError> {
    let engine = &machine.shared.engine;
    if let Err(error) = machine.cache.store(digest, code, stacks) {
        tracing::warn!(%digest, %error, "cannot keep a compiled component, it will be compiled again at the next start");
    } else if let Some(component) = machine.cache.load(engine, digest) {
        return Ok(component);
    }
    from_memory(engine, code).map_err(|error| LoadError::Refused(refused_text(&text(&error))))
}

fn link<S: StoreState>(
    machine: &Machine<S>,
    component: &Component,
    stacks: u32,
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
        .and_then(|()| ProxyPre::new(pre).map(|pre| Code::Http(Arc::new(pre)))),
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
        slots: slots_of(component, stacks),
        compiled_in: None,
        inspection: None,
        code_bytes: image_bytes(component),
    })
}

/// Bytes that the component's compiled code takes up when it is mapped.
fn image_bytes(component: &Component) -> u64 {
    let image = component.image_range();
    image.end.addr().saturating_sub(image.start.addr()) as u64
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
                reason: format!("loading stopped: {error}"),
            })
        })
}

/// What the compiler does not accept.
pub(crate) fn refused_text(text: &str) -> Refused {
    Refused::new(
        "invalid-component",
        format!("the component cannot be compiled: {text}"),
        "rebuild it, and check it with wasm-tools validate",
    )
}

fn unlinkable(error: &wasmtime::Error) -> Refused {
    Refused::new(
        "unknown-import",
        format!("an import is not as the host provides it: {}", text(error)),
        "build the component against the host's WIT packages (`stepwell new` has them)",
    )
}

pub(crate) fn text(error: &wasmtime::Error) -> String {
    format!("{error:#}").chars().take(500).collect()
}
