//! The same work as the guests', done by axum and hyper handlers: what a request costs without WebAssembly.

use std::convert::Infallible;
use std::future::IntoFuture as _;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::{any, post};
use axum::serve::ListenerExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Serves on a free port, named on stdout as `wasmtime serve` does it, until the process is killed.
pub(crate) async fn serve() -> Result<()> {
    let listener = listen().await?;
    let routes = Router::new()
        .route("/hello", any(hello))
        .route("/echo", post(echo));
    // As the host does; a socket that refuses is served all the same.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, routes).into_future().await?;
    Ok(())
}

/// The same without routes: `/hello` on every path.
pub(crate) async fn serve_hyper() -> Result<()> {
    let listener = listen().await?;
    loop {
        let (stream, _) = listener.accept().await?;
        drop(stream.set_nodelay(true));
        tokio::spawn(async move {
            let service = service_fn(
                |request: hyper::Request<hyper::body::Incoming>| async move {
                    let (parts, _) = request.into_parts();
                    Ok::<_, Infallible>(hello(parts.method, parts.uri).await.into_response())
                },
            );
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new());
            // A connection that breaks is the load generator's to notice.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    crate::output::line(&format!(
        "Serving HTTP on http://{}/",
        listener.local_addr()?
    ));
    Ok(listener)
}

async fn hello(method: Method, uri: Uri) -> impl IntoResponse {
    let greeting = serde_json::json!({
        "hello": "from a wasi:http component",
        "method": method.as_str(),
        "path": uri.path(),
        "query": uri.query().unwrap_or_default(),
    });
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], greeting.to_string())
}

async fn echo(headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let binary = HeaderValue::from_static("application/octet-stream");
    let media_type = headers.get(CONTENT_TYPE).cloned().unwrap_or(binary);
    ([(CONTENT_TYPE, media_type)], body)
}
