//! A stand-in for Pinecone's service, for tests: the documented REST protocol (vectors and as much of index management as
//! the vendor's own clients need) over an in-memory index that shares nothing with the host's.
//!
//! It is only worth something because the vendor's own, unmodified Python clients pass their checks against it
//! (`tests/vendor_client.rs`); what then works against it has met more than our reading of the documentation.
#![allow(
    clippy::indexing_slicing,
    reason = "JSON is indexed by member only: what is missing reads as null, and is made when written"
)]

mod control;
mod data;
mod fault;
mod filter;
mod form;
mod index;
mod reply;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use fault::Fault;
use index::Index;
use reply::Refusal;

/// The key that requests must carry.
pub const API_KEY: &str = "pcsk_stand-in-5a1f9d";

/// A running stand-in; it stops when dropped.
pub struct Pinecone {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    state: Mutex<World>,
}

#[derive(Default)]
struct World {
    indexes: BTreeMap<String, Index>,
    faults: Vec<Fault>,
    requests: Vec<String>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host_of(&self, index: &str) -> String {
        format!("http://{}/i/{index}", self.address)
    }
}

impl Pinecone {
    /// Starts it on a free port of the loopback interface.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts it where another one was.
    ///
    /// # Errors
    /// The address is in use.
    pub async fn start_at(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            address,
            state: Mutex::default(),
        });
        let router = router(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the stand-in stopped: {error}");
            }
        });
        Ok(Self {
            address,
            shared,
            server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the management API: a client's `host`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes an index without the management API; answers its host.
    pub fn create_index(&self, name: &str, dimension: usize, metric: &str) -> String {
        self.shared
            .world()
            .indexes
            .insert(name.to_owned(), Index::new(dimension, metric));
        self.shared.host_of(name)
    }

    /// Lets the next requests go wrong, each fault for one request, in this order.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.world().faults.extend(faults);
    }

    /// Drops faults that were not used.
    pub fn heal(&self) {
        self.shared.world().faults.clear();
    }

    /// `METHOD path` of every request so far, faulty ones included.
    pub fn requests(&self) -> Vec<String> {
        self.shared.world().requests.clone()
    }
}

impl Drop for Pinecone {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let data = Router::new()
        .route("/vectors/upsert", post(data::upsert))
        .route("/query", post(data::query))
        .route("/vectors/fetch", get(data::fetch))
        .route("/vectors/fetch_by_metadata", post(data::fetch_by_metadata))
        .route("/vectors/update", post(data::update))
        .route("/vectors/delete", post(data::delete))
        .route("/vectors/list", get(data::list))
        .route("/describe_index_stats", post(data::stats).get(data::stats));
    Router::new()
        .route("/indexes", post(control::create).get(control::list))
        .route(
            "/indexes/{name}",
            get(control::describe).delete(control::delete),
        )
        .nest("/i/{index}", data)
        .fallback(|| async { Refusal::control(404, "NOT_FOUND", "there is no such resource") })
        .layer(axum::extract::DefaultBodyLimit::max(2 << 20))
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// What every request meets first: the key, the version, and the faults that a test asked for.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let fault = {
        let mut world = shared.world();
        let line = format!("{} {}", request.method(), request.uri().path());
        world.requests.push(line);
        (!world.faults.is_empty()).then(|| world.faults.remove(0))
    };
    if let Some(fault) = fault {
        match fault {
            Fault::Slow(pause) => tokio::time::sleep(pause).await,
            Fault::Status {
                status,
                retry_after,
            } => return fault::refuse(status, retry_after),
            Fault::Garbage => return "this is no JSON".into_response(),
        }
    }
    match refusal(request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn refusal(headers: &HeaderMap) -> Option<Response> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if header("api-key") != Some(API_KEY) {
        return Some((StatusCode::UNAUTHORIZED, "Invalid API Key").into_response());
    }
    // A missing version means the oldest one; a wrong one is refused.
    header("x-pinecone-api-version")
        .filter(|version| !is_version(version))
        .map(|version| {
            Refusal::data(3, format!("'{version}' is not an API version")).into_response()
        })
}

fn is_version(text: &str) -> bool {
    let (year, month) = text.split_once('-').unwrap_or_default();
    year.len() == 4 && year.parse::<u32>().is_ok() && matches!(month, "01" | "04" | "07" | "10")
}
