//! SQL for guests: `stepwell:sql/database`, on SQLite and on PostgreSQL.
//!
//! [`Databases`] holds the operator's bindings for the whole process. [`add_to_linker`] gives guests the interface: it checks the grant, waits for
//! a connection, bounds sizes and time, and counts; a [`Database`] then does the work and itself enforces what the statement may do.
//! What confines a guest's SQL is in `sqlite/guard.rs`, at the top of `postgres.rs`, and in [`Statement`].

mod caller;
mod client;
mod convert;
mod databases;
mod error;
mod host;
mod metric;
mod permit;
mod pool;
mod postgres;
mod rest;
mod sqlite;
mod statement;
mod value;

pub use client::{Access, Capacity, Database, Isolation, Transaction};
pub use databases::{BindingState, Databases, InvalidBinding, SqlBindingConfig};
pub use error::{SqlError, SqlErrorKind};
pub use host::{DatabasesView, HasDatabases, OpenConnection, OpenTransaction, add_to_linker, wit};
pub use metric::describe_metrics;
pub use permit::Permit;
pub use postgres::InvalidUrl;
pub use statement::{
    MAX_PARAMETER_BYTES, MAX_PARAMETERS, MAX_RESULT_BYTES, MAX_ROWS, MAX_SQL, Statement,
};
pub use value::{Column, Rows, Value};
