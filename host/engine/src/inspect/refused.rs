//! Why an upload is not accepted.

use serde::{Deserialize, Deserializer, Serialize, de};

/// An upload that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{message}")]
pub struct Refused {
    /// For programs: `not-wasm`, `core-module`, `truncated`, `invalid-component`, `unknown-import`, `unknown-world`, `too-large`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refused {
    pub(crate) fn new(
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            code,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// What [`Refused::code`] can be.
const CODES: [&str; 7] = [
    "not-wasm",
    "core-module",
    "truncated",
    "invalid-component",
    "unknown-import",
    "unknown-world",
    "too-large",
];

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            code: String,
            message: String,
            hint: Option<String>,
        }
        let written = Written::deserialize(deserializer)?;
        let code = CODES.into_iter().find(|code| *code == written.code);
        Ok(Self {
            code: code.ok_or_else(|| de::Error::custom(format!("no code '{}'", written.code)))?,
            message: written.message,
            hint: written.hint,
        })
    }
}
