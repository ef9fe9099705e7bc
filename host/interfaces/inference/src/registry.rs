use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use stepwell_core::{ByteSize, Call, Name};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::json::JsonMapping;
use crate::library::{Library, LibraryConfig};
use crate::loader::{Frameworks, Loader, State, Unserved};
use crate::pool::{Bounds, Pool};
use crate::tensor::shown;
use crate::{
    Backend, BindingStatus, DEFAULT_SIGNATURE, Health, InferError, LibraryStatus, Model, ModelName,
    ModelStatus, ModelVersion, RunError, Signature, Tensor, TensorInfo,
};

/// `[models]` and `[bindings.models.*]` of the configuration.
#[derive(Clone, Debug)]
pub struct ModelsConfig {
    /// Where models are: `NAME/INTEGER/saved_model.pb`. It may be missing.
    pub directory: PathBuf,
    /// Where libtensorflow is.
    pub library: LibraryConfig,
    /// The bindings, by name.
    pub bindings: BTreeMap<String, ModelBindingConfig>,
    /// How often the directory is looked at for new versions.
    pub rescan: Duration,
    /// Inferences that may wait for a thread; more are refused as overloaded.
    pub queue: usize,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            directory: "models".into(),
            library: LibraryConfig::Auto,
            bindings: BTreeMap::new(),
            rescan: Duration::from_secs(5),
            queue: 1024,
        }
    }
}

/// One binding: which model a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelBindingConfig {
    /// The model's directory.
    pub model: ModelName,
    /// Which of its versions.
    pub version: ModelVersion,
}

/// One inference.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The version that the binding must serve, when the caller asks for one.
    pub version: Option<String>,
    /// The signature; none: `serving_default`.
    pub signature: Option<String>,
    /// Every input of the signature, in any order.
    pub inputs: Vec<Tensor>,
    /// The outputs that are wanted; none: all.
    pub outputs: Vec<String>,
}

/// What a served model takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The version that is served now.
    pub version: String,
    /// The framework and format.
    pub platform: String,
    /// What `serving_default` takes, or the first signature by name if there is none such.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
}

/// Bytes of all inputs of the largest inference.
const MAX_INPUT: usize = 256 << 20;

/// Bytes of all inputs that wait for a thread.
const MAX_QUEUED_BYTES: usize = 1 << 30;

/// All models of this process: found, loaded, replaced and run.
///
/// Loading and libtensorflow itself run on a thread of their own, sessions on a bounded pool; neither ever on the caller's.
pub struct Models {
    state: Arc<ArcSwap<State>>,
    pool: Pool,
    rescan: mpsc::Sender<oneshot::Sender<()>>,
}

/// One loaded version, with what its inferences share.
pub(crate) struct Loaded {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) platform: &'static str,
    pub(crate) seconds: metrics::Histogram,
    pub(crate) done: metrics::Counter,
}

