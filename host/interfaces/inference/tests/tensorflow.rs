//! The committed models on the real libtensorflow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Call, Grants, Name, RunId, StepScope};
use stepwell_inference::{
    DataType, Health, InferError, InferRequest, JsonMapping, LibraryStatus, ModelBindingConfig,
    Models, ModelsConfig, Tensor,
};
use tokio::sync::OnceCell;

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

fn namespace() -> Name {
    "default".parse().unwrap()
}

const MODELS: [&str; 5] = ["digits", "half_plus_two", "iris", "numerals", "echo"];

/// Loaded once for all tests of this file.
async fn models() -> &'static Models {
    static SHARED: OnceCell<Models> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let bindings = MODELS.map(|name| {
                let binding = ModelBindingConfig {
                    model: name.parse().unwrap(),
                    version: "latest".parse().unwrap(),
                };
                (name.to_owned(), binding)
            });
            let models = Models::start(ModelsConfig {
                directory: at("saved"),
                bindings: bindings.into(),
                rescan: Duration::from_secs(3600),
                ..ModelsConfig::default()
            })
            .unwrap();
            models.rescan().await;
            assert_eq!(models.health(), Health::Ok, "{:?}", models.library());
            models
        })
        .await
}

fn at(path: &str) -> PathBuf {
    Path::new("../../../tests/models").join(path)
}

async fn run(
    model: &str,
    signature: Option<&str>,
    inputs: Vec<Tensor>,
    outputs: &[&str],
) -> Result<Vec<Tensor>, InferError> {
    let request = InferRequest {
        version: None,
        signature: signature.map(str::to_owned),
        inputs,
        outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
    };
    models()
        .await
        .infer(
            &namespace(),
            model,
            request,
            Instant::now() + Duration::from_secs(60),
        )
        .await
}

fn tensor(name: &str, datatype: DataType, shape: &[i64], data: impl Into<Vec<u8>>) -> Tensor {
    Tensor {
        name: name.into(),
        datatype,
        shape: shape.to_vec(),
        data: data.into(),
    }
}

fn floats(name: &str, shape: &[i64], values: &[f32]) -> Tensor {
    tensor(
        name,
        DataType::F32,
        shape,
        values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>(),
    )
}

fn strings(name: &str, shape: &[i64], values: &[&[u8]]) -> Tensor {
    let element = |value: &&[u8]| [&(value.len() as u32).to_le_bytes()[..], value].concat();
    tensor(
        name,
        DataType::Bytes,
        shape,
        values.iter().flat_map(element).collect::<Vec<u8>>(),
    )
}

fn as_floats(tensor: &Tensor) -> Vec<f32> {
    tensor
        .data
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

fn as_integers(tensor: &Tensor) -> Vec<i64> {
    tensor
        .data
        .as_chunks()
        .0
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .collect()
}

#[tokio::test]
async fn half_plus_two_is_known() {
    let x = floats("x", &[3], &[1.0, 2.0, 5.0]);
    let answer = run("half_plus_two", None, vec![x.clone()], &[])
        .await
        .unwrap();
    assert_eq!(
        (answer[0].name.as_str(), &answer[0].shape[..]),
        ("y", &[3][..])
    );
    assert_eq!(as_floats(&answer[0]), [2.5, 3.0, 4.5]);
    let answer = run("half_plus_two", Some("half_plus_three"), vec![x], &["y"])
        .await
        .unwrap();
    assert_eq!(as_floats(&answer[0]), [3.5, 4.0, 5.5]);
}

struct Scan {
    label: usize,
    pixels: Vec<f32>,
}

fn scans(name: &str) -> Vec<(u32, Scan)> {
    let text = std::fs::read_to_string(at(&format!("digits/{name}.csv"))).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let numbers: Vec<u32> = line
                .split(',')
                .map(|number| number.parse().unwrap())
                .collect();
            assert_eq!(numbers.len(), 66);
            let pixels = numbers[2..]
                .iter()
                .map(|pixel| *pixel as f32 / 16.0)
                .collect();
            (
                numbers[0],
                Scan {
                    label: numbers[1] as usize,
                    pixels,
                },
            )
        })
        .collect()
}

