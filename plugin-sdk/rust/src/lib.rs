//! Write steps of [Stepwell](https://github.com/stepwell/stepwell) pipelines in Rust.
//!
//! A step is one function. Its signature says what it reads and what it gives; see [`step`].
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use stepwell_sdk::Error;
//!
//! #[derive(Deserialize)]
//! struct Order { price: f64, quantity: u32 }
//!
//! #[derive(Serialize)]
//! struct Total { total: f64 }
//!
//! #[stepwell_sdk::step]
//! fn total(order: Order) -> Result<Total, Error> {
//!     if order.price < 0.0 {
//!         return Err(Error::invalid("the price is negative"));
//!     }
//!     Ok(Total { total: order.price * f64::from(order.quantity) })
//! }
//! # fn main() {
//! # let event = stepwell_sdk::Event::new("1", "/doc", "test").with_text(r#"{"price": 2.5, "quantity": 2}"#);
//! # assert_eq!(total_events(event).unwrap()[0].text().unwrap(), r#"{"total":5.0}"#);
//! # }
//! ```
//!
//! What a step may use beside its event has a module each: [`models`], [`vectors`], [`sql`], [`keyvalue`], [`config`] and [`log`].
//! A component imports only the interfaces that it really calls, and the pipeline document must grant each of them.
//!
//! On every target but WebAssembly the same modules talk to the fakes of [`testing`], so `cargo test` runs a step natively.

pub mod config;
mod error;
mod event;
pub mod keyvalue;
pub mod log;
pub mod models;
#[doc(hidden)]
pub mod private;
pub mod sql;
pub mod vectors;

/// The host as the interfaces see it: imported functions in a component, fakes elsewhere.
#[cfg(target_family = "wasm")]
mod guest;
#[cfg(target_family = "wasm")]
use guest as host;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[cfg(not(target_family = "wasm"))]
use testing as host;

pub use error::{Error, OrError, Result};
pub use event::Event;
pub use private::{Input, Output};
pub use stepwell_sdk_macros::step;

#[doc(hidden)]
pub use private as __private;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
