use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use stepwell_core::{Blame, Digest, ErrorKind, StepError};

use crate::load::{LoadError, Loader};
use crate::plugin::Plugin;
use crate::queue::Lane;
use crate::residents::Seat;
use crate::store::StoreState;

/// Where the bytes of components come from when they have to be compiled again. The error is for the log and for deployers.
pub type Fetch = Arc<dyn Fn(Digest) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// A deployed component, which is loaded when it is called: thousands can be deployed, and those in use are in memory.
pub struct Handle<S: StoreState> {
    pub(crate) digest: Digest,
    pub(crate) fetch: Fetch,
    pub(crate) seat: Arc<Seat<S>>,
    pub(crate) loader: Arc<Loader<S>>,
}

impl<S: StoreState> Handle<S> {
    /// The component, ready to be called. One that is not loaded is mapped from the cache of compiled code, which takes a
    /// millisecond; where that has lost it, it is compiled again while the caller waits.
    ///
    /// # Errors
    /// Why it cannot be had until the deadline.
    pub async fn get(&self, deadline: Instant) -> Result<Arc<Plugin<S>>, StepError> {
        match self.loader.residents.get(&self.seat) {
            Some(plugin) => Ok(plugin),
            None => self.load(deadline).await,
        }
    }

    async fn load(&self, deadline: Instant) -> Result<Arc<Plugin<S>>, StepError> {
        let loading = self
            .loader
            .load(self.digest, Lane::Calls, (self.fetch)(self.digest));
        let plugin = tokio::time::timeout_at(deadline.into(), loading)
            .await
            .map_err(|_| {
                StepError::new(
                    ErrorKind::Timeout,
                    "the run's time was up while the component was being loaded",
                )
                .blamed(Blame::Host)
            })?
            .map_err(|error| blame(&error))?;
        self.loader.residents.admit(&self.seat, &plugin);
        Ok(plugin)
    }
}

/// Whoever calls cannot mend what a deployer or the operator has to; what may pass is worth another try.
fn blame(error: &LoadError) -> StepError {
    let message = format!("the component cannot be loaded: {error}");
    match error {
        LoadError::Refused(_)
        | LoadError::TooSlow { .. }
        | LoadError::TooBig { .. }
        | LoadError::TooMuchCode { .. } => StepError::new(ErrorKind::Failed, message),
        LoadError::Crashed { .. } | LoadError::Damaged { .. } => {
            StepError::new(ErrorKind::Failed, message).blamed(Blame::Host)
        }
        LoadError::Busy | LoadError::Unreadable { .. } | LoadError::Host { .. } => {
            StepError::new(ErrorKind::Unavailable, message).blamed(Blame::Host)
        }
    }
}
