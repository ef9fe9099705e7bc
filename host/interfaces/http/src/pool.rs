use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use metrics::gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use wasmtime_wasi_http::WasiBody;

use crate::connection::{Connection, Http1, Http2, Sent, Task};
use crate::dial::{Dialed, Dialer};
use crate::error::EgressError;
use crate::policy::Target;

/// How long a connection may wait for its next request.
const IDLE: Duration = Duration::from_secs(15);

/// HTTP/1.1 connections to one target that wait for their next request.
const IDLE_PER_TARGET: usize = 16;

/// How long a connection whose response was read may take until it can be used again.
const SETTLING: Duration = Duration::from_secs(1);

/// Bytes of a response's head, and of what is read ahead of a guest on one HTTP/1.1 connection.
const BUFFER: usize = 64 << 10;

/// Bytes that are read ahead of a guest in one HTTP/2 stream, and in all streams of one connection.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The connections of one namespace. Nobody else ever uses them.
pub(crate) struct Pool {
    dialer: Dialer,
    idle: Mutex<HashMap<Target, Idle>>,
    permits: Arc<Semaphore>,
    limit: usize,
}

#[derive(Default)]
struct Idle {
    http1: Vec<(Http1, Instant)>,
    http2: Option<(Http2, Instant)>,
}

impl Pool {
    /// A pool of at most this many connections. Must be made within the runtime.
    pub(crate) fn new(dialer: Dialer, limit: usize) -> Arc<Self> {
        let pool = Arc::new(Self {
            dialer,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(limit)),
            limit,
        });
        tokio::spawn(sweep(Arc::downgrade(&pool)));
        pool
    }

    /// Sends a request on a connection that is there already, or on a new one that is made by `connect_by`.
    pub(crate) async fn send(
        self: &Arc<Self>,
        target: &Target,
        mut request: Request<WasiBody>,
        connect_by: Instant,
        first_byte: Duration,
    ) -> Result<(http::Response<hyper::body::Incoming>, Connection), EgressError> {
        loop {
            let (mut connection, is_new) = match self.take(target) {
                Some(connection) => (connection, false),
                None => (self.connect(target, connect_by).await?, true),
            };
            connection.address(&mut request, &target.origin)?;
            let sent = timeout(first_byte, connection.send(request)).await;
            match sent.map_err(|_| EgressError::ResponseTimeout)? {
                Sent::Answered(response) => return Ok((response, connection)),
                Sent::Failed(error) => return Err(EgressError::of_hyper(&error)),
                // It was closed while it waited: nothing of the request has left, so another one may take it.
                Sent::Unsent(unsent, _) if !is_new => request = *unsent,
                Sent::Unsent(_, error) => return Err(EgressError::of_hyper(&error)),
            }
        }
    }

    /// Takes back a connection whose response was read to its end.
    pub(crate) fn give_back(self: &Arc<Self>, target: &Target, connection: Connection) {
        // The pool has a handle of HTTP/2 connections all the time.
        let Connection::Http1(mut connection) = connection else {
            return;
        };
        if connection.sender.is_ready() {
            self.keep(target, connection);
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (pool, target) = (Arc::downgrade(self), target.clone());
            runtime.spawn(async move {
                if let Ok(Ok(())) = timeout(SETTLING, connection.sender.ready()).await
                    && let Some(pool) = pool.upgrade()
                {
                    pool.keep(&target, connection);
                }
            });
        }
    }

    fn keep(&self, target: &Target, connection: Http1) {
        let mut idle = self.lock();
        let idle = &mut idle.entry(target.clone()).or_default().http1;
        if idle.len() < IDLE_PER_TARGET {
            idle.push((connection, Instant::now()));
        }
    }

    fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.lock();
        let idle = idle.get_mut(target)?;
        if let Some((connection, used)) = &mut idle.http2 {
            if !connection.sender.is_closed() {
                *used = Instant::now();
                return Some(Connection::Http2(connection.clone()));
            }
            idle.http2 = None;
        }
        while let Some((connection, _)) = idle.http1.pop() {
            if connection.sender.is_ready() {
                return Some(Connection::Http1(connection));
            }
        }
        None
    }

    async fn connect(&self, target: &Target, by: Instant) -> Result<Connection, EgressError> {
        let permit = self.permit(by).await?;
        let Dialed { io, http2 } = self.dialer.dial(target, by).await?;
        let io = TokioIo::new(io);
        if !http2 {
            let handshake = http1::Builder::new()
                .max_buf_size(BUFFER)
                .handshake(io)
                .await;
            let (sender, connection) = handshake.map_err(|error| EgressError::of_hyper(&error))?;
            let task = Task(tokio::spawn(drive(permit, connection)));
            return Ok(Connection::Http1(Http1 {
                sender,
                _task: task,
            }));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(BUFFER as u32);
        let (sender, connection) = timeout_at(by, builder.handshake(io))
            .await
            .map_err(|_| EgressError::ConnectTimeout)?
            .map_err(|error| EgressError::of_hyper(&error))?;
        let task = Arc::new(Task(tokio::spawn(drive(permit, connection))));
        let connection = Http2 { sender, task };
        self.lock().entry(target.clone()).or_default().http2 =
            Some((connection.clone(), Instant::now()));
        Ok(Connection::Http2(connection))
    }

    /// A place for one more connection; one that nobody uses makes room.
    async fn permit(&self, by: Instant) -> Result<OwnedSemaphorePermit, EgressError> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        self.evict();
        timeout_at(by, self.permits.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(EgressError::Connections(self.limit))
    }

    /// Closes the connection that has waited longest.
    fn evict(&self) {
        let mut idle = self.lock();
        let oldest = idle
            .iter()
            .filter_map(|(target, idle)| Some((idle.oldest()?, target.clone())))
            .min_by_key(|(since, _)| *since);
        if let Some((since, target)) = oldest
            && let Some(idle) = idle.get_mut(&target)
        {
            idle.close_until(since);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Idle>> {
        // Nothing is half done here when a thread panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// Since when the connection has waited that has waited longest.
    fn oldest(&self) -> Option<Instant> {
        let http2 = self.http2.as_ref().filter(|(it, _)| it.is_unused());
        let waiting = self.http1.iter().map(|(_, since)| *since);
        waiting.chain(http2.map(|(_, since)| *since)).min()
    }

    fn close_until(&mut self, end: Instant) {
        self.http1.retain(|(_, since)| *since > end);
        self.http2
            .take_if(|(it, since)| it.sender.is_closed() || (*since <= end && it.is_unused()));
    }
}

/// Drives a connection until it ends; its place is free from then on.
async fn drive<C: Future<Output = hyper::Result<()>>>(permit: OwnedSemaphorePermit, connection: C) {
    let _open = Open::new(permit);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an outbound connection ended");
    }
}

struct Open {
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        gauge!("stepwell_egress_connections_open").increment(1);
        Self { _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!("stepwell_egress_connections_open").decrement(1);
    }
}

/// Closes what has waited too long, for as long as anybody has the pool.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE / 3).await;
        let Some(pool) = pool.upgrade() else { return };
        let Some(end) = Instant::now().checked_sub(IDLE) else {
            continue;
        };
        pool.lock().retain(|_, idle| {
            idle.close_until(end);
            idle.http2.is_some() || !idle.http1.is_empty()
        });
    }
}
