use stepwell_core::Blame;

/// Why something did not work; what the caller may do about each kind is in `wit/sql/database.wit`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// The class.
    pub kind: SqlErrorKind,
    /// SQLSTATE, the nearest one where the database has none.
    pub sqlstate: String,
    /// What was attempted and what came of it, without addresses and credentials.
    pub message: String,
}

/// The class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SqlErrorKind {
    /// The grant is missing.
    NotGranted,
    /// The statement or a parameter is wrong.
    Invalid,
    /// A constraint forbids it.
    Constraint,
    /// Another transaction came first.
    Aborted,
    /// The database cannot be reached or is out of resources.
    Unavailable,
    /// No connection came free.
    Overloaded,
    /// The time was up.
    DeadlineExceeded,
    /// A bound was exceeded.
    TooLarge,
    /// The host's fault.
    Internal,
}

impl SqlErrorKind {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotGranted => "not-granted",
            Self::Invalid => "invalid",
            Self::Constraint => "constraint",
            Self::Aborted => "aborted",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::TooLarge => "too-large",
            Self::Internal => "internal",
        }
    }

    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self {
            Self::NotGranted
            | Self::Invalid
            | Self::Constraint
            | Self::TooLarge
            | Self::DeadlineExceeded => Blame::Plugin,
            Self::Aborted | Self::Unavailable | Self::Overloaded => Blame::Dependency,
            Self::Internal => Blame::Host,
        }
    }
}

impl SqlError {
    /// An error of this kind.
    pub fn new(kind: SqlErrorKind, sqlstate: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            sqlstate: sqlstate.to_owned(),
            message: message.into(),
        }
    }

    /// The statement or a parameter is wrong.
    pub fn invalid(sqlstate: &str, message: impl Into<String>) -> Self {
        Self::new(SqlErrorKind::Invalid, sqlstate, message)
    }

    /// A bound of the host was exceeded.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(SqlErrorKind::TooLarge, "54000", message)
    }

    /// The database cannot be reached.
    pub fn unavailable() -> Self {
        Self::new(
            SqlErrorKind::Unavailable,
            "08006",
            "the database cannot be reached",
        )
    }

    /// The time was up.
    pub fn deadline() -> Self {
        Self::new(
            SqlErrorKind::DeadlineExceeded,
            "57014",
            "the statement did not end in time",
        )
    }

    /// The host's own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlErrorKind::Internal, "XX000", message)
    }

    /// An error that the database reports, classified by its SQLSTATE.
    pub fn from_sqlstate(sqlstate: &str, message: impl Into<String>) -> Self {
        let class = sqlstate.get(..2).unwrap_or_default();
        let kind = match (class, sqlstate) {
            ("23", _) => SqlErrorKind::Constraint,
            ("40", _) | (_, "55P03" | "25P02") => SqlErrorKind::Aborted,
            (_, "57014") => SqlErrorKind::DeadlineExceeded,
            ("08" | "53" | "57" | "58", _) => SqlErrorKind::Unavailable,
            ("XX" | "F0", _) => SqlErrorKind::Internal,
            _ => SqlErrorKind::Invalid,
        };
        let mut message: String = message.into();
        if kind == SqlErrorKind::DeadlineExceeded {
            return Self::deadline();
        }
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        Self::new(kind, sqlstate, message)
    }
}

/// Characters of a database's message that are passed on.
const MAX_MESSAGE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_have_classes() {
        for (sqlstate, kind) in [
            ("23505", SqlErrorKind::Constraint),
            ("40001", SqlErrorKind::Aborted),
            ("55P03", SqlErrorKind::Aborted),
            ("57014", SqlErrorKind::DeadlineExceeded),
            ("57P01", SqlErrorKind::Unavailable),
            ("53300", SqlErrorKind::Unavailable),
            ("42601", SqlErrorKind::Invalid),
            ("P0001", SqlErrorKind::Invalid),
            ("XX000", SqlErrorKind::Internal),
            ("", SqlErrorKind::Invalid),
        ] {
            assert_eq!(
                SqlError::from_sqlstate(sqlstate, "").kind,
                kind,
                "{sqlstate}"
            );
        }
    }
}
