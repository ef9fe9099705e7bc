//! A client of the router, and what it is answered.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use stepwell_api::{ApiOptions, router};
use tower::ServiceExt as _;

use crate::fake::{Fake, FakeGate};

pub(crate) struct Client {
    pub(crate) fake: Arc<Fake>,
    pub(crate) gate: Arc<FakeGate>,
    router: Router,
    token: Option<&'static str>,
}

impl Client {
    /// A client whose server asks for no token.
    pub(crate) fn new() -> Self {
        Self::of(FakeGate {
            is_open: true,
            ..FakeGate::default()
        })
    }

    /// A client whose server asks for tokens; the client does not send one by itself.
    pub(crate) fn guarded() -> Self {
        Self::of(FakeGate::default())
    }

    fn of(gate: FakeGate) -> Self {
        let (fake, gate) = (Arc::new(Fake::default()), Arc::new(gate));
        let options = ApiOptions {
            gate: gate.clone(),
            component_limit: 1 << 20,
            upload_bytes: 1 << 30,
        };
        Self {
            router: router(fake.clone(), options),
            fake,
            gate,
            token: None,
        }
    }

    pub(crate) fn bearing(mut self, token: &'static str) -> Self {
        self.token = Some(token);
        self
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        Reply::read(self.raw(request.body(body.into()).unwrap()).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Body::empty()).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.send(Method::PUT, path, &[], body).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.send(Method::POST, path, &[], body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], Body::empty()).await
    }
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    async fn read(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that this is a whole problem with this status and code, and answers it.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["code"], code);
        assert_eq!(problem["type"], format!("urn:stepwell:problem:{code}"));
        for member in ["title", "detail"] {
            let text = problem[member].as_str().unwrap();
            assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
        }
        problem
    }
}
