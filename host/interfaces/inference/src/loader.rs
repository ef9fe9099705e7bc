use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::library::{Library, LibraryConfig, LibraryError};
use crate::registry::{Loaded, ModelsConfig};
use crate::scan::{Found, scan};
use crate::tensorflow::TensorFlow;
use crate::{
    Backend, BindingStatus, Health, LibraryStatus, LoadError, ModelBindingConfig, ModelName,
    ModelStatus, ModelVersion, VersionState, VersionStatus,
};

/// Where the backend comes from, once it is needed.
pub(crate) enum Frameworks {
    /// Already here.
    Given(Arc<dyn Backend>),
    /// Here once libtensorflow is loaded.
    TensorFlow {
        library: LibraryConfig,
        threads: usize,
    },
}

impl Frameworks {
    pub(crate) fn given(backend: Arc<dyn Backend>) -> Self {
        Self::Given(backend)
    }

    pub(crate) fn tensorflow(library: LibraryConfig, threads: usize) -> Self {
        Self::TensorFlow { library, threads }
    }
}

/// Keeps what is loaded in step with the directory, one pass after the other, on the loader's thread.
pub(crate) struct Loader {
    config: ModelsConfig,
    frameworks: Frameworks,
    slots: BTreeMap<(ModelName, u64), Slot>,
    found: BTreeMap<ModelName, BTreeMap<u64, Found>>,
    library: LibraryStatus,
    /// What callers are told while there is no library.
    library_missing: Option<String>,
    passed: bool,
    state: Arc<ArcSwap<State>>,
}

/// What has become of a version that was wanted.
#[derive(Clone)]
enum Slot {
    Loading,
    Loaded(Arc<Loaded>),
    Failed { fingerprint: u64, reason: String },
}

/// What everybody sees, replaced as a whole.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) library: LibraryStatus,
    passed: bool,
    bindings: BTreeMap<String, (ModelBindingConfig, Result<Arc<Loaded>, Unserved>)>,
    models: BTreeMap<ModelName, BTreeMap<u64, Option<Slot>>>,
}

/// Why a binding has no model; for guests.
#[derive(Clone, Debug)]
pub(crate) enum Unserved {
    NotFound(String),
    Unavailable(String),
}

impl Loader {
    pub(crate) fn new(config: ModelsConfig, frameworks: Frameworks) -> Self {
        let library = match frameworks {
            Frameworks::TensorFlow { .. } if !config.bindings.is_empty() => LibraryStatus::Loading,
            _ => LibraryStatus::Unused,
        };
        let loader = Self {
            config,
            frameworks,
            slots: BTreeMap::new(),
            found: BTreeMap::new(),
            library,
            library_missing: None,
            passed: false,
            state: Arc::default(),
        };
        loader.publish();
        loader
    }

    pub(crate) fn state(&self) -> Arc<ArcSwap<State>> {
        self.state.clone()
    }

    /// Looks at the directory once: loads what the bindings want, then lets go of what they no longer do.
    pub(crate) fn pass(&mut self) {
        match scan(&self.config.directory) {
            Ok(found) => self.found = found,
            // Nothing was ever there: that is an empty directory. Otherwise it is kept: a directory that cannot be read
            // for a moment is no reason to stop serving.
            Err(error) if !self.found.is_empty() => {
                tracing::warn!(%error, "the models directory cannot be read, what is loaded stays");
            }
            Err(_) => {}
        }
        if !self.config.bindings.is_empty()
            && let Some(backend) = self.backend()
        {
            let bindings: Vec<ModelBindingConfig> =
                self.config.bindings.values().cloned().collect();
            for binding in bindings {
                self.serve(&binding, backend.as_ref());
            }
        }
        self.retire();
        self.passed = true;
        self.publish();
    }

    /// The framework, which is loaded first if it must be.
    fn backend(&mut self) -> Option<Arc<dyn Backend>> {
        let (config, threads) = match &self.frameworks {
            Frameworks::Given(backend) => return Some(backend.clone()),
            Frameworks::TensorFlow { library, threads } => (library.clone(), *threads),
        };
        let started = Instant::now();
        match Library::load(&config) {
            Ok(library) => {
                let version = library.version();
                tracing::info!(%version, seconds = started.elapsed().as_secs_f64(), "libtensorflow is loaded");
                let backend: Arc<dyn Backend> = Arc::new(TensorFlow::new(library, threads));
                self.frameworks = Frameworks::Given(backend.clone());
                self.library = LibraryStatus::Loaded { version };
                self.library_missing = None;
                Some(backend)
            }
            Err(error) => {
                let reason = error.to_string();
                // Said once, not at every pass.
                if self.library_missing.is_none() {
                    tracing::warn!(%error, "models are unavailable");
                }
                self.library_missing = Some(match error {
                    LibraryError::NotFound(missing) => missing.to_string(),
                    LibraryError::Broken(_) => "libtensorflow cannot be loaded".into(),
                });
                self.library = LibraryStatus::Missing { reason };
                None
            }
        }
    }

