use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use stepwell_core::Secret;
use subtle::ConstantTimeEq;

use crate::router::Api;
use crate::{ApiError, ErrorCode};

/// The token that requests must bear. Only its hash is kept: comparing hashes takes the same time for every wrong token,
/// whatever its length.
pub(crate) struct Token([u8; 32]);

impl Token {
    pub(crate) fn new(token: &Secret) -> Self {
        Self(Sha256::digest(token.expose()).into())
    }

    fn is(&self, presented: &str) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.0.ct_eq(&presented).into()
    }
}

/// Lets a request pass that bears the token, if there is one.
pub(crate) async fn authenticate(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(token) = &api.token {
        check(token, request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check(token: &Token, headers: &HeaderMap) -> Result<(), ApiError> {
    match bearer(headers) {
        Some(presented) if token.is(presented) => Ok(()),
        Some(_) => Err(unauthorized(
            "the token is not valid",
            "Bearer realm=\"stepwell\", error=\"invalid_token\"",
        )),
        None => Err(unauthorized(
            "the request has no token: send it as 'authorization: Bearer TOKEN'",
            "Bearer realm=\"stepwell\"",
        )),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

fn unauthorized(detail: &str, challenge: &'static str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, detail).with_header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    )
}
