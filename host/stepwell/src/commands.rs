//! The commands that speak to a running host, and the one that runs a component without it.

pub(crate) mod audit;
pub(crate) mod invoke;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod namespace;
pub(crate) mod pipeline;
pub(crate) mod plugin;
pub(crate) mod run_component;
pub(crate) mod token;
