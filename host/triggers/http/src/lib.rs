//! The HTTP trigger: requests become events (or go to an HTTP function as they are), outcomes become responses.
//!
//! A request finds its route in a table that is swapped as a whole, so that it sees one revision from its first byte to its
//! last; its body is read within a limit; and the run belongs to the dispatcher, so that a client that hangs up cannot
//! stop one that is half done. A `GET` route answers `HEAD` too, as in most frameworks; `OPTIONS` needs a route of its own.

mod auth;
mod bodies;
mod body;
mod event;
mod joined;
mod jwt;
mod keys;
mod percent;
mod problem;
mod proper;
mod quiet;
mod reply;
mod route;
mod seats;
mod serve;
mod taken;
mod telemetry;
mod timer;
mod tls;
mod trigger;
mod unread;
mod unusable;

pub use auth::{Auth, Subject, TokenVerifier, Unavailable};
pub use keys::{FetchError, KeyFetcher, KeySource, KeyTimes, usable_keys};
pub use problem::RUN_ID;
pub use serve::{Answers, ServeConfig, serve};
pub use telemetry::describe_metrics;
pub use tls::{HandshakeLimits, Tls};
pub use trigger::HttpTrigger;
