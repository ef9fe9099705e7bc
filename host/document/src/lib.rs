//! Documents that people write: YAML and TOML read into one tree that knows where each value stands, so that every mistake
//! can be reported at once, with its line and column.
//!
//! [`parse_yaml`] and [`parse_toml`] give a [`Node`]; [`At`] walks it and collects a [`Problem`](stepwell_core::Problem)
//! for everything that is not as asked for.

mod at;
mod node;
mod toml;
mod yaml;

pub use at::{At, MapReader, Problems, nearest};
pub use node::{Key, Node, Position, Value};

pub use self::toml::parse_toml;
pub use self::yaml::parse_yaml;
