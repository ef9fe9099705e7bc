//! The only crate that knows how WebAssembly is run: uploads are inspected, compiled ahead of time into a cache on disk, loaded
//! by mapping, and called in a fresh instance each time or in instances that one step keeps, within limits that stop hostile
//! guests without touching their neighbours.
//!
//! It knows nothing of pipelines, triggers or vendors. What a guest may import beside WASI is added by whoever makes the
//! [`Engine`]; what those interfaces keep for a call lives in that caller's own [`StoreState`].

mod blame;
mod cache;
mod call;
mod chores;
mod clock;
mod command;
mod compile;
mod config;
mod crowd;
mod engine;
mod epoch;
mod function;
mod functions;
mod handle;
mod held;
mod idle;
mod inspect;
mod instances;
mod interfaces;
mod keep;
mod kept;
mod lane;
mod late;
mod link;
mod link_03;
mod load;
mod logs;
mod machine;
mod memory;
mod meter;
mod outbound;
mod paced;
mod plugin;
mod queue;
mod residents;
mod rest;
mod room;
mod seat;
mod service;
mod slots;
mod step;
mod store;
mod streamed;
mod sweep;
mod temper;
mod timers;
mod turns;
mod worker;

pub use command::{Command, CommandError, Surroundings};
pub use compile::CompileBy;
pub use config::EngineConfig;
pub use engine::{CompileReport, Engine, EngineError, describe_metrics};
pub use function::Body;
pub use handle::{Fetch, Handle};
pub use inspect::{Inspection, Refused, World, is_command};
pub use keep::Kept;
pub use load::LoadError;
pub use logs::{LogSink, LogStream};
pub use memory::{Held, Tenant};
pub use plugin::Plugin;
pub use store::{Bind, Environment, StoreBase, StoreState};
pub use turns::take_short_turns;
pub use worker::compile_worker;
