//! Makes the code behind the steps of a deployment.

use std::sync::Arc;

use async_trait::async_trait;
use stepwell_catalog::Catalog;
use stepwell_core::{Call, CpuAccount, Event, Isolation, Limits, StepError, StepScope};
use stepwell_engine::{Bind, Engine, Environment, Kept, Plugin};
use stepwell_inference::JsonMapping;
use stepwell_pipeline::{
    Body, Dispatcher, Function, ModelSpec, Pin, PrepareError, Prepared, Step, StepFactory,
};

use crate::guest::{GuestCall, GuestState};
use crate::services::Services;

/// Loads plugins from the catalog into the engine, and models from their bindings.
pub(crate) struct Factory {
    pub(crate) engine: Engine<GuestState>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) services: Arc<Services>,
    pub(crate) dispatcher: Dispatcher,
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
        let (catalog, digest) = (self.catalog.clone(), pin.digest);
        let plugin = self
            .engine
            .load(digest, async move { catalog.component(digest).await })
            .await?;
        let is_function = plugin.world().is_function();
        let kept = match isolation {
            Isolation::Fresh => None,
            Isolation::Reuse(reuse) => Some(plugin.keep(limits, reuse)),
        };
        let step = Arc::new(PluginStep {
            plugin,
            limits,
            kept,
            environment: Arc::new(Environment::new(scope.config.iter().cloned())),
            cpu: self
                .dispatcher
                .cpu_account(&scope.namespace, &scope.pipeline),
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
            mapping: JsonMapping {
                inputs: model.inputs.iter().cloned().collect(),
                outputs: model.outputs.iter().cloned().collect(),
            },
        }))
    }
}

/// A plugin with what all calls of one deployed step share.
struct PluginStep {
    plugin: Arc<Plugin<GuestState>>,
    limits: Limits,
    /// The step's own instances; none: each call has a fresh one.
    kept: Option<Kept<GuestState>>,
    environment: Arc<Environment>,
    cpu: Arc<CpuAccount>,
    services: Arc<Services>,
}

impl PluginStep {
    fn bind<'a>(&'a self, call: &'a Call) -> GuestCall<'a> {
        GuestCall {
            services: &self.services,
            environment: &self.environment,
            cpu: &self.cpu,
            call,
        }
    }
}

#[async_trait]
impl Step for PluginStep {
    async fn call(&self, call: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        let (plugin, guest, deadline) = (&self.plugin, self.bind(call), call.deadline);
        match &self.kept {
            Some(kept) => kept.process(plugin, &guest, deadline, event).await,
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
        let (plugin, guest, deadline) = (&self.plugin, self.bind(call), call.deadline);
        match &self.kept {
            Some(kept) => kept.handle(plugin, &guest, deadline, request).await,
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
    mapping: JsonMapping,
}

#[async_trait]
impl Step for ModelStep {
    async fn call(&self, call: &Call, mut event: Event) -> Result<Vec<Event>, StepError> {
        let reply = self
            .services
            .models
            .infer_json(
                &self.binding,
                self.version.as_deref(),
                &self.mapping,
                &event.data,
                call.deadline,
            )
            .await?;
        event.data = reply.into();
        event.datacontenttype = Some("application/json".to_owned());
        Ok(vec![event])
    }
}
