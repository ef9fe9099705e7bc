//! Which versions are served, with a framework made for the purpose: it loads what a version's `saved_model.pb` says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use stepwell_core::{Call, Grants, Name, RunId, StepScope};
use stepwell_inference::{
    Backend, DEFAULT_SIGNATURE, DataType, Health, InferError, InferRequest, JsonMapping,
    LibraryConfig, LibraryStatus, LoadError, Model, ModelBindingConfig, Models, ModelsConfig,
    RunError, Signature, Tensor, TensorInfo, VersionState,
};
use tempfile::TempDir;

fn namespace() -> Name {
    "default".parse().unwrap()
}

/// A call of a `model` step.
fn call(deadline: Instant) -> Call {
    Call {
        scope: Arc::new(StepScope {
            namespace: namespace(),
            pipeline: "p".parse().unwrap(),
            revision: 1,
            step: "s".parse().unwrap(),
            plugin: "model m".into(),
            digest: None,
            grants: Grants::default(),
            config: vec![],
            cpu: Arc::default(),
        }),
        run: RunId::new(),
        deadline,
    }
}

/// Loads anything but files that say `broken`; its models answer the file's text, once the gate is open.
#[derive(Default)]
struct Texts {
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

struct Text {
    signatures: BTreeMap<String, Signature>,
    text: String,
    gate: Arc<Gate>,
}

impl Backend for Texts {
    fn platform(&self) -> &'static str {
        "text"
    }

    fn load(&self, directory: &Path) -> Result<Arc<dyn Model>, LoadError> {
        let path = directory.join("saved_model.pb");
        let text = fs::read_to_string(&path).map_err(|error| LoadError(error.to_string()))?;
        if text == "broken" {
            return Err(LoadError(format!("{} is broken", directory.display())));
        }
        let output = TensorInfo {
            name: "text".into(),
            datatype: DataType::U8,
            shape: Some(vec![-1]),
        };
        let signature = Signature {
            inputs: vec![],
            outputs: vec![output],
        };
        Ok(Arc::new(Text {
            signatures: [(DEFAULT_SIGNATURE.into(), signature)].into(),
            text,
            gate: self.gate.clone(),
        }))
    }
}

impl Model for Text {
    fn signatures(&self) -> &BTreeMap<String, Signature> {
        &self.signatures
    }

    fn run(&self, _: &str, _: Vec<Tensor>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
        self.gate.pass();
        if self.text == "panics" {
            panic!("on purpose");
        }
        Ok(vec![Tensor {
            name: "text".into(),
            datatype: DataType::U8,
            shape: vec![self.text.len() as i64],
            data: self.text.clone().into(),
        }])
    }
}

fn put(directory: &TempDir, version: &str, text: &str) -> PathBuf {
    let path = directory.path().join(version);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("saved_model.pb"), text).unwrap();
    path
}

fn config(directory: &TempDir, bindings: &[(&str, &str, &str)]) -> ModelsConfig {
    ModelsConfig {
        directory: directory.path().into(),
        bindings: bindings
            .iter()
            .map(|(name, model, version)| {
                let binding = ModelBindingConfig {
                    model: model.parse().unwrap(),
                    version: version.parse().unwrap(),
                };
                ((*name).into(), binding)
            })
            .collect(),
        rescan: Duration::from_secs(3600),
        queue: 4,
        ..ModelsConfig::default()
    }
}

async fn answer(models: &Models, binding: &str) -> Result<String, InferError> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let tensors = models
        .infer(&namespace(), binding, InferRequest::default(), deadline)
        .await?;
    Ok(String::from_utf8(tensors[0].data.clone()).unwrap())
}

fn states(models: &Models, model: &str) -> Vec<(String, VersionState)> {
    let versions = models.get(model).unwrap().versions;
    versions
        .into_iter()
        .map(|version| (version.version, version.state))
        .collect()
}

