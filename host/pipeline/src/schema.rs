//! The JSON Schema of the pipeline document, made of the same words and bounds as its reader.

use serde_json::{Map, Value, json};
use stepwell_core::{BindingKind, ErrorKind, show_duration};

use crate::spec::{AUTHS, MAX_ATTEMPTS, MAX_GRANTS, MAX_ORIGINS, MAX_TEXT, METHODS};

const NAME: &str = "^[a-z][a-z0-9-]{0,62}$";
const GUEST_NAME: &str = "^[A-Za-z0-9._-]{1,63}$";
const VERSION: &str = "(latest|0|[1-9][0-9]*|(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)|(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)([-+][0-9A-Za-z.+-]+)?)";

/// The JSON Schema (draft 2020-12) of the pipeline document, for editors and other tools.
///
/// It accepts every document that this host accepts. What depends on other parts of the document or on the host is left to
/// `stepwell pipeline apply --dry-run`.
pub fn json_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Stepwell pipeline",
        "type": "object",
        "properties": {
            "stepwell": {"const": 1, "description": "Version of this format."},
            "name": {"$ref": "#/$defs/name"},
            "description": {"type": "string", "maxLength": 4096},
            "triggers": {"type": "array", "items": {"$ref": "#/$defs/trigger"}, "maxItems": 100},
            "defaults": object(&[], json!({"limits": {"$ref": "#/$defs/limits"}, "isolation": {"$ref": "#/$defs/isolation"}}), "For every step that does not say otherwise."),
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1, "maxItems": 100}
        },
        "required": ["stepwell", "name", "steps"],
        "additionalProperties": false,
        "$defs": definitions()
    })
}

fn definitions() -> Value {
    let retried: Vec<&str> = ErrorKind::ALL
        .into_iter()
        .filter(|kind| *kind != ErrorKind::Invalid)
        .map(ErrorKind::as_str)
        .collect();
    json!({
        "name": {"type": "string", "pattern": NAME},
        "size": {"type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)$", "description": "A whole number and KiB, MiB or GiB."},
        "duration": {"type": "string", "pattern": "^[0-9]+(us|ms|s|m|h)$", "description": "A whole number and us, ms, s, m or h."},
        "topic": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,249}$"},
        "attempts": {"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS, "description": "In all, the first included."},
        "trigger": {
            "oneOf": [
                object(&["http"], json!({"http": {"$ref": "#/$defs/http"}}), "An HTTP route."),
                object(&["kafka"], json!({"kafka": {"$ref": "#/$defs/kafka"}}), "A Kafka subscription.")
            ]
        },
        "http": object(&["path"], json!({
            "method": {"enum": METHODS, "description": "May be left out for plugins that answer HTTP requests themselves."},
            "path": {"type": "string", "pattern": "^/([^/]+(/[^/]+)*)?$", "description": "Literal segments, {param} segments and, for plugins that answer HTTP requests themselves, a last {*rest}."},
            "max_body": {"$ref": "#/$defs/size"},
            "timeout": {"$ref": "#/$defs/duration"},
            "auth": auth()
        }), "An HTTP route."),
        "kafka": object(&["topics", "group"], json!({
            "topics": {"type": "array", "items": {"$ref": "#/$defs/topic"}, "minItems": 1, "maxItems": 64, "uniqueItems": true},
            "group": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,245}$"},
            "output": {"$ref": "#/$defs/topic"},
            "dead_letter": {"$ref": "#/$defs/topic", "description": "GROUP.dlq if left out."},
            "order": {"enum": ["key", "partition", "none"]},
            "timeout": {"$ref": "#/$defs/duration"},
            "retry": object(&[], json!({
                "attempts": {"$ref": "#/$defs/attempts"},
                "backoff": {"$ref": "#/$defs/duration"},
                "max_age": {"$ref": "#/$defs/duration"}
            }), "How often and how long a record is tried.")
        }), "A Kafka subscription."),
        "step": {"oneOf": [plugin_step(), model_step()]},
        "limits": object(&[], json!({
            "cpu": {"$ref": "#/$defs/duration", "description": "Time that the guest itself may execute in one call."},
            "wall": {"$ref": "#/$defs/duration", "description": "Time for one call."},
            "memory": {"$ref": "#/$defs/size", "description": "All linear memories of one call."},
            "output": {"$ref": "#/$defs/size", "description": "All events that one call returns."}
        }), &bounds()),
        "retry": object(&["attempts"], json!({
            "attempts": {"$ref": "#/$defs/attempts"},
            "backoff": {"$ref": "#/$defs/duration", "description": "The first pause; it doubles, with full jitter."},
            "errors": {"type": "array", "items": {"enum": retried}, "minItems": 1, "uniqueItems": true}
        }), "What happens when the step errs."),
        "isolation": isolation(),
        "grants": grants()
    })
}

