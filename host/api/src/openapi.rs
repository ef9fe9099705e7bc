use std::sync::Arc;

use axum::routing::{MethodFilter, MethodRouter, on};
use stepwell_core::Right::{Change, Invoke, Operate, Read};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};
use utoipa::{Modify, OpenApi as _};

use crate::needs::Needs::{self, Everywhere, Here, Nothing, Somewhere};
use crate::router::Api;
use crate::{audit, docs, host, namespaces, pipelines, plugins, tokens};

/// The description of every route that the API serves.
pub fn openapi() -> OpenApi {
    Document::openapi()
}

/// One list makes the description, the handlers, and what each of them needs.
macro_rules! operations {
    ($($module:ident::$handler:ident: $needs:expr),+ $(,)?) => {
        #[derive(utoipa::OpenApi)]
        #[openapi(
            info(
                title = "Stepwell management API",
                description = "What the admin listener serves. Errors are RFC 9457 problem details: act on `code`, read `detail`.",
                license(name = "Apache-2.0", identifier = "Apache-2.0"),
            ),
            paths($($module::$handler),+),
            components(schemas(crate::ProblemDetails, crate::ErrorCode)),
            modifiers(&Tokens),
            tags(
                (name = "plugins", description = "WebAssembly components, versioned and immutable"),
                (name = "pipelines", description = "Graphs of steps, revisioned"),
                (name = "access", description = "Namespaces, tokens, and who did what"),
                (name = "host", description = "The host itself"),
            )
        )]
        struct Document;

        /// The operation with this id.
        pub(crate) fn operation(id: &str, method: MethodFilter) -> Option<Served> {
            match id {
                $(stringify!($handler) => Some(Served {
                    id: stringify!($handler),
                    needs: $needs,
                    handler: on(method, $module::$handler),
                }),)+
                _ => None,
            }
        }
    };
}

/// An operation as it is served.
pub(crate) struct Served {
    pub(crate) id: &'static str,
    pub(crate) needs: Needs,
    pub(crate) handler: MethodRouter<Arc<Api>>,
}

operations!(
    plugins::put_plugin_version: Here(Change),
    plugins::list_plugins: Here(Read),
    plugins::show_plugin: Here(Read),
    plugins::show_plugin_version: Here(Read),
    plugins::delete_plugin_version: Here(Change),
    plugins::get_component: Here(Read),
    pipelines::put_pipeline: Here(Change),
    pipelines::list_pipelines: Here(Read),
    pipelines::show_pipeline: Here(Read),
    pipelines::delete_pipeline: Here(Change),
    pipelines::list_pipeline_revisions: Here(Read),
    pipelines::show_pipeline_revision: Here(Read),
    pipelines::rollback_pipeline: Here(Change),
    host::invoke_pipeline: Here(Invoke),
    host::show_logs: Here(Read),
    host::list_models: Somewhere(Read),
    host::show_model: Somewhere(Read),
    host::list_bindings: Somewhere(Read),
    namespaces::list_namespaces: Somewhere(Read),
    namespaces::show_namespace: Here(Read),
    namespaces::put_namespace: Everywhere(Operate),
    namespaces::delete_namespace: Everywhere(Operate),
    tokens::create_token: Everywhere(Operate),
    tokens::list_tokens: Everywhere(Operate),
    tokens::show_token: Everywhere(Operate),
    tokens::revoke_token: Everywhere(Operate),
    audit::show_audit: Somewhere(Change),
    host::livez: Nothing,
    host::readyz: Nothing,
    host::show_metrics: Everywhere(Read),
    docs::get_openapi: Nothing,
    docs::show_docs: Nothing,
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

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut OpenApi) {
        const SCHEME: &str = "token";
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "A token that `POST /api/v1/tokens` made, or the host's `[server] admin_token`; while that is not configured, and the admin listener is on loopback, none is needed",
            ))
            .build();
        document
            .components
            .get_or_insert_with(Components::new)
            .add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
        for item in document.paths.paths.values_mut() {
            for (method, described) in operations(item) {
                let id = described.operation_id.as_deref().unwrap_or_default();
                let Some(served) = operation(id, method) else {
                    continue;
                };
                let roles = served.needs.roles();
                if !roles.is_empty() {
                    let token = SecurityRequirement::new(SCHEME, roles);
                    described.security = Some(vec![token]);
                }
                let needs = served.needs.to_string();
                described.description = Some(match described.description.take() {
                    Some(text) => format!("{text}\n\n{needs}"),
                    None => needs,
                });
            }
        }
    }
}
