//! What one request costs a function (`wasi:http`), in a fresh instance and in one that is kept: with wasmtime alone in the same
//! settings, without limits, logs or metering, and through the engine. The first is the floor of the second.
//!
//! `cargo run --release -p stepwell-engine --example floor -- hello-http.wasm [CALLS [bare|fresh|reused]]`

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use stepwell_core::{Digest, Limits, Reuse};
use stepwell_engine::{
    Bind, Body, Engine, EngineConfig, Environment, LogSink, LogStream, StoreBase, StoreState,
};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
};

type Answer = Response<WasiBody>;
type Failure = Box<dyn Error + Send + Sync>;

struct State(StoreBase);

impl StoreState for State {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

struct Silent;

impl LogSink for Silent {
    fn line(&self, _stream: LogStream, _text: &str) {}
}

struct Calling(Arc<Environment>, Arc<Silent>);

impl Bind<State> for Calling {
    fn fresh(&self) -> State {
        State(StoreBase::new(self.0.clone(), self.1.clone()))
    }

    fn renew(&self, state: &mut State) {
        state.0.rebind(self.1.clone());
    }
}

/// As little as wasmtime's own bindings need.
struct Bare {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Offline,
}

struct Offline;

type Sent = Box<dyn Future<Output = Result<(), HttpError>> + Send>;

impl WasiHttpHooks for Offline {
    fn send_request(
        &mut self,
        _request: Request<WasiBody>,
        _options: Option<RequestOptions>,
        _sent: Sent,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Sent), HttpError>> + Send> {
        Box::new(std::future::ready(Err(HttpError::HttpRequestDenied)))
    }
}

impl WasiView for Bare {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Bare {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

fn request() -> Result<Request<Body>, Failure> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    Ok(Request::get("http://localhost/hello").body(body)?)
}

/// Reads a response to its end.
async fn finish<B>(response: Response<B>) -> Result<usize, Failure>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let body = response.into_body().collect().await;
    Ok(body.map_err(|error| format!("{error:?}"))?.to_bytes().len())
}

fn bare(bytes: &[u8]) -> Result<ProxyPre<Bare>, Failure> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(1000)
        .total_core_instances(4000)
        .total_tables(4000)
        .total_memories(1000)
        .total_stacks(1000)
        .max_unused_warm_slots(1000)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let engine = wasmtime::Engine::new(&config)?;
    let mut linker = Linker::<Bare>::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    let component = Component::new(&engine, bytes)?;
    Ok(ProxyPre::new(linker.instantiate_pre(&component)?)?)
}

fn store(pre: &ProxyPre<Bare>) -> Store<Bare> {
    let state = Bare {
        table: ResourceTable::new(),
        wasi: WasiCtx::builder().build(),
        http: WasiHttpCtx::new(),
        hooks: Offline,
    };
    let mut store = Store::new(pre.engine(), state);
    store.set_epoch_deadline(1 << 40);
    store
}

async fn call_bare(store: &mut Store<Bare>, proxy: &Proxy) -> Result<Answer, Failure> {
    let (sender, head) = tokio::sync::oneshot::channel();
    let request = request()?.map(|body| {
        body.map_err(|_| HttpError::ConnectionTerminated)
            .boxed_unsync()
    });
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let out = http.new_response_outparam(sender)?;
    proxy
        .wasi_http_incoming_handler()
        .call_handle(store, request, out)
        .await?;
    Ok(head.await?.map_err(|code| format!("{code:?}"))?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("which component?")?;
    let calls: u32 = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    let bytes = Bytes::from(std::fs::read(file)?);
    let bare = bare(&bytes)?;
    let cache = tempfile::tempdir()?;
    let engine = Engine::<State>::new(EngineConfig::new(cache.path()), |_| Ok(()))?;
    let fetched = bytes.clone();
    let fetch = async move { Ok::<_, String>(fetched) };
    let plugin = engine.load(Digest::of(&bytes), fetch).await?;
    let limits = Limits::default();
    let kept = plugin.keep(limits, Reuse::default());
    let calling = Calling(Arc::default(), Arc::new(Silent));
    let deadline = || Instant::now() + Duration::from_secs(60);
    let only = arguments.next();
    let wanted = |side: &str| only.as_deref().is_none_or(|only| only == side);
    let mut out = std::io::stdout();
    // By turns, so that what disturbs the machine disturbs all.
    for _ in 0..3 {
        if wanted("bare") {
            let began = Instant::now();
            for _ in 0..calls {
                let mut store = store(&bare);
                let proxy = bare.instantiate_async(&mut store).await?;
                let answer = call_bare(&mut store, &proxy).await?;
                drop(store);
                finish(answer).await?;
            }
            let fresh = began.elapsed() / calls;
            let mut store = store(&bare);
            let proxy = bare.instantiate_async(&mut store).await?;
            let began = Instant::now();
            for _ in 0..calls {
                finish(call_bare(&mut store, &proxy).await?).await?;
            }
            let reused = began.elapsed() / calls;
            write!(out, "wasmtime alone: fresh {fresh:?}, reused {reused:?}  ")?;
        }
        if wanted("fresh") {
            let began = Instant::now();
            for _ in 0..calls {
                let state = calling.fresh();
                let response = plugin.handle(state, limits, deadline(), request()?);
                finish(response.await?).await?;
            }
            write!(
                out,
                "through the engine: fresh {:?}  ",
                began.elapsed() / calls
            )?;
        }
        if wanted("reused") {
            let began = Instant::now();
            for _ in 0..calls {
                let response = kept.handle(&plugin, &calling, deadline(), request()?);
                finish(response.await?).await?;
            }
            write!(out, "reused {:?}", began.elapsed() / calls)?;
        }
        writeln!(out)?;
    }
    Ok(())
}
