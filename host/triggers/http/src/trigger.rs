use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, COOKIE, HOST, HeaderValue, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use stepwell_core::{Name, RunId};
use stepwell_pipeline::{
    Body, Deployed, Deployment, Dispatcher, HttpTriggerSpec, RunRequest, TriggerSpec,
};

use crate::auth::{self, Auth};
use crate::bodies::{self, Bodies, Room, SMALL_REPLY};
use crate::body::{self, BoxError, Counted, Limited, Progress};
use crate::problem::{Problem, with_run_id};
use crate::route::{Found, RouteTable};
use crate::telemetry::RouteMetrics;
use crate::unusable::Unusable;
use crate::{event, percent, reply, unread};

/// What `invoke` allows a pipeline that has no HTTP trigger to say otherwise.
const DEFAULT_MAX_BODY: u64 = 1 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for a whole body to arrive; it is the caller's own, and not the run's.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers the requests of the data listener.
pub struct HttpTrigger {
    dispatcher: Dispatcher,
    auth: Option<Auth>,
    routes: ArcSwap<RouteTable>,
    bodies: Arc<Bodies>,
    replies: Arc<Bodies>,
    unusable: Unusable,
    unrouted: RouteMetrics,
    /// Whether its routes were ever set: until then it is not known what there is.
    is_set: AtomicBool,
}

/// What a request is to be run with.
struct Intake {
    run: RunId,
    deployment: Arc<Deployment>,
    trigger: &'static str,
    max_body: u64,
    timeout: Duration,
    /// The path's parameters, still percent-encoded.
    params: Vec<(String, String)>,
    /// Who calls, where that was asked.
    caller: Option<Arc<str>>,
}

impl HttpTrigger {
    /// A trigger without routes, which cannot tell who calls: routes that ask for a token refuse everybody.
    pub fn new(dispatcher: Dispatcher) -> Self {
        Self {
            dispatcher,
            auth: None,
            routes: ArcSwap::default(),
            bodies: Bodies::new(bodies::DEFAULT),
            replies: Bodies::new(bodies::DEFAULT),
            unusable: Unusable::default(),
            unrouted: RouteMetrics::new("", "", ""),
            is_set: AtomicBool::new(false),
        }
    }

    /// The same with a check of who calls.
    pub fn with_auth(dispatcher: Dispatcher, auth: Auth) -> Self {
        Self {
            auth: Some(auth),
            ..Self::new(dispatcher)
        }
    }

    /// The same with room for this many bytes of requests' bodies, which pipelines of steps are given as a whole, and for as many of
    /// responses' bodies that their clients have not taken yet.
    pub fn with_body_bytes(self, bytes: u64) -> Self {
        Self {
            bodies: Bodies::new(bytes),
            replies: Bodies::new(bytes),
            ..self
        }
    }

    /// Sets the gauges of what is used; called before metrics are rendered.
    pub fn record_use(&self) {
        metrics::gauge!("stepwell_http_body_bytes").set(self.bodies.taken() as f64);
        metrics::gauge!("stepwell_http_reply_bytes").set(self.replies.taken() as f64);
    }

    /// Makes the routes those of these deployments; requests that have found theirs keep it.
    pub fn apply(&self, deployments: &[Arc<Deployment>]) {
        let routes = self.routes.load().with(deployments);
        if let Some(auth) = &self.auth {
            auth.prepare(routes.issuers());
        }
        self.bodies.set_namespaces(routes.namespaces());
        self.replies.set_namespaces(routes.namespaces());
        self.routes.store(Arc::new(routes));
        self.is_set.store(true, Ordering::Release);
    }

