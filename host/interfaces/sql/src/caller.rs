//! What happens to every call of a guest, once for both backends: grant, permit, size, deadline, telemetry.

use std::time::Instant;

use stepwell_core::{Action, BindingKind, Call};

use crate::client::{Access, Transaction};
use crate::databases::{Binding, Databases};
use crate::host::wit;
use crate::permit::Permit;
use crate::{Isolation, Rows, SqlError, SqlErrorKind, Statement, convert, metric};

/// A guest's call, and the databases that it may ask for.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) databases: &'a Databases,
    pub(crate) call: &'a Call,
}

impl<'a> Caller<'a> {
    /// Whether there is any grant on the name.
    pub(crate) fn open(self, name: &str) -> Result<(), SqlError> {
        self.granted(name, None).map(|_| ())
    }

    pub(crate) async fn query(
        self,
        name: &str,
        sql: String,
        params: Vec<wit::Value>,
        options: wit::QueryOptions,
    ) -> Result<Rows, SqlError> {
        let binding = self.granted(name, Some(Action::Read))?;
        let work = async {
            let statement = self
                .statement(sql, params)?
                .bounded(options.max_rows, options.max_bytes);
            let access = binding.access(&statement, self.may(name, Action::Write));
            let permit = self.permit(binding, access).await?;
            binding.database.query(statement, access, permit).await
        };
        let result = self.observe(name, work).await;
        result.map_err(|error| self.blame_grant(name, error))
    }

    pub(crate) async fn execute(
        self,
        name: &str,
        sql: String,
        params: Vec<wit::Value>,
    ) -> Result<u64, SqlError> {
        let binding = self.granted(name, Some(Action::Write))?;
        let work = async {
            let statement = self.statement(sql, params)?;
            let permit = self.permit(binding, Access::Write).await?;
            binding.database.execute(statement, permit).await
        };
        self.observe(name, work).await
    }

    /// A transaction, and what it may do.
    pub(crate) async fn begin(
        self,
        name: &str,
        options: wit::TransactionOptions,
    ) -> Result<(Box<dyn Transaction>, Access), SqlError> {
        let writes = self.may(name, Action::Write) && !options.read_only;
        let (binding, access) = if writes {
            (self.granted(name, Some(Action::Write))?, Access::Write)
        } else {
            (self.granted(name, Some(Action::Read))?, Access::Read)
        };
        let isolation = match options.isolation {
            wit::Isolation::ReadCommitted => Isolation::ReadCommitted,
            wit::Isolation::RepeatableRead => Isolation::RepeatableRead,
            wit::Isolation::Serializable => Isolation::Serializable,
        };
        let deadline = self.call.deadline;
        let work = async {
            let permit = self.permit(binding, access).await?;
            binding
                .database
                .begin(isolation, access, deadline, permit)
                .await
        };
        Ok((self.observe(name, work).await?, access))
    }

    pub(crate) async fn query_in(
        self,
        transaction: &mut dyn Transaction,
        name: &str,
        sql: String,
        params: Vec<wit::Value>,
        options: wit::QueryOptions,
    ) -> Result<Rows, SqlError> {
        self.granted(name, Some(Action::Read))?;
        let work = async {
            let statement = self
                .statement(sql, params)?
                .bounded(options.max_rows, options.max_bytes);
            transaction.query(statement).await
        };
        let result = self.observe(name, work).await;
        result.map_err(|error| self.blame_grant(name, error))
    }

    pub(crate) async fn execute_in(
        self,
        transaction: &mut dyn Transaction,
        read_only: bool,
        name: &str,
        sql: String,
        params: Vec<wit::Value>,
    ) -> Result<u64, SqlError> {
        self.granted(name, Some(Action::Write))?;
        let work = async {
            if read_only {
                return Err(SqlError::invalid("25006", "the transaction is read-only"));
            }
            transaction.execute(self.statement(sql, params)?).await
        };
        self.observe(name, work).await
    }

    /// A connection for this call, which is charged for what is computed there.
    async fn permit(self, binding: &Binding, access: Access) -> Result<Permit, SqlError> {
        let permit = binding.permits.acquire(access, self.call.deadline).await?;
        Ok(permit.charged_to(&self.call.scope.cpu))
    }

    /// Bounds work by the call's deadline and counts it.
    pub(crate) async fn observe<T>(
        self,
        name: &str,
        work: impl Future<Output = Result<T, SqlError>>,
    ) -> Result<T, SqlError> {
        let began = Instant::now();
        let deadline = tokio::time::Instant::from_std(self.call.deadline);
        let result = tokio::time::timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Err(SqlError::deadline()));
        if let Ok(binding) = self.granted(name, None) {
            metric::record(binding, began, &result);
        }
        if let Err(error) = &result {
            tracing::debug!(
                kind = error.kind.as_str(),
                sqlstate = error.sqlstate,
                blame = ?error.kind.blame(),
                "a guest's SQL failed"
            );
        }
        result
    }

    /// The binding behind the guest's name, if there is a grant for `action`, or any at all.
    fn granted(self, name: &str, action: Option<Action>) -> Result<&'a Binding, SqlError> {
        let denied = |message: String| SqlError::new(SqlErrorKind::NotGranted, "42501", message);
        let grant = match action {
            Some(action) => self
                .call
                .grant(BindingKind::Sql, name, action)
                .map_err(|error| denied(error.to_string()))?,
            None => self
                .call
                .scope
                .grants
                .get(BindingKind::Sql, name)
                .ok_or_else(|| {
                    let shown: String = name.chars().take(256).collect();
                    denied(format!("no grant on sql '{shown}'"))
                })?,
        };
        self.databases.get(&grant.binding).ok_or_else(|| {
            tracing::error!(binding = %grant.binding, "a step has a grant on an SQL binding that is not configured");
            SqlError::unavailable()
        })
    }

    fn may(self, name: &str, action: Action) -> bool {
        self.call.grant(BindingKind::Sql, name, action).is_ok()
    }

    fn statement(self, sql: String, params: Vec<wit::Value>) -> Result<Statement, SqlError> {
        Statement::new(sql, convert::parameters(params)?, self.call.deadline)
    }

    /// A read-only transaction refuses a write: where the grant is the reason, it says so.
    fn blame_grant(self, name: &str, error: SqlError) -> SqlError {
        if error.sqlstate != "25006" {
            return error;
        }
        self.granted(name, Some(Action::Write))
            .err()
            .unwrap_or(error)
    }
}

impl Binding {
    /// What a statement may do: everything that is granted, but where readers and writers are different connections, one that only reads does not
    /// wait for the writer.
    fn access(&self, statement: &Statement, may_write: bool) -> Access {
        let on_reader = self.database.capacity().writers.is_some() && statement.only_reads();
        if may_write && !on_reader {
            Access::Write
        } else {
            Access::Read
        }
    }
}

/// What every call but a rollback answers in a transaction that has failed.
pub(crate) fn failed_before() -> SqlError {
    SqlError::from_sqlstate(
        "25P02",
        "something failed in the transaction before, so it was rolled back",
    )
}
