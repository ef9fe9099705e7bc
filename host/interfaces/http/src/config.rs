use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use stepwell_core::HostPattern;
use tracing::Span;

use crate::address::Net;

/// Gives the `traceparent` of a span, if it is part of a trace.
pub type TraceHook = fn(&Span) -> Option<String>;

/// What the operator decides of outbound HTTP: the section `[egress]`.
#[derive(Clone, Debug)]
pub struct EgressConfig {
    /// Private networks that grants may open; all others stay closed whatever a grant says.
    pub private: Vec<Net>,
    /// Hosts that grants may name; empty: all.
    pub allow: Vec<HostPattern>,
    /// Hosts that nobody reaches, allowed or not.
    pub deny: Vec<HostPattern>,
    /// Certificate authorities that are trusted beside the public ones.
    pub ca: Vec<CertificateDer<'static>>,
    /// The longest time for looking up a name, connecting and TLS together.
    pub connect_timeout: Duration,
    /// The longest wait for a response's head.
    pub first_byte_timeout: Duration,
    /// The longest wait for the next bytes of a response's body.
    pub between_bytes_timeout: Duration,
    /// Requests under way at once in this host.
    pub requests: usize,
    /// Requests under way at once in one namespace.
    pub requests_per_namespace: usize,
    /// Requests under way at once in one call.
    pub requests_per_call: usize,
    /// Connections that one namespace may have open.
    pub connections: usize,
    /// Bytes of all response bodies of one call.
    pub response_bytes: u64,
    /// The host's own listeners, which no guest reaches through any grant.
    pub own: Vec<SocketAddr>,
    /// How a request joins its run's trace.
    pub trace: Option<TraceHook>,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            private: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            ca: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(60),
            between_bytes_timeout: Duration::from_secs(60),
            requests: 1024,
            requests_per_namespace: 256,
            requests_per_call: 32,
            connections: 256,
            response_bytes: 64 << 20,
            own: Vec::new(),
            trace: None,
        }
    }
}

/// Reads a PEM file of certificate authorities.
///
/// # Errors
/// What is wrong with it, in words for the operator.
pub fn read_ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error: &dyn std::fmt::Display| {
        format!("cannot read certificates from {}: {error}", path.display())
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&error))?;
    if certificates.is_empty() {
        return Err(unreadable(&"there is none in it"));
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| unreadable(&error))?;
    }
    Ok(certificates)
}