    /// Answers a request of any caller.
    pub async fn handle<B>(&self, mut request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let run = RunId::new();
        let found = self
            .routes
            .load()
            .find(request.method(), request.uri().path());
        let (route, values) = match found {
            Found::Route(route, values) => (route, values),
            missed => {
                let measured = self.unrouted.begin();
                let problem = match missed {
                    Found::WrongMethod(allow) => Problem::WrongMethod { allow },
                    _ if !self.is_set.load(Ordering::Acquire) => Problem::RoutesUnknown,
                    _ => Problem::NoRoute,
                };
                let response = refused(run, problem, request).await;
                measured.answered(response.status());
                return response;
            }
        };
        let measured = route.metrics().begin();
        let checked = auth::caller(self.auth.as_ref(), &route, request.headers_mut()).await;
        let caller = match checked {
            Ok(caller) => caller,
            Err(problem) => {
                let response = refused(run, problem, request).await;
                measured.answered(response.status());
                return response;
            }
        };
        let intake = Intake {
            run,
            deployment: route.deployment.clone(),
            trigger: "http",
            max_body: route.max_body,
            timeout: route.timeout,
            params: route.params.iter().cloned().zip(values).collect(),
            caller,
        };
        let response = self.answer(intake, request).await;
        measured.answered(response.status());
        response
    }

    /// Answers a request that is not looked into any further.
    pub(crate) async fn refuse<B>(&self, request: Request<B>, problem: Problem) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let (measured, version) = (self.unrouted.begin(), request.version());
        let mut response = refused(RunId::new(), problem, request).await;
        measured.answered(response.status());
        // Nobody can be sure that what comes next on it is what its client takes for the next request.
        if version < Version::HTTP_2 {
            close(&mut response);
        }
        response
    }

    /// Runs a pipeline for a request of the management API: the same as a route of the pipeline would, with its limits.
    ///
    /// The guest sees nothing of the API: no credentials, and the pipeline's own path (`/` where that has parameters).
    pub async fn invoke<B>(
        &self,
        deployment: Arc<Deployment>,
        mut request: Request<B>,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let run = RunId::new();
        let spec = deployment
            .triggers
            .iter()
            .find_map(|trigger| match trigger {
                TriggerSpec::Http(spec) => Some(spec),
                TriggerSpec::Kafka(_) => None,
            });
        hide_api(&mut request, spec);
        let intake = Intake {
            run,
            trigger: "invoke",
            max_body: spec.map_or(DEFAULT_MAX_BODY, |spec| spec.max_body),
            timeout: spec.map_or(DEFAULT_TIMEOUT, |spec| spec.timeout),
            params: Vec::new(),
            caller: None,
            deployment,
        };
        self.answer(intake, request).await
    }

    async fn answer<B>(&self, intake: Intake, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let (run, version) = (intake.run, request.version());
        if self.replies.is_full(&intake.deployment.namespace) {
            metrics::counter!("stepwell_limit_hits_total", "limit" => "replies").increment(1);
            return refused(run, Problem::NoRoom, request).await;
        }
        let deployment = intake.deployment.clone();
        let progress = Progress::default();
        let result = match deployment.body {
            Deployed::Steps(_) => self.steps(intake, request, &progress).await,
            Deployed::Function(_) => self.function(intake, request, &progress).await,
        };
        let mut response = match result {
            Ok(response) => with_run_id(response, run),
            Err(problem) => {
                if let Problem::UnusableReply(reason) = &problem {
                    self.unusable.note(run, &deployment, reason);
                }
                problem.into_response(run)
            }
        };
        // Where a body is still on its way after an answer, the connection cannot go on, which clients must be told before they send
        // another request on it. A response that is still being written may go with a request that is still being read.
        let is_whole = response.body().size_hint().exact().is_some();
        if is_whole && version < Version::HTTP_2 && progress.is_unread() {
            progress.settled().await;
            if progress.is_unread() {
                close(&mut response);
            }
        }
        self.counted(response, &deployment.namespace)
    }

    /// The response, which holds room until its client has taken it if it is large. The run is over and can no more be refused; but
    /// where there is no room left, the next one is.
    fn counted(&self, response: Response<Body>, namespace: &Name) -> Response<Body> {
        let size = response.body().size_hint().exact().unwrap_or_default();
        if size <= SMALL_REPLY {
            return response;
        }
        let bodies = &self.replies;
        let mut held = Room { bodies, namespace }.hold();
        held.must_take(size);
        response.map(|inner| Counted::new(inner, held).boxed_unsync())
    }

    async fn steps<B>(
        &self,
        intake: Intake,
        request: Request<B>,
        progress: &Progress,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let (parts, body) = request.into_parts();
        let mut extensions = extensions(&parts, &intake.params)?;
        if let Some(caller) = &intake.caller {
            extensions.push(("httpauthsubject".to_owned(), caller.to_string()));
        }
        let headers = parts.headers;
        let room = Room {
            bodies: &self.bodies,
            namespace: &intake.deployment.namespace,
        };
        let limit = intake.max_body;
        let body = body::read(&headers, body, limit, BODY_TIMEOUT, room, progress).await?;
        let incoming = event::from_request(&headers, body, intake.run, &intake.deployment)
            .map_err(|error| Problem::Malformed(error.to_string()))?;
        let mut event = incoming.event;
        event.extensions.extend(extensions);
        // Taken only now: whoever sends a body slowly must not keep others from running.
        let permit = self.dispatcher.admit(&intake.deployment.namespace)?;
        let run = RunRequest {
            deployment: intake.deployment,
            run: intake.run,
            trigger: intake.trigger,
            event,
            deadline: Instant::now() + intake.timeout,
            trace: event::trace(&headers),
        };
        let outcome = self.dispatcher.run_inline(permit, run).await;
        reply::from_outcome(outcome, incoming.cloudevents)
    }

    async fn function<B>(
        &self,
        intake: Intake,
        request: Request<B>,
        progress: &Progress,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let limit = intake.max_body;
        if request.body().size_hint().lower() > limit {
            let (parts, body) = request.into_parts();
            unread::discard(&parts.headers, body, progress).await;
            return Err(Problem::TooLarge { limit });
        }
        let permit = self.dispatcher.admit(&intake.deployment.namespace)?;
        let trace = event::trace(request.headers());
        let (parts, body) = request.into_parts();
        let body = match body.is_end_stream() {
            true => body::empty(),
            false => Limited::new(&parts, body, limit, progress.clone()).boxed_unsync(),
        };
        let request = Request::from_parts(parts, body);
        let deadline = Instant::now() + intake.timeout;
        let (deployment, run) = (intake.deployment, intake.run);
        let response = self
            .dispatcher
            .handle(permit, deployment, run, request, deadline, trace)
            .await;
        // Whatever the function made of a body that broke off, the caller is told why it did.
        if progress.is_exceeded() {
            return Err(Problem::TooLarge { limit });
        }
        let response = response?;
        if response.status().is_informational() {
            // These announce a response and are none; sent as one they would break the connection.
            let status = response.status();
            return Err(Problem::UnusableReply(format!(
                "the function set the status {status}, which is not from 200 to 999"
            )));
        }
        Ok(response)
    }
}

