use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Name;

/// What a token lets its bearer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Runs pipelines, and nothing else.
    Invoker,
    /// Reads, runs pipelines, and changes plugins and pipelines.
    Deployer,
    /// Everything, in every namespace.
    Operator,
}

/// What an operation needs of who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// To see what is there.
    Read,
    /// To run a pipeline.
    Invoke,
    /// To change plugins and pipelines.
    Change,
    /// To change namespaces, quotas and tokens.
    Operate,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Invoker, Self::Deployer, Self::Operator];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Invoker => "invoker",
            Self::Deployer => "deployer",
            Self::Operator => "operator",
        }
    }

    /// Whether it comes with a right.
    pub fn has(self, right: Right) -> bool {
        match self {
            Self::Viewer => right == Right::Read,
            Self::Invoker => right == Right::Invoke,
            Self::Deployer => right != Right::Operate,
            Self::Operator => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is one of viewer, invoker, deployer and operator")]
pub struct InvalidRole;

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or(InvalidRole)
    }
}

/// Who does something. It never holds the token that it was known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The token's id, or `admin_token`, `development` or `host`.
    pub id: Arc<str>,
    /// What people call it.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// Where it may do so; none: in every namespace.
    pub namespace: Option<Name>,
}

const DEVELOPMENT: &str = "development";

impl Principal {
    /// Whoever reaches a host that no token guards yet.
    pub fn development() -> Self {
        Self::operator(DEVELOPMENT)
    }

    /// Whether it is whoever reaches a host in development mode: let in without a token.
    pub fn is_development(&self) -> bool {
        &*self.id == DEVELOPMENT
    }

    /// The bearer of the configuration's `admin_token`.
    pub fn admin_token() -> Self {
        Self::operator("admin_token")
    }

    /// The host itself.
    pub fn host() -> Self {
        Self::operator("host")
    }

    /// Whether it has a right in a namespace.
    pub fn may(&self, right: Right, namespace: &Name) -> bool {
        self.role.has(right) && self.namespace.as_ref().is_none_or(|own| own == namespace)
    }

    /// Whether it has a right in at least one namespace.
    pub fn may_somewhere(&self, right: Right) -> bool {
        self.role.has(right)
    }

    /// Whether it has a right in every namespace, those to come among them.
    pub fn may_everywhere(&self, right: Right) -> bool {
        self.role.has(right) && self.namespace.is_none()
    }

    fn operator(id: &str) -> Self {
        Self {
            id: id.into(),
            name: id.into(),
            role: Role::Operator,
            namespace: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_its_rights_and_no_other() {
        use Right::{Change, Invoke, Operate, Read};
        for (role, rights) in [
            (Role::Viewer, &[Read][..]),
            (Role::Invoker, &[Invoke]),
            (Role::Deployer, &[Read, Invoke, Change]),
            (Role::Operator, &[Read, Invoke, Change, Operate]),
        ] {
            for right in [Read, Invoke, Change, Operate] {
                assert_eq!(role.has(right), rights.contains(&right), "{role} {right:?}");
            }
            assert_eq!(role.as_str().parse::<Role>(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(InvalidRole));
    }

    #[test]
    fn rights_end_with_the_namespace() {
        let (own, other): (Name, Name) = ("own".parse().unwrap(), "other".parse().unwrap());
        let deployer = Principal {
            id: "t1".into(),
            name: "ci".into(),
            role: Role::Deployer,
            namespace: Some(own.clone()),
        };
        assert!(deployer.may(Right::Change, &own));
        assert!(!deployer.may(Right::Operate, &own));
        assert!(!deployer.may(Right::Read, &other));
        assert!(deployer.may_somewhere(Right::Read));
        assert!(!deployer.may_everywhere(Right::Read));
        assert!(Principal::admin_token().may(Right::Operate, &other));
        assert!(Principal::development().may_everywhere(Right::Operate));
    }
}
