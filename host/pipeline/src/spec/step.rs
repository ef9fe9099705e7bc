//! The items of `steps`.

use stepwell_core::{BindingKind, Grant, Grants, Name, PluginRef};
use stepwell_document::{At, MapReader};

use super::draft::{Defaults, StepDraft};
use super::grants::{GrantPlace, read_config, read_grants};
use super::isolation::read_isolation;
use super::limits::{MAX_TIME, duration, read_limits, read_retry};
use super::{ModelSpec, NodeSpec};

/// Kinds of node that later versions bring, with the keys that belong to them.
const NODES_TO_COME: [(&str, &[&str]); 6] = [
    ("parallel", &["merge"]),
    ("branch", &["else"]),
    ("map", &["steps", "concurrency"]),
    ("fallback", &["errors"]),
    ("split", &["by"]),
    ("pipeline", &[]),
];

/// Tensors that one model step may name.
const MAX_TENSORS: usize = 64;

pub(super) fn read_step(index: usize, at: &At<'_>, defaults: Defaults) -> Option<StepDraft> {
    let mut map = at.mapping()?;
    let id_at = map.required("id");
    let id = id_at.as_ref().and_then(|at| at.name());
    let node = read_node(&mut map);
    let is_model = map.has("model") && !map.has("plugin");

    let mut config = Vec::new();
    let mut grants = Grants::default();
    let mut places = Vec::new();
    let mut written = Vec::new();
    let Defaults {
        mut limits,
        mut isolation,
    } = defaults;
    if is_model {
        map.refuse("config", "a model step reads no config");
        map.refuse(
            "grants",
            "a model step is granted its own model and needs nothing else",
        );
        map.refuse(
            "limits",
            "a model step runs no guest that could be limited: give it a 'timeout'",
        );
        map.refuse(
            "isolation",
            "a model step runs no guest that could be kept apart",
        );
    } else {
        config = map
            .optional("config")
            .map(|at| read_config(&at))
            .unwrap_or_default();
        if let Some(at) = map.optional("grants") {
            (grants, places, written) = read_grants(&at);
        }
        limits = read_limits(map.optional("limits"), limits);
        isolation = read_isolation(map.optional("isolation"), isolation);
    }
    if let Some(NodeSpec::Model(model)) = &node {
        let path = format!("{}/model", at.path());
        (grants, places) = implicit_grant(&model.binding, path);
    }
    let timeout = map
        .optional("timeout")
        .and_then(|at| duration(&at, MAX_TIME));
    let retry = map.optional("retry").and_then(|at| read_retry(&at));
    map.finish();

    Some(StepDraft {
        path: at.path().to_owned(),
        // Only for the checks that go on after a mistake: such a draft never becomes a specification.
        id: id.or_else(|| format!("unreadable-{index}").parse::<Name>().ok())?,
        id_path: id_at.as_ref().unwrap_or(at).path().to_owned(),
        node,
        config,
        grants,
        grant_places: places,
        grant_kinds: written,
        limits,
        isolation,
        timeout,
        retry,
    })
}

fn read_node(map: &mut MapReader<'_>) -> Option<NodeSpec> {
    let mut refused = false;
    for (node, companions) in NODES_TO_COME {
        if map.has(node) {
            refused = true;
            for companion in companions {
                let _ = map.optional(companion);
            }
            map.refuse(
                node,
                &format!("this host does not support `{node}` nodes yet"),
            );
        }
    }
    let plugin = map.optional("plugin");
    let model = map.optional("model");
    match (plugin, model) {
        (Some(_), Some(model)) => {
            model.problem("a step is either a plugin or a model");
            let _ = (map.optional("inputs"), map.optional("outputs"));
            None
        }
        (Some(at), None) => read_plugin(&at).map(NodeSpec::Plugin),
        (None, Some(at)) => read_model(&at, map).map(NodeSpec::Model),
        (None, None) if refused => None,
        (None, None) => {
            map.at()
                .problem("the step says neither 'plugin' nor 'model'");
            None
        }
    }
}

fn read_plugin(at: &At<'_>) -> Option<PluginRef> {
    let text = at.string()?;
    match text.parse() {
        Ok(reference) => Some(reference),
        Err(error) => {
            let message = format!("{error}");
            match text
                .split_once('@')
                .and_then(|(name, version)| Name::suggest(name).zip(Some(version)))
            {
                Some((name, version)) if !text.starts_with(&format!("{name}@")) => {
                    at.problem_with_hint(message, format!("perhaps {name}@{version}"));
                }
                _ => at.problem(message),
            }
            None
        }
    }
}

fn read_model(at: &At<'_>, map: &mut MapReader<'_>) -> Option<ModelSpec> {
    let inputs = map
        .optional("inputs")
        .map(|at| read_pairs(&at, "tensor", is_pointer, "JSON pointer"));
    let outputs = map
        .optional("outputs")
        .map(|at| read_pairs(&at, "member", is_tensor, "tensor"));
    let text = at.string()?;
    let (binding, version) = match text.split_once('@') {
        None => (text, None),
        Some((binding, version)) => (binding, Some(version)),
    };
    let binding = match binding.parse::<Name>() {
        Ok(name) => name.to_string(),
        Err(error) => {
            let hint = Name::suggest(binding).map(|name| format!("perhaps {name}"));
            match hint {
                Some(hint) => at.problem_with_hint(error.to_string(), hint),
                None => at.problem(error.to_string()),
            }
            return None;
        }
    };
    if version.is_some_and(|version| version.parse::<u64>().is_err()) {
        at.problem(
            "a model's version after '@' is a whole number; this host does not support labels yet",
        );
        return None;
    }
    Some(ModelSpec {
        binding,
        version: version.map(ToOwned::to_owned),
        inputs: inputs.unwrap_or_default(),
        outputs: outputs.unwrap_or_default(),
    })
}

fn read_pairs(
    at: &At<'_>,
    key_is: &str,
    valid: fn(&str) -> bool,
    value_is: &str,
) -> Vec<(String, String)> {
    let entries = at.entries().unwrap_or_default();
    if entries.len() > MAX_TENSORS {
        at.problem(format!("more than {MAX_TENSORS} entries"));
    }
    let mut pairs = Vec::new();
    for (key, value_at) in entries {
        if !is_tensor(&key.name) {
            at.key_problem(
                key,
                format!("a {key_is} has a name of 1 to 256 bytes"),
                None,
            );
        }
        let Some(value) = value_at.string() else {
            continue;
        };
        if !valid(value) {
            let shown: String = value.chars().take(100).collect();
            let hint = if value_is == "JSON pointer" {
                "such as /image"
            } else {
                "a name of 1 to 256 bytes"
            };
            value_at.problem_with_hint(format!("'{shown}' is no {value_is}"), hint);
        }
        pairs.push((key.name.clone(), value.to_owned()));
    }
    pairs
}

/// RFC 6901: empty, or segments that each begin with a slash; `~` only as `~0` and `~1`.
fn is_pointer(text: &str) -> bool {
    let escaped = text
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    text.len() <= 1024 && (text.is_empty() || text.starts_with('/')) && escaped
}

fn is_tensor(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn implicit_grant(binding: &str, path: String) -> (Grants, Vec<GrantPlace>) {
    let kind = BindingKind::Models;
    let mut grants = Grants::default();
    let grant = Grant {
        binding: binding.to_owned(),
        actions: kind.actions().to_vec(),
        prefix: String::new(),
    };
    grants.insert(kind, binding, grant);
    let binding = binding.to_owned();
    (
        grants,
        vec![GrantPlace {
            kind,
            binding,
            path,
        }],
    )
}
