use std::collections::BTreeMap;

use serde::Serialize;

use crate::Signature;

/// A model in the models directory: what `GET /api/v1/models` lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelStatus {
    /// Its directory's name.
    pub name: String,
    /// The bindings that serve it.
    pub bindings: Vec<String>,
    /// Its versions on disk, the highest first.
    pub versions: Vec<VersionStatus>,
}

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionStatus {
    /// The number, as text.
    pub version: String,
    /// Whether it is served.
    pub state: VersionState,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The framework, once it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What can be run, once it is loaded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub signatures: BTreeMap<String, Signature>,
}

/// The states of a version, in TensorFlow Serving's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum VersionState {
    /// It will be served once it is loaded.
    Loading,
    /// It is served.
    Available,
    /// It is not served, for the reason beside it.
    End,
}

/// A binding to a model: what `GET /api/v1/bindings` lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BindingStatus {
    /// The operator's name for it.
    pub name: String,
    /// The model.
    pub model: String,
    /// `latest` or a number.
    pub version: String,
    /// The version that is served now.
    pub served: Option<String>,
    /// Why none is.
    pub reason: Option<String>,
}

/// libtensorflow in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum LibraryStatus {
    /// No binding needs it.
    #[default]
    Unused,
    /// It is being loaded.
    Loading,
    /// It is loaded.
    Loaded {
        /// Its version.
        version: String,
    },
    /// It is not there, or does not load.
    Missing {
        /// Why, for operators.
        reason: String,
    },
}

/// What `/readyz` says of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every binding is served.
    Ok,
    /// Models are still being loaded for the first time.
    Loading,
    /// Some bindings are not served; which, and why.
    Degraded(String),
}
