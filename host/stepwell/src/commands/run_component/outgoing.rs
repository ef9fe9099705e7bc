use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use http::Request;
use stepwell_core::{Grants, Name, Origin, Scheme, StepScope};
use stepwell_egress::{Egress, EgressConfig, EgressScope};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use super::{EVER, say};

/// The HTTP requests of a component: they go anywhere with `--network`, and nowhere without.
#[derive(Clone)]
pub(super) struct Outgoing(Option<Network>);

#[derive(Clone)]
struct Network {
    egress: Arc<Egress>,
    /// Connections are kept for as long as there is any scope.
    _home: Arc<EgressScope>,
}

type Answer = (
    http::Response<WasiBody>,
    Box<dyn Future<Output = Result<(), HttpError>> + Send>,
);

impl Outgoing {
    /// Called within the runtime.
    pub(super) fn new(network: bool) -> Result<Self> {
        if !network {
            return Ok(Self(None));
        }
        let egress = Egress::new(EgressConfig {
            private: vec!["0.0.0.0/0".parse()?, "::/0".parse()?],
            response_bytes: u64::MAX,
            ..EgressConfig::default()
        })?;
        let home = scope_of(&egress, "http://localhost")?;
        Ok(Self(Some(Network {
            egress,
            _home: home,
        })))
    }

    pub(super) fn hooks(&self) -> Box<dyn WasiHttpHooks> {
        Box::new(self.clone())
    }
}

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        sent: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, HttpError>> + Send> {
        let Some(network) = &self.0 else {
            say(&format!(
                "error: the request {} {} was refused: it needs --network",
                request.method(),
                request.uri()
            ));
            return Box::new(ready(Err(HttpError::HttpRequestDenied)));
        };
        // Each request is granted the very origin that it goes to, which opens private addresses too.
        match scope_of(&network.egress, &origin(&request)) {
            Ok(scope) => {
                let note = Arc::new(|text: &str| say(&format!("error: {text}")));
                scope
                    .call(Instant::now() + EVER, note)
                    .send_request(request, options, sent)
            }
            Err(error) => {
                say(&format!("error: a request was refused: {error:#}"));
                Box::new(ready(Err(HttpError::HttpRequestUriInvalid)))
            }
        }
    }
}

/// Of its URI, in the way that grants are written; what is no origin is left for the grant to be refused.
fn origin(request: &Request<WasiBody>) -> String {
    let uri = request.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let origin = uri
        .scheme_str()
        .and_then(Scheme::parse)
        .and_then(|scheme| Origin::new(scheme, authority).ok());
    origin.map_or_else(|| uri.to_string(), |origin| origin.to_string())
}

fn scope_of(egress: &Arc<Egress>, origin: &str) -> Result<Arc<EgressScope>> {
    let name: Name = "component".parse()?;
    let mut grants = Grants::default();
    grants.allow_http(origin.parse()?);
    let scope = StepScope {
        namespace: name.clone(),
        pipeline: name.clone(),
        revision: 1,
        step: name,
        plugin: String::new(),
        digest: None,
        grants,
        config: Vec::new(),
        cpu: Arc::default(),
    };
    egress
        .scope(&Arc::new(scope))
        .context("outgoing requests have no grant")
}
