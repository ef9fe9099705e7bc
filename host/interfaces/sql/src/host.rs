//! `stepwell:sql/database` as guests see it: resources and values.

use stepwell_core::Call;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::caller::Caller;
use crate::client::{Access, Transaction};
use crate::databases::Databases;
use crate::permit::PERMIT_WAIT;
use crate::rest::Rest;
use crate::{SqlError, SqlErrorKind};

mod generated {
    wasmtime::component::bindgen!({
        path: "../../../wit/sql",
        world: "stepwell:sql/imports",
        imports: { default: async | trappable },
        with: {
            "stepwell:sql/database.connection": super::OpenConnection,
            "stepwell:sql/database.transaction": super::OpenTransaction,
        },
    });
}
pub use generated::stepwell::sql::database as wit;

/// What the implementation borrows from a store while a guest calls it.
pub struct DatabasesView<'a> {
    /// The operator's bindings.
    pub databases: &'a Databases,
    /// The call that is under way.
    pub call: &'a Call,
    /// The store's resources.
    pub table: &'a mut ResourceTable,
}

/// Says that [`DatabasesView`] is what the linker gets out of a store.
pub struct HasDatabases;

impl HasData for HasDatabases {
    type Data<'a> = DatabasesView<'a>;
}

/// Adds `stepwell:sql` to a linker; `get` borrows the view from the store's data.
///
/// # Errors
/// When the linker has it already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    get: fn(&mut T) -> DatabasesView<'_>,
) -> wasmtime::Result<()> {
    wit::add_to_linker::<T, HasDatabases>(linker, get)
}

/// A granted name that a guest has opened; it holds no connection.
pub struct OpenConnection {
    name: String,
}

/// A guest's transaction; dropping it rolls back.
pub struct OpenTransaction {
    name: String,
    read_only: bool,
    rest: Rest,
}

/// A transaction that is to work, or why it cannot.
type Taken = Result<Box<dyn Transaction>, SqlError>;

type Answer<T> = wasmtime::Result<Result<T, wit::Error>>;

impl wit::Host for DatabasesView<'_> {
    async fn open(&mut self, binding: String) -> Answer<Resource<OpenConnection>> {
        match self.caller().open(&binding) {
            Ok(()) => Ok(Ok(self.table.push(OpenConnection { name: binding })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl wit::HostConnection for DatabasesView<'_> {
    async fn query(
        &mut self,
        this: Resource<OpenConnection>,
        sql: String,
        params: Vec<wit::Value>,
        options: wit::QueryOptions,
    ) -> Answer<wit::Rows> {
        let name = self.table.get(&this)?.name.clone();
        Ok(answer(self.caller().query(&name, sql, params, options).await).map(Into::into))
    }

    async fn execute(
        &mut self,
        this: Resource<OpenConnection>,
        sql: String,
        params: Vec<wit::Value>,
    ) -> Answer<u64> {
        let name = self.table.get(&this)?.name.clone();
        Ok(answer(self.caller().execute(&name, sql, params).await))
    }

    async fn begin(
        &mut self,
        this: Resource<OpenConnection>,
        options: wit::TransactionOptions,
    ) -> Answer<Resource<OpenTransaction>> {
        let name = self.table.get(&this)?.name.clone();
        match self.caller().begin(&name, options).await {
            Ok((running, access)) => {
                let transaction = OpenTransaction {
                    name,
                    read_only: access == Access::Read,
                    rest: Rest::new(running),
                };
                Ok(Ok(self.table.push(transaction)?))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn drop(&mut self, this: Resource<OpenConnection>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl wit::HostTransaction for DatabasesView<'_> {
    async fn query(
        &mut self,
        this: Resource<OpenTransaction>,
        sql: String,
        params: Vec<wit::Value>,
        options: wit::QueryOptions,
    ) -> Answer<wit::Rows> {
        let (name, running) = self.running(&this)?;
        let mut running = match running {
            Ok(running) => running,
            Err(error) => return Ok(Err(error.into())),
        };
        let work = self.caller();
        let result = work
            .query_in(&mut *running, &name, sql, params, options)
            .await;
        self.keep(&this, running, &result)?;
        Ok(answer(result).map(Into::into))
    }

    async fn execute(
        &mut self,
        this: Resource<OpenTransaction>,
        sql: String,
        params: Vec<wit::Value>,
    ) -> Answer<u64> {
        let read_only = self.table.get(&this)?.read_only;
        let (name, running) = self.running(&this)?;
        let mut running = match running {
            Ok(running) => running,
            Err(error) => return Ok(Err(error.into())),
        };
        let work = self.caller();
        let result = work
            .execute_in(&mut *running, read_only, &name, sql, params)
            .await;
        self.keep(&this, running, &result)?;
        Ok(answer(result))
    }

    async fn commit(&mut self, this: Resource<OpenTransaction>) -> Answer<()> {
        let transaction = self.table.delete(this)?;
        let result = match transaction.rest.take() {
            Err(error) => Err(error),
            Ok(running) => {
                self.caller()
                    .observe(&transaction.name, running.commit())
                    .await
            }
        };
        Ok(answer(result))
    }

    async fn rollback(&mut self, this: Resource<OpenTransaction>) -> Answer<()> {
        let transaction = self.table.delete(this)?;
        let result = match transaction.rest.take() {
            // It is rolled back.
            Err(_) => Ok(()),
            Ok(running) => {
                self.caller()
                    .observe(&transaction.name, running.rollback())
                    .await
            }
        };
        Ok(answer(result))
    }

    async fn drop(&mut self, this: Resource<OpenTransaction>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl<'a> DatabasesView<'a> {
    fn caller(&self) -> Caller<'a> {
        Caller {
            databases: self.databases,
            call: self.call,
        }
    }

    /// Takes the transaction out of its resource while it works, so that a call that is cut short drops it.
    fn running(&mut self, this: &Resource<OpenTransaction>) -> wasmtime::Result<(String, Taken)> {
        let transaction = self.table.get(this)?;
        Ok((transaction.name.clone(), transaction.rest.take()))
    }

    /// Puts it back, if nothing failed.
    fn keep<T>(
        &mut self,
        this: &Resource<OpenTransaction>,
        running: Box<dyn Transaction>,
        result: &Result<T, SqlError>,
    ) -> wasmtime::Result<()> {
        if result.is_ok() {
            self.table.get(this)?.rest.put(running);
        }
        Ok(())
    }
}

fn answer<T>(result: Result<T, SqlError>) -> Result<T, wit::Error> {
    result.map_err(Into::into)
}

impl From<SqlError> for wit::Error {
    fn from(error: SqlError) -> Self {
        let wait = u64::try_from(PERMIT_WAIT.as_millis()).unwrap_or(u64::MAX);
        let SqlError {
            kind,
            sqlstate,
            message,
        } = error;
        let failure = |message| wit::Failure { sqlstate, message };
        match kind {
            SqlErrorKind::NotGranted => Self::NotGranted(message),
            SqlErrorKind::Invalid => Self::Invalid(failure(message)),
            SqlErrorKind::Constraint => Self::Constraint(failure(message)),
            SqlErrorKind::Aborted => Self::Aborted(failure(message)),
            SqlErrorKind::Unavailable => Self::Unavailable(message),
            SqlErrorKind::Overloaded => Self::Overloaded(wait),
            SqlErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            SqlErrorKind::TooLarge => Self::TooLarge(message),
            SqlErrorKind::Internal => Self::Internal(message),
        }
    }
}
