//! Outbound HTTP of guests: where they may go, and how.
//!
//! A request goes where a grant of its step says (`grants: {http: [https://api.example.com]}`), and nowhere else. Names are looked
//! up by the host, and only addresses of the internet are connected to, or those of networks that the operator opened. Nothing is
//! followed, nothing is shared between namespaces, and everything is bounded: requests, connections, bytes and time.
//!
//! [`Egress`] lives as long as the process, an [`EgressScope`] as long as a deployed revision, and a [`CallEgress`] is the
//! `wasi:http` hooks of one call, of both `wasi:http/outgoing-handler@0.2` and `wasi:http/client@0.3`.

mod address;
mod body;
mod call;
mod client;
mod config;
mod connection;
mod dial;
mod egress;
mod error;
mod flight;
mod headers;
mod policy;
mod pool;
mod resolve;

pub use address::{InvalidNet, Net};
pub use call::{CallEgress, Note};
pub use client::{FetchError, GuardedClient};
pub use config::{EgressConfig, TraceHook, read_ca};
pub use egress::{Egress, EgressScope, SetUpError};
pub use error::{EgressError, TlsFault};
pub use resolve::Resolver;

/// Describes this crate's metrics; called once, after the recorder is installed.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "stepwell_egress_requests_total",
        "HTTP requests of guests, by outcome: answered, denied, failed, timeout, cancelled."
    );
    describe_counter!(
        "stepwell_egress_denied_total",
        "HTTP requests of guests that were refused, by reason."
    );
    describe_counter!(
        "stepwell_egress_responses_cut_off_total",
        "Responses to guests that broke off, by reason."
    );
    describe_histogram!(
        "stepwell_egress_request_seconds",
        Unit::Seconds,
        "Time from a guest's HTTP request to its response's head."
    );
    describe_gauge!(
        "stepwell_egress_requests_active",
        "HTTP requests of guests under way."
    );
    describe_gauge!(
        "stepwell_egress_connections_open",
        "Outbound HTTP connections that are open."
    );
}
