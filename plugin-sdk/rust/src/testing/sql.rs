use std::cell::RefCell;
use std::rc::Rc;

use super::{Answer, current};
use crate::sql::{Error, QueryOptions, Rows, TransactionOptions, Value};

type Answering = dyn Fn(&str, &[Value]) -> Result<Answer, Error>;

#[derive(Clone)]
pub(super) struct Database {
    pub(super) answer: Rc<Answering>,
    pub(super) statements: Rc<RefCell<Vec<String>>>,
}

impl Database {
    fn ask(&self, sql: &str, params: &[Value]) -> Result<Answer, Error> {
        self.statements.borrow_mut().push(sql.to_owned());
        (self.answer)(sql, params)
    }

    fn query(&self, sql: &str, params: &[Value], options: QueryOptions) -> Result<Rows, Error> {
        let rows = match self.ask(sql, params)? {
            Answer::Rows(rows) => rows,
            Answer::Changed(_) => Rows::default(),
        };
        match options.max_rows {
            Some(most) if rows.rows.len() > most as usize => Err(Error::TooLarge(format!(
                "the result has more than {most} rows"
            ))),
            _ => Ok(rows),
        }
    }

    fn execute(&self, sql: &str, params: &[Value]) -> Result<u64, Error> {
        Ok(match self.ask(sql, params)? {
            Answer::Rows(rows) => rows.rows.len() as u64,
            Answer::Changed(count) => count,
        })
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Connection(Database);

#[derive(Debug)]
pub(crate) struct Transaction {
    database: Database,
    ended: bool,
}

pub(crate) fn open(name: &str) -> Result<Connection, Error> {
    let host = current().map_err(Error::Internal)?;
    let database = host.sql.borrow().get(name).cloned();
    database
        .map(Connection)
        .ok_or_else(|| Error::NotGranted(format!("no grant for sql '{name}'")))
}

impl Connection {
    pub(crate) fn query(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.0.query(sql, &params, options)
    }

    pub(crate) fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.0.execute(sql, &params)
    }

    pub(crate) fn begin(&self, _: TransactionOptions) -> Result<Transaction, Error> {
        self.0.ask("BEGIN", &[])?;
        Ok(Transaction {
            database: self.0.clone(),
            ended: false,
        })
    }
}

impl Transaction {
    pub(crate) fn query(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.database.query(sql, &params, options)
    }

    pub(crate) fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.database.execute(sql, &params)
    }

    pub(crate) fn commit(mut self) -> Result<(), Error> {
        self.ended = true;
        self.database.ask("COMMIT", &[]).map(|_| ())
    }

    pub(crate) fn rollback(mut self) -> Result<(), Error> {
        self.ended = true;
        self.database.ask("ROLLBACK", &[]).map(|_| ())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            // As on a host: whatever comes of it, the transaction is over.
            let _ = self.database.ask("ROLLBACK", &[]);
        }
    }
}
