use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto::Builder;
use stepwell_pipeline::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::BoxError;
use crate::joined::{Joined, Stall};
use crate::proper;
use crate::quiet::quietly;
use crate::seats::{Lasting, Place, Seat, Seats};
use crate::taken::{Streams, Taken};
use crate::timer::HeadTimer;
use crate::tls::Tls;
use crate::trigger::HttpTrigger;

/// How long a new connection may take to bring its first request once the host stops.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Bytes of one HTTP/2 stream that may wait in the connection's buffers. Their client may leave them there for as long as it may take
/// nothing, on each of its streams.
const SEND_BUFFER: usize = 64 << 10;

/// Connections that may wait to be accepted when the host stops: what the kernel queues for us.
const BACKLOG: usize = 1024;

/// Answers the requests of a listener.
pub trait Answers: Send + Sync + 'static {
    /// The body of its responses.
    type Body: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Answers one request.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

impl Answers for HttpTrigger {
    type Body = Body;

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match proper::check(&request) {
            Ok(()) => self.handle(request).await,
            Err(problem) => self.refuse(request, problem).await,
        }
    }
}

/// What a listener puts up with.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// `data` or `admin`, for metrics and the log.
    pub listener: &'static str,
    /// Connections at once. A further one takes the place of the one that is idle between requests for longest; where none is,
    /// it waits.
    pub connections: usize,
    /// Whether it does not wait, but takes the place of the one that is being answered for longest.
    pub displaces_busy: bool,
    /// Time for a request's head to arrive, from the end of the request before it: also how long a connection may be idle. The
    /// first one's is counted from the connection on, whichever protocol it turns out to speak.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Headers of one request.
    pub headers: usize,
    /// Bytes of all headers of one request.
    pub header_bytes: usize,
    /// Time for open connections to end after `shutdown`.
    pub grace: Duration,
    /// TLS; none: connections are plain.
    pub tls: Option<Arc<Tls>>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listener: "data",
            connections: 10_000,
            displaces_busy: false,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            headers: 100,
            header_bytes: 64 << 10,
            grace: Duration::from_secs(25),
            tls: None,
        }
    }
}

/// Serves a listener until `shutdown`, then lets every request that was begun be answered within the grace period. When this
/// returns, no connection is open.
pub async fn serve<A: Answers>(
    listener: TcpListener,
    answers: Arc<A>,
    config: ServeConfig,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    // Cancelled when the grace period is over, or this future is dropped.
    let abort = CancellationToken::new();
    let _abort_on_drop = abort.clone().drop_guard();
    let seats = Seats::new(config.connections, config.displaces_busy);
    let mut waiting = None;
    let config = Arc::new(config);
    let take = |(stream, place): (TcpStream, Place)| {
        let seat = place.seat.clone();
        let speaker = Speaker {
            answers: answers.clone(),
            config: config.clone(),
            shutdown: shutdown.clone(),
            seat: seat.clone(),
        };
        let listener = config.listener;
        let connection = connection(stream, speaker, place);
        let abort = abort.clone();
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = connection => {}
                () = quietly(abort.cancelled()) => {}
                () = quietly(seat.lost()) => given_up(listener, "displaced"),
            }
        });
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &seats, &mut waiting) => take(accepted),
        }
    }
    // Connections that are made already are taken even now, since closing the listener would reset them; only so many,
    // since new ones may never cease.
    for _ in 0..BACKLOG {
        let accepted = accept(&listener, &seats, &mut waiting);
        match tokio::time::timeout(Duration::from_millis(5), accepted).await {
            Ok(accepted) => take(accepted),
            Err(_) => break,
        }
    }
    // Some are made all the while, and a busy runtime hears late of them: the kernel is asked itself, right before the end.
    if let Ok(listener) = listener.into_std() {
        for stream in std::iter::from_fn(|| made(&listener)).take(BACKLOG) {
            match tokio::time::timeout(Duration::from_millis(5), seats.enter()).await {
                Ok(place) => take((stream, place)),
                Err(_) => break,
            }
        }
    }
    connections.close();
    if tokio::time::timeout(config.grace, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            listener = config.listener,
            "connections were still open at the end of the grace period"
        );
        abort.cancel();
        connections.wait().await;
    }
}

/// A connection that the kernel has made already.
fn made(listener: &std::net::TcpListener) -> Option<TcpStream> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(true).ok()?;
    TcpStream::from_std(stream).ok()
}

