use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use stepwell_core::Secret;

use crate::auth::{Token, authenticate};
use crate::body::drain_refused;
use crate::docs::get_asset;
use crate::observe::observe;
use crate::openapi::{handler, needs_token, openapi, operations};
use crate::uploads::Uploads;
use crate::{ApiError, ErrorCode, Management};

/// What the operator decides of the API.
pub struct ApiOptions {
    /// What requests must bear; none: they need nothing.
    pub admin_token: Option<Secret>,
    /// Bytes of the largest component that is accepted (`limits.component`).
    pub component_limit: u64,
    /// Bytes of all components that are being uploaded (`limits.uploads`).
    pub upload_bytes: u64,
}

/// What all handlers share.
pub(crate) struct Api {
    pub(crate) management: Arc<dyn Management>,
    pub(crate) token: Option<Token>,
    pub(crate) component_limit: u64,
    pub(crate) uploads: Uploads,
}

/// The management API, ready to be served.
pub fn router(management: Arc<dyn Management>, options: ApiOptions) -> Router {
    let api = Arc::new(Api {
        management,
        token: options.admin_token.as_ref().map(Token::new),
        component_limit: options.component_limit,
        uploads: Uploads::new(options.upload_bytes),
    });
    let (mut open, mut guarded) = (Router::new(), Router::new());
    for (path, mut item) in openapi().paths.paths {
        for (method, operation) in operations(&mut item) {
            let id = operation.operation_id.as_deref().unwrap_or_default();
            let Some(handler) = handler(id, method) else {
                continue;
            };
            if needs_token(&path) {
                guarded = guarded.route(&path, handler);
            } else {
                open = open.route(&path, handler);
            }
        }
    }
    open.route("/docs/{*asset}", get(get_asset))
        .merge(guarded.route_layer(from_fn_with_state(api.clone(), authenticate)))
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
