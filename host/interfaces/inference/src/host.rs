//! `stepwell:model/inference` for guests.

use std::time::{Duration, Instant};

use stepwell_core::{Action, BindingKind, Call};
use wasmtime::component::{HasData, Linker};

use crate::tensor::shown;
use crate::{DataType, InferError, InferRequest, Models, Tensor, TensorInfo};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../../wit/model",
        world: "stepwell:model/imports",
        imports: { default: async | trappable },
    });
}
use self::bindings::stepwell::model::inference as wit;

/// Tensors of the largest call, in either direction.
const MAX_TENSORS: usize = 256;

/// Bytes of the longest name.
const MAX_NAME: usize = 256;

/// What one host call may see of a store.
pub struct InferenceView<'a> {
    /// The guest's call.
    pub call: &'a Call,
    /// The models of the process.
    pub models: &'a Models,
}

/// A store's data that guests' inference can be served from.
pub trait HasInference: Send {
    /// The view for one host call.
    fn inference(&mut self) -> InferenceView<'_>;
}

/// Adds `stepwell:model/inference` to a linker.
///
/// # Errors
/// The linker has it already.
pub fn add_to_linker<T: HasInference + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    wit::add_to_linker::<T, Inference>(linker, T::inference)
}

struct Inference;

impl HasData for Inference {
    type Data<'a> = InferenceView<'a>;
}

impl wit::Host for InferenceView<'_> {
    async fn infer(
        &mut self,
        model: String,
        inputs: Vec<wit::Tensor>,
        options: wit::InferOptions,
    ) -> wasmtime::Result<Result<Vec<wit::Tensor>, wit::Error>> {
        let result = self.run(&model, inputs, options).await;
        Ok(result
            .map(|tensors| tensors.into_iter().map(Into::into).collect())
            .map_err(Into::into))
    }

    async fn describe(
        &mut self,
        model: String,
    ) -> wasmtime::Result<Result<wit::ModelInfo, wit::Error>> {
        let described = self
            .granted(&model, Action::Describe)
            .and_then(|(binding, version)| {
                let info = self.models.describe(binding, version)?;
                Ok(wit::ModelInfo {
                    name: split(&model).0.to_owned(),
                    version: info.version,
                    platform: info.platform,
                    inputs: info.inputs.into_iter().map(Into::into).collect(),
                    outputs: info.outputs.into_iter().map(Into::into).collect(),
                })
            });
        Ok(described.map_err(Into::into))
    }
}

impl InferenceView<'_> {
    async fn run(
        &self,
        model: &str,
        inputs: Vec<wit::Tensor>,
        options: wit::InferOptions,
    ) -> Result<Vec<Tensor>, InferError> {
        let (binding, version) = self.granted(model, Action::Infer)?;
        if inputs.len() > MAX_TENSORS || options.outputs.len() > MAX_TENSORS {
            return Err(InferError::InvalidInput(format!(
                "{} inputs and {} outputs are too many, each is limited to {MAX_TENSORS}",
                inputs.len(),
                options.outputs.len()
            )));
        }
        let names = (inputs.iter().map(|tensor| &tensor.name))
            .chain(&options.outputs)
            .chain(&options.signature);
        if let Some(name) = names.into_iter().find(|name| name.len() > MAX_NAME) {
            return Err(InferError::InvalidInput(format!(
                "a name of {} bytes is too long, the limit is {MAX_NAME}",
                name.len()
            )));
        }
        let own = options
            .deadline_ms
            .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
        let deadline = own.map_or(self.call.deadline, |own| own.min(self.call.deadline));
        let request = InferRequest {
            version: version.map(str::to_owned),
            signature: options.signature,
            inputs: inputs.into_iter().map(Into::into).collect(),
            outputs: options.outputs,
        };
        let namespace = &self.call.scope.namespace;
        self.models
            .infer(namespace, binding, request, deadline)
            .await
    }

    /// The binding and the version that the guest means, if it may do this.
    fn granted<'m>(
        &self,
        model: &'m str,
        action: Action,
    ) -> Result<(&str, Option<&'m str>), InferError> {
        let (name, version) = split(model);
        match self.call.grant(BindingKind::Models, name, action) {
            Ok(grant) => Ok((&grant.binding, version)),
            Err(denied) => Err(InferError::NotGranted(shown(&denied.to_string()))),
        }
    }
}

/// `name@version`.
fn split(model: &str) -> (&str, Option<&str>) {
    match model.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (model, None),
    }
}

