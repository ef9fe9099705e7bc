use std::fmt;

use stepwell_core::{Name, Principal, Right, Role};

/// What an operation needs of its caller. Every row of the list of operations says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// No token: for orchestrators' probes, and for the description, which tells nothing of this host.
    Nothing,
    /// This right in the namespace of the path.
    Here(Right),
    /// This right in any namespace: the operation itself shows no more than the caller may see.
    Somewhere(Right),
    /// This right in every namespace.
    Everywhere(Right),
}

impl Needs {
    /// Whether a principal may; `namespace` is the path's, none where it has no valid one.
    pub(crate) fn are_met_by(self, principal: &Principal, namespace: Option<&Name>) -> bool {
        match (self, namespace) {
            (Self::Nothing, _) => true,
            (Self::Here(right), Some(namespace)) => principal.may(right, namespace),
            // There is no such namespace; that is for them to hear who may see all of them.
            (Self::Here(right), None) => principal.may_everywhere(right),
            (Self::Somewhere(right), _) => principal.may_somewhere(right),
            (Self::Everywhere(right), _) => principal.may_everywhere(right),
        }
    }

    /// The roles that may; none where no token is needed.
    pub(crate) fn roles(self) -> Vec<&'static str> {
        let right = match self {
            Self::Nothing => return Vec::new(),
            Self::Here(right) | Self::Somewhere(right) | Self::Everywhere(right) => right,
        };
        let roles = Role::ALL.into_iter().filter(|role| role.has(right));
        roles.map(Role::as_str).collect()
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Self::Nothing => return f.write_str("Needs no token."),
            Self::Here(_) => "the namespace",
            Self::Somewhere(_) => "any namespace",
            Self::Everywhere(_) => "all namespaces",
        };
        write!(
            f,
            "Needs a token with the role {} in {place}.",
            self.roles().join(" or ")
        )
    }
}
