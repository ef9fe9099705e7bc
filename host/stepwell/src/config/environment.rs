use stepwell_core::Problem;
use stepwell_document::{Key, Node, Value};

use super::{NOWHERE, Overrides};

/// Keys that `STEPWELL_SECTION_KEY` may set; a section of a section stands behind a dot, which is an underscore in the variable.
const KEYS: [(&str, &[&str]); 11] = [
    (
        "server",
        &[
            "listen",
            "admin_listen",
            "data_dir",
            "admin_token",
            "grace_period",
        ],
    ),
    ("server.tls", &["certificate", "key"]),
    ("server.admin_tls", &["certificate", "key"]),
    ("server.jwt", &["issuer", "audience", "jwks"]),
    ("catalog", &["url"]),
    ("kafka", &["brokers", "drain_timeout"]),
    ("models", &["directory", "library"]),
    (
        "limits",
        &[
            "bodies",
            "cache",
            "compile",
            "compile_memory",
            "component",
            "concurrent_runs",
            "guest_memory",
            "loaded_components",
            "pipelines",
            "revisions",
            "subscriptions",
            "uploads",
        ],
    ),
    ("egress", &super::egress::KEYS),
    ("audit", &["keep"]),
    ("telemetry", &["otlp_endpoint", "service_name"]),
];

/// Those of them that are numbers, beside those of egress.
const COUNTS: [&str; 5] = [
    "concurrent_runs",
    "loaded_components",
    "pipelines",
    "revisions",
    "subscriptions",
];

/// Which values come from a flag or the environment.
#[derive(Debug, Default)]
pub(crate) struct Overlaid(Vec<(String, String)>);

impl Overlaid {
    /// The flag or variable that gave the value at this path.
    pub(crate) fn source(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(overlaid, _)| overlaid == path)
            .map(|(_, source)| source.as_str())
    }

    /// Says in a problem which flag or variable it is about, in place of a line of the file.
    pub(crate) fn name_source(&self, problem: &mut Problem) {
        if let Some(source) = self.source(&problem.path) {
            problem.message = format!("{source}: {}", problem.message);
            problem.path = String::new();
        }
        if problem.line == Some(0) {
            (problem.line, problem.column) = (None, None);
        }
    }
}

/// Puts what flags and environment say over what the file says.
pub(crate) fn overlay(
    root: &mut Node,
    overrides: &Overrides,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Overlaid {
    let mut overlaid = Overlaid::default();
    // An empty variable is one that is not set.
    let set_in_environment = |name: &str| environment(name).filter(|text| !text.is_empty());
    let mut put = |root: &mut Node, section: &str, key: &str, text: String, source: String| {
        let path = format!("/{}/{key}", section.replace('.', "/"));
        overlaid.0.retain(|(overlaid, _)| *overlaid != path);
        overlaid.0.push((path, source));
        let value = match text.parse::<i64>() {
            Ok(number) if COUNTS.contains(&key) || super::egress::COUNTS.contains(&key) => {
                Value::Integer(number)
            }
            _ => Value::String(text),
        };
        // A token from the environment is where it should be: no warning is due.
        let value = if key == "admin_token" {
            secret(value)
        } else {
            value
        };
        set_in(root, section, key, value);
    };
    for (section, keys) in KEYS {
        for key in keys {
            let section_name = section.replace('.', "_").to_uppercase();
            let name = format!("STEPWELL_{section_name}_{}", key.to_uppercase());
            if let Some(text) = set_in_environment(&name) {
                put(root, section, key, text, name);
            }
        }
    }
    if let Some(text) = set_in_environment("STEPWELL_ADMIN_TOKEN") {
        put(
            root,
            "server",
            "admin_token",
            text,
            "STEPWELL_ADMIN_TOKEN".into(),
        );
    }
    let flags = [
        ("listen", "--listen", overrides.listen.clone()),
        (
            "admin_listen",
            "--admin-listen",
            overrides.admin_listen.clone(),
        ),
        (
            "data_dir",
            "--data-dir",
            overrides
                .data_dir
                .as_ref()
                .map(|path| path.display().to_string()),
        ),
    ];
    for (key, flag, text) in flags {
        if let Some(text) = text {
            put(root, "server", key, text, flag.to_owned());
        }
    }
    overlaid
}

/// `{ value = … }`: a secret that is known already.
fn secret(value: Value) -> Value {
    Value::Mapping(vec![entry(super::secret::KNOWN, value)])
}

/// Sets a key of a section, which is made when it is not there.
fn set_in(node: &mut Node, section: &str, key: &str, value: Value) {
    let Value::Mapping(entries) = &mut node.value else {
        return;
    };
    let (name, inner) = match section.split_once('.') {
        _ if section.is_empty() => {
            entries.retain(|(name, _)| name.name != key);
            entries.push(entry(key, value));
            return;
        }
        Some(split) => split,
        None => (section, ""),
    };
    if !entries.iter().any(|(found, _)| found.name == name) {
        entries.push(entry(name, Value::Mapping(Vec::new())));
    }
    for (_, node) in entries.iter_mut().filter(|(found, _)| found.name == name) {
        // The one section that a file may switch off: what the environment says goes before that too.
        if name == "admin_tls" && matches!(node.value, Value::Boolean(false)) {
            node.value = Value::Mapping(Vec::new());
        }
        set_in(node, inner, key, value.clone());
    }
}

fn entry(name: &str, value: Value) -> (Key, Node) {
    let key = Key {
        name: name.to_owned(),
        position: NOWHERE,
    };
    let node = Node {
        value,
        position: NOWHERE,
    };
    (key, node)
}
