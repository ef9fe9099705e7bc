//! Databases that the pipeline grants (`stepwell:sql/database`): SQLite or PostgreSQL, as the operator decides.
//!
//! ```yaml
//! grants: {sql: {results: [read, write]}}
//! ```
//! ```
//! # use stepwell_sdk::{Error, sql::{self, params}};
//! fn remember(name: &str, age: i64) -> Result<i64, Error> {
//!     let people = sql::open("results")?;
//!     people.execute("INSERT INTO people (name, age) VALUES ($1, $2)", params![name, age])?;
//!     let rows = people.query("SELECT count(*) AS n FROM people WHERE age > $1", params![17])?;
//!     Ok(rows.one()?.get("n")?)
//! }
//! # use stepwell_sdk::{sql::Rows, testing::{Answer, Host}};
//! # let host = Host::new().sql("results", |statement, _| match statement.starts_with("SELECT") {
//! #     true => Ok(Rows::new(&["n"], vec![vec![1.into()]]).into()),
//! #     false => Ok(Answer::Changed(1)),
//! # });
//! # assert_eq!(host.call(|| remember("Ada", 36)).unwrap(), 1);
//! ```
//!
//! Values travel as parameters, `$1`, `$2`, … on both backends, never inside the text. One statement a call.

mod value;

use std::fmt;

pub use crate::params;
pub use value::{FromValue, Mismatch, Value};

/// Makes the parameters of a statement from anything that turns into a [`Value`].
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => { ::std::vec![$($crate::sql::Value::from($value)),*] };
}

/// The result of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The columns, also when there are no rows.
    pub columns: Vec<Column>,
    /// One value for each column.
    pub rows: Vec<Vec<Value>>,
}

/// A column of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// Its name, or the query's alias for it.
    pub name: String,
    /// The type's name in the database.
    pub type_name: String,
}

/// One row of a result.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    columns: &'a [Column],
    values: &'a [Value],
}

impl Rows {
    /// A result with these columns, for tests.
    pub fn new(columns: &[&str], rows: Vec<Vec<Value>>) -> Self {
        let columns = columns
            .iter()
            .map(|name| Column {
                name: (*name).to_owned(),
                type_name: String::new(),
            })
            .collect();
        Self { columns, rows }
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row {
            columns: &self.columns,
            values,
        })
    }

    /// The first row, if there is one.
    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }

    /// The only row.
    ///
    /// # Errors
    /// [`Mismatch`] if there is none, or more than one.
    pub fn one(&self) -> Result<Row<'_>, Mismatch> {
        match (self.first(), self.rows.len()) {
            (Some(row), 1) => Ok(row),
            (_, count) => Err(Mismatch::rows(count)),
        }
    }
}

impl Row<'_> {
    /// The value of a column.
    ///
    /// # Errors
    /// [`Mismatch`] if there is no such column or the value does not fit `T`; a NULL fits `Option<T>` only.
    pub fn get<T: FromValue>(&self, column: &str) -> Result<T, Mismatch> {
        let at = self.columns.iter().position(|known| known.name == column);
        let value = at.and_then(|at| self.values.get(at));
        value
            .ok_or_else(|| Mismatch::column(column))
            .and_then(|value| {
                T::from_value(value).ok_or_else(|| Mismatch::value::<T>(column, value))
            })
    }
}

/// Bounds for one query; what exceeds one is [`Error::TooLarge`], never a shortened result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryOptions {
    /// Most rows; none: the host's own bound.
    pub max_rows: Option<u32>,
    /// Most bytes of all values; none: the host's own bound.
    pub max_bytes: Option<u64>,
}

/// How a transaction sees others. SQLite's are always serializable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what was committed before it began.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if transactions ran one after another; expect [`Error::Aborted`].
    Serializable,
}

/// What kind of transaction to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// How it sees others.
    pub isolation: Isolation,
    /// Whether it only reads.
    pub read_only: bool,
}

