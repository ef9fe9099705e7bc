//! Runs a step natively, under plain `cargo test`, with fakes for everything that a host provides.
//!
//! ```
//! use stepwell_sdk::models::Tensor;
//! use stepwell_sdk::testing::{Host, event};
//! use stepwell_sdk::{Error, Event, config, keyvalue, models};
//!
//! #[stepwell_sdk::step]
//! fn count(event: Event) -> Result<Event, Error> {
//!     let step: i64 = config::get_or("step", 1)?;
//!     let count = keyvalue::open("counters")?.increment("seen", step)?;
//!     event.with_json(&count)
//! }
//!
//! let host = Host::new().config("step", "2").keyvalue("counters");
//! host.call(|| count(event())).unwrap();
//! let last = host.call(|| count(event())).unwrap();
//! assert_eq!(last.json::<i64>().unwrap(), 4);
//! assert_eq!(host.value("counters", "seen").unwrap(), b"4");
//! ```
//!
//! What a test does not add is not there: as on a real host, a name without a grant is refused.

pub(crate) mod config;
pub(crate) mod keyvalue;
pub(crate) mod log;
pub(crate) mod models;
pub(crate) mod sql;
pub(crate) mod vectors;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::models::{Error as ModelError, Tensor};
use crate::sql::{Error as SqlError, Rows, Value};
use crate::vectors::{Metric, Vector};
use crate::{Event, log::Level};

/// A line that the step logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// Which part of the plugin spoke.
    pub context: String,
    /// What it said.
    pub message: String,
}

/// What a fake database answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The rows of a query.
    Rows(Rows),
    /// How many rows a statement changed.
    Changed(u64),
}

impl From<Rows> for Answer {
    fn from(rows: Rows) -> Self {
        Self::Rows(rows)
    }
}

/// A host made of fakes. It keeps what steps write, so several calls see each other's effects.
#[derive(Default)]
pub struct Host(Rc<State>);

#[derive(Default)]
struct State {
    config: RefCell<BTreeMap<String, String>>,
    models: RefCell<BTreeMap<String, models::Model>>,
    vectors: RefCell<BTreeMap<String, vectors::Index>>,
    keyvalue: RefCell<BTreeMap<String, keyvalue::Store>>,
    sql: RefCell<BTreeMap<String, sql::Database>>,
    logs: RefCell<Vec<LogLine>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<State>>> = const { RefCell::new(None) };
}

/// The host of the call that this thread is in.
fn current() -> Result<Rc<State>, String> {
    CURRENT.with_borrow(Clone::clone).ok_or_else(|| {
        "called natively and outside of stepwell_sdk::testing::Host::call".to_owned()
    })
}

/// An event to test with: without data, its id is `test`.
pub fn event() -> Event {
    Event::new("test", "/test", "test")
}

impl Host {
    /// A host that grants nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry of the step's `config`.
    #[must_use]
    pub fn config(self, key: &str, value: &str) -> Self {
        self.0.config.borrow_mut().insert(key.into(), value.into());
        self
    }

    /// Grants a model: `infer` is called with its inputs.
    #[must_use]
    pub fn model(
        self,
        name: &str,
        infer: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, ModelError> + 'static,
    ) -> Self {
        self.0
            .models
            .borrow_mut()
            .insert(name.into(), Rc::new(infer));
        self
    }

    /// Grants an empty vector index that is exact and in memory.
    #[must_use]
    pub fn vectors(self, name: &str, dimension: usize, metric: Metric) -> Self {
        self.0
            .vectors
            .borrow_mut()
            .insert(name.into(), vectors::Index::new(dimension, metric));
        self
    }

    /// Grants an empty key-value store.
    #[must_use]
    pub fn keyvalue(self, name: &str) -> Self {
        self.0.keyvalue.borrow_mut().entry(name.into()).or_default();
        self
    }

    /// Grants a database that `answer` stands for: it is called with each statement and its parameters, and with `BEGIN`, `COMMIT` and
    /// `ROLLBACK` for transactions.
    #[must_use]
    pub fn sql(
        self,
        name: &str,
        answer: impl Fn(&str, &[Value]) -> Result<Answer, SqlError> + 'static,
    ) -> Self {
        let database = sql::Database {
            answer: Rc::new(answer),
            statements: Rc::default(),
        };
        self.0.sql.borrow_mut().insert(name.into(), database);
        self
    }

    /// Runs `step` on this host. Only the calling thread is on it, and only meanwhile.
    pub fn call<T>(&self, step: impl FnOnce() -> T) -> T {
        struct Restore(Option<Rc<State>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.0.clone())));
        step()
    }

    /// What was logged, in order.
    pub fn logs(&self) -> Vec<LogLine> {
        self.0.logs.borrow().clone()
    }

    /// What a key-value store holds under a key.
    pub fn value(&self, store: &str, key: &str) -> Option<Vec<u8>> {
        self.0.keyvalue.borrow().get(store)?.get(key).cloned()
    }

    /// A vector of an index's default namespace.
    pub fn vector(&self, index: &str, id: &str) -> Option<Vector> {
        self.0.vectors.borrow().get(index)?.get(id).cloned()
    }

    /// The statements that a database was asked, in order.
    pub fn statements(&self, database: &str) -> Vec<String> {
        self.0
            .sql
            .borrow()
            .get(database)
            .map(|database| database.statements.borrow().clone())
            .unwrap_or_default()
    }
}