fn isolation() -> Value {
    use crate::spec::{MAX_CALLS, MAX_CONCURRENCY, MAX_IDLE, MIN_IDLE};
    let [least, most] = [MIN_IDLE, MAX_IDLE].map(show_duration);
    let reuse = object(
        &[],
        json!({
            "max_calls": {"type": "integer", "minimum": 1, "maximum": MAX_CALLS, "description": "Calls that one instance answers."},
            "idle": {"$ref": "#/$defs/duration", "description": format!("Time that an instance waits for its next call, {least} to {most}.")},
            "concurrency": {"type": "integer", "minimum": 1, "maximum": MAX_CONCURRENCY, "description": "Calls that one instance answers at the same time, where the component is async."}
        }),
        "How long an instance is kept.",
    );
    json!({
        "description": "Whether each call has a fresh instance, or calls of the step share instances.",
        "oneOf": [
            {"enum": ["fresh", "reuse"]},
            object(&["reuse"], json!({"reuse": reuse}), "Calls of the step share instances.")
        ]
    })
}

fn auth() -> Value {
    let text = json!({"type": "string", "maxLength": MAX_TEXT});
    let own = object(
        &["issuer", "audience", "jwks"],
        json!({
            "issuer": text,
            "audience": text,
            "jwks": {"type": "string", "pattern": "^https?://[^#]+$", "maxLength": MAX_TEXT, "description": "URL of the issuer's JSON Web Key Set."}
        }),
        "Whose JSON Web Tokens are taken.",
    );
    let own = object(
        &["jwt"],
        json!({ "jwt": own }),
        "JSON Web Tokens of an issuer of one's own.",
    );
    json!({"oneOf": [{"enum": AUTHS}, own]})
}

fn bounds() -> String {
    use crate::spec::{MAX_CPU, MAX_MEMORY, MAX_OUTPUT, MAX_TIME};
    let [cpu, wall] = [MAX_CPU, MAX_TIME].map(show_duration);
    let [memory, output] = [MAX_MEMORY, MAX_OUTPUT].map(stepwell_core::ByteSize);
    format!(
        "What one call may use: at most {cpu} of cpu, {wall} of wall, {memory} of memory, {output} of output."
    )
}

fn plugin_step() -> Value {
    let mut properties = json!({
        "id": {"$ref": "#/$defs/name"},
        "plugin": {"type": "string", "pattern": format!("^[a-z][a-z0-9-]{{0,62}}@{VERSION}$"), "description": "NAME@VERSION; pinned to an exact version when applied."},
        "config": {"type": "object", "additionalProperties": {"type": "string"}, "description": "What the guest reads through wasi:config."},
        "grants": {"$ref": "#/$defs/grants"},
        "limits": {"$ref": "#/$defs/limits"},
        "isolation": {"$ref": "#/$defs/isolation"}
    });
    extend(&mut properties, common());
    object(&["id", "plugin"], properties, "A plugin.")
}

fn model_step() -> Value {
    let mut properties = json!({
        "id": {"$ref": "#/$defs/name"},
        "model": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}(@[0-9]{1,19})?$", "description": "BINDING, or BINDING@ and a version."},
        "inputs": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^(/([^~]|~[01])*)?$"}, "description": "Tensor and JSON pointer into data."},
        "outputs": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Member of the reply and tensor."}
    });
    extend(&mut properties, common());
    object(&["id", "model"], properties, "Built-in inference.")
}

fn common() -> Value {
    json!({
        "timeout": {"$ref": "#/$defs/duration", "description": "Time for the step with its retries."},
        "retry": {"$ref": "#/$defs/retry"}
    })
}

fn grants() -> Value {
    let mut kinds = Map::new();
    for kind in BindingKind::ALL {
        let words: Vec<&str> = kind
            .actions()
            .iter()
            .map(|action| action.as_str())
            .collect();
        let actions =
            json!({"type": "array", "items": {"enum": words}, "minItems": 1, "uniqueItems": true});
        let mut long = json!({"binding": {"$ref": "#/$defs/name"}, "actions": actions});
        if kind == BindingKind::Keyvalue {
            extend(
                &mut long,
                json!({"prefix": {"type": "string", "maxLength": 256}}),
            );
        }
        let long = object(
            &["actions"],
            long,
            "The operator's name for the binding, and what is allowed.",
        );
        let grant = json!({"oneOf": [actions, long]});
        let grants = json!({
            "type": "object",
            "propertyNames": {"pattern": GUEST_NAME},
            "maxProperties": MAX_GRANTS,
            "additionalProperties": grant
        });
        kinds.insert(kind.as_str().to_owned(), grants);
    }
    kinds.insert(
        "http".to_owned(),
        json!({
            "type": "array",
            "items": {"type": "string", "pattern": "^https?://[^/?#@A-Z]+$"},
            "minItems": 1,
            "maxItems": MAX_ORIGINS,
            "uniqueItems": true,
            "description": "Origins that the guest may send HTTP requests to: scheme://host[:port]; *. in front of a host stands for every name below it."
        }),
    );
    object(
        &[],
        Value::Object(kinds),
        "Nothing is granted that is not written here.",
    )
}

fn object(required: &[&str], properties: Value, description: &str) -> Value {
    let mut object = json!({
        "type": "object",
        "description": description,
        "properties": properties,
        "additionalProperties": false
    });
    if !required.is_empty() {
        extend(&mut object, json!({"required": required}));
    }
    object
}

fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}
