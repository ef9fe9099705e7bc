use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use stepwell_core::{ErrorKind, Event, Limits, Reuse, StepError};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::call::Shared;
use crate::function::{self, Body};
use crate::inspect::{Inspection, World};
use crate::keep::{Exports, Kept, Lease};
use crate::service;
use crate::step::{StepPre, guest_error, lend, take};
use crate::store::StoreState;

/// A component that is loaded and linked, ready to be called from many tasks at once.
pub struct Plugin<S: StoreState> {
    pub(crate) world: World,
    pub(crate) code: Code<S>,
    pub(crate) shared: Arc<Shared>,
    /// How many slots an instance of it takes up.
    pub(crate) slots: u32,
    /// How long compiling took, if this process had to.
    pub(crate) compiled_in: Option<Duration>,
    /// What it was found to be when it was compiled as an upload.
    pub(crate) inspection: Option<Inspection>,
    /// Bytes of its compiled code.
    pub(crate) code_bytes: u64,
}

pub(crate) enum Code<S: 'static> {
    Step(StepPre<S>),
    /// Shared, since a guest may outlive the call of its function.
    Http(Arc<ProxyPre<S>>),
    Service(ServicePre<S>),
}

impl<S: StoreState> Plugin<S> {
    /// What the component is made for.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Calls a step with one event, in a fresh instance.
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
        let begun = self.shared.begin(state, limits, self.slots, deadline);
        let call = begun.await?;
        process(&self.shared, pre, Lease::fresh(call), event).await
    }

    /// Calls an HTTP function with one request, in a fresh instance. The response comes as soon as its head is there; the guest goes on while the
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
        if matches!(self.code, Code::Step(_)) {
            return Err(self.wrong_world("an HTTP request"));
        }
        let begun = self.shared.begin(state, limits, self.slots, deadline);
        let call = begun.await?;
        self.answer(Lease::fresh(call), request).await
    }

    /// Answers a request in this instance.
    pub(crate) async fn answer(
        &self,
        lease: Lease<S>,
        request: Request<Body>,
    ) -> Result<Response<Body>, StepError> {
        match &self.code {
            Code::Http(pre) => function::handle(&self.shared, pre.clone(), lease, request).await,
            Code::Service(pre) => service::handle(&self.shared, pre.clone(), lease, request).await,
            Code::Step(_) => Err(self.wrong_world("an HTTP request")),
        }
    }

    /// A place for the instances that one deployed step keeps; it is the step's alone.
    pub fn keep(&self, limits: Limits, reuse: Reuse) -> Kept<S> {
        let concurrent = matches!(self.code, Code::Service(_));
        Kept::new(self.shared.clone(), limits, reuse, self.slots, concurrent)
    }

    pub(crate) fn wrong_world(&self, what: &str) -> StepError {
        StepError::new(
            ErrorKind::Failed,
            format!("a plugin of the world {} cannot take {what}", self.world),
        )
    }
}

/// Calls a step, and instantiates it first where that has not been done.
pub(crate) async fn process<S: StoreState>(
    shared: &Arc<Shared>,
    pre: &StepPre<S>,
    mut lease: Lease<S>,
    event: Event,
) -> Result<Vec<Event>, StepError> {
    let shared = shared.clone();
    let (guard, pre) = (lease.call.guard(), pre.clone());
    guard
        .run(async move {
            let outcome = async {
                let extensions: Vec<(&str, &str)> = event
                    .extensions
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                let Lease { call, exports, .. } = &mut lease;
                if exports.is_none() {
                    let step = shared.instantiate(&pre, &mut call.store).await?;
                    *exports = Some(Exports::Step(step));
                }
                let Some(Exports::Step(step)) = exports else {
                    return Err(wasmtime::Error::msg("the instance is of another world"));
                };
                step.stepwell_pipeline_handler()
                    .call_process(&mut call.store, lend(&event, &extensions))
                    .await
            }
            .await;
            let outcome = match lease.settle(outcome) {
                Ok(Ok(events)) => take(events, &event, lease.call.limits.output),
                Ok(Err(error)) => Err(guest_error(error)),
                Err(error) => Err(error),
            };
            lease.end(&outcome);
            outcome
        })
        .await
}

impl<S: StoreState> fmt::Debug for Plugin<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("world", &self.world)
            .finish_non_exhaustive()
    }
}
