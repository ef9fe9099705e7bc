use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use crate::logs::CallLog;

/// Bytes that a guest may write to a body at once; two such pieces may wait to be read.
pub(crate) const BODY_CHUNK: usize = 64 << 10;

/// Outbound HTTP of one call: linked for every guest, since some languages always import it, and denied unless the call was given
/// something that sends requests.
pub(crate) struct Outbound {
    given: Option<Box<dyn WasiHttpHooks>>,
    log: CallLog,
}

impl Outbound {
    pub(crate) fn new(log: CallLog) -> Self {
        Self { given: None, log }
    }

    /// What is refused from now on is noted there.
    pub(crate) fn note_in(&mut self, log: &CallLog) {
        self.log = log.clone();
    }

    pub(crate) fn set(&mut self, hooks: Box<dyn WasiHttpHooks>) {
        self.given = Some(hooks);
    }
}

type Response = (
    http::Response<WasiBody>,
    Box<dyn Future<Output = Result<(), HttpError>> + Send>,
);

/// What a guest may do with bodies and headers is the engine's to say, whoever sends its requests.
impl WasiHttpHooks for Outbound {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        sent: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Result<Response, HttpError>> + Send> {
        if let Some(given) = &mut self.given {
            return given.send_request(request, options, sent);
        }
        let (method, uri) = (request.method(), request.uri());
        let origin = uri.authority().map_or("", |authority| authority.as_str());
        let scheme = uri.scheme_str().unwrap_or_default();
        let wanted: String = format!("{method} {scheme}://{origin}")
            .chars()
            .take(300)
            .collect();
        self.log.note(&format!(
            "the request {wanted} was refused: the step has no http grant"
        ));
        // As those count that a grant of the step does not open.
        metrics::counter!("stepwell_egress_requests_total", "outcome" => "denied").increment(1);
        metrics::counter!("stepwell_egress_denied_total", "reason" => "not-granted").increment(1);
        Box::new(std::future::ready(Err(HttpError::HttpRequestDenied)))
    }
}