/// The answer to a request whose body nobody reads.
async fn refused<B>(run: RunId, problem: Problem, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes>,
{
    let (version, progress) = (request.version(), Progress::default());
    let (parts, body) = request.into_parts();
    unread::discard(&parts.headers, body, &progress).await;
    let mut response = problem.into_response(run);
    if progress.is_unread() && version < Version::HTTP_2 {
        close(&mut response);
    }
    response
}

/// Says that the connection ends with this response.
fn close(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// What the host alone says of a request, as extensions of its event.
fn extensions(
    parts: &Parts,
    params: &[(String, String)],
) -> Result<Vec<(String, String)>, Problem> {
    let uri = &parts.uri;
    let mut extensions = vec![
        ("httpmethod".to_owned(), parts.method.to_string()),
        ("httppath".to_owned(), uri.path().to_owned()),
    ];
    if let Some(query) = uri.query() {
        extensions.push(("httpquery".to_owned(), query.to_owned()));
    }
    for (name, value) in params {
        let value = percent::decode(value).ok_or_else(|| {
            Problem::Malformed(format!("the path's parameter '{name}' is no UTF-8"))
        })?;
        extensions.push((format!("httpparam{name}"), value.into_owned()));
    }
    Ok(extensions)
}

/// Makes a request to the API look like one to the pipeline's own route.
fn hide_api<B>(request: &mut Request<B>, spec: Option<&HttpTriggerSpec>) {
    let headers: &mut HeaderMap = request.headers_mut();
    for credential in [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, auth::SUBJECT] {
        headers.remove(credential);
    }
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    let path = spec
        .map(|spec| spec.path.as_str())
        .filter(|path| !path.contains('{'))
        .unwrap_or("/");
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path = PathAndQuery::try_from(path).unwrap_or(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
}
