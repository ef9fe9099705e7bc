use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::uri::{Authority, Scheme};
use http::{Request, header};
use http_body_util::BodyExt;
use stepwell_core::StepError;
use tokio::sync::oneshot;
use wasmtime::component::{Accessor, Resource};
use wasmtime_wasi_http::p3::Request as GuestRequest;
use wasmtime_wasi_http::p3::bindings::http::types::{
    ErrorCode, Request as RequestResource, Response as ResponseResource,
};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{Error as HttpError, FieldMap, WasiBody};

use crate::call::Shared;
use crate::function::{Body, Guest, Terms, respond};
use crate::keep::{Exports, Lease};
use crate::store::StoreState;

/// What `handle` takes.
pub(crate) type Input = (Resource<RequestResource>,);
/// What `handle` returns.
pub(crate) type Output = (Result<Resource<ResponseResource>, ErrorCode>,);

/// What a guest answers, up to its body.
pub(crate) type Head = Result<http::Response<WasiBody>, ErrorCode>;

/// Calls a WASI 0.3 HTTP function. As for WASI 0.2, the guest runs inside the caller's task: first until the response's head is
/// there, then whenever the body is polled. Its instance is free for the next call when none of its tasks is left.
pub(crate) async fn handle<S: StoreState>(
    shared: &Arc<Shared>,
    pre: ServicePre<S>,
    mut lease: Lease<S>,
    request: Request<Body>,
) -> Result<http::Response<Body>, StepError> {
    let shared = shared.clone();
    let (terms, until) = (Terms::of(&request, lease.call.limits), lease.call.until());
    let (sender, head) = oneshot::channel();
    let (guard, failed) = (lease.call.guard(), Arc::new(AtomicBool::new(false)));
    let (of_guest, environment) = (failed.clone(), guard.environment.clone());
    let guest: Guest = Box::pin(guard.run(async move {
        let outcome = async {
            let Lease { call, exports, .. } = &mut lease;
            if exports.is_none() {
                let service = shared.instantiate(&pre, &mut call.store).await?;
                *exports = Some(Exports::Service(service));
            }
            let Some(Exports::Service(service)) = exports else {
                return Err(wasmtime::Error::msg("the instance is of another world"));
            };
            call.store
                .run_concurrent(async |accessor| {
                    answer(accessor, service, request, sender).await?;
                    // The response's body and what the guest does after it are tasks of their own.
                    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                })
                .await?
        }
        .await;
        let outcome = lease.settle(outcome);
        // Said before the store goes, and with it the guest's end of the body: it may be read on another thread.
        of_guest.store(outcome.is_err(), Ordering::Release);
        lease.end(&outcome);
        outcome
    }));
    respond(guest, environment, failed, head, terms, until).await
}

/// Gives one request to an instance, and sends on the head of its response.
pub(crate) async fn answer<S: StoreState>(
    accessor: &Accessor<S>,
    service: &Service,
    request: Request<Body>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    // Resolves when the request's body was read to its end, or could not be.
    let (request, received) = incoming(accessor, request);
    let request = accessor.with(|mut store| store.data_mut().base().table.push(request))?;
    let handler = service.wasi_http_handler();
    let response = match handler.call_handle(accessor, request).await? {
        Ok(response) => accessor.with(|mut store| {
            let response = store.data_mut().base().table.delete(response)?;
            response.into_http_with_getter(&mut store, received, |state| state.base().http())
        })?,
        Err(code) => {
            let _ = head.send(Err(code));
            return Ok(());
        }
    };
    // Whoever asked may be gone.
    let _ = head.send(Ok(response));
    Ok(())
}

/// The request as the guest gets it: with a scheme and an authority, its body's errors without details.
fn incoming<S: StoreState>(
    accessor: &Accessor<S>,
    request: Request<Body>,
) -> (
    GuestRequest,
    impl Future<Output = Result<(), HttpError>> + Send + 'static,
) {
    let (parts, body) = request.into_parts();
    let uri = parts.uri.into_parts();
    let of_header = || {
        let host = parts.headers.get(header::HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    };
    let authority = uri
        .authority
        .or_else(of_header)
        .unwrap_or_else(|| Authority::from_static("localhost"));
    let headers = accessor.with(|mut store| {
        let view = store.data_mut().base().http();
        FieldMap::new_immutable(view.hooks, parts.headers)
    });
    GuestRequest::new(
        parts.method,
        uri.scheme.or(Some(Scheme::HTTP)),
        Some(authority),
        uri.path_and_query,
        headers,
        None,
        body.map_err(|_| HttpError::ConnectionTerminated),
    )
}
