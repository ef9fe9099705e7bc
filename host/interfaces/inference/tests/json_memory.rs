//! What reading a large document takes; in a process of its own, since it looks at the process.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Call, Grants, RunId, StepScope};
use stepwell_inference::{
    Backend, DEFAULT_SIGNATURE, DataType, JsonMapping, LoadError, Model, ModelBindingConfig,
    ModelVersion, Models, ModelsConfig, RunError, Signature, Tensor, TensorInfo,
};

/// Answers how many bytes its input has.
struct Length(BTreeMap<String, Signature>);

impl Backend for Length {
    fn platform(&self) -> &'static str {
        "length"
    }

    fn load(&self, _: &Path) -> Result<Arc<dyn Model>, LoadError> {
        Ok(Arc::new(Self(self.0.clone())))
    }
}

impl Model for Length {
    fn signatures(&self) -> &BTreeMap<String, Signature> {
        &self.0
    }

    fn run(&self, _: &str, inputs: Vec<Tensor>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let length = inputs[0].data.len() as u64;
        Ok(vec![Tensor {
            name: "length".into(),
            datatype: DataType::U64,
            shape: vec![],
            data: length.to_le_bytes().to_vec(),
        }])
    }
}

/// A line of `/proc/self/status`, in bytes.
fn memory(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with(line)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

#[tokio::test]
async fn reading_json_takes_what_the_tensors_take() {
    let info = |name: &str, datatype| TensorInfo {
        name: name.into(),
        datatype,
        shape: None,
    };
    let signature = Signature {
        inputs: vec![info("x", DataType::F32)],
        outputs: vec![info("length", DataType::U64)],
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("length/1")).unwrap();
    let binding = ModelBindingConfig {
        model: "length".parse().unwrap(),
        version: ModelVersion::Latest,
    };
    let config = ModelsConfig {
        directory: directory.path().into(),
        bindings: [("m".to_owned(), binding)].into(),
        ..ModelsConfig::default()
    };
    let backend = Length([(DEFAULT_SIGNATURE.into(), signature)].into());
    let models = Models::start_with(config, Arc::new(backend)).unwrap();
    models.rescan().await;
    let call = Call {
        scope: Arc::new(StepScope {
            namespace: "default".parse().unwrap(),
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
        deadline: Instant::now() + Duration::from_secs(60),
    };

    // Lists of one element each: as a tree each takes 100 bytes for its 4.
    const LISTS: usize = 2 << 20;
    let document = format!("{{\"x\":[{}[0]]}}", "[0],".repeat(LISTS - 1));
    let length = document.len();
    let before = memory("VmRSS:");
    let mapping = Arc::new(JsonMapping::default());
    let answer = models.infer_json(&call, "m", None, &mapping, document);
    let answer = answer.await.unwrap();
    assert_eq!(answer, format!("{{\"length\":{}}}", LISTS * 4).as_bytes());
    // Elements have as many bytes as they are written with, in a list that doubles as it grows.
    let took = memory("VmHWM:").saturating_sub(before);
    assert!(took < 5 * length, "{took} bytes for {length}");
    assert!(call.scope.cpu.used() > Duration::from_millis(5));
}
