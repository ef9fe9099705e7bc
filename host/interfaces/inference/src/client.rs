use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::{Signature, Tensor};

/// A framework that can load models.
///
/// `load` is called from one thread, the loader's, and may take long. It must refuse what it cannot run safely, and must
/// leave nothing behind when it fails. It is called again for the same directory only after files in it have changed.
pub trait Backend: Send + Sync + 'static {
    /// The name of framework and format in `model-info`.
    fn platform(&self) -> &'static str;

    /// Loads the model version in this directory.
    ///
    /// # Errors
    /// [`LoadError`], whose message is shown to operators.
    fn load(&self, directory: &Path) -> Result<Arc<dyn Model>, LoadError>;
}

/// One loaded version of a model.
///
/// `run` is called from many threads at once, only ever from the inference pool's: it blocks, and nothing that must answer
/// in time may run on its thread. Dropping the last handle unloads the model.
pub trait Model: Send + Sync + 'static {
    /// The signatures that can be run, by name.
    fn signatures(&self) -> &BTreeMap<String, Signature>;

    /// Runs a signature once.
    ///
    /// The caller has checked everything that the signature says: `inputs` are all of the signature's inputs in its order,
    /// their names, datatypes, shapes and byte counts fit, and `outputs` are indexes of the signature's outputs.
    ///
    /// # Errors
    /// [`RunError`].
    fn run(
        &self,
        signature: &str,
        inputs: Vec<Tensor>,
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, RunError>;
}

/// A model version cannot be loaded; says why, for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// A run failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The inputs fit the signature, but not the model, such as two batches of different length; says why, for callers.
    #[error("{0}")]
    Input(String),
    /// Anything else; says why, for the log.
    #[error("{0}")]
    Failed(String),
}