#[tokio::test]
async fn digits_reads_the_held_out_scans() {
    let scans = scans("heldout");
    let mut right = 0;
    for (at, (_, scan)) in scans.iter().enumerate() {
        // Batches and single scans in turn would do the same; singles are what pipelines send.
        let image = floats("image", &[1, 8, 8], &scan.pixels);
        let answer = run("digits", None, vec![image], &["probabilities"])
            .await
            .unwrap();
        assert_eq!(answer[0].shape, [1, 10]);
        let probabilities = as_floats(&answer[0]);
        if at == 0 {
            assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
        let best = (0..10)
            .max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]))
            .unwrap();
        right += usize::from(best == scan.label);
    }
    let accuracy = right as f64 / scans.len() as f64;
    assert!(
        accuracy >= 0.96,
        "{right} of {} held-out scans are read",
        scans.len()
    );

    let measured: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at("measured.json")).unwrap()).unwrap();
    let recorded = measured["digits"]["accuracy"].as_f64().unwrap();
    assert!(
        (accuracy - recorded).abs() < 0.003,
        "measured {accuracy}, recorded {recorded}"
    );
}

#[tokio::test]
async fn a_batch_answers_like_its_items() {
    let scans: Vec<_> = scans("heldout").into_iter().take(16).collect();
    let pixels: Vec<f32> = scans
        .iter()
        .flat_map(|(_, scan)| scan.pixels.clone())
        .collect();
    let image = floats("image", &[16, 8, 8], &pixels);
    let both = run(
        "digits",
        None,
        vec![image.clone()],
        &["probabilities", "embedding"],
    )
    .await
    .unwrap();
    assert_eq!(
        (&both[0].shape[..], &both[1].shape[..]),
        (&[16, 10][..], &[16, 64][..])
    );
    let embedded = run("digits", Some("embed"), vec![image], &[])
        .await
        .unwrap();
    assert_eq!(embedded[0].shape, [16, 64]);
    let single = floats("image", &[1, 8, 8], &scans[3].1.pixels);
    let single = as_floats(
        &run("digits", None, vec![single], &["embedding"])
            .await
            .unwrap()[0],
    );
    for (one, other) in single.iter().zip(&as_floats(&both[1])[3 * 64..4 * 64]) {
        assert!((one - other).abs() < 1e-4, "{one} {other}");
    }
}

