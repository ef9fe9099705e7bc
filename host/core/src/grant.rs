use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::OriginPattern;

/// A kind of binding: `bindings.KIND.NAME` in the configuration, `grants.KIND` in a pipeline document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindingKind {
    /// TensorFlow models.
    Models,
    /// Vector indexes.
    Vectors,
    /// Key-value stores.
    Keyvalue,
    /// SQL databases.
    Sql,
}

impl BindingKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Models, Self::Vectors, Self::Keyvalue, Self::Sql];

    /// The word in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Vectors => "vectors",
            Self::Keyvalue => "keyvalue",
            Self::Sql => "sql",
        }
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The actions that may be granted on this kind.
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::Models => &[Action::Infer, Action::Describe],
            Self::Vectors => &[
                Action::Query,
                Action::Fetch,
                Action::List,
                Action::Upsert,
                Action::Update,
                Action::Delete,
            ],
            Self::Keyvalue | Self::Sql => &[Action::Read, Action::Write],
        }
    }

    /// The kind whose grants an import of this interface needs, by the interface's name without its version
    /// (`stepwell:vector/index`); none for interfaces that need no grant.
    pub fn of_interface(interface: &str) -> Option<Self> {
        match interface {
            "stepwell:model/inference" => Some(Self::Models),
            "stepwell:vector/index" => Some(Self::Vectors),
            "stepwell:sql/database" => Some(Self::Sql),
            "wasi:keyvalue/store" | "wasi:keyvalue/atomics" | "wasi:keyvalue/batch" => {
                Some(Self::Keyvalue)
            }
            _ => None,
        }
    }
}

impl fmt::Display for BindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that may be granted on a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Run a model.
    Infer,
    /// Read a model's signature.
    Describe,
    /// Search a vector index (and describe it).
    Query,
    /// Read vectors by id.
    Fetch,
    /// List vector ids.
    List,
    /// Write whole vectors.
    Upsert,
    /// Change parts of vectors.
    Update,
    /// Delete vectors.
    Delete,
    /// Read.
    Read,
    /// Write; does not include reading.
    Write,
}

impl Action {
    /// The word in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Describe => "describe",
            Self::Query => "query",
            Self::Fetch => "fetch",
            Self::List => "list",
            Self::Upsert => "upsert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one step may do with one binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The operator's name for the binding.
    pub binding: String,
    /// What is allowed.
    pub actions: Vec<Action>,
    /// Key-value only: every key is stored under this prefix, which the guest neither sees nor leaves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// All grants of one step: the guest's name for a binding, by kind, and where its HTTP requests may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    bindings: BTreeMap<BindingKind, BTreeMap<String, Grant>>,
    http: Vec<OriginPattern>,
}

/// A grant is missing. The message is for the guest: it names what the guest itself named, and nothing more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no grant to {action} {kind} '{name}'")]
pub struct Denied {
    /// The kind of binding.
    pub kind: BindingKind,
    /// The name that the guest used.
    pub name: String,
    /// What it tried.
    pub action: Action,
}

impl Grants {
    /// Adds a grant; the guest's name is `name`.
    pub fn insert(&mut self, kind: BindingKind, name: impl Into<String>, grant: Grant) {
        self.bindings
            .entry(kind)
            .or_default()
            .insert(name.into(), grant);
    }

    /// Lets HTTP requests go to these origins.
    pub fn allow_http(&mut self, origins: OriginPattern) {
        self.http.push(origins);
    }

    /// Where HTTP requests may go.
    pub fn http(&self) -> &[OriginPattern] {
        &self.http
    }

    /// The grant that allows `action` on what the guest calls `name`.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check(&self, kind: BindingKind, name: &str, action: Action) -> Result<&Grant, Denied> {
        self.get(kind, name)
            .filter(|grant| grant.actions.contains(&action))
            .ok_or_else(|| Denied {
                kind,
                name: name.chars().take(256).collect(),
                action,
            })
    }

    /// The grant on what the guest calls `name`, whatever it allows.
    pub fn get(&self, kind: BindingKind, name: &str) -> Option<&Grant> {
        self.bindings.get(&kind)?.get(name)
    }

    /// Whether there is any grant of this kind.
    pub fn has(&self, kind: BindingKind) -> bool {
        self.bindings
            .get(&kind)
            .is_some_and(|grants| !grants.is_empty())
    }

    /// Every grant with its kind and the guest's name.
    pub fn iter(&self) -> impl Iterator<Item = (BindingKind, &str, &Grant)> {
        self.bindings.iter().flat_map(|(kind, grants)| {
            grants
                .iter()
                .map(move |(name, grant)| (*kind, name.as_str(), grant))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> Grants {
        let mut grants = Grants::default();
        grants.insert(
            BindingKind::Keyvalue,
            "cache",
            Grant {
                binding: "main-redis".into(),
                actions: vec![Action::Read],
                prefix: "digits:".into(),
            },
        );
        grants
    }

    #[test]
    fn a_granted_action_finds_the_operators_name() {
        let grants = grants();
        let grant = grants
            .check(BindingKind::Keyvalue, "cache", Action::Read)
            .unwrap();
        assert_eq!(grant.binding, "main-redis");
    }

    #[test]
    fn another_action_name_or_kind_is_denied() {
        let grants = grants();
        for (kind, name, action) in [
            (BindingKind::Keyvalue, "cache", Action::Write),
            (BindingKind::Keyvalue, "main-redis", Action::Read),
            (BindingKind::Sql, "cache", Action::Read),
        ] {
            assert!(grants.check(kind, name, action).is_err());
        }
    }
}
