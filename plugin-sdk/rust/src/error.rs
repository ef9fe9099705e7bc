use std::error::Error as StdError;
use std::fmt;

use crate::{config, keyvalue, models, sql, vectors};

/// What a step returns in a [`Result`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a step does not deliver. The variant decides what happens next; the text goes to the pipeline's owner, and for `Invalid`
/// to the caller too.
///
/// `?` turns every [`std::error::Error`] into [`Failed`](Self::Failed), except the errors of this crate's interfaces, which know better:
/// a model that is overloaded or a database that is down becomes [`Unavailable`](Self::Unavailable).
///
/// ```
/// use stepwell_sdk::{Error, OrError};
///
/// fn half(text: &str) -> Result<i64, Error> {
///     let number: i64 = text.parse().or_invalid("the amount")?;
///     if number % 2 != 0 {
///         return Err(Error::invalid(format!("the amount {number} is odd")));
///     }
///     Ok(number / 2)
/// }
/// assert_eq!(half("x").unwrap_err(), Error::invalid("the amount: invalid digit found in string"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The event is at fault. Never retried. HTTP callers get 422 with this text; Kafka records are dead-lettered.
    Invalid(String),
    /// A dependency is at fault. Retried with backoff. HTTP callers get 503.
    Unavailable(String),
    /// Anything else. Retried as the step's policy says. HTTP callers get 500 without this text.
    Failed(String),
}

impl Error {
    /// The event is at fault.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::Invalid(message.to_string())
    }

    /// A dependency is at fault.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::Unavailable(message.to_string())
    }

    /// Something else went wrong.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// The text alone.
    pub fn message(&self) -> &str {
        match self {
            Self::Invalid(message) | Self::Unavailable(message) | Self::Failed(message) => message,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Invalid(_) => "invalid",
            Self::Unavailable(_) => "unavailable",
            Self::Failed(_) => "failed",
        };
        write!(f, "{kind}: {}", self.message())
    }
}

// `Error` itself is no `std::error::Error`: that is what makes this conversion possible (as in anyhow).
impl<E: StdError + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let message = with_causes(&error);
        if is_temporary(&error) {
            Self::Unavailable(message)
        } else {
            Self::Failed(message)
        }
    }
}

/// Says whose fault an error or a missing value is, and what was attempted.
pub trait OrError<T> {
    /// The event is at fault.
    ///
    /// # Errors
    /// [`Error::Invalid`] with `what`, and the cause if there is one.
    fn or_invalid(self, what: impl fmt::Display) -> Result<T>;

    /// A dependency is at fault.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with `what`, and the cause if there is one.
    fn or_unavailable(self, what: impl fmt::Display) -> Result<T>;

    /// Something else went wrong.
    ///
    /// # Errors
    /// [`Error::Failed`] with `what`, and the cause if there is one.
    fn or_failed(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: StdError + 'static> OrError<T> for std::result::Result<T, E> {
    fn or_invalid(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Invalid(format!("{what}: {}", with_causes(&error))))
    }

    fn or_unavailable(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Unavailable(format!("{what}: {}", with_causes(&error))))
    }

    fn or_failed(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("{what}: {}", with_causes(&error))))
    }
}

impl<T> OrError<T> for Option<T> {
    fn or_invalid(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::invalid(what))
    }

    fn or_unavailable(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::unavailable(what))
    }

    fn or_failed(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::failed(what))
    }
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

/// The error's text and those of its causes, leaving out what a cause repeats.
fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut message = String::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if message.is_empty() {
            message = text;
        } else if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    message
}

/// Whether an interface says, anywhere in the chain of causes, that trying again later may help.
fn is_temporary(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| {
        cause
            .downcast_ref()
            .is_some_and(models::Error::is_temporary)
            || cause
                .downcast_ref()
                .is_some_and(vectors::Error::is_temporary)
            || cause.downcast_ref().is_some_and(sql::Error::is_temporary)
            || cause
                .downcast_ref()
                .is_some_and(keyvalue::Error::is_temporary)
            || cause
                .downcast_ref()
                .is_some_and(config::Error::is_temporary)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(models::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot classify")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn std_errors_fail_and_temporary_ones_are_unavailable_even_when_wrapped() {
        let parse = "x".parse::<u8>().unwrap_err();
        assert_eq!(
            Error::from(parse),
            Error::failed("invalid digit found in string")
        );
        let down = || models::Error::Unavailable("no model server".into());
        assert!(matches!(Error::from(down()), Error::Unavailable(_)));
        let Error::Unavailable(message) = Error::from(Wrapped(down())) else {
            panic!("the cause is temporary")
        };
        assert!(message.starts_with("cannot classify: "), "{message}");
        assert!(message.contains("no model server"), "{message}");
        assert!(matches!(
            Error::from(models::Error::NotGranted("x".into())),
            Error::Failed(_)
        ));
    }

    #[test]
    fn the_author_may_say_whose_fault_it_is() {
        let result = "x".parse::<u8>();
        assert!(
            matches!(result.clone().or_invalid("age"), Err(Error::Invalid(m)) if m.starts_with("age: "))
        );
        assert!(matches!(
            result.clone().or_unavailable("age"),
            Err(Error::Unavailable(_))
        ));
        assert!(matches!(result.or_failed("age"), Err(Error::Failed(_))));
        assert_eq!(
            None::<u8>.or_invalid("no age"),
            Err(Error::invalid("no age"))
        );
        assert_eq!(Some(1).or_failed("no age"), Ok(1));
    }
}
