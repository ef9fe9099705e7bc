use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use stepwell_core::{Name, StepScope};
use tokio::sync::Semaphore;

use crate::call::{CallEgress, Note};
use crate::client::GuardedClient;
use crate::config::EgressConfig;
use crate::dial::Dialer;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::resolve::{Resolver, SystemResolver};

/// Outbound HTTP of the whole process: the operator's rules, and the connections of each namespace.
pub struct Egress {
    pub(crate) config: EgressConfig,
    pub(crate) policy: Arc<Policy>,
    pub(crate) requests: Arc<Semaphore>,
    dialer: Dialer,
    /// Of the namespaces that have a step with an http grant.
    tenants: Mutex<HashMap<Name, Weak<Tenant>>>,
}

/// What the steps of one namespace share.
pub(crate) struct Tenant {
    pub(crate) pool: Arc<Pool>,
    pub(crate) requests: Arc<Semaphore>,
}

/// Where the calls of one deployed step may go; it lives as long as the pipeline's revision.
pub struct EgressScope {
    pub(crate) egress: Arc<Egress>,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) step: Arc<StepScope>,
}

/// Outbound HTTP cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up outbound HTTP: {0}")]
pub struct SetUpError(#[from] rustls::Error);

impl Egress {
    /// Outbound HTTP with the system's resolver.
    ///
    /// # Errors
    /// [`SetUpError`]: a certificate authority that is none.
    pub fn new(config: EgressConfig) -> Result<Arc<Self>, SetUpError> {
        Self::with_resolver(config, Arc::new(SystemResolver))
    }

    /// Outbound HTTP with another resolver.
    ///
    /// # Errors
    /// [`SetUpError`]: a certificate authority that is none.
    pub fn with_resolver(
        config: EgressConfig,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Arc<Self>, SetUpError> {
        let policy = Arc::new(Policy::new(&config));
        Ok(Arc::new(Self {
            dialer: Dialer::new(policy.clone(), resolver, &config.ca)?,
            policy,
            requests: Arc::new(Semaphore::new(config.requests)),
            tenants: Mutex::default(),
            config,
        }))
    }

    /// What the calls of a deployed step send their requests through; none without a grant. Called within the runtime, when a
    /// revision is deployed.
    pub fn scope(self: &Arc<Self>, step: &Arc<StepScope>) -> Option<Arc<EgressScope>> {
        if step.grants.http().is_empty() {
            return None;
        }
        Some(Arc::new(EgressScope {
            tenant: self.tenant(&step.namespace),
            egress: self.clone(),
            step: step.clone(),
        }))
    }

    /// A client for what the host itself fetches from a URL that a deployer wrote, under the same rules.
    pub fn client(&self) -> GuardedClient {
        GuardedClient::new(self.dialer.http1_only(), self.policy.clone())
    }

    fn tenant(&self, namespace: &Name) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = tenants.get(namespace).and_then(Weak::upgrade) {
            return tenant;
        }
        tenants.retain(|_, tenant| tenant.strong_count() > 0);
        let tenant = Arc::new(Tenant {
            pool: Pool::new(self.dialer.apart(), self.config.connections),
            requests: Arc::new(Semaphore::new(self.config.requests_per_namespace)),
        });
        tenants.insert(namespace.clone(), Arc::downgrade(&tenant));
        tenant
    }
}

impl EgressScope {
    /// The hooks of one call, which must end at `deadline`. `note` takes what the deployer should know of requests that were not
    /// answered; guests only get error codes.
    pub fn call(self: &Arc<Self>, deadline: std::time::Instant, note: Note) -> CallEgress {
        CallEgress::new(self.clone(), deadline, note)
    }
}