/// What the database said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The five characters of SQLSTATE.
    pub sqlstate: String,
    /// Its message.
    pub message: String,
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The pipeline does not grant this to the step.
    NotGranted(String),
    /// The statement or a parameter is wrong.
    Invalid(Failure),
    /// A constraint forbids the change.
    Constraint(Failure),
    /// The database gave up in favour of another transaction: run the whole transaction again.
    Aborted(Failure),
    /// The database cannot be reached; later may help.
    Unavailable(String),
    /// All connections are in use; none came free for so many milliseconds.
    Overloaded(u64),
    /// The time was up.
    DeadlineExceeded,
    /// The statement, its parameters or its result exceed a bound.
    TooLarge(String),
    /// The host's own fault.
    Internal(String),
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Aborted(_) | Self::Unavailable(_) | Self::Overloaded(_) | Self::DeadlineExceeded
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(what) => write!(f, "database not granted: {what}"),
            Self::Invalid(failure) => write!(f, "invalid statement: {failure}"),
            Self::Constraint(failure) => write!(f, "constraint violated: {failure}"),
            Self::Aborted(failure) => write!(f, "transaction aborted: {failure}"),
            Self::Unavailable(what) => write!(f, "database not available: {what}"),
            Self::Overloaded(ms) => write!(f, "no database connection came free for {ms} ms"),
            Self::DeadlineExceeded => f.write_str("the database did not answer in time"),
            Self::TooLarge(what) => write!(f, "too large for the database: {what}"),
            Self::Internal(what) => write!(f, "database failed: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// A granted database. Connections are the host's; they are used only while a statement or a transaction lasts.
#[derive(Debug)]
pub struct Connection(crate::host::sql::Connection);

/// Opens what the step's grants call `name`.
///
/// # Errors
/// [`Error::NotGranted`].
pub fn open(name: &str) -> Result<Connection, Error> {
    crate::host::sql::open(name).map(Connection)
}

impl Connection {
    /// Runs one statement in a transaction of its own and gives its rows.
    ///
    /// # Errors
    /// [`Error`].
    pub fn query(&self, sql: &str, params: Vec<Value>) -> Result<Rows, Error> {
        self.query_with(sql, params, QueryOptions::default())
    }

    /// [`query`](Self::query) with bounds.
    ///
    /// # Errors
    /// [`Error`].
    pub fn query_with(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.0.query(sql, params, options)
    }

    /// Runs one statement in a transaction of its own and gives how many rows it changed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.0.execute(sql, params)
    }

    /// Begins a transaction. Until it ends, use only the transaction: on SQLite there is one writer at a time.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin(&self, options: TransactionOptions) -> Result<Transaction, Error> {
        self.0.begin(options).map(Transaction)
    }
}

/// Statements that happen together or not at all. Dropping it rolls back.
#[derive(Debug)]
pub struct Transaction(crate::host::sql::Transaction);

impl Transaction {
    /// Runs one statement and gives its rows.
    ///
    /// # Errors
    /// [`Error`]; after any, only rolling back is left.
    pub fn query(&self, sql: &str, params: Vec<Value>) -> Result<Rows, Error> {
        self.query_with(sql, params, QueryOptions::default())
    }

    /// [`query`](Self::query) with bounds.
    ///
    /// # Errors
    /// [`Error`]; after any, only rolling back is left.
    pub fn query_with(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.0.query(sql, params, options)
    }

    /// Runs one statement and gives how many rows it changed.
    ///
    /// # Errors
    /// [`Error`]; after any, only rolling back is left.
    pub fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.0.execute(sql, params)
    }

    /// Keeps the changes.
    ///
    /// # Errors
    /// [`Error`]; the transaction has ended in any case.
    pub fn commit(self) -> Result<(), Error> {
        self.0.commit()
    }

    /// Undoes the changes and waits for it.
    ///
    /// # Errors
    /// [`Error`]; the transaction has ended in any case.
    pub fn rollback(self) -> Result<(), Error> {
        self.0.rollback()
    }
}
