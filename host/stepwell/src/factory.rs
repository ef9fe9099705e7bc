//! Makes the code behind the steps of a deployment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use stepwell_catalog::{Catalog, CatalogError};
use stepwell_core::{
    Call, CpuAccount, Digest, Event, Isolation, Limits, Name, Reuse, StepError, StepScope,
};
use stepwell_egress::EgressScope;
use stepwell_engine::{Bind, Engine, Environment, Fetch, Handle, Kept, LoadError, Plugin};
use stepwell_inference::JsonMapping;
use stepwell_pipeline::{
    Body, Dispatcher, Function, ModelSpec, Pin, PrepareError, Prepared, Step, StepFactory,
    current_span,
};

use crate::guest::{GuestCall, GuestState};
use crate::services::Services;

/// Makes steps of plugins, whose components come from the catalog into the engine when they are called, and of models.
pub(crate) struct Factory {
    engine: Engine<GuestState>,
    catalog: Arc<Catalog>,
    services: Arc<Services>,
    dispatcher: Dispatcher,
    fetch: Fetch,
    /// Which components answer HTTP requests themselves, of all that were ever deployed here.
    functions: Mutex<HashMap<Digest, bool>>,
}

/// Unknown components from which on all are asked for at once.
const MANY: usize = 32;

impl Factory {
    pub(crate) fn new(
        engine: Engine<GuestState>,
        catalog: Arc<Catalog>,
        services: Arc<Services>,
        dispatcher: Dispatcher,
    ) -> Self {
        Self {
            engine,
            fetch: fetch(&catalog),
            catalog,
            services,
            dispatcher,
            functions: Mutex::default(),
        }
    }

    /// Makes a component ready to be called: checked, or compiled.
    pub(crate) async fn prepare(&self, digest: Digest) -> Result<(), LoadError> {
        self.engine.prepare(digest, &self.fetch).await
    }

    /// Whether it need not be made ready.
    pub(crate) fn is_ready(&self, digest: &Digest) -> bool {
        self.engine.is_ready(digest)
    }

    /// Remembers the world of a component.
    pub(crate) fn learn(&self, digest: Digest, world: &str) {
        self.functions().insert(digest, is_function(world));
    }

    /// Forgets a component that nobody has any more.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.functions().remove(digest);
    }

    /// Looks up the worlds of components ahead where there are many.
    pub(crate) async fn learn_all(&self, digests: &[Digest]) -> Result<(), CatalogError> {
        let unknown = {
            let functions = self.functions();
            digests
                .iter()
                .filter(|digest| !functions.contains_key(digest))
                .count()
        };
        if unknown >= MANY {
            let worlds = self.catalog.worlds().await?;
            self.functions().extend(
                worlds
                    .iter()
                    .map(|(digest, world)| (*digest, is_function(world))),
            );
        }
        Ok(())
    }

    async fn is_function(&self, pin: &Pin) -> Result<bool, CatalogError> {
        let known = self.functions().get(&pin.digest).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let world = self.catalog.world(pin.digest).await?.ok_or_else(|| {
            CatalogError::NotFound(format!("plugin {}@{}", pin.plugin, pin.version))
        })?;
        self.learn(pin.digest, &world);
        Ok(is_function(&world))
    }

    fn functions(&self) -> MutexGuard<'_, HashMap<Digest, bool>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the engine gets the bytes of components that it has to compile.
pub(crate) fn fetch(catalog: &Arc<Catalog>) -> Fetch {
    let catalog = catalog.clone();
    Arc::new(move |digest| {
        let catalog = catalog.clone();
        Box::pin(async move {
            let bytes = catalog.component(digest).await;
            bytes.map_err(|error| error.to_string())
        })
    })
}

fn is_function(world: &str) -> bool {
    world.starts_with("wasi:http/")
}

