//! `grants` and `config` of a step.

use stepwell_core::{Action, BindingKind, Grant, Grants, OriginPattern};
use stepwell_document::{At, MapReader};

/// Kinds of grant that later versions bring.
const KINDS_TO_COME: [&str; 3] = ["messaging", "redis", "secrets"];

/// Origins that one step may be granted.
pub(crate) const MAX_ORIGINS: usize = 64;

/// Grants of one kind that one step may have.
pub(crate) const MAX_GRANTS: usize = 256;

const MAX_PREFIX: usize = 256;
const MAX_CONFIG_KEY: usize = 256;
const MAX_CONFIG_VALUE: usize = 64 << 10;

/// A grant and where its binding is named.
pub(crate) struct GrantPlace {
    pub(crate) kind: BindingKind,
    pub(crate) binding: String,
    /// JSON pointer of the binding's name, or of the grant whose name it is.
    pub(crate) path: String,
}

/// The grants, the places of their bindings, and the kinds that have any, readable or not.
pub(super) fn read_grants(at: &At<'_>) -> (Grants, Vec<GrantPlace>, Vec<BindingKind>) {
    let mut grants = Grants::default();
    let mut places = Vec::new();
    let mut kinds = Vec::new();
    let Some(mut map) = at.mapping() else {
        return (grants, places, kinds);
    };
    for kind in KINDS_TO_COME {
        if map.has(kind) {
            map.refuse(
                kind,
                &format!("this host does not support `{kind}` grants yet"),
            );
        }
    }
    for kind in BindingKind::ALL {
        let Some(kind_at) = map.optional(kind.as_str()) else {
            continue;
        };
        let entries = kind_at.entries();
        if entries.as_ref().is_none_or(|entries| !entries.is_empty()) {
            kinds.push(kind);
        }
        if entries
            .as_ref()
            .is_some_and(|entries| entries.len() > MAX_GRANTS)
        {
            kind_at.problem(format!("more than {MAX_GRANTS} grants of one kind"));
            continue;
        }
        for (key, at) in entries.into_iter().flatten() {
            let name = key.name.as_str();
            if !is_guest_name(name) {
                let message = format!(
                    "'{}' is no name: 1 to 63 letters, digits, dots, hyphens and underscores",
                    name.escape_debug()
                );
                kind_at.key_problem(key, message, None);
                continue;
            }
            if let Some((grant, path)) = read_grant(kind, name, &at) {
                let binding = grant.binding.clone();
                places.push(GrantPlace {
                    kind,
                    binding,
                    path,
                });
                grants.insert(kind, name, grant);
            }
        }
    }
    if let Some(at) = map.optional("http") {
        read_origins(&at, &mut grants);
    }
    map.finish();
    (grants, places, kinds)
}

/// `http: [https://api.example.com, …]`.
fn read_origins(at: &At<'_>, grants: &mut Grants) {
    let Some(items) = at.sequence() else { return };
    if items.is_empty() {
        at.problem("no origin is granted: name one, or leave out the grant");
    }
    if items.len() > MAX_ORIGINS {
        at.problem_with_hint(
            format!("more than {MAX_ORIGINS} origins"),
            "https://*.example.com stands for every name below example.com",
        );
    }
    for item in items.into_iter().take(MAX_ORIGINS) {
        let Some(text) = item.string() else { continue };
        match text.parse::<OriginPattern>() {
            Ok(origin) if grants.http().contains(&origin) => {
                item.problem(format!("'{origin}' is there already"));
            }
            Ok(origin) => grants.allow_http(origin),
            Err(error) => {
                let shown: String = text.chars().take(100).collect();
                let message = format!("'{}' is no origin: {error}", shown.escape_debug());
                match error.hint {
                    Some(hint) => item.problem_with_hint(message, hint),
                    None => item.problem(message),
                }
            }
        }
    }
}

/// `[actions]` or `{binding, actions, prefix}`.
fn read_grant(kind: BindingKind, name: &str, at: &At<'_>) -> Option<(Grant, String)> {
    let short = |actions| {
        let binding = name.to_owned();
        let prefix = String::new();
        (
            Grant {
                binding,
                actions,
                prefix,
            },
            at.path().to_owned(),
        )
    };
    if matches!(at.node().value, stepwell_document::Value::Sequence(_)) {
        return read_actions(kind, at).map(short);
    }
    if !matches!(at.node().value, stepwell_document::Value::Mapping(_)) {
        at.problem("expected a list of actions, or a mapping with 'binding' and 'actions'");
        return None;
    }
    let mut map = at.mapping()?;
    let binding = map.optional("binding");
    let path = binding.as_ref().unwrap_or(at).path().to_owned();
    let binding = match binding {
        Some(at) => at.name().map(|name| name.to_string()),
        None => Some(name.to_owned()),
    };
    let actions = map
        .required("actions")
        .and_then(|at| read_actions(kind, &at));
    let prefix = read_prefix(kind, &mut map);
    map.finish();
    let grant = Grant {
        binding: binding?,
        actions: actions?,
        prefix,
    };
    Some((grant, path))
}

fn read_prefix(kind: BindingKind, map: &mut MapReader<'_>) -> String {
    if kind != BindingKind::Keyvalue {
        map.refuse("prefix", "only keyvalue grants have a prefix");
        return String::new();
    }
    let Some(at) = map.optional("prefix") else {
        return String::new();
    };
    let prefix = at.string().unwrap_or_default();
    if prefix.len() > MAX_PREFIX || prefix.chars().any(char::is_control) {
        at.problem(format!(
            "a prefix is at most {MAX_PREFIX} bytes, without control characters"
        ));
    }
    prefix.to_owned()
}

fn read_actions(kind: BindingKind, at: &At<'_>) -> Option<Vec<Action>> {
    let items = at.sequence()?;
    if items.is_empty() {
        at.problem("no action is granted: name one, or leave out the grant");
    }
    let words: Vec<&'static str> = kind
        .actions()
        .iter()
        .map(|action| action.as_str())
        .collect();
    let mut actions = Vec::new();
    for item in items {
        let word = item.one_of(&words);
        let Some(action) = kind
            .actions()
            .iter()
            .find(|action| Some(action.as_str()) == word)
        else {
            continue;
        };
        if actions.contains(action) {
            item.problem(format!("'{action}' is there already"));
        } else {
            actions.push(*action);
        }
    }
    Some(actions)
}

/// What a guest may call a binding: more than a name, since some guests cannot be changed.
fn is_guest_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// `config`: texts under free keys, which become the guest's environment too.
pub(super) fn read_config(at: &At<'_>) -> Vec<(String, String)> {
    let mut config = Vec::new();
    for (key, value_at) in at.entries().into_iter().flatten() {
        let name = key.name.as_str();
        if name.is_empty() || name.len() > MAX_CONFIG_KEY || name.contains(['=', '\0']) {
            let message = format!("a config key is 1 to {MAX_CONFIG_KEY} bytes, without '='");
            at.key_problem(key, message, None);
        }
        let Some(value) = value_at.string() else {
            continue;
        };
        if value.len() > MAX_CONFIG_VALUE || value.contains('\0') {
            value_at.problem(format!(
                "a config value is at most {MAX_CONFIG_VALUE} bytes, without a zero byte"
            ));
        }
        config.push((name.to_owned(), value.to_owned()));
    }
    config
}
