//! What both databases promise: every test runs against SQLite and against a real PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod audit;
mod faults;
mod namespaces;
mod pipelines;
mod place;
mod plugins;
mod tokens;

/// Makes each test of a module run once for each database.
macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::place::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::place::Place::postgres()).await;
            })+
        }
    };
}
pub(crate) use contract;
