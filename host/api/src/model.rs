use std::str::FromStr;

use semver::Version;
use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, Name, Problem};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// One version of a plugin. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PluginVersion {
    /// The plugin.
    #[schema(value_type = String, example = "decode-image")]
    pub name: Name,
    /// SemVer.
    #[schema(value_type = String, example = "1.2.0")]
    pub version: Version,
    /// `sha256:` and 64 hexadecimal digits.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The world that the component was found to have.
    #[schema(example = "stepwell:pipeline/step@0.1.0")]
    pub world: String,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
    /// Bytes of the component.
    pub size: u64,
    /// Milliseconds that its compilation took.
    pub compile_ms: u64,
    /// When it was stored (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// A plugin with its versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plugin {
    /// The plugin.
    #[schema(value_type = String, example = "decode-image")]
    pub name: Name,
    /// What `@latest` picks: the highest version that is no pre-release.
    #[schema(value_type = Option<String>, example = "1.2.0")]
    pub latest: Option<Version>,
    /// Highest first.
    pub versions: Vec<PluginVersion>,
}

/// A revision of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pipeline {
    /// The pipeline.
    #[schema(value_type = String, example = "digit-reader")]
    pub name: Name,
    /// From 1; numbers are never used again. 0 in the reply to a dry run.
    pub revision: u64,
    /// What `If-Match` takes.
    #[schema(example = "\"1\"")]
    pub etag: String,
    /// What an apply or rollback did; only in their replies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub change: Option<Change>,
    /// The document as data.
    #[schema(value_type = Object)]
    pub document: serde_json::Value,
    /// The document as it was written; not in lists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// What each step runs.
    pub steps: Vec<Step>,
    /// When the revision was stored (RFC 3339); not in the reply to a dry run.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created_at: Option<OffsetDateTime>,
}

/// What an apply or rollback did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// There was no such pipeline.
    Created,
    /// It has a new revision.
    Changed,
    /// It already was like that.
    Unchanged,
    /// Nothing: it was a dry run, and the document is valid.
    Validated,
}

/// What a step runs, as it was pinned when its pipeline was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// The step.
    #[schema(value_type = String, example = "decode")]
    pub id: Name,
    /// The plugin of a plugin step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, example = "decode-image")]
    pub plugin: Option<Name>,
    /// The plugin's exact version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, example = "1.2.0")]
    pub version: Option<Version>,
    /// Of the version's bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// The model binding of a model step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
}

/// A model of the host's registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The model.
    pub name: String,
    /// Highest first.
    pub versions: Vec<ModelVersion>,
}

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelVersion {
    /// A whole number, as text.
    #[schema(example = "3")]
    pub version: String,
    /// Whether it can be used.
    #[schema(example = "available")]
    pub state: String,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What runs it.
    #[schema(example = "tensorflow_savedmodel")]
    pub platform: String,
    /// The tensors that it takes.
    pub inputs: Vec<Tensor>,
    /// The tensors that it answers.
    pub outputs: Vec<Tensor>,
}

/// A tensor of a model's signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tensor {
    /// The tensor.
    pub name: String,
    /// Of its elements.
    #[schema(example = "f32")]
    pub datatype: String,
    /// -1: any.
    pub shape: Vec<i64>,
}

/// An operator's named resource, without its address and credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Binding {
    /// `models`, `vectors`, `keyvalue` or `sql`.
    #[schema(example = "keyvalue")]
    pub kind: String,
    /// What pipelines call it.
    #[schema(example = "main-redis")]
    pub name: String,
    /// What is behind it.
    #[schema(example = "redis")]
    pub backend: String,
    /// Whether it can be used.
    pub state: State,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// How a part of the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Ok,
    /// It works in part.
    Degraded,
    /// It does not work.
    Down,
}

/// Whether the host can take work, part by part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// `down` answers 503, anything else 200.
    pub status: State,
    /// Every part of the host, and everything it depends on.
    pub parts: Vec<Part>,
}

/// One part of the host, or one thing that it depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// The part.
    #[schema(example = "catalog")]
    pub name: String,
    /// How it is.
    pub status: State,
    /// What is the matter; never a credential or an address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// One line of a step's or the host's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When it was written (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: OffsetDateTime,
    /// How serious it is.
    pub level: LogLevel,
    /// The pipeline that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pipeline: Option<String>,
    /// The step that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    /// The run that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_id: Option<String>,
    /// What was written.
    pub message: String,
    /// What else is known.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty", default)]
    #[schema(value_type = Object)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// How serious a log line is, from the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// A text that is no [`LogLevel`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a level is one of trace, debug, info, warn and error")]
pub struct InvalidLogLevel;

impl FromStr for LogLevel {
    type Err = InvalidLogLevel;

    fn from_str(text: &str) -> Result<Self, InvalidLogLevel> {
        Ok(match text {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warn,
            "error" => Self::Error,
            _ => return Err(InvalidLogLevel),
        })
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Items<T> {
    /// The items.
    pub items: Vec<T>,
    /// The `cursor` of the next part; null: this is the last.
    pub next_cursor: Option<String>,
}

/// Problem details (RFC 9457).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// `urn:stepwell:problem:` and the code.
    #[schema(example = "urn:stepwell:problem:not-found")]
    pub r#type: String,
    /// What every problem with this code has in common.
    pub title: String,
    /// The response's status.
    pub status: u16,
    /// What happened, to a person.
    pub detail: String,
    /// What happened, to a program.
    #[schema(value_type = crate::ErrorCode)]
    pub code: String,
    /// Every mistake, where several may be found at once.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<Mistake>,
}

/// One mistake in what was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Mistake {
    /// JSON Pointer (RFC 6901) of the place.
    pub path: String,
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
    /// Column, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

impl From<Problem> for Mistake {
    fn from(problem: Problem) -> Self {
        Self {
            path: problem.path,
            line: problem.line,
            column: problem.column,
            message: problem.message,
            hint: problem.hint,
        }
    }
}