    /// Loads the version that a binding wants; of `latest`, the highest that loads.
    fn serve(&mut self, binding: &ModelBindingConfig, backend: &dyn Backend) {
        let versions = self.found.get(&binding.model).cloned().unwrap_or_default();
        for (version, found) in versions.iter().rev() {
            if matches!(binding.version, ModelVersion::Exact(exact) if exact != *version) {
                continue;
            }
            let key = (binding.model.clone(), *version);
            match self.slots.get(&key) {
                Some(Slot::Loaded(_)) => return,
                Some(Slot::Failed { fingerprint, .. }) if *fingerprint == found.fingerprint => {
                    continue;
                }
                _ => {}
            }
            self.slots.insert(key.clone(), Slot::Loading);
            self.publish();
            let slot = load(&binding.model, *version, found, backend);
            let loaded = matches!(slot, Slot::Loaded(_));
            self.slots.insert(key, slot);
            self.publish();
            if loaded {
                return;
            }
        }
    }

    /// Forgets versions that are gone from disk, and unloads those that no binding serves.
    fn retire(&mut self) {
        let found = &self.found;
        self.slots.retain(|(model, version), _| {
            found
                .get(model)
                .is_some_and(|versions| versions.contains_key(version))
        });
        let mut used = BTreeSet::new();
        for binding in self.config.bindings.values() {
            used.extend(self.serving(binding));
        }
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        self.slots.retain(|key, slot| match slot {
            Slot::Loaded(_) if !used.contains(key) => {
                tracing::info!(model = %key.0, version = key.1, "model version unloaded");
                false
            }
            _ => true,
        });
        for binding in self.config.bindings.values() {
            counts.entry(binding.model.as_str()).or_default();
        }
        for (model, _) in &used {
            *counts.entry(model.as_str()).or_default() += 1;
        }
        for (model, count) in counts {
            metrics::gauge!("stepwell_model_loaded_versions", "model" => model.to_owned())
                .set(count);
        }
    }

    /// The version that a binding serves now.
    fn serving(&self, binding: &ModelBindingConfig) -> Option<(ModelName, u64)> {
        let versions = self.found.get(&binding.model)?;
        let wanted = |version: &u64| match binding.version {
            ModelVersion::Latest => true,
            ModelVersion::Exact(exact) => exact == *version,
        };
        (versions.keys().rev().filter(|version| wanted(version)))
            .map(|version| (binding.model.clone(), *version))
            .find(|key| matches!(self.slots.get(key), Some(Slot::Loaded(_))))
    }

    fn publish(&self) {
        let bindings = self.config.bindings.iter().map(|(name, binding)| {
            let served = match self.serving(binding).and_then(|key| self.slots.get(&key)) {
                Some(Slot::Loaded(loaded)) => Ok(loaded.clone()),
                _ => Err(self.unserved(binding)),
            };
            (name.clone(), (binding.clone(), served))
        });
        let models = self.found.iter().map(|(model, versions)| {
            let slots = versions.keys().map(|version| {
                let slot = self.slots.get(&(model.clone(), *version)).cloned();
                (*version, slot)
            });
            (model.clone(), slots.collect())
        });
        self.state.store(Arc::new(State {
            library: self.library.clone(),
            passed: self.passed,
            bindings: bindings.collect(),
            models: models.collect(),
        }));
    }

    fn unserved(&self, binding: &ModelBindingConfig) -> Unserved {
        if let Some(missing) = &self.library_missing {
            return Unserved::Unavailable(missing.clone());
        }
        let versions = self.found.get(&binding.model);
        let slot = |version: &u64| self.slots.get(&(binding.model.clone(), *version));
        let failed = |version: &u64| matches!(slot(version), Some(Slot::Failed { .. }));
        match (versions, binding.version) {
            _ if !self.passed => Unserved::Unavailable("the model is loading".into()),
            (Some(versions), ModelVersion::Exact(exact)) if !versions.contains_key(&exact) => {
                Unserved::NotFound(format!("the model has no version {exact}"))
            }
            (Some(versions), _) if versions.keys().any(failed) => {
                Unserved::Unavailable("the model failed to load".into())
            }
            (Some(versions), _) if !versions.is_empty() => {
                Unserved::Unavailable("the model is loading".into())
            }
            _ => Unserved::NotFound("the binding's model is not in the models directory".into()),
        }
    }
}