#[tokio::test]
async fn latest_follows_the_disk_and_a_number_stays() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "one");
    put(&directory, "m/2", "two");
    let config = config(
        &directory,
        &[("newest", "m", "latest"), ("first", "m", "1")],
    );
    let models = Models::start_with(config, Arc::new(Texts::default())).unwrap();
    models.rescan().await;
    assert_eq!(answer(&models, "newest").await.unwrap(), "two");
    assert_eq!(answer(&models, "first").await.unwrap(), "one");
    assert_eq!(models.health(), Health::Ok);

    put(&directory, "m/10", "ten");
    models.rescan().await;
    assert_eq!(answer(&models, "newest").await.unwrap(), "ten");
    assert_eq!(answer(&models, "first").await.unwrap(), "one");
    assert_eq!(
        states(&models, "m"),
        [
            ("10".into(), VersionState::Available),
            ("2".into(), VersionState::End),
            ("1".into(), VersionState::Available)
        ]
    );
    let request = |version: &str| InferRequest {
        version: Some(version.into()),
        ..InferRequest::default()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    assert!(
        models
            .infer(&namespace(), "newest", request("10"), deadline)
            .await
            .is_ok()
    );
    let error = models
        .infer(&namespace(), "newest", request("2"), deadline)
        .await
        .unwrap_err();
    assert_eq!(
        error,
        InferError::NotFound("version '2' of the model is not served, 10 is".into())
    );

    fs::remove_dir_all(directory.path().join("m/10")).unwrap();
    models.rescan().await;
    assert_eq!(answer(&models, "newest").await.unwrap(), "two");
}

#[tokio::test]
async fn a_version_that_fails_leaves_the_one_before_and_is_tried_again_when_mended() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "one");
    put(&directory, "m/2", "broken");
    let config = config(&directory, &[("m", "m", "latest"), ("second", "m", "2")]);
    let models = Models::start_with(config, Arc::new(Texts::default())).unwrap();
    models.rescan().await;
    assert_eq!(answer(&models, "m").await.unwrap(), "one");
    let error = answer(&models, "second").await.unwrap_err();
    assert_eq!(
        error,
        InferError::Unavailable("the model failed to load".into())
    );
    assert_eq!(
        models.health(),
        Health::Degraded("second: the model failed to load".into())
    );
    let version = models.get("m").unwrap().versions[0].clone();
    assert_eq!(version.state, VersionState::End);
    assert_eq!(version.reason.unwrap(), "the version's directory is broken");

    put(&directory, "m/2", "mended");
    models.rescan().await;
    assert_eq!(answer(&models, "m").await.unwrap(), "mended");
    assert_eq!(answer(&models, "second").await.unwrap(), "mended");
    assert_eq!(models.health(), Health::Ok);
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "one");
    put(&directory, "unbound/1", "x");
    let config = config(
        &directory,
        &[("gone", "nowhere", "latest"), ("third", "m", "3")],
    );
    let models = Models::start_with(config, Arc::new(Texts::default())).unwrap();
    models.rescan().await;
    for (binding, expected) in [
        ("gone", "the binding's model is not in the models directory"),
        ("third", "the model has no version 3"),
        ("other", "the operator has no such binding"),
    ] {
        assert_eq!(
            answer(&models, binding).await.unwrap_err(),
            InferError::NotFound(expected.into())
        );
    }
    assert_eq!(
        states(&models, "unbound"),
        [("1".into(), VersionState::End)]
    );
    // It may come later.
    put(&directory, "nowhere/1", "here");
    models.rescan().await;
    assert_eq!(answer(&models, "gone").await.unwrap(), "here");
}

#[tokio::test]
async fn new_versions_are_found_without_being_asked() {
    let directory = TempDir::new().unwrap();
    let config = ModelsConfig {
        rescan: Duration::from_millis(100),
        ..config(&directory, &[("m", "m", "latest")])
    };
    let models = Models::start_with(config, Arc::new(Texts::default())).unwrap();
    put(&directory, "m/1", "one");
    let found = async {
        while answer(&models, "m").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_queue_is_overloaded_and_deadlines_hold() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "one");
    let texts = Texts::default();
    let gate = texts.gate.clone();
    let models =
        Models::start_with(config(&directory, &[("m", "m", "latest")]), Arc::new(texts)).unwrap();
    models.rescan().await;
    gate.set(true);
    // More than threads and queue together can hold.
    let many = 2 * (std::thread::available_parallelism().unwrap().get() + 4);
    let waiting: Vec<_> = (0..many).map(|_| answer(&models, "m")).collect();
    let opener = tokio::spawn({
        let gate = gate.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            gate.set(false);
        }
    });
    let answers = join_all(waiting).await;
    opener.await.unwrap();
    let refused = answers
        .iter()
        .filter(|answer| matches!(answer, Err(InferError::Overloaded { .. })))
        .count();
    let answered = answers.iter().filter(|answer| answer.is_ok()).count();
    // One namespace has three quarters of the queue.
    assert!(refused > 0 && answered >= 3, "{answers:?}");
    assert_eq!(refused + answered, many);

    gate.set(true);
    let soon = Instant::now() + Duration::from_millis(50);
    let late = models
        .infer(&namespace(), "m", InferRequest::default(), soon)
        .await
        .unwrap_err();
    assert_eq!(late, InferError::DeadlineExceeded);
    gate.set(false);
    assert_eq!(answer(&models, "m").await.unwrap(), "one");
}

