use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;

use crate::auth::{Guard, admit};
use crate::body::drain_refused;
use crate::docs::get_asset;
use crate::downloads::Downloads;
use crate::host::FOLLOWERS;
use crate::observe::observe;
use crate::openapi::{openapi, operation, operations};
use crate::room::Room;
use crate::uploads::Uploads;
use crate::{ApiError, ErrorCode, Gate, Management};

/// What the operator decides of the API.
pub struct ApiOptions {
    /// Knows who bears which token.
    pub gate: Arc<dyn Gate>,
    /// Bytes of the largest component that is accepted (`limits.component`).
    pub component_limit: u64,
    /// Bytes of all components that are being uploaded (`limits.uploads`).
    pub upload_bytes: u64,
}

/// What all handlers share.
pub(crate) struct Api {
    pub(crate) management: Arc<dyn Management>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) component_limit: u64,
    pub(crate) uploads: Uploads,
    pub(crate) downloads: Downloads,
    pub(crate) followers: Arc<Room>,
}

/// The management API, ready to be served.
pub fn router(management: Arc<dyn Management>, options: ApiOptions) -> Router {
    let api = Arc::new(Api {
        management,
        gate: options.gate,
        component_limit: options.component_limit,
        uploads: Uploads::new(options.upload_bytes, options.component_limit),
        downloads: Downloads::new(),
        followers: Room::new(FOLLOWERS, 0),
    });
    let mut routes = Router::new();
    for (path, mut item) in openapi().paths.paths {
        for (method, described) in operations(&mut item) {
            let id = described.operation_id.as_deref().unwrap_or_default();
            let Some(served) = operation(id, method) else {
                continue;
            };
            let guard = Guard::new(&api, &served, described);
            let handler = served.handler.route_layer(from_fn_with_state(guard, admit));
            routes = routes.route(&path, handler);
        }
    }
    routes
        .route("/docs/{*asset}", get(get_asset))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_route)
        .layer(from_fn(drain_refused))
        .layer(from_fn(observe))
        .with_state(api)
}

async fn no_route(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::not_found(format!("route {path}")).with_hint("", "GET /openapi.json lists all routes")
}

async fn method_not_allowed(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} does not apply to {path}", request.method()),
    )
}
