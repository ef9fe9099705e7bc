use std::cell::RefCell;
use std::path::Path;

use stepwell_core::{Problem, Secret};
use stepwell_document::{At, Value};

use crate::input;

/// The key under which the environment overlay hands on a secret that it has read itself.
pub(super) const KNOWN: &str = "\0known";

/// Reads secrets: `{ env = "…" }`, `{ file = "…" }`, or a literal, the last with a warning.
pub(super) struct SecretReader<'a> {
    base: &'a Path,
    environment: &'a dyn Fn(&str) -> Option<String>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'a> SecretReader<'a> {
    pub(super) fn new(base: &'a Path, environment: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            base,
            environment,
            warnings: RefCell::default(),
        }
    }

    pub(super) fn into_warnings(self) -> Vec<Problem> {
        self.warnings.into_inner()
    }

    /// A secret; a literal one earns a warning.
    pub(super) fn read(&self, at: &At<'_>) -> Option<Secret> {
        self.read_with(at, |_| true)
    }

    /// Any value of a key; a literal one earns a warning when the key's name says that it is a secret.
    pub(super) fn read_property(&self, at: &At<'_>, key: &str) -> Option<Secret> {
        let secret = ["password", "secret", "key.pem"]
            .iter()
            .any(|word| key.contains(word));
        self.read_with(at, |_| secret)
    }

    /// A URL; a literal one earns a warning only when it holds a password.
    pub(super) fn read_url(&self, at: &At<'_>) -> Option<Secret> {
        self.read_with(at, |url| {
            url.split_once("://")
                .and_then(|(_, rest)| rest.split(['/', '?']).next()?.rsplit_once('@'))
                .is_some_and(|(user, _)| user.contains(':'))
        })
    }

    fn read_with(&self, at: &At<'_>, is_secret: impl Fn(&str) -> bool) -> Option<Secret> {
        let secret = self.find(at, is_secret)?;
        if secret.expose().is_empty() {
            at.problem("the secret is empty");
            return None;
        }
        Some(secret)
    }

    fn find(&self, at: &At<'_>, is_secret: impl Fn(&str) -> bool) -> Option<Secret> {
        if let Value::String(text) = &at.node().value {
            // A value of the environment or of a flag stands at no line: it is where it should be.
            if is_secret(text) && at.position().line > 0 {
                self.warn(at);
            }
            return Some(Secret::new(text.as_str()));
        }
        if let Some(Value::String(text)) = at.node().get(KNOWN).map(|node| &node.value) {
            return Some(Secret::new(text.as_str()));
        }
        if !matches!(at.node().value, Value::Mapping(_)) {
            at.problem("expected a text, { env = \"NAME\" } or { file = \"PATH\" }");
            return None;
        }
        let mut map = at.mapping()?;
        let (env, file) = (map.optional("env"), map.optional("file"));
        map.finish();
        match (env, file) {
            (Some(env), None) => {
                let name = env.string()?;
                let value = (self.environment)(name).filter(|value| !value.is_empty());
                if value.is_none() {
                    env.problem_with_hint(
                        format!("the environment variable {name} is not set"),
                        format!("export {name}=…, or name a file with {{ file = \"…\" }}"),
                    );
                }
                value.map(Secret::new)
            }
            (None, Some(file)) => {
                let path = self.base.join(file.string()?);
                match input::read_text(&path, input::MOST_TEXT) {
                    Ok(text) => Some(Secret::new(text.trim_end_matches(['\n', '\r']))),
                    Err(error) => {
                        file.problem(format!("cannot read {}: {error}", path.display()));
                        None
                    }
                }
            }
            _ => {
                at.problem("expected one of { env = \"NAME\" } and { file = \"PATH\" }");
                None
            }
        }
    }

    fn warn(&self, at: &At<'_>) {
        self.warning(
            at,
            "a secret is written out in the configuration".into(),
            "use { env = \"…\" } or { file = \"…\" }",
        );
    }

    /// What the host starts with all the same.
    pub(super) fn warning(&self, at: &At<'_>, message: String, hint: &str) {
        // What comes from the environment stands at no line.
        let position = Some(at.position()).filter(|position| position.line > 0);
        self.warnings.borrow_mut().push(Problem {
            path: at.path().to_owned(),
            line: position.map(|position| position.line),
            column: position.map(|position| position.column),
            message,
            hint: Some(hint.into()),
        });
    }
}
