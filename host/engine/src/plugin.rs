use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use stepwell_core::{ErrorKind, Event, Limits, StepError};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::call::Shared;
use crate::function::{self, Body};
use crate::inspect::World;
use crate::step::{StepPre, guest_error, lend, take};
use crate::store::StoreState;

/// A component that is loaded and linked, ready to be called from many tasks at once. Each call gets a fresh instance.
pub struct Plugin<S: StoreState> {
    pub(crate) world: World,
    pub(crate) code: Code<S>,
    pub(crate) shared: Arc<Shared>,
    /// How long compiling took, if this process had to.
    pub(crate) compiled_in: Option<Duration>,
}

pub(crate) enum Code<S: 'static> {
    Step(StepPre<S>),
    /// Shared, since a guest may outlive the call of its function.
    Http(Arc<ProxyPre<S>>),
}

impl<S: StoreState> Plugin<S> {
    /// What the component is made for.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Calls a step with one event.
    ///
    /// # Errors
    /// What the guest reported, or what stopped it: a trap, a limit (with its name, value and setting), its time. The call is
    /// cancel-safe: dropping it ends the guest.
    pub async fn process(
        &self,
        state: S,
        limits: Limits,
        deadline: Instant,
        event: Event,
    ) -> Result<Vec<Event>, StepError> {
        let Code::Step(pre) = &self.code else {
            return Err(self.wrong_world("an event"));
        };
        let extensions: Vec<(&str, &str)> = event
            .extensions
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut call = self.shared.begin(state, limits, deadline).await?;
        let guard = call.guard();
        let outcome = guard
            .run(async {
                let step = pre.instantiate_async(&mut call.store).await?;
                let handler = step.stepwell_pipeline_handler();
                handler
                    .call_process(&mut call.store, lend(&event, &extensions))
                    .await
            })
            .await;
        match call.settle(outcome)? {
            Ok(events) => take(events, &event, limits.output),
            Err(error) => Err(guest_error(error)),
        }
    }

    /// Calls an HTTP function with one request. The response comes as soon as its head is there; the guest goes on while the
    /// body is read, until its time is up, and a body that it cannot finish ends with an error.
    ///
    /// # Errors
    /// What happened before the response's head was there; see [`Plugin::process`].
    pub async fn handle(
        &self,
        state: S,
        limits: Limits,
        deadline: Instant,
        request: Request<Body>,
    ) -> Result<Response<Body>, StepError> {
        let Code::Http(pre) = &self.code else {
            return Err(self.wrong_world("an HTTP request"));
        };
        function::handle(&self.shared, pre.clone(), state, limits, deadline, request).await
    }

    fn wrong_world(&self, what: &str) -> StepError {
        StepError::new(
            ErrorKind::Failed,
            format!("a plugin of the world {} cannot take {what}", self.world),
        )
    }
}

impl<S: StoreState> fmt::Debug for Plugin<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("world", &self.world)
            .finish_non_exhaustive()
    }
}