impl From<InferError> for wit::Error {
    fn from(error: InferError) -> Self {
        match error {
            InferError::NotFound(what) => Self::NotFound(what),
            InferError::NotGranted(what) => Self::NotGranted(what),
            InferError::InvalidInput(what) => Self::InvalidInput(what),
            InferError::Unavailable(what) => Self::Unavailable(what),
            InferError::Overloaded { retry_after } => {
                Self::Overloaded(u64::try_from(retry_after.as_millis()).ok())
            }
            InferError::DeadlineExceeded => Self::DeadlineExceeded,
            InferError::Internal(what) => Self::Internal(what),
        }
    }
}

impl From<wit::Tensor> for Tensor {
    fn from(tensor: wit::Tensor) -> Self {
        Self {
            name: tensor.name,
            datatype: tensor.datatype.into(),
            shape: tensor.shape,
            data: tensor.data,
        }
    }
}

impl From<Tensor> for wit::Tensor {
    fn from(tensor: Tensor) -> Self {
        Self {
            name: tensor.name,
            datatype: tensor.datatype.into(),
            shape: tensor.shape,
            data: tensor.data,
        }
    }
}

impl From<TensorInfo> for wit::TensorInfo {
    fn from(info: TensorInfo) -> Self {
        Self {
            name: info.name,
            datatype: info.datatype.into(),
            shape: info.shape.unwrap_or_else(|| vec![-2]),
        }
    }
}

macro_rules! datatypes {
    ($($name:ident),*) => {
        impl From<wit::Datatype> for DataType {
            fn from(datatype: wit::Datatype) -> Self {
                match datatype {
                    $(wit::Datatype::$name => Self::$name,)*
                }
            }
        }

        impl From<DataType> for wit::Datatype {
            fn from(datatype: DataType) -> Self {
                match datatype {
                    $(DataType::$name => Self::$name,)*
                }
            }
        }
    };
}

