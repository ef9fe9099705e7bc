use std::time::Instant;

use crate::{SqlError, Value};

/// Bytes of one statement's text.
pub const MAX_SQL: usize = 256 << 10;
/// Parameters of one statement; SQLite's bound, on both.
pub const MAX_PARAMETERS: usize = 32_766;
/// Bytes of all parameters together.
pub const MAX_PARAMETER_BYTES: usize = 8 << 20;
/// Rows of one result.
pub const MAX_ROWS: usize = 65_536;
/// Values of one result: each takes some memory, however short it is.
pub(crate) const MAX_VALUES: usize = 1 << 20;
/// Bytes of one result.
pub const MAX_RESULT_BYTES: usize = 8 << 20;

/// One statement of a guest, checked and bounded, with the time it has.
#[derive(Clone, Debug)]
pub struct Statement {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<Value>,
    pub(crate) max_rows: usize,
    pub(crate) max_bytes: usize,
    pub(crate) deadline: Instant,
}

impl Statement {
    /// Checks everything that can be known without a database.
    ///
    /// # Errors
    /// `invalid` for a kind of statement that is not accepted, `too-large` for bounds.
    pub fn new(sql: String, parameters: Vec<Value>, deadline: Instant) -> Result<Self, SqlError> {
        if sql.len() > MAX_SQL {
            return Err(SqlError::too_large(format!(
                "the statement has {} bytes, more than {MAX_SQL}",
                sql.len()
            )));
        }
        if parameters.len() > MAX_PARAMETERS {
            return Err(SqlError::too_large(format!(
                "the statement has {} parameters, more than {MAX_PARAMETERS}",
                parameters.len()
            )));
        }
        let bytes: usize = parameters.iter().map(Value::size).sum();
        if bytes > MAX_PARAMETER_BYTES {
            return Err(SqlError::too_large(format!(
                "the parameters have {bytes} bytes, more than {MAX_PARAMETER_BYTES}"
            )));
        }
        if sql.contains('\0') {
            return Err(SqlError::invalid(
                "42601",
                "the statement contains the character U+0000",
            ));
        }
        let keyword = first_keyword(&sql);
        if !ACCEPTED.contains(&keyword.as_str()) {
            return Err(if keyword.is_empty() {
                SqlError::invalid("42601", "the statement begins with no keyword")
            } else {
                SqlError::invalid("0A000", format!("{keyword} statements are not accepted"))
            });
        }
        Ok(Self {
            sql,
            parameters,
            max_rows: MAX_ROWS,
            max_bytes: MAX_RESULT_BYTES,
            deadline,
        })
    }

    /// The same statement with narrower bounds on its result.
    #[must_use]
    pub fn bounded(mut self, rows: Option<u32>, bytes: Option<u64>) -> Self {
        let rows = rows.map_or(MAX_ROWS, |rows| usize::try_from(rows).unwrap_or(MAX_ROWS));
        let bytes = bytes.map_or(MAX_RESULT_BYTES, |bytes| {
            usize::try_from(bytes).unwrap_or(MAX_RESULT_BYTES)
        });
        self.max_rows = rows.min(MAX_ROWS);
        self.max_bytes = bytes.min(MAX_RESULT_BYTES);
        self
    }

    /// Whether the statement's kind has a count of changed rows.
    pub(crate) fn counts_rows(&self) -> bool {
        matches!(
            first_keyword(&self.sql).as_str(),
            "INSERT" | "REPLACE" | "UPDATE" | "DELETE" | "MERGE" | "WITH"
        )
    }

    /// Whether a result is still within its bounds.
    pub(crate) fn check_result(
        &self,
        rows: usize,
        columns: usize,
        bytes: usize,
    ) -> Result<(), SqlError> {
        let (most_rows, most_bytes) = (self.max_rows, self.max_bytes);
        if rows > most_rows {
            return Err(SqlError::too_large(format!(
                "the result has more than {most_rows} rows"
            )));
        }
        if rows.saturating_mul(columns) > MAX_VALUES {
            return Err(SqlError::too_large(format!(
                "the result has more than {MAX_VALUES} values"
            )));
        }
        if bytes > most_bytes {
            return Err(SqlError::too_large(format!(
                "the result has more than {most_bytes} bytes"
            )));
        }
        Ok(())
    }

    /// Whether the statement can only read, by its first keyword; `WITH` may do either. A hint for choosing a connection: what
    /// holds is what that connection allows.
    pub(crate) fn only_reads(&self) -> bool {
        match first_keyword(&self.sql).as_str() {
            "SELECT" | "VALUES" | "TABLE" | "EXPLAIN" | "SHOW" => true,
            "WITH" => {
                let text = self.sql.to_ascii_uppercase();
                !["INSERT", "UPDATE", "DELETE", "REPLACE"]
                    .iter()
                    .any(|word| text.contains(word))
            }
            _ => false,
        }
    }
}

