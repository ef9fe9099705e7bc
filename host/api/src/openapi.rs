use std::sync::Arc;

use axum::routing::{MethodFilter, MethodRouter, on};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};
use utoipa::{Modify, OpenApi as _};

use crate::router::Api;
use crate::{docs, host, pipelines, plugins};

/// The description of every route that the API serves.
pub fn openapi() -> OpenApi {
    Document::openapi()
}

/// One list makes both the description and the handlers.
macro_rules! operations {
    ($($module:ident::$handler:ident),+ $(,)?) => {
        #[derive(utoipa::OpenApi)]
        #[openapi(
            info(
                title = "Stepwell management API",
                description = "What the admin listener serves. Errors are RFC 9457 problem details: act on `code`, read `detail`.",
                license(name = "Apache-2.0", identifier = "Apache-2.0"),
            ),
            paths($($module::$handler),+),
            components(schemas(crate::ProblemDetails, crate::ErrorCode)),
            modifiers(&Token),
            tags(
                (name = "plugins", description = "WebAssembly components, versioned and immutable"),
                (name = "pipelines", description = "Graphs of steps, revisioned"),
                (name = "host", description = "The host itself"),
            )
        )]
        struct Document;

        /// The handler of the operation with this id.
        pub(crate) fn handler(id: &str, method: MethodFilter) -> Option<MethodRouter<Arc<Api>>> {
            match id {
                $(stringify!($handler) => Some(on(method, $module::$handler)),)+
                _ => None,
            }
        }
    };
}

operations!(
    plugins::put_plugin_version,
    plugins::list_plugins,
    plugins::show_plugin,
    plugins::show_plugin_version,
    plugins::delete_plugin_version,
    plugins::get_component,
    pipelines::put_pipeline,
    pipelines::list_pipelines,
    pipelines::show_pipeline,
    pipelines::delete_pipeline,
    pipelines::list_pipeline_revisions,
    pipelines::show_pipeline_revision,
    pipelines::rollback_pipeline,
    host::invoke_pipeline,
    host::show_logs,
    host::list_models,
    host::show_model,
    host::list_bindings,
    host::livez,
    host::readyz,
    host::show_metrics,
    docs::get_openapi,
    docs::show_docs,
);

/// The operations of a path.
pub(crate) fn operations(
    item: &mut PathItem,
) -> impl Iterator<Item = (MethodFilter, &mut Operation)> {
    [
        (MethodFilter::GET, &mut item.get),
        (MethodFilter::PUT, &mut item.put),
        (MethodFilter::POST, &mut item.post),
        (MethodFilter::DELETE, &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Whether requests to a path must bear the admin token, if there is one: all but those for orchestrators' probes and
/// for the description, which tells nothing of this host.
pub(crate) fn needs_token(path: &str) -> bool {
    path.starts_with("/api/") || path == "/metrics"
}

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut OpenApi) {
        const SCHEME: &str = "admin_token";
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The host's `[server] admin_token`, if it has one"))
            .build();
        document
            .components
            .get_or_insert_with(Components::new)
            .add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
        for (path, item) in &mut document.paths.paths {
            for (_, operation) in operations(item).filter(|_| needs_token(path)) {
                let token = SecurityRequirement::new(SCHEME, Vec::<String>::new());
                operation.security = Some(vec![token]);
            }
        }
    }
}