datatypes!(
    Boolean, U8, U16, U32, U64, S8, S16, S32, S64, F16, Bf16, F32, F64, Bytes
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    use stepwell_core::{Grant, Grants, RunId, StepScope};

    use super::wit::Host as _;
    use super::*;
    use crate::{
        Backend, DEFAULT_SIGNATURE, LoadError, Model, ModelBindingConfig, ModelVersion,
        ModelsConfig, RunError, Signature,
    };

    /// Gives back what it is given.
    struct Echo(BTreeMap<String, Signature>);

    impl Backend for Echo {
        fn platform(&self) -> &'static str {
            "echo"
        }

        fn load(&self, _: &Path) -> Result<Arc<dyn Model>, LoadError> {
            Ok(Arc::new(Self(self.0.clone())))
        }
    }

    impl Model for Echo {
        fn signatures(&self) -> &BTreeMap<String, Signature> {
            &self.0
        }

        fn run(&self, _: &str, inputs: Vec<Tensor>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
            if inputs[0].data == [0] {
                std::thread::sleep(Duration::from_millis(500));
            }
            Ok(inputs)
        }
    }

    async fn models() -> Models {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("echo/3")).unwrap();
        let x = TensorInfo {
            name: "x".into(),
            datatype: DataType::U8,
            shape: None,
        };
        let signature = Signature {
            inputs: vec![x.clone()],
            outputs: vec![x],
        };
        let binding = ModelBindingConfig {
            model: "echo".parse().unwrap(),
            version: ModelVersion::Latest,
        };
        let config = ModelsConfig {
            directory: directory.path().into(),
            bindings: [
                ("operators-name".into(), binding.clone()),
                ("secret".into(), binding),
            ]
            .into(),
            rescan: Duration::from_secs(3600),
            ..ModelsConfig::default()
        };
        let echo = Echo([(DEFAULT_SIGNATURE.into(), signature)].into());
        let models = Models::start_with(config, Arc::new(echo)).unwrap();
        models.rescan().await;
        models
    }

    fn call(actions: &[Action]) -> Call {
        let mut grants = Grants::default();
        let grant = Grant {
            binding: "operators-name".into(),
            actions: actions.to_vec(),
            prefix: String::new(),
        };
        grants.insert(BindingKind::Models, "mine", grant);
        Call {
            scope: Arc::new(StepScope {
                namespace: "default".parse().unwrap(),
                pipeline: "p".parse().unwrap(),
                revision: 1,
                step: "s".parse().unwrap(),
                plugin: "x@1.0.0".into(),
                digest: None,
                grants,
                config: vec![],
                cpu: Arc::default(),
            }),
            run: RunId::new(),
            deadline: Instant::now() + Duration::from_secs(30),
        }
    }

    fn tensor(value: u8) -> Vec<wit::Tensor> {
        vec![wit::Tensor {
            name: "x".into(),
            datatype: wit::Datatype::U8,
            shape: vec![1],
            data: vec![value],
        }]
    }

    fn options(deadline_ms: Option<u64>) -> wit::InferOptions {
        wit::InferOptions {
            signature: None,
            outputs: vec![],
            deadline_ms,
        }
    }

    #[tokio::test]
    async fn a_granted_model_answers_under_the_guests_name() {
        let (models, call) = (models().await, call(&[Action::Infer, Action::Describe]));
        let mut view = InferenceView {
            call: &call,
            models: &models,
        };
        for model in ["mine", "mine@3"] {
            let answer = view
                .infer(model.into(), tensor(7), options(None))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(answer[0].data, [7]);
        }
        let info = view.describe("mine@3".into()).await.unwrap().unwrap();
        assert_eq!(
            (
                info.name.as_str(),
                info.version.as_str(),
                info.platform.as_str()
            ),
            ("mine", "3", "echo")
        );
        assert_eq!(info.inputs[0].shape, [-2]);
    }

    #[tokio::test]
    async fn what_is_not_granted_is_not_there_whatever_its_name() {
        let (models, infer, describe) = (
            models().await,
            call(&[Action::Infer]),
            call(&[Action::Describe]),
        );
        let mut view = InferenceView {
            call: &infer,
            models: &models,
        };
        for model in [
            "operators-name",
            "secret",
            "../echo",
            "echo/3",
            "",
            "@3",
            "mine/../secret",
        ] {
            let error = view
                .infer(model.into(), tensor(1), options(None))
                .await
                .unwrap()
                .unwrap_err();
            assert!(
                matches!(error, wit::Error::NotGranted(_)),
                "{model}: {error:?}"
            );
        }
        let error = view.describe("mine".into()).await.unwrap().unwrap_err();
        assert!(matches!(error, wit::Error::NotGranted(_)), "{error:?}");
        let mut view = InferenceView {
            call: &describe,
            models: &models,
        };
        let error = view
            .infer("mine".into(), tensor(1), options(None))
            .await
            .unwrap()
            .unwrap_err();
        assert!(matches!(error, wit::Error::NotGranted(_)), "{error:?}");
        assert!(view.describe("mine".into()).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn hostile_calls_have_clear_errors() {
        let (models, call) = (models().await, call(&[Action::Infer]));
        let mut view = InferenceView {
            call: &call,
            models: &models,
        };
        let error = view
            .infer("mine@2".into(), tensor(1), options(None))
            .await
            .unwrap()
            .unwrap_err();
        assert!(matches!(error, wit::Error::NotFound(_)), "{error:?}");
        let many = std::iter::repeat_n(tensor(1), 1000).flatten().collect();
        let error = view
            .infer("mine".into(), many, options(None))
            .await
            .unwrap()
            .unwrap_err();
        assert!(
            matches!(&error, wit::Error::InvalidInput(what) if what.contains("1000 inputs")),
            "{error:?}"
        );
        let mut long = tensor(1);
        long[0].name = "x".repeat(1 << 20);
        let error = view
            .infer("mine".into(), long, options(None))
            .await
            .unwrap()
            .unwrap_err();
        assert!(
            matches!(&error, wit::Error::InvalidInput(what) if what.len() < 200),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn the_earlier_deadline_counts() {
        let (models, mut call) = (models().await, call(&[Action::Infer]));
        let slow = tensor(0);
        let mut view = InferenceView {
            call: &call,
            models: &models,
        };
        let answer = view
            .infer("mine".into(), slow.clone(), options(Some(u64::MAX)))
            .await
            .unwrap();
        assert!(answer.is_ok());
        for ms in [0, 20] {
            let error = view
                .infer("mine".into(), slow.clone(), options(Some(ms)))
                .await
                .unwrap()
                .unwrap_err();
            assert!(matches!(error, wit::Error::DeadlineExceeded), "{error:?}");
        }
        call.deadline = Instant::now() + Duration::from_millis(20);
        let mut view = InferenceView {
            call: &call,
            models: &models,
        };
        let error = view
            .infer("mine".into(), slow, options(Some(60_000)))
            .await
            .unwrap()
            .unwrap_err();
        assert!(matches!(error, wit::Error::DeadlineExceeded), "{error:?}");
    }
}
