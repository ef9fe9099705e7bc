//! Who may do what: roles, tokens, namespaces, quotas, and the log of who did what; and who may reach the admin listener.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod bindings;
mod development;
mod exposed;
mod namespaces;
mod roles;
mod support;
mod tokens;