/// What a statement may begin with. It is a list of what is accepted, so that a text that this reads otherwise than the database does
/// is refused: nothing on it ends a transaction or changes a session.
const ACCEPTED: [&str; 22] = [
    "SELECT", "VALUES", "TABLE", "WITH", "INSERT", "REPLACE", "UPDATE", "DELETE", "MERGE",
    "TRUNCATE", "CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "ANALYZE", "REINDEX",
    "REFRESH", "CALL", "EXPLAIN", "SHOW",
];

/// The first keyword in capitals, after white space, comments, parentheses and empty statements.
fn first_keyword(sql: &str) -> String {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}', '\u{b}', ';', '(']);
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment
                .find(['\n', '\r'])
                .map_or("", |end| comment.get(end..).unwrap_or_default());
        } else if rest.starts_with("/*") {
            rest = after_comment(rest);
        } else {
            break;
        }
    }
    rest.chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || !c.is_ascii())
        .take(40)
        .collect::<String>()
        .to_ascii_uppercase()
}

/// What follows a block comment. PostgreSQL nests them and SQLite does not; where that makes a difference, nothing follows.
fn after_comment(sql: &str) -> &str {
    let Some(end) = sql.get(2..).and_then(|body| body.find("*/")) else {
        return "";
    };
    let nested = sql.get(2..end + 2).is_some_and(|body| body.contains("/*"));
    if nested {
        return "";
    }
    sql.get(end + 4..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str) -> Result<Statement, SqlError> {
        Statement::new(sql.to_owned(), Vec::new(), Instant::now())
    }

    #[test]
    fn statements_that_read_or_write_are_accepted() {
        for good in [
            "SELECT 1",
            "\n -- why\n select 1",
            "/* a */ /* b */SELECT 1",
            "(SELECT 1) UNION (SELECT 2)",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "INSERT INTO t VALUES ($1)",
        ] {
            check(good).unwrap();
        }
    }

    #[test]
    fn transactions_and_sessions_are_the_hosts() {
        for bad in [
            "BEGIN",
            "begin read write",
            "START TRANSACTION",
            "COMMIT",
            "END",
            "ROLLBACK",
            "ABORT",
            "SAVEPOINT a",
            "RELEASE a",
            "PREPARE TRANSACTION 'a'",
            "SET TRANSACTION READ WRITE",
            "RESET ALL",
            "DISCARD ALL",
            "LISTEN a",
            "COPY t TO PROGRAM 'id'",
            "DO $$ BEGIN END $$",
            "LOCK TABLE t",
            "DEALLOCATE ALL",
            "EXECUTE a",
            "DECLARE c CURSOR FOR SELECT 1",
            "ATTACH '/tmp/x' AS x",
            "DETACH x",
            "PRAGMA journal_mode = OFF",
            "VACUUM INTO '/tmp/x'",
            ";;COMMIT",
            "/* x */COMMIT",
            "-- x\rCOMMIT",
            "--\nCOMMIT",
            "/* /* */ SELECT */ COMMIT",
            "/* /* */ SELECT 1",
            "/*/ SELECT 1",
            "\u{feff}SELECT 1",
            "\u{a0}SELECT 1",
            "SELECTé",
            "",
            " ; ",
            "-- SELECT",
            "/* SELECT",
            "'SELECT'",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("SELECT 1\0").is_err());
    }

    #[test]
    fn bounds() {
        let deadline = Instant::now();
        let many = vec![Value::Null; MAX_PARAMETERS + 1];
        assert!(Statement::new("SELECT 1".into(), many, deadline).is_err());
        assert!(check(&format!("SELECT '{}'", "x".repeat(MAX_SQL))).is_err());
        let large = vec![Value::Bytes(vec![0; MAX_PARAMETER_BYTES + 1])];
        assert!(Statement::new("SELECT $1".into(), large, deadline).is_err());
        let wide = check("SELECT 1")
            .unwrap()
            .bounded(Some(u32::MAX), Some(u64::MAX));
        assert_eq!(
            (wide.max_rows, wide.max_bytes),
            (MAX_ROWS, MAX_RESULT_BYTES)
        );
    }

    #[test]
    fn what_only_reads() {
        assert!(check("select 1").unwrap().only_reads());
        assert!(
            check("WITH x AS (SELECT 1) SELECT * FROM x")
                .unwrap()
                .only_reads()
        );
        assert!(
            !check("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x")
                .unwrap()
                .only_reads()
        );
        assert!(
            !check("INSERT INTO t VALUES (1) RETURNING a")
                .unwrap()
                .only_reads()
        );
    }
}