/// The model has seen the scans of `train.csv`, all of them and nothing else, and none of them is held out.
#[test]
fn no_held_out_scan_was_seen_in_training() {
    use std::collections::BTreeSet;
    let digest = |scan: &Scan| {
        let bytes: Vec<u8> = scan
            .pixels
            .iter()
            .map(|pixel| (pixel * 16.0) as u8)
            .collect();
        stepwell_core::Digest::of(&bytes).hex()
    };
    let record = std::fs::read(at("saved/digits/1/assets.extra/training.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let seen: BTreeSet<(u32, String)> = record["scans"]
        .as_array()
        .unwrap()
        .iter()
        .map(|scan| {
            (
                scan["id"].as_u64().unwrap() as u32,
                scan["sha256"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let (train, heldout) = (scans("train"), scans("heldout"));
    assert_eq!(
        seen,
        train.iter().map(|(id, scan)| (*id, digest(scan))).collect()
    );
    assert_eq!(train.len() + heldout.len(), 1797);
    let seen_pixels: BTreeSet<&String> = seen.iter().map(|(_, digest)| digest).collect();
    for (id, scan) in &heldout {
        assert!(
            !seen_pixels.contains(&digest(scan)),
            "held-out scan {id} is in the training set"
        );
    }
}

#[tokio::test]
async fn several_inputs_and_outputs() {
    let petal = floats("petal", &[2, 2], &[1.4, 0.2, 6.0, 2.5]);
    let sepal = floats("sepal", &[2, 2], &[5.1, 3.5, 6.3, 3.3]);
    let answer = run("iris", None, vec![petal.clone(), sepal.clone()], &[])
        .await
        .unwrap();
    let names: Vec<&str> = answer.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["name", "probabilities", "species"]);
    assert_eq!(as_integers(&answer[2]), [0, 2]);
    assert_eq!(answer[0], strings("name", &[2], &[b"setosa", b"virginica"]));
    let chosen = run("iris", None, vec![sepal, petal], &["species", "name"])
        .await
        .unwrap();
    assert_eq!(
        (chosen[0].name.as_str(), chosen[1].name.as_str()),
        ("species", "name")
    );
}

#[tokio::test]
async fn strings_of_any_bytes_and_lookup_tables() {
    let words = strings("word", &[4], &[b"Seven", b"zero", b"dozen", b""]);
    let answer = run("numerals", None, vec![words], &["number", "known"])
        .await
        .unwrap();
    assert_eq!(as_integers(&answer[0]), [7, 0, -1, -1]);
    assert_eq!(answer[1].data, [1, 1, 0, 0]);

    let numbers: Vec<u8> = [3_i64, 99]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let numbers = tensor("number", DataType::S64, &[2], numbers);
    let answer = run("numerals", Some("spell"), vec![numbers], &[])
        .await
        .unwrap();
    assert_eq!(answer[0], strings("word", &[2], &[b"three", b"?"]));

    let long = vec![0xfe; 100_000];
    let binary: [&[u8]; 4] = [b"\xff\x00\xc3", b"", b"ok", &long];
    let twice = run(
        "numerals",
        Some("twice"),
        vec![strings("word", &[4], &binary)],
        &[],
    )
    .await
    .unwrap();
    let doubled = binary.map(|bytes| [bytes, bytes].concat());
    let doubled: Vec<&[u8]> = doubled.iter().map(Vec::as_slice).collect();
    assert_eq!(twice[1], strings("word", &[4], &doubled));
}

#[tokio::test]
async fn every_datatype_comes_back_as_it_went() {
    use DataType::*;
    for (datatype, size) in [
        (U8, 1),
        (U16, 2),
        (U32, 4),
        (U64, 8),
        (S8, 1),
        (S16, 2),
        (S32, 4),
        (S64, 8),
        (F16, 2),
        (Bf16, 2),
        (F32, 4),
        (F64, 8),
    ] {
        // Bit patterns with every sign and exponent, NaNs apart, which need not keep their bits.
        let data: Vec<u8> = (0..6 * size)
            .map(|at| (at as u8).wrapping_mul(37) & 0x3f)
            .collect();
        let x = tensor("x", datatype, &[2, 3], data);
        let answer = run("echo", Some(datatype.as_str()), vec![x.clone()], &[])
            .await
            .unwrap();
        assert_eq!(answer, [x], "{datatype}");
    }
    let x = tensor("x", Boolean, &[2, 2], [0, 1, 1, 0]);
    assert_eq!(
        run("echo", Some("boolean"), vec![x.clone()], &[])
            .await
            .unwrap(),
        [x]
    );
    let x = strings("x", &[1, 3], &[b"\x80", b"", "zwölf".as_bytes()]);
    assert_eq!(
        run("echo", Some("bytes"), vec![x.clone()], &[])
            .await
            .unwrap(),
        [x]
    );
    for shape in [&[][..], &[1], &[1, 1, 1]] {
        let x = floats("x", shape, &[0.5]);
        assert_eq!(
            run("echo", Some("any_rank"), vec![x.clone()], &[])
                .await
                .unwrap(),
            [x]
        );
    }
}

#[tokio::test]
async fn what_does_not_fit_the_signature_never_reaches_the_session() {
    let image = || floats("image", &[1, 8, 8], &[0.0; 64]);
    let cases: Vec<(Tensor, &str)> = vec![
        (
            tensor("image", DataType::F64, &[1, 8, 8], vec![0; 512]),
            "is f64, the model wants f32",
        ),
        (
            Tensor {
                shape: vec![8, 8],
                ..image()
            },
            "has the shape [8, 8], the model wants [-1, 8, 8]",
        ),
        (
            Tensor {
                shape: vec![1, 8, 9],
                ..image()
            },
            "the model wants [-1, 8, 8]",
        ),
        (
            Tensor {
                shape: vec![2, 8, 8],
                ..image()
            },
            "256 bytes of data, but 128 elements of f32",
        ),
        (
            Tensor {
                shape: vec![0, 8, 8],
                ..image()
            },
            "0 is no size",
        ),
        (
            Tensor {
                shape: vec![-1, 8, 8],
                ..image()
            },
            "-1 is no size",
        ),
        (
            Tensor {
                shape: vec![i64::MAX, 8, 8],
                ..image()
            },
            "too large",
        ),
        (
            Tensor {
                data: vec![0; 255],
                ..image()
            },
            "255 bytes of data, but 64 elements",
        ),
        (
            Tensor {
                data: vec![],
                ..image()
            },
            "0 bytes of data",
        ),
        (
            Tensor {
                name: "picture".into(),
                ..image()
            },
            "there is no input 'picture', the inputs are 'image'",
        ),
    ];
    for (tensor, expected) in cases {
        match run("digits", None, vec![tensor], &[]).await {
            Err(InferError::InvalidInput(message)) => {
                assert!(message.contains(expected), "{message}")
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    for (inputs, outputs, expected) in [
        (vec![], vec![], "input 'image' is missing"),
        (vec![image(), image()], vec![], "given twice"),
        (
            vec![image()],
            vec!["logits"],
            "no output 'logits', the outputs are 'embedding', 'probabilities'",
        ),
        (
            vec![image()],
            vec!["embedding", "embedding"],
            "asked for twice",
        ),
    ] {
        match run("digits", None, inputs, &outputs).await {
            Err(InferError::InvalidInput(message)) => {
                assert!(message.contains(expected), "{message}")
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    for signature in ["nonsense", "__saved_model_init_op", ""] {
        let error = run("digits", Some(signature), vec![image()], &[])
            .await
            .unwrap_err();
        assert!(
            matches!(&error, InferError::NotFound(what) if what.contains("'embed', 'serving_default'")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_only_the_session_can_refuse_is_the_callers_fault_too() {
    let inputs = vec![
        floats("a", &[2], &[1.0, 2.0]),
        floats("b", &[3], &[1.0, 2.0, 3.0]),
    ];
    match run("echo", Some("sum"), inputs, &[]).await {
        Err(InferError::InvalidInput(message)) => {
            assert!(
                message.to_lowercase().contains("incompatible shapes"),
                "{message}"
            );
            assert!(
                !message.contains('/') && !message.contains("{{"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_output_without_elements_is_empty() {
    let count = tensor("count", DataType::S32, &[], 0_i32.to_le_bytes());
    let answer = run("echo", Some("zeros"), vec![count], &[]).await.unwrap();
    assert_eq!((&answer[0].shape[..], answer[0].data.len()), (&[0][..], 0));
}

#[tokio::test]
async fn an_output_that_is_too_large_is_refused() {
    let count = tensor("count", DataType::S32, &[], 80_000_000_i32.to_le_bytes());
    let error = run("echo", Some("zeros"), vec![count], &[])
        .await
        .unwrap_err();
    assert_eq!(error, InferError::Internal("the model failed".into()));
}

#[tokio::test]
async fn json_in_and_json_out() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let json = |binding: &'static str, mapping: &'static str, data: &'static str| async move {
        let mapping: JsonMapping = serde_json::from_str(mapping).unwrap();
        let answer = models()
            .await
            .infer_json(&call(deadline), binding, None, &Arc::new(mapping), data)
            .await;
        answer.map(|bytes| String::from_utf8(bytes).unwrap())
    };
    let answer = json(
        "half_plus_two",
        "{}",
        r#"{"x": [1, 2.0, 5], "ignored": true}"#,
    )
    .await
    .unwrap();
    assert_eq!(answer, r#"{"y":[2.5,3.0,4.5]}"#);
    let mapping = r#"{"inputs": {"x": "/measured/values"}, "outputs": {"halved": "y"}}"#;
    let answer = json("half_plus_two", mapping, r#"{"measured": {"values": [4]}}"#)
        .await
        .unwrap();
    assert_eq!(answer, r#"{"halved":[4.0]}"#);
    let answer = json("numerals", "{}", r#"{"word": ["two", "Neun"]}"#)
        .await
        .unwrap();
    assert_eq!(answer, r#"{"known":[true,false],"number":[2,-1]}"#);
    for (mapping, data) in [
        ("{}", r#"{"y": [1]}"#),
        ("{}", r#"{"x": [[1]]}"#),
        ("{}", r#"{"x": ["1"]}"#),
        ("{}", r#"{"x": []}"#),
        ("{}", "not json"),
        (r#"{"outputs": {"a": "b"}}"#, r#"{"x": [1]}"#),
        (r#"{"inputs": {"z": "/x"}}"#, r#"{"x": [1]}"#),
    ] {
        let error = json("half_plus_two", mapping, data).await.unwrap_err();
        assert!(
            matches!(error, InferError::InvalidInput(_)),
            "{data}: {error}"
        );
    }
}

#[tokio::test]
async fn models_describe_themselves() {
    let info = models().await.describe("digits", None).unwrap();
    assert_eq!(
        (info.version.as_str(), info.platform.as_str()),
        ("1", "tensorflow_savedmodel")
    );
    assert_eq!(
        (info.inputs[0].name.as_str(), info.inputs[0].shape.clone()),
        ("image", Some(vec![-1, 8, 8]))
    );
    let status = serde_json::to_value(models().await.get("half_plus_two").unwrap()).unwrap();
    assert_eq!(status["versions"][0]["state"], "AVAILABLE");
    assert_eq!(
        status["versions"][0]["signatures"]["half_plus_three"]["inputs"][0],
        serde_json::json!({"name": "x", "datatype": "f32", "shape": [-1]})
    );
    assert_eq!(
        models().await.library(),
        LibraryStatus::Loaded {
            version: "2.21.0".into()
        }
    );
}

#[tokio::test]
async fn many_at_once_get_their_own_answers() {
    models().await;
    let tasks: Vec<_> = (0..500_u16)
        .map(|at| {
            tokio::spawn(async move {
                let x = floats("x", &[1], &[f32::from(at)]);
                let answer = run("half_plus_two", None, vec![x], &[]).await.unwrap();
                assert_eq!(as_floats(&answer[0]), [f32::from(at) / 2.0 + 2.0]);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn models_that_must_not_be_loaded_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let copy = |from: PathBuf, name: &str| {
        let version = directory.path().join(name).join("1");
        std::fs::create_dir_all(version.join("variables")).unwrap();
        for file in [
            "saved_model.pb",
            "variables/variables.index",
            "variables/variables.data-00000-of-00001",
        ] {
            std::fs::copy(from.join("1").join(file), version.join(file)).unwrap();
        }
        version
    };
    for name in ["write_file", "read_file", "py_func", "nested"] {
        copy(at("refused").join(name), name);
    }
    let truncated = copy(at("saved/digits"), "truncated").join("saved_model.pb");
    let bytes = std::fs::read(&truncated).unwrap();
    std::fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    let rubbish = copy(at("saved/digits"), "rubbish").join("saved_model.pb");
    std::fs::write(rubbish, b"\x7fELF nothing of the kind").unwrap();
    std::fs::remove_dir_all(copy(at("saved/digits"), "without_variables").join("variables"))
        .unwrap();
    let flipped =
        copy(at("saved/digits"), "flipped").join("variables/variables.data-00000-of-00001");
    let mut bytes = std::fs::read(&flipped).unwrap();
    for byte in bytes.iter_mut().step_by(97) {
        *byte ^= 0xff;
    }
    std::fs::write(flipped, bytes).unwrap();
    std::fs::create_dir_all(directory.path().join("empty/1")).unwrap();

    let expected = [
        (
            "write_file",
            "the op WriteFile is reached by signature 'serving_default'",
        ),
        ("read_file", "the op ReadFile is reached"),
        ("py_func", "the op EagerPyFunc is reached"),
        ("nested", "the op ReadFile is reached"),
        ("truncated", "no SavedModel"),
        ("rubbish", "no SavedModel"),
        ("without_variables", "variables/variables.index is missing"),
        ("flipped", "libtensorflow refuses it"),
        ("empty", "saved_model.pb cannot be read"),
    ];
    let bindings = expected.map(|(name, _)| {
        let binding = ModelBindingConfig {
            model: name.parse().unwrap(),
            version: "1".parse().unwrap(),
        };
        (name.to_owned(), binding)
    });
    let models = Models::start(ModelsConfig {
        directory: directory.path().into(),
        bindings: bindings.into(),
        ..ModelsConfig::default()
    })
    .unwrap();
    models.rescan().await;
    for (name, expected) in expected {
        let reason = models.get(name).unwrap().versions[0]
            .reason
            .clone()
            .unwrap_or_default();
        assert!(reason.contains(expected), "{name}: {reason}");
        assert!(
            !reason.contains(directory.path().to_str().unwrap()),
            "{reason}"
        );
        let error = models.describe(name, None).unwrap_err();
        assert_eq!(
            error,
            InferError::Unavailable("the model failed to load".into())
        );
    }
}
