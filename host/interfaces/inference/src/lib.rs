//! Models for guests and pipelines: `stepwell:model`.
//!
//! [`Models`] holds what is loaded: SavedModels from a directory in TensorFlow Serving's layout, run by libtensorflow,
//! which is looked for at run time and may be missing. Guests reach it through [`add_to_linker`], a pipeline's built-in
//! `model` step through [`Models::infer_json`]; both end in [`Models::infer`].
//!
//! - [`client`](Backend): the traits that a framework implements; `tensorflow.rs` is the one there is
//! - `check.rs`, `ops.rs`: what a SavedModel must be before libtensorflow sees it, and the ops it may not reach
//! - `registry.rs`, `loader.rs`, `scan.rs`: which versions are there, which are served, and why others are not
//! - `pool.rs`: the threads that sessions run on
//! - `host.rs`: grant, size and deadline, once, for guests
//! - `json.rs`: JSON to tensors and back, for the built-in step

mod check;
mod client;
mod elements;
mod error;
mod host;
mod json;
mod json_read;
mod library;
mod loader;
mod ops;
mod pool;
mod registry;
mod saved_model;
mod scan;
mod status;
mod tensor;
mod tensorflow;

pub use client::{Backend, LoadError, Model, RunError};
pub use error::InferError;
pub use host::{HasInference, InferenceView, add_to_linker};
pub use json::JsonMapping;
pub use library::{INSTALL_COMMAND, LibraryConfig, LibraryNotFound};
pub use registry::{InferRequest, ModelBindingConfig, ModelInfo, Models, ModelsConfig};
pub use scan::{InvalidModelName, InvalidModelVersion, ModelName, ModelVersion};
pub use status::{BindingStatus, Health, LibraryStatus, ModelStatus, VersionState, VersionStatus};
pub use tensor::{DEFAULT_SIGNATURE, DataType, Signature, Tensor, TensorInfo};

/// Describes this crate's metrics to the recorder; call once, before [`Models::start`].
pub fn describe_metrics() {
    metrics::describe_histogram!(
        "stepwell_model_inference_seconds",
        metrics::Unit::Seconds,
        "Time of one session run, without waiting for a thread"
    );
    metrics::describe_counter!(
        "stepwell_model_requests_total",
        "Inferences by model, version and outcome"
    );
    metrics::describe_gauge!(
        "stepwell_model_loaded_versions",
        "Versions of a model that are loaded"
    );
    metrics::describe_gauge!(
        "stepwell_model_queued_requests",
        "Inferences that wait for a thread"
    );
}
