use super::bindings::stepwell::sql::database as wit;
use crate::sql::{
    Column, Error, Failure, Isolation, QueryOptions, Rows, TransactionOptions, Value,
};

#[derive(Debug)]
pub(crate) struct Connection(wit::Connection);

#[derive(Debug)]
pub(crate) struct Transaction(wit::Transaction);

pub(crate) fn open(name: &str) -> Result<Connection, Error> {
    wit::open(name).map(Connection).map_err(error)
}

impl Connection {
    pub(crate) fn query(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.0
            .query(sql, &values_out(params)?, options_out(options))
            .map(rows_in)
            .map_err(error)
    }

    pub(crate) fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.0.execute(sql, &values_out(params)?).map_err(error)
    }

    pub(crate) fn begin(&self, options: TransactionOptions) -> Result<Transaction, Error> {
        let options = wit::TransactionOptions {
            isolation: match options.isolation {
                Isolation::ReadCommitted => wit::Isolation::ReadCommitted,
                Isolation::RepeatableRead => wit::Isolation::RepeatableRead,
                Isolation::Serializable => wit::Isolation::Serializable,
            },
            read_only: options.read_only,
        };
        self.0.begin(options).map(Transaction).map_err(error)
    }
}

impl Transaction {
    pub(crate) fn query(
        &self,
        sql: &str,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<Rows, Error> {
        self.0
            .query(sql, &values_out(params)?, options_out(options))
            .map(rows_in)
            .map_err(error)
    }

    pub(crate) fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
        self.0.execute(sql, &values_out(params)?).map_err(error)
    }

    pub(crate) fn commit(self) -> Result<(), Error> {
        wit::Transaction::commit(self.0).map_err(error)
    }

    pub(crate) fn rollback(self) -> Result<(), Error> {
        wit::Transaction::rollback(self.0).map_err(error)
    }
}

fn options_out(options: QueryOptions) -> wit::QueryOptions {
    wit::QueryOptions {
        max_rows: options.max_rows,
        max_bytes: options.max_bytes,
    }
}

fn rows_in(rows: wit::Rows) -> Rows {
    Rows {
        columns: rows
            .columns
            .into_iter()
            .map(|column| Column {
                name: column.name,
                type_name: column.type_name,
            })
            .collect(),
        rows: rows
            .rows
            .into_iter()
            .map(|row| row.into_iter().map(value_in).collect())
            .collect(),
    }
}

fn values_out(values: Vec<Value>) -> Result<Vec<wit::Value>, Error> {
    values.into_iter().map(value_out).collect()
}

/// Values and elements of arrays have the same cases but for `array`.
macro_rules! plain_values {
    ($(($ours:ident, $theirs:ident)),*) => {
        fn value_out(value: Value) -> Result<wit::Value, Error> {
            Ok(match value {
                Value::Null => wit::Value::Null,
                $(Value::$ours(value) => wit::Value::$theirs(value),)*
                Value::Array(elements) => {
                    wit::Value::Array(elements.into_iter().map(element_out).collect::<Result<_, _>>()?)
                }
                Value::Other { type_name, data } => wit::Value::Other(wit::OtherValue { type_name, data }),
            })
        }

        fn element_out(value: Value) -> Result<wit::Element, Error> {
            Ok(match value {
                Value::Null => wit::Element::Null,
                $(Value::$ours(value) => wit::Element::$theirs(value),)*
                Value::Array(_) => {
                    return Err(Error::Invalid(Failure {
                        sqlstate: "0A000".to_owned(),
                        message: "arrays of arrays cannot be parameters".to_owned(),
                    }));
                }
                Value::Other { type_name, data } => wit::Element::Other(wit::OtherValue { type_name, data }),
            })
        }

        fn value_in(value: wit::Value) -> Value {
            match value {
                wit::Value::Null => Value::Null,
                $(wit::Value::$theirs(value) => Value::$ours(value),)*
                wit::Value::Array(elements) => Value::Array(elements.into_iter().map(element_in).collect()),
                wit::Value::Other(other) => Value::Other {
                    type_name: other.type_name,
                    data: other.data,
                },
            }
        }

        fn element_in(value: wit::Element) -> Value {
            match value {
                wit::Element::Null => Value::Null,
                $(wit::Element::$theirs(value) => Value::$ours(value),)*
                wit::Element::Other(other) => Value::Other {
                    type_name: other.type_name,
                    data: other.data,
                },
            }
        }
    };
}
plain_values!(
    (Bool, Boolean),
    (Int, S64),
    (Float, F64),
    (Text, Text),
    (Bytes, Bytes),
    (Json, Json),
    (Timestamp, Timestamp),
    (Uuid, Uuid),
    (Numeric, Numeric)
);

fn failure(failure: wit::Failure) -> Failure {
    Failure {
        sqlstate: failure.sqlstate,
        message: failure.message,
    }
}

fn error(error: wit::Error) -> Error {
    match error {
        wit::Error::NotGranted(what) => Error::NotGranted(what),
        wit::Error::Invalid(what) => Error::Invalid(failure(what)),
        wit::Error::Constraint(what) => Error::Constraint(failure(what)),
        wit::Error::Aborted(what) => Error::Aborted(failure(what)),
        wit::Error::Unavailable(what) => Error::Unavailable(what),
        wit::Error::Overloaded(ms) => Error::Overloaded(ms),
        wit::Error::DeadlineExceeded => Error::DeadlineExceeded,
        wit::Error::TooLarge(what) => Error::TooLarge(what),
        wit::Error::Internal(what) => Error::Internal(what),
    }
}
