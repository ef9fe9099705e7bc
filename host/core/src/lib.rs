//! The words of Stepwell: events, outcomes, names, sizes, limits and grants.
//!
//! Nothing here does I/O, and nothing here knows a runtime, WebAssembly or a transport; every other
//! crate of the host may depend on this one.

mod access;
mod call;
pub mod cloudevents;
mod cpu;
mod digest;
mod error;
mod event;
mod grant;
mod isolation;
mod limits;
mod lingering;
pub mod log_rate;
mod name;
mod origin;
mod outcome;
mod problem;
mod quotas;
mod secret;
mod share;
mod store_file;
mod trace;
mod units;
mod version;
mod within;

pub use access::{InvalidRole, Principal, Right, Role};
pub use call::{Call, RunId, StepScope};
pub use cpu::{CpuAccount, thread_time};
pub use digest::Digest;
pub use error::{Blame, ErrorKind, Fault, StepError};
pub use event::Event;
pub use grant::{Action, BindingKind, Denied, Grant, Grants};
pub use isolation::{Isolation, Reuse};
pub use limits::Limits;
pub use lingering::{Gone, Lingering};
pub use name::{InvalidName, Name};
pub use origin::{HostName, HostPattern, InvalidOrigin, Origin, OriginPattern, Scheme};
pub use outcome::Outcome;
pub use problem::Problem;
pub use quotas::Quotas;
pub use secret::Secret;
pub use share::share_of;
pub use store_file::{LOG_AT_REST, STORE_SIZE, StoreFile};
pub use trace::TraceContext;
pub use units::{ByteSize, InvalidUnit, parse_duration, parse_lifetime, parse_size, show_duration};
pub use version::{PluginRef, VersionSelector};
pub use within::within;

/// The version of Stepwell that this host is.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
