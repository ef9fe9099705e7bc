//! One confined connection, and how statements run on it.

use std::sync::Arc;
use std::time::Instant;

use futures::TryStreamExt;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Either, Executor};
use stepwell_core::StoreFile;

use crate::client::Access;
use crate::permit::Permit;
use crate::pool::{Lease, Pooled};
use crate::{Column, Rows, SqlError, Statement, Value};

use super::BUSY;
use super::error::{NO_SPACE, from_sqlx, hit_store_size};
use super::guard::{self, Interrupt, Shape};
use super::values::{self, Declared};

/// A connection that its guard has confined.
pub(super) struct Confined {
    pub(super) connection: SqliteConnection,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) access: Access,
    pub(super) file: Arc<StoreFile>,
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Its thread may be in the middle of a statement that nobody waits for any more.
        self.interrupt.stop();
    }
}

impl Pooled for Confined {
    async fn reset(&mut self) -> bool {
        self.interrupt.arm(Instant::now() + BUSY);
        let is_fit = match in_transaction(&mut self.connection).await {
            Some(true) => self.connection.execute("ROLLBACK").await.is_ok(),
            Some(false) => true,
            None => false,
        };
        self.interrupt.charge_to(None);
        is_fit
    }

    /// Some functions of SQL cannot be interrupted, and its thread goes on until they are done: `instr` takes minutes for what is
    /// as long as it may be.
    fn abandon(self, permit: Permit) {
        self.interrupt.keep(permit);
    }
}

async fn in_transaction(connection: &mut SqliteConnection) -> Option<bool> {
    let mut handle = connection.lock_handle().await.ok()?;
    Some(guard::in_transaction(&mut handle))
}

/// Runs one of the host's own statements.
pub(super) async fn control(
    lease: &mut Lease<Confined>,
    sql: &'static str,
    deadline: Instant,
) -> Result<(), SqlError> {
    let mut busy = lease.start()?;
    busy.interrupt.arm(deadline);
    let result = busy.connection.execute(sql).await;
    let result = result.map_err(|error| busy.explain(&error)).map(|_| ());
    busy.finish();
    result
}

pub(super) async fn query(
    lease: &mut Lease<Confined>,
    statement: Statement,
) -> Result<Rows, SqlError> {
    let mut rows = Rows::default();
    let mut columns = Vec::new();
    run(lease, statement, |shape, kept| match kept {
        None => {
            columns = shape
                .columns
                .iter()
                .map(|(_, declared)| declared.as_deref().and_then(Declared::parse))
                .collect();
            Ok(0)
        }
        Some(row) => {
            let row = values::read_row(row, &columns)?;
            let size = row.iter().map(Value::size).sum();
            rows.rows.push(row);
            Ok(size)
        }
    })
    .await
    .map(|(shape, _)| {
        rows.columns = name_columns(shape, &rows.rows);
        rows
    })
}

pub(super) async fn execute(
    lease: &mut Lease<Confined>,
    statement: Statement,
) -> Result<u64, SqlError> {
    let counts = statement.counts_rows();
    let (shape, changed) = run(lease, statement, |_, _| Ok(0)).await?;
    // For all others SQLite repeats the count of the last statement that has one.
    Ok(if counts && !shape.reads_only {
        changed
    } else {
        0
    })
}

/// Runs a guest's statement; `each` is told its shape first and then gets every row, and answers the row's size.
async fn run(
    lease: &mut Lease<Confined>,
    statement: Statement,
    mut each: impl FnMut(&Shape, Option<&sqlx::sqlite::SqliteRow>) -> Result<usize, SqlError> + Send,
) -> Result<(Shape, u64), SqlError> {
    let mut busy = lease.start()?;
    busy.interrupt.arm(statement.deadline);
    let inspected = busy.inspect(&statement).await;
    let shape = match inspected {
        Ok(shape) => shape,
        Err(error) => {
            busy.finish();
            return Err(error);
        }
    };
    each(&shape, None)?;
    let arguments = match values::arguments(&statement.parameters) {
        Ok(arguments) => arguments,
        Err(error) => {
            busy.finish();
            return Err(error);
        }
    };
    // Never a compiled statement of before, for the same reason as [`SNAPSHOT`].
    let query = sqlx::query_with(AssertSqlSafe(statement.sql.clone()), arguments).persistent(false);
    let mut changed = None;
    let (mut count, mut bytes) = (0_usize, 0_usize);
    let confined = &mut *busy;
    let mut stream = confined.connection.fetch_many(query);
    let failed = loop {
        match stream.try_next().await {
            Ok(Some(Either::Left(done))) => changed = Some(done.rows_affected()),
            Ok(Some(Either::Right(row))) => {
                count += 1;
                bytes += each(&shape, Some(&row))?;
                statement.check_result(count, shape.columns.len(), bytes)?;
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    drop(stream);
    let result = match (failed, changed) {
        (None, Some(changed)) => Ok((shape, changed)),
        (Some(error), _) => Err(confined.explain(&error)),
        // sqlx's thread has ended: another process changed a table between compiling and running.
        (None, None) => return Err(values::table_changed()),
    };
    busy.finish();
    result
}

fn name_columns(shape: Shape, rows: &[Vec<Value>]) -> Vec<Column> {
    shape
        .columns
        .into_iter()
        .enumerate()
        .map(|(index, (name, declared))| {
            let stored = || {
                rows.iter()
                    .filter_map(|row| row.get(index))
                    .find(|value| **value != Value::Null)
                    .map_or("NULL", values::storage_class)
                    .to_owned()
            };
            Column {
                name,
                type_name: declared.unwrap_or_else(stored),
            }
        })
        .collect()
}

impl Confined {
    async fn inspect(&mut self, statement: &Statement) -> Result<Shape, SqlError> {
        let mut handle = self
            .connection
            .lock_handle()
            .await
            .map_err(|error| from_sqlx(&error))?;
        // Compiling a hostile statement may take until the deadline, so the runtime's other tasks must not wait for this thread.
        let shape = off_the_runtime(|| guard::inspect(&mut handle, &statement.sql));
        drop(handle);
        let shape = shape.map_err(|error| self.refine(error))?;
        if shape.parameters != statement.parameters.len() {
            return Err(SqlError::invalid(
                "07001",
                format!(
                    "the statement has {} parameters, but {} were given",
                    shape.parameters,
                    statement.parameters.len()
                ),
            ));
        }
        Ok(shape)
    }

    pub(super) fn explain(&self, error: &sqlx::Error) -> SqlError {
        self.refine(from_sqlx(error))
    }

    /// Says what only the connection knows of an error.
    fn refine(&self, error: SqlError) -> SqlError {
        match error.sqlstate.as_str() {
            "57014" if self.interrupt.was_out_of_memory() => {
                SqlError::too_large("the statement needs too much memory")
            }
            NO_SPACE => match self.file.full() {
                Some(why) => {
                    hit_store_size();
                    SqlError::too_large(why)
                }
                None => {
                    tracing::error!(
                        binding = self.file.binding,
                        "an SQLite database cannot be written: the disk is full"
                    );
                    error
                }
            },
            // A reader's authorizer denies everything that writes.
            "42501" if self.access == Access::Read => SqlError::invalid(
                "25006",
                "the statement does more than read, which is not allowed here",
            ),
            _ => error,
        }
    }
}

fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
