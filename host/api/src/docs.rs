//! The description of the API for programs and people: the document, and Swagger UI as it is built into this program.

use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::ApiError;
use crate::error::Failures;
use crate::openapi::openapi;

/// Answers this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "host",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Failures)
)]
pub(crate) async fn get_openapi() -> Json<&'static OpenApi> {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(openapi);
    Json(&DOCUMENT)
}

/// Shows this document to people.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "host",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"), Failures)
)]
pub(crate) async fn show_docs() -> Result<Response, ApiError> {
    let page = String::from_utf8(file("index.html")?.bytes).map_err(ApiError::internal)?;
    // Its links are relative to a path that ends in a slash, which this one does not.
    let page = page.replacen("<head>", "<head>\n    <base href=\"/docs/\" />", 1);
    let content_type = HeaderValue::from_static("text/html; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], page).into_response())
}

/// Answers what the page at `/docs` loads.
pub(crate) async fn get_asset(
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What is no UTF-8 has no page either.
    let Path(path) = path.map_err(|_| ApiError::not_found("such page"))?;
    let file = file(&path)?;
    let content_type = HeaderValue::from_str(&file.content_type).map_err(ApiError::internal)?;
    let mut response = (
        [(header::CONTENT_TYPE, content_type)],
        Body::from(file.bytes),
    )
        .into_response();
    if file.gzipped {
        let gzip = HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
    }
    Ok(response)
}

struct File {
    bytes: Vec<u8>,
    content_type: String,
    gzipped: bool,
}

fn file(path: &str) -> Result<File, ApiError> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        // The page must not ask a validator on the internet.
        Arc::new(
            Config::from("/openapi.json")
                .validator_url("none")
                .persist_authorization(true),
        )
    });
    let file = utoipa_swagger_ui::serve(path, CONFIG.clone())
        .map_err(ApiError::internal)?
        .ok_or_else(|| ApiError::not_found("such page"))?;
    Ok(File {
        bytes: file.bytes.into_owned(),
        content_type: file.content_type,
        gzipped: file.gzpipped,
    })
}
