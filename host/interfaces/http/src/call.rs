use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, Request, Response};
use http_body_util::BodyExt as _;
use stepwell_core::{Origin, OriginPattern, Scheme};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use crate::body::{Allowance, Held, ResponseBody};
use crate::egress::EgressScope;
use crate::error::EgressError;
use crate::flight::{Flight, count_refused};
use crate::headers::strip;
use crate::policy::{Access, Target};

/// Takes lines for the deployer's log.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// Outbound HTTP of one call. Each request is checked by itself: a redirect is an answer like any other, and the request that a
/// guest makes of it is a new one.
pub struct CallEgress {
    scope: Arc<EgressScope>,
    deadline: Instant,
    note: Note,
    allowance: Arc<Allowance>,
    requests: Arc<Semaphore>,
}

type Answer = (
    Response<WasiBody>,
    Box<dyn Future<Output = Result<(), HttpError>> + Send>,
);

impl CallEgress {
    pub(crate) fn new(scope: Arc<EgressScope>, deadline: std::time::Instant, note: Note) -> Self {
        let config = &scope.egress.config;
        Self {
            allowance: Arc::new(Allowance::new(config.response_bytes)),
            requests: Arc::new(Semaphore::new(config.requests_per_call)),
            scope,
            deadline: deadline.into(),
            note,
        }
    }

    /// Checks whether the request may go where it wants to, before anything is done for it.
    fn admit(&self, request: &Request<WasiBody>) -> Result<(Target, Flight), EgressError> {
        let method = request.method().as_str();
        // CONNECT makes a tunnel and TRACE sends headers back; servers may read them in any case.
        if ["CONNECT", "TRACE", "TRACK"]
            .iter()
            .any(|refused| refused.eq_ignore_ascii_case(method))
        {
            return Err(EgressError::Method);
        }
        let uri = request.uri();
        let scheme = uri.scheme_str().and_then(Scheme::parse);
        let scheme = scheme.ok_or_else(|| EgressError::Uri("it is not http or https".into()))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let origin =
            Origin::new(scheme, authority).map_err(|error| EgressError::Uri(error.to_string()))?;
        let grants: Vec<&OriginPattern> = self
            .scope
            .step
            .grants
            .http()
            .iter()
            .filter(|grant| grant.matches(&origin))
            .collect();
        if grants.is_empty() {
            return Err(EgressError::NotGranted);
        }
        self.scope.egress.policy.check_host(&origin.host)?;
        let access = match grants.iter().any(|grant| grant.is_exact()) {
            true => Access::Opened,
            false => Access::Public,
        };
        Ok((Target { origin, access }, Flight::new(self.places()?)))
    }

    fn places(&self) -> Result<[OwnedSemaphorePermit; 3], EgressError> {
        let (egress, tenant) = (&self.scope.egress, &self.scope.tenant);
        let config = &egress.config;
        let place = |places: &Arc<Semaphore>, limit, value| {
            let place = places.clone().try_acquire_owned();
            place.map_err(|_| EgressError::Busy { limit, value })
        };
        Ok([
            place(
                &self.requests,
                "[egress] requests_per_call",
                config.requests_per_call,
            )?,
            place(
                &tenant.requests,
                "[egress] requests_per_namespace",
                config.requests_per_namespace,
            )?,
            place(&egress.requests, "[egress] requests", config.requests)?,
        ])
    }

    fn span(&self, method: &Method, target: &Target) -> Span {
        let step = &self.scope.step;
        tracing::info_span!(
            "egress",
            otel.kind = "client",
            namespace = %step.namespace,
            pipeline = %step.pipeline,
            step = %step.step,
            http.request.method = %method,
            server.address = %target.origin.host,
            server.port = target.origin.port,
            http.response.status_code = tracing::field::Empty,
            error = tracing::field::Empty,
        )
    }
}

impl WasiHttpHooks for CallEgress {
    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_read: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, HttpError>> + Send> {
        let what = described(&request);
        let (target, flight) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(error) => {
                count_refused(&error);
                (self.note)(&format!("{what} was refused: {error}"));
                return Box::new(ready(Err(error.into())));
            }
        };
        strip(request.headers_mut());
        let span = self.span(request.method(), &target);
        let config = &self.scope.egress.config;
        if let Some(traceparent) = config.trace.and_then(|hook| hook(&span))
            && let Ok(value) = traceparent.parse()
        {
            request
                .headers_mut()
                .entry(HeaderName::from_static("traceparent"))
                .or_insert(value);
        }
        let exchange = Exchange {
            times: Times::of(options.unwrap_or_default(), self),
            scope: self.scope.clone(),
            allowance: self.allowance.clone(),
            target,
            flight,
            note: self.note.clone(),
            what: what.clone(),
        };
        let note = self.note.clone();
        let answer = async move {
            let answered = exchange.run(request).await;
            let span = Span::current();
            match answered {
                Ok(response) => {
                    span.record("http.response.status_code", response.status().as_u16());
                    let done: Box<dyn Future<Output = Result<(), HttpError>> + Send> =
                        Box::new(ready(Ok(())));
                    Ok((response, done))
                }
                Err(error) => {
                    span.record("error", error.outcome());
                    note(&format!("{what} failed: {error}"));
                    Err(error.into())
                }
            }
        };
        Box::new(answer.instrument(span))
    }
}

/// What a request may take, at most until its call's end.
struct Times {
    connect_by: Instant,
    first_byte: Duration,
    between_bytes: Duration,
}

impl Times {
    fn of(options: RequestOptions, call: &CallEgress) -> Self {
        let config = &call.scope.egress.config;
        let now = Instant::now();
        let left = call.deadline.saturating_duration_since(now);
        let clamp =
            |wanted: Option<Duration>, most: Duration| wanted.unwrap_or(most).min(most).min(left);
        Self {
            connect_by: now + clamp(options.connect_timeout, config.connect_timeout),
            first_byte: clamp(options.first_byte_timeout, config.first_byte_timeout),
            between_bytes: clamp(options.between_bytes_timeout, config.between_bytes_timeout),
        }
    }
}

/// One request on its way.
struct Exchange {
    scope: Arc<EgressScope>,
    target: Target,
    times: Times,
    allowance: Arc<Allowance>,
    flight: Flight,
    note: Note,
    what: String,
}

impl Exchange {
    async fn run(self, request: Request<WasiBody>) -> Result<Response<WasiBody>, EgressError> {
        let Self {
            scope,
            target,
            times,
            allowance,
            mut flight,
            note,
            what,
        } = self;
        let pool = scope.tenant.pool.clone();
        let sent = pool
            .send(&target, request, times.connect_by, times.first_byte)
            .await;
        match sent {
            Ok((response, connection)) => {
                flight.answered();
                let held = Held {
                    pool,
                    target,
                    connection,
                    flight,
                    note: Box::new(move |error| {
                        note(&format!("the response to {what} broke off: {error}"));
                    }),
                };
                Ok(response.map(|incoming| {
                    ResponseBody::new(incoming, allowance, times.between_bytes, held).boxed_unsync()
                }))
            }
            Err(error) => {
                flight.failed(&error);
                Err(error)
            }
        }
    }
}

/// The request in the words of the guest, as far as they can be shown: never its query.
fn described(request: &Request<WasiBody>) -> String {
    let uri = request.uri();
    let text = format!(
        "the request {} {}://{}{}",
        request.method(),
        uri.scheme_str().unwrap_or("?"),
        uri.authority().map_or("", |authority| authority.as_str()),
        uri.path()
    );
    text.chars()
        .take(300)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
