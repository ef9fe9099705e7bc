use std::time::Instant;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};

use crate::SqlError;
use crate::databases::Binding;

/// Describes this crate's metrics; call it once, after the recorder is there.
pub fn describe_metrics() {
    describe_counter!(
        "stepwell_sql_statements_total",
        "SQL statements, begins, commits and rollbacks of guests, by binding, backend and outcome"
    );
    describe_histogram!(
        "stepwell_sql_statement_seconds",
        Unit::Seconds,
        "Time of SQL statements, begins, commits and rollbacks, waiting for a connection included"
    );
    describe_gauge!(
        "stepwell_sql_connections_in_use",
        "SQL connections that guests' statements and transactions hold"
    );
}

/// Counts one statement.
pub(crate) fn record<T>(binding: &Binding, began: Instant, result: &Result<T, SqlError>) {
    let outcome = result
        .as_ref()
        .map_or_else(|error| error.kind.as_str(), |_| "ok");
    let backend = binding.database.backend();
    counter!(
        "stepwell_sql_statements_total",
        "binding" => binding.name.clone(), "backend" => backend, "outcome" => outcome,
    )
    .increment(1);
    histogram!(
        "stepwell_sql_statement_seconds",
        "binding" => binding.name.clone(), "backend" => backend,
    )
    .record(began.elapsed().as_secs_f64());
}
