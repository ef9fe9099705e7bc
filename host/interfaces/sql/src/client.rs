use std::time::Instant;

use async_trait::async_trait;

use crate::permit::Permit;
use crate::{Rows, SqlError, Statement};

/// What a statement or transaction may do; the database itself enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Read and write.
    Write,
}

/// How a transaction sees others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if one after another.
    Serializable,
}

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections for reading; for both where `writers` is none.
    pub connections: usize,
    /// Connections for writing, where they are others.
    pub writers: Option<usize>,
}

/// A database behind a binding. Called from many tasks at once, after the grant is checked and with a permit that the
/// implementation keeps as long as it uses a connection. Every call is cancel-safe: a future that is dropped leaves nothing behind that a later
/// call could see.
#[async_trait]
pub trait Database: Send + Sync {
    /// The word for it in configuration and metrics.
    fn backend(&self) -> &'static str;

    /// How many permits there are.
    fn capacity(&self) -> Capacity;

    /// Runs one statement in a transaction of its own and answers its rows.
    async fn query(
        &self,
        statement: Statement,
        access: Access,
        permit: Permit,
    ) -> Result<Rows, SqlError>;

    /// Runs one statement in a transaction of its own, with the right to write; answers how many rows it changed.
    async fn execute(&self, statement: Statement, permit: Permit) -> Result<u64, SqlError>;

    /// Begins a transaction.
    async fn begin(
        &self,
        isolation: Isolation,
        access: Access,
        deadline: Instant,
        permit: Permit,
    ) -> Result<Box<dyn Transaction>, SqlError>;

    /// Asks the database for a sign of life.
    async fn probe(&self, permit: Permit) -> Result<(), SqlError>;

    /// Whether the binding's role may do everything on the server, as no role of a binding should.
    async fn is_superuser(&self, permit: Permit) -> Result<bool, SqlError>;

    /// Closes idle connections.
    async fn close(&self);
}

/// An open transaction; it rolls back when dropped, before its connection serves anyone else. After an error it is only
/// rolled back or dropped.
#[async_trait]
pub trait Transaction: Send {
    /// Runs one statement and answers its rows.
    async fn query(&mut self, statement: Statement) -> Result<Rows, SqlError>;

    /// Runs one statement; answers how many rows it changed.
    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError>;

    /// Keeps the changes.
    async fn commit(self: Box<Self>) -> Result<(), SqlError>;

    /// Undoes the changes.
    async fn rollback(self: Box<Self>) -> Result<(), SqlError>;
}
