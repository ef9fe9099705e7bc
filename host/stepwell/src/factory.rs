//! Makes the code behind the steps of a deployment.

use std::sync::Arc;

use async_trait::async_trait;
use stepwell_catalog::Catalog;
use stepwell_core::{Call, Event, Limits, StepError, StepScope};
use stepwell_egress::EgressScope;
use stepwell_engine::{Engine, Environment, Plugin, World};
use stepwell_inference::JsonMapping;
use stepwell_pipeline::{
    Body, Function, ModelSpec, Pin, PrepareError, Prepared, Step, StepFactory,
};

use crate::guest::GuestState;
use crate::services::Services;

/// Loads plugins from the catalog into the engine, and models from their bindings.
pub(crate) struct Factory {
    pub(crate) engine: Engine<GuestState>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) services: Arc<Services>,
}

#[async_trait]
impl StepFactory for Factory {
    async fn plugin(
        &self,
        scope: &Arc<StepScope>,
        limits: Limits,
        pin: &Pin,
    ) -> Result<Prepared, PrepareError> {
        let (catalog, digest) = (self.catalog.clone(), pin.digest);
        let plugin = self
            .engine
            .load(digest, async move { catalog.component(digest).await })
            .await?;
        let is_function = matches!(plugin.world(), World::Http(_));
        let step = Arc::new(PluginStep {
            plugin,
            limits,
            environment: Arc::new(Environment::new(scope.config.iter().cloned())),
            egress: self.services.egress.scope(scope),
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
    environment: Arc<Environment>,
    egress: Option<Arc<EgressScope>>,
    services: Arc<Services>,
}

impl PluginStep {
    fn state(&self, call: &Call) -> GuestState {
        GuestState::new(
            &self.services,
            &self.environment,
            self.egress.as_ref(),
            call,
        )
    }
}

#[async_trait]
impl Step for PluginStep {
    async fn call(&self, call: &Call, event: Event) -> Result<Vec<Event>, StepError> {
        let state = self.state(call);
        self.plugin
            .process(state, self.limits, call.deadline, event)
            .await
    }
}

#[async_trait]
impl Function for PluginStep {
    async fn handle(
        &self,
        call: &Call,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, StepError> {
        let state = self.state(call);
        self.plugin
            .handle(state, self.limits, call.deadline, request)
            .await
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