impl Models {
    /// Starts to load what the bindings need, and returns at once.
    ///
    /// Call it early in the process: it sets environment variables for libtensorflow, which other threads should not be
    /// reading, and after the metrics recorder is installed. Without bindings nothing is loaded, not even the library.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(config: ModelsConfig) -> std::io::Result<Self> {
        if !config.bindings.is_empty() {
            Library::point_at(&config.library);
        }
        let frameworks = Frameworks::tensorflow(config.library.clone(), cores());
        Self::start_on(config, frameworks)
    }

    /// The same with a framework other than TensorFlow.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start_with(config: ModelsConfig, backend: Arc<dyn Backend>) -> std::io::Result<Self> {
        Self::start_on(config, Frameworks::given(backend))
    }

    fn start_on(config: ModelsConfig, frameworks: Frameworks) -> std::io::Result<Self> {
        let pool = Pool::start(Bounds {
            threads: cores(),
            jobs: config.queue.max(1),
            bytes: MAX_QUEUED_BYTES,
        })?;
        let rescan_every = config.rescan.max(Duration::from_millis(100));
        let mut loader = Loader::new(config, frameworks);
        let state = loader.state();
        let (rescan, requests) = mpsc::channel::<oneshot::Sender<()>>();
        thread::Builder::new()
            .name("model-loader".into())
            .spawn(move || {
                loader.pass();
                loop {
                    match requests.recv_timeout(rescan_every) {
                        Ok(done) => {
                            loader.pass();
                            // Whoever asked may have gone.
                            let _ = done.send(());
                        }
                        Err(mpsc::RecvTimeoutError::Timeout) => loader.pass(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(Self {
            state,
            pool,
            rescan,
        })
    }

    /// Looks for new versions now, and returns once they are loaded or have failed to; so also once the first ones are.
    pub async fn rescan(&self) {
        let (done, finished) = oneshot::channel();
        if self.rescan.send(done).is_ok() {
            // The loader only goes away with `self`.
            let _ = finished.await;
        }
    }

    /// Runs the model behind a binding, at the turns of this namespace.
    ///
    /// # Errors
    /// [`InferError`]; nothing in it is internal.
    pub async fn infer(
        &self,
        namespace: &Name,
        binding: &str,
        request: InferRequest,
        deadline: Instant,
    ) -> Result<Vec<Tensor>, InferError> {
        let loaded = self.served(binding, request.version.as_deref())?;
        let name = request.signature.as_deref().unwrap_or(DEFAULT_SIGNATURE);
        let run = async {
            let signature = loaded.signature(name)?;
            let outputs = signature.choose(&request.outputs)?;
            let bytes = size(&request.inputs)?;
            let inputs = signature.accept(request.inputs)?;
            let name = name.to_owned();
            self.run(namespace, &loaded, bytes, deadline, move |loaded| {
                loaded.run(&name, inputs, &outputs)
            })
            .await
        };
        let result = run.await;
        loaded.count(result.as_ref().err());
        result
    }

    /// Runs the model behind a binding on JSON: a pipeline's built-in `model` step. The answer is JSON too. Reading and writing it may
    /// take longer than the model, and is done where that runs; the step is charged for it.
    ///
    /// # Errors
    /// [`InferError`]; `InvalidInput` when the data is no JSON or does not fit.
    pub async fn infer_json(
        &self,
        call: &Call,
        binding: &str,
        version: Option<&str>,
        mapping: &Arc<JsonMapping>,
        data: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<Vec<u8>, InferError> {
        let (namespace, deadline) = (&call.scope.namespace, call.deadline);
        let loaded = self.served(binding, version)?;
        let run = async {
            let outputs = mapping.outputs();
            let outputs = loaded.signature(DEFAULT_SIGNATURE)?.choose(&outputs)?;
            let (bytes, mapping) = (data.as_ref().len(), mapping.clone());
            let cpu = call.scope.cpu.clone();
            self.run(namespace, &loaded, bytes, deadline, move |loaded| {
                let signature = loaded.signature(DEFAULT_SIGNATURE)?;
                let inputs = cpu.timed(|| mapping.inputs(signature, data.as_ref()))?;
                // Nothing needs the document any more.
                drop(data);
                size(&inputs)?;
                let inputs = signature.accept(inputs)?;
                if Instant::now() >= deadline {
                    return Err(InferError::DeadlineExceeded);
                }
                let reply = loaded.run(DEFAULT_SIGNATURE, inputs, &outputs)?;
                cpu.timed(|| mapping.reply(&reply))
            })
            .await
        };
        let result = run.await;
        loaded.count(result.as_ref().err());
        result
    }

    /// What the model behind a binding takes and gives.
    ///
    /// # Errors
    /// [`InferError`]: `NotFound` or `Unavailable`.
    pub fn describe(&self, binding: &str, version: Option<&str>) -> Result<ModelInfo, InferError> {
        let loaded = self.served(binding, version)?;
        let signatures = loaded.model.signatures();
        let signature = signatures
            .get(DEFAULT_SIGNATURE)
            .or_else(|| signatures.values().next());
        let Signature { inputs, outputs } = signature.cloned().unwrap_or_default();
        Ok(ModelInfo {
            version: loaded.version.clone(),
            platform: loaded.platform.to_owned(),
            inputs,
            outputs,
        })
    }

    /// Every model in the directory, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.state.load().models()
    }

    /// One model in the directory.
    pub fn get(&self, name: &str) -> Option<ModelStatus> {
        self.list().into_iter().find(|model| model.name == name)
    }

    /// Every binding, by name.
    pub fn bindings(&self) -> Vec<BindingStatus> {
        self.state.load().bindings()
    }

    /// libtensorflow.
    pub fn library(&self) -> LibraryStatus {
        self.state.load().library.clone()
    }

    /// Whether every binding is served.
    pub fn health(&self) -> Health {
        self.state.load().health()
    }

    fn served(&self, binding: &str, version: Option<&str>) -> Result<Arc<Loaded>, InferError> {
        let state = self.state.load();
        let loaded = match state.served(binding) {
            Ok(loaded) => loaded.clone(),
            Err(Unserved::NotFound(what)) => return Err(InferError::NotFound(what)),
            Err(Unserved::Unavailable(what)) => return Err(InferError::Unavailable(what)),
        };
        match version {
            Some(version) if version != loaded.version => Err(InferError::NotFound(format!(
                "version '{}' of the model is not served, {} is",
                shown(version),
                loaded.version
            ))),
            _ => Ok(loaded),
        }
    }

    /// Does this on one of the pool's threads.
    async fn run<T: Send + 'static>(
        &self,
        namespace: &Name,
        loaded: &Arc<Loaded>,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce(&Loaded) -> Result<T, InferError> + Send + 'static,
    ) -> Result<T, InferError> {
        if Instant::now() >= deadline {
            return Err(InferError::DeadlineExceeded);
        }
        let running = loaded.clone();
        let answer = self
            .pool
            .submit(namespace, bytes, deadline, move || work(&running))
            .map_err(|full| InferError::Overloaded {
                retry_after: full.retry_after,
            })?;
        match timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if Instant::now() < deadline => {
                Err(InferError::Internal("the model failed".into()))
            }
            Ok(Err(_)) | Err(_) => Err(InferError::DeadlineExceeded),
        }
    }
}

/// Bytes of all inputs, if they are not too many.
fn size(inputs: &[Tensor]) -> Result<usize, InferError> {
    let bytes = inputs
        .iter()
        .fold(0_usize, |sum, tensor| sum.saturating_add(tensor.data.len()));
    if bytes > MAX_INPUT {
        return Err(InferError::InvalidInput(format!(
            "the inputs are {}, at most {} are accepted",
            ByteSize(bytes as u64),
            ByteSize(MAX_INPUT as u64)
        )));
    }
    Ok(bytes)
}

impl Loaded {
    fn run(
        &self,
        signature: &str,
        inputs: Vec<Tensor>,
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, InferError> {
        let started = Instant::now();
        let result = self.model.run(signature, inputs, outputs);
        self.seconds.record(started.elapsed().as_secs_f64());
        result.map_err(|error| match error {
            RunError::Input(what) => InferError::InvalidInput(what),
            RunError::Failed(error) => {
                tracing::warn!(model = %self.name, version = %self.version, %error, "a model failed");
                InferError::Internal("the model failed".into())
            }
        })
    }

    fn signature(&self, name: &str) -> Result<&Signature, InferError> {
        let signatures = self.model.signatures();
        signatures.get(name).ok_or_else(|| {
            let names: Vec<_> = signatures.keys().map(|name| format!("'{name}'")).collect();
            InferError::NotFound(format!(
                "the model has no signature '{}', it has {}",
                shown(name),
                names.join(", ")
            ))
        })
    }

    fn count(&self, error: Option<&InferError>) {
        match error {
            None => self.done.increment(1),
            Some(error) => metrics::counter!(
                "stepwell_model_requests_total",
                "model" => self.name.clone(), "version" => self.version.clone(), "outcome" => error.as_str()
            )
            .increment(1),
        }
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
