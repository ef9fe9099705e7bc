//! From a pinned document to a deployment.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use stepwell_core::{CpuAccount, Digest, Isolation, Limits, Name, StepScope};

use crate::spec::{ModelSpec, NodeSpec, PipelineSpec, StepSpec};
use crate::validate::Pin;
use crate::{Deployed, DeployedFunction, DeployedStep, Deployment, Function, Step};

/// Makes the code behind steps; the composition root knows how. Called when a revision is deployed, never on a request's path.
#[async_trait]
pub trait StepFactory: Send + Sync {
    /// A plugin version, ready to be called within these limits, in instances that are the step's alone.
    async fn plugin(
        &self,
        scope: &Arc<StepScope>,
        limits: Limits,
        isolation: Isolation,
        pin: &Pin,
    ) -> Result<Prepared, PrepareError>;

    /// A model behind its binding, as a step that takes JSON and gives JSON (see [`ModelSpec`]). It need not be loaded yet:
    /// a call then answers [`stepwell_core::ErrorKind::Unavailable`].
    async fn model(
        &self,
        scope: &Arc<StepScope>,
        model: &ModelSpec,
    ) -> Result<Arc<dyn Step>, PrepareError>;

    /// Who is charged for the CPU time of this pipeline; nobody is unless the factory says so.
    fn cpu_account(&self, _namespace: &Name, _pipeline: &Name) -> Arc<CpuAccount> {
        Arc::default()
    }
}

/// Why a factory cannot make a step.
pub type PrepareError = Box<dyn Error + Send + Sync>;

/// A plugin, by the world it targets.
pub enum Prepared {
    /// It takes events.
    Step(Arc<dyn Step>),
    /// It answers HTTP requests itself.
    Function(Arc<dyn Function>),
}

/// Why a revision cannot be deployed.
#[derive(Debug, thiserror::Error)]
pub enum NotDeployable {
    /// The catalog kept no version for a plugin step.
    #[error("step '{step}' has no pinned plugin version")]
    Unpinned {
        /// The step.
        step: Name,
    },
    /// The factory could not make a step.
    #[error("step '{step}' cannot be prepared: {source}")]
    Step {
        /// The step.
        step: Name,
        /// The factory's reason.
        source: PrepareError,
    },
    /// A function stands among other steps.
    #[error("step '{step}' answers HTTP requests itself and is not the only step")]
    NotAlone {
        /// The step.
        step: Name,
    },
}

/// Builds a revision: every step with its scope, limits and code.
///
/// # Errors
/// [`NotDeployable`]; nothing is left behind.
pub async fn deploy(
    namespace: &Name,
    revision: u64,
    spec: &PipelineSpec,
    pins: &[Pin],
    factory: &dyn StepFactory,
) -> Result<Deployment, NotDeployable> {
    let mut steps = Vec::with_capacity(spec.steps.len());
    let mut function = None;
    let cpu = factory.cpu_account(namespace, &spec.name);
    for step in &spec.steps {
        let failed = |source| NotDeployable::Step {
            step: step.id.clone(),
            source,
        };
        let (scope, prepared) = match &step.node {
            NodeSpec::Plugin(_) => {
                let pin = pins.iter().find(|pin| pin.step == step.id);
                let pin = pin.ok_or_else(|| NotDeployable::Unpinned {
                    step: step.id.clone(),
                })?;
                let scope = scope(
                    namespace,
                    revision,
                    spec,
                    step,
                    (format!("{}@{}", pin.plugin, pin.version), Some(pin.digest)),
                    &cpu,
                );
                let prepared = factory
                    .plugin(&scope, step.limits, step.isolation, pin)
                    .await
                    .map_err(failed)?;
                (scope, prepared)
            }
            NodeSpec::Model(model) => {
                let scope = scope(
                    namespace,
                    revision,
                    spec,
                    step,
                    (format!("model {}", model.binding), None),
                    &cpu,
                );
                let code = factory.model(&scope, model).await.map_err(failed)?;
                (scope, Prepared::Step(code))
            }
        };
        match prepared {
            Prepared::Step(code) => steps.push(DeployedStep {
                scope,
                step: code,
                timeout: step.timeout,
                retry: step.retry.clone(),
            }),
            Prepared::Function(_) if spec.steps.len() > 1 => {
                return Err(NotDeployable::NotAlone {
                    step: step.id.clone(),
                });
            }
            Prepared::Function(code) => {
                function = Some(DeployedFunction {
                    scope,
                    function: code,
                });
            }
        }
    }
    Ok(Deployment {
        namespace: namespace.clone(),
        name: spec.name.clone(),
        revision,
        triggers: spec.triggers.clone(),
        body: function.map_or(Deployed::Steps(steps), Deployed::Function),
    })
}

fn scope(
    namespace: &Name,
    revision: u64,
    spec: &PipelineSpec,
    step: &StepSpec,
    (plugin, digest): (String, Option<Digest>),
    cpu: &Arc<CpuAccount>,
) -> Arc<StepScope> {
    Arc::new(StepScope {
        namespace: namespace.clone(),
        pipeline: spec.name.clone(),
        revision,
        step: step.id.clone(),
        plugin,
        digest,
        grants: step.grants.clone(),
        config: step.config.clone(),
        cpu: cpu.clone(),
    })
}