fn load(model: &ModelName, version: u64, found: &Found, backend: &dyn Backend) -> Slot {
    let started = Instant::now();
    match backend.load(&found.directory) {
        Ok(loaded) => {
            tracing::info!(%model, version, seconds = started.elapsed().as_secs_f64(), "model version loaded");
            let (name, version) = (model.to_string(), version.to_string());
            Slot::Loaded(Arc::new(Loaded {
                model: loaded,
                platform: backend.platform(),
                seconds: metrics::histogram!(
                    "stepwell_model_inference_seconds",
                    "model" => name.clone(), "version" => version.clone()
                ),
                done: metrics::counter!(
                    "stepwell_model_requests_total",
                    "model" => name.clone(), "version" => version.clone(), "outcome" => "ok"
                ),
                name,
                version,
            }))
        }
        Err(LoadError(error)) => {
            let reason = without_path(&error, &found.directory);
            tracing::warn!(%model, version, %error, "model version failed to load");
            Slot::Failed {
                fingerprint: found.fingerprint,
                reason,
            }
        }
    }
}

/// The API shows reasons to people who have no business with the host's paths.
fn without_path(reason: &str, directory: &Path) -> String {
    match directory.to_str() {
        Some(path) if !path.is_empty() => reason.replace(path, "the version's directory"),
        _ => reason.to_owned(),
    }
}

impl State {
    /// What a binding serves.
    pub(crate) fn served(&self, binding: &str) -> Result<&Arc<Loaded>, Unserved> {
        match self.bindings.get(binding) {
            Some((_, served)) => served.as_ref().map_err(Clone::clone),
            None => Err(Unserved::NotFound(
                "the operator has no such binding".into(),
            )),
        }
    }

    pub(crate) fn models(&self) -> Vec<ModelStatus> {
        self.models
            .iter()
            .map(|(model, versions)| {
                let bindings = self
                    .bindings
                    .iter()
                    .filter(|(_, (binding, _))| binding.model == *model);
                ModelStatus {
                    name: model.to_string(),
                    bindings: bindings.map(|(name, _)| name.clone()).collect(),
                    versions: (versions.iter().rev())
                        .map(|(version, slot)| self.version(model, *version, slot.as_ref()))
                        .collect(),
                }
            })
            .collect()
    }

    fn version(&self, model: &ModelName, version: u64, slot: Option<&Slot>) -> VersionStatus {
        let wanted = self.bindings.values().any(|(binding, _)| {
            binding.model == *model
                && (binding.version == ModelVersion::Exact(version)
                    || (binding.version == ModelVersion::Latest && !self.passed))
        });
        let (state, reason) = match (slot, &self.library) {
            (Some(Slot::Loaded(_)), _) => (VersionState::Available, None),
            (Some(Slot::Failed { reason, .. }), _) => (VersionState::End, Some(reason.clone())),
            (None, LibraryStatus::Missing { reason }) => (VersionState::End, Some(reason.clone())),
            (Some(Slot::Loading), _) => (VersionState::Loading, None),
            (None, _) if wanted => (VersionState::Loading, None),
            (None, _) => (
                VersionState::End,
                Some("no binding serves this version".into()),
            ),
        };
        let loaded = match slot {
            Some(Slot::Loaded(loaded)) => Some(loaded),
            _ => None,
        };
        VersionStatus {
            version: version.to_string(),
            state,
            reason,
            platform: loaded.map(|loaded| loaded.platform.to_owned()),
            signatures: loaded
                .map(|loaded| loaded.model.signatures().clone())
                .unwrap_or_default(),
        }
    }

    pub(crate) fn bindings(&self) -> Vec<BindingStatus> {
        self.bindings
            .iter()
            .map(|(name, (binding, served))| BindingStatus {
                name: name.clone(),
                model: binding.model.to_string(),
                version: binding.version.to_string(),
                served: served.as_ref().ok().map(|loaded| loaded.version.clone()),
                reason: match served {
                    Ok(_) => None,
                    Err(Unserved::NotFound(reason) | Unserved::Unavailable(reason)) => {
                        Some(reason.clone())
                    }
                },
            })
            .collect()
    }

    pub(crate) fn health(&self) -> Health {
        let unserved: Vec<String> = (self.bindings().into_iter())
            .filter_map(|binding| Some(format!("{}: {}", binding.name, binding.reason?)))
            .collect();
        match unserved.as_slice() {
            [] => Health::Ok,
            _ if !self.passed => Health::Loading,
            _ => Health::Degraded(unserved.join("; ")),
        }
    }
}