/// Accepts a connection and finds a place for it. One that still waits for its place is in `waiting`, for the next call, when
/// this future is dropped.
async fn accept(
    listener: &TcpListener,
    seats: &Arc<Seats>,
    waiting: &mut Option<TcpStream>,
) -> (TcpStream, Place) {
    loop {
        if waiting.is_none() {
            match listener.accept().await {
                Ok((stream, _)) => *waiting = Some(stream),
                Err(error) => {
                    // Mostly too many open files: they are given back by and by.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
        }
        let place = seats.enter().await;
        if let Some(stream) = waiting.take() {
            return (stream, place);
        }
    }
}

fn builder(config: &ServeConfig, streams: Streams) -> Builder<Streams> {
    let mut builder = Builder::new(streams);
    builder
        .http1()
        .timer(HeadTimer::default())
        .header_read_timeout(config.header_timeout)
        .max_headers(config.headers)
        .max_buf_size(config.header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(config.header_timeout)
        .max_header_list_size(u32::try_from(config.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(256)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// What a connection is served with.
struct Speaker<A> {
    answers: Arc<A>,
    config: Arc<ServeConfig>,
    shutdown: CancellationToken,
    seat: Arc<Seat>,
}

async fn connection<A: Answers>(stream: TcpStream, speaker: Speaker<A>, _place: Place) {
    let _open = Open::new(speaker.config.listener);
    // Without it, a streamed response waits for the client's delayed acknowledgements.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let Some(tls) = speaker.config.tls.clone() else {
        return speak(stream, false, speaker).await;
    };
    let told_to_stop = async {
        speaker.shutdown.cancelled().await;
        tokio::time::sleep(FIRST_REQUEST).await;
    };
    let stream = tokio::select! {
        stream = tls.accept(stream) => stream,
        () = told_to_stop => None,
    };
    if let Some(stream) = stream {
        speak(stream, true, speaker).await;
    }
}

/// HTTP, until the connection ends.
async fn speak<S, A>(stream: S, secure: bool, speaker: Speaker<A>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Answers,
{
    let Speaker {
        answers,
        config,
        shutdown,
        seat,
    } = speaker;
    let (listener, header_timeout) = (config.listener, config.header_timeout);
    let streams = Streams::new(config.write_timeout, listener);
    let builder = builder(&config, streams.clone());
    // Requests count on this connection's own, not on the one that every thread writes to.
    let answers = Arc::new(answers);
    let (begun, http2) = (AtomicU64::new(0), AtomicBool::new(false));
    let first = Notify::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        say_scheme(&mut request, secure);
        // Nobody else writes: all of a connection is one task.
        let before = begun.load(Ordering::Relaxed);
        begun.store(before + 1, Ordering::Relaxed);
        if before == 0 {
            http2.store(request.version() == Version::HTTP_2, Ordering::Relaxed);
            first.notify_one();
        }
        let answers = answers.clone();
        let (exchange, streamed) = (seat.begin(), request.version() == Version::HTTP_2);
        async move {
            let response = answers.answer(request).await;
            let lasting = |body| Taken::new(Lasting::new(body, exchange), streamed);
            Ok::<_, Infallible>(response.map(lasting))
        }
    });
    let stall = Stall::new(config.write_timeout, listener);
    let stream = Joined::new(stream, stall, seat.clone());
    let connection = builder.serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let stop = quietly(async {
        shutdown.cancelled().await;
        // On a connection that was only just made, a request is on its way.
        if begun.load(Ordering::Relaxed) == 0 {
            let _ = tokio::time::timeout(FIRST_REQUEST, first.notified()).await;
        }
    });
    // What reads the first bytes to tell the protocols apart has no timer, nor has HTTP/2 for its requests.
    let silent = quietly(async {
        let mut before = 0;
        loop {
            tokio::time::sleep(header_timeout).await;
            let now = begun.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            if !http2.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            before = now;
        }
    });
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = silent => {
            if begun.load(Ordering::Relaxed) == 0 {
                return given_up(listener, "silent");
            }
            // What is under way on it is still answered.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = connection => ended,
                () = quietly(streams.left()) => return given_up(listener, "stalled"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

/// Counts a connection that is closed for what its client does not do.
pub(crate) fn given_up(listener: &'static str, reason: &'static str) {
    metrics::counter!("stepwell_connections_given_up_total", "listener" => listener, "reason" => reason)
        .increment(1);
}

/// Functions want to know whether a request came over TLS. HTTP/1.1 mostly does not say it, and a client may say what it likes.
fn say_scheme<B>(request: &mut Request<B>, secure: bool) {
    let scheme = match secure {
        true => Scheme::HTTPS,
        false => Scheme::HTTP,
    };
    match request.uri().scheme() {
        Some(said) if *said == scheme => return,
        // Nothing said is plain HTTP for functions.
        None if !secure => return,
        _ => {}
    }
    let authority = request.uri().authority().cloned().or_else(|| {
        let host = request.headers().get(HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    });
    if authority.is_none() || !request.uri().path().starts_with('/') {
        return;
    }
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(scheme);
    parts.authority = authority;
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// A connection that counts as open.
struct Open(metrics::Gauge);

impl Open {
    fn new(listener: &'static str) -> Self {
        let gauge = match listener {
            "admin" => metrics::gauge!("stepwell_api_connections"),
            _ => metrics::gauge!("stepwell_http_connections"),
        };
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}