#[async_trait]
impl StepFactory for Factory {
    async fn plugin(
        &self,
        scope: &Arc<StepScope>,
        limits: Limits,
        isolation: Isolation,
        pin: &Pin,
    ) -> Result<Prepared, PrepareError> {
        let is_function = self.is_function(pin).await?;
        let step = Arc::new(PluginStep {
            plugin: self.engine.handle(pin.digest, self.fetch.clone()),
            limits,
            reuse: match isolation {
                Isolation::Fresh => None,
                Isolation::Reuse(reuse) => Some(reuse),
            },
            kept: OnceLock::new(),
            environment: Arc::new(
                Environment::new(scope.config.iter().cloned())
                    .in_spans(current_span)
                    .called(format!(
                        "{}/{}/{}",
                        scope.namespace, scope.pipeline, scope.step
                    ))
                    .of(self.engine.tenant(scope.namespace.as_str())),
            ),
            egress: self.services.egress.scope(scope),
            cpu: scope.cpu.clone(),
            services: self.services.clone(),
        });
        Ok(if is_function {
            Prepared::Function(step)
        } else {
            Prepared::Step(step)
        })
    }

    async fn model(
        &self,
        _scope: &Arc<StepScope>,
        model: &ModelSpec,
    ) -> Result<Arc<dyn Step>, PrepareError> {
        Ok(Arc::new(ModelStep {
            services: self.services.clone(),
            binding: model.binding.clone(),
            version: model.version.clone(),
            mapping: Arc::new(JsonMapping {
                inputs: model.inputs.iter().cloned().collect(),
                outputs: model.outputs.iter().cloned().collect(),
            }),
        }))
    }

    fn cpu_account(&self, namespace: &Name, pipeline: &Name) -> Arc<CpuAccount> {
        self.dispatcher.cpu_account(namespace, pipeline)
    }
}

/// A plugin with what all calls of one deployed step share.
struct PluginStep {
    plugin: Handle<GuestState>,
    limits: Limits,
    /// How its instances are kept; none: each call has a fresh one.
    reuse: Option<Reuse>,
    /// The step's own instances, from its first call on.
    kept: OnceLock<Kept<GuestState>>,
    environment: Arc<Environment>,
    egress: Option<Arc<EgressScope>>,
    cpu: Arc<CpuAccount>,
    services: Arc<Services>,
}

impl PluginStep {
    fn kept(&self, plugin: &Plugin<GuestState>) -> Option<&Kept<GuestState>> {
        let reuse = self.reuse?;
        Some(self.kept.get_or_init(|| plugin.keep(self.limits, reuse)))
    }

    fn bind<'a>(&'a self, call: &'a Call) -> GuestCall<'a> {
        GuestCall {
            services: &self.services,
            environment: &self.environment,
            egress: self.egress.as_ref(),
            cpu: &self.cpu,
            call,
        }
    }
}

#[async_trait]
impl Step for PluginStep {
    async fn call(&self, call: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        let plugin = self.plugin.get(call.deadline).await?;
        let (guest, deadline) = (self.bind(call), call.deadline);
        match self.kept(&plugin) {
            Some(kept) => kept.process(&plugin, &guest, deadline, event).await,
            None => {
                let state = guest.fresh();
                plugin.process(state, self.limits, deadline, event).await
            }
        }
    }
}

#[async_trait]
impl Function for PluginStep {
    async fn handle(
        &self,
        call: &Call,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError> {
        let plugin = self.plugin.get(call.deadline).await?;
        let (guest, deadline) = (self.bind(call), call.deadline);
        match self.kept(&plugin) {
            Some(kept) => kept.handle(&plugin, &guest, deadline, request).await,
            None => {
                let state = guest.fresh();
                plugin.handle(state, self.limits, deadline, request).await
            }
        }
    }
}

/// The built-in `model` step.
struct ModelStep {
    services: Arc<Services>,
    binding: String,
    version: Option<String>,
    mapping: Arc<JsonMapping>,
}

#[async_trait]
impl Step for ModelStep {
    async fn call(&self, call: &Call, mut event: Event) -> Result<Vec<Event>, StepError> {
        let reply = self
            .services
            .models
            .infer_json(
                call,
                &self.binding,
                self.version.as_deref(),
                &self.mapping,
                event.data.clone(),
            )
            .await?;
        event.data = reply.into();
        event.datacontenttype = Some("application/json".to_owned());
        Ok(vec![event])
    }
}