/// It may take longer than the model, and whoever asks is a thread that answers requests.
#[tokio::test]
async fn json_is_read_where_models_run() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "one");
    put(&directory, "large/1", &"x".repeat(1 << 20));
    let texts = Texts::default();
    let gate = texts.gate.clone();
    let bindings = [("m", "m", "latest"), ("large", "large", "latest")];
    let mut config = config(&directory, &bindings);
    config.queue = 100;
    let models = Models::start_with(config, Arc::new(texts)).unwrap();
    models.rescan().await;
    let mapping = Arc::new(JsonMapping::default());
    let deadline = Instant::now() + Duration::from_secs(30);
    let call = call(deadline);
    let json = |data: &'static str| models.infer_json(&call, "m", None, &mapping, data);
    assert_eq!(json("{}").await.unwrap(), br#"{"text":[111,110,101]}"#);
    // Who asks is charged for that: for what is read, and for what is written.
    let charged = async |binding: &str, data: String| {
        let call = crate::call(deadline);
        let answer = models.infer_json(&call, binding, None, &mapping, data);
        answer.await.unwrap();
        call.scope.cpu.used()
    };
    let little = charged("m", "{}".to_owned()).await;
    let much = format!("{{\"x\": [{}0]}}", "0,".repeat(2 << 20));
    let read = charged("m", much).await;
    let written = charged("large", "{}".to_owned()).await;
    assert!(!little.is_zero());
    let much = Duration::from_micros(500);
    assert!(read > much && written > much, "{read:?} {written:?}");
    gate.set(true);
    let threads = std::thread::available_parallelism().unwrap().get();
    let busy = join_all((0..threads).map(|_| answer(&models, "m")).collect());
    let unreadable = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut answer = std::pin::pin!(json("no JSON"));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
        assert!(early.is_err(), "{early:?}");
        gate.set(false);
        answer.await
    };
    let (_, unreadable) = tokio::join!(busy, unreadable);
    assert!(matches!(unreadable, Err(InferError::InvalidInput(_))));
}

#[tokio::test]
async fn a_model_that_panics_fails_alone() {
    let directory = TempDir::new().unwrap();
    put(&directory, "bad/1", "panics");
    put(&directory, "good/1", "good");
    let config = config(
        &directory,
        &[("bad", "bad", "latest"), ("good", "good", "latest")],
    );
    let models = Models::start_with(config, Arc::new(Texts::default())).unwrap();
    models.rescan().await;
    for _ in 0..8 {
        assert_eq!(
            answer(&models, "bad").await.unwrap_err(),
            InferError::Internal("the model failed".into())
        );
    }
    assert_eq!(answer(&models, "good").await.unwrap(), "good");
}

#[tokio::test]
async fn without_the_library_models_say_how_to_get_it() {
    let directory = TempDir::new().unwrap();
    put(&directory, "m/1", "x");
    let config = ModelsConfig {
        library: LibraryConfig::Path(directory.path().join("nowhere/libtensorflow.so")),
        ..config(&directory, &[("m", "m", "latest")])
    };
    let models = Models::start(config).unwrap();
    models.rescan().await;
    let error = answer(&models, "m").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "unavailable: libtensorflow not found: install it with 'deploy/setup.sh tensorflow'"
    );
    assert!(matches!(models.library(), LibraryStatus::Missing { .. }));
    assert!(
        matches!(models.health(), Health::Degraded(why) if why.contains("libtensorflow not found"))
    );
    let version = &models.get("m").unwrap().versions[0];
    assert_eq!(version.state, VersionState::End);
    assert!(
        version
            .reason
            .as_ref()
            .unwrap()
            .contains("libtensorflow not found")
    );
}

#[tokio::test]
async fn without_bindings_nothing_is_loaded() {
    let models = Models::start(ModelsConfig::default()).unwrap();
    models.rescan().await;
    assert_eq!(models.library(), LibraryStatus::Unused);
    assert_eq!(models.health(), Health::Ok);
}

/// All of them at once, on this task.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(move |context| {
        for (future, answer) in &mut futures {
            if answer.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        if futures.iter().any(|(_, answer)| answer.is_none()) {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(
            futures
                .iter_mut()
                .filter_map(|(_, answer)| answer.take())
                .collect(),
        )
    })
    .await
}
