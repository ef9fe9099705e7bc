use serde_json::{Value, json};
use stepwell_sdk::models::Tensor;
use stepwell_sdk::testing::{Host, event};
use stepwell_sdk::vectors::Metric;
use stepwell_sdk::{Error, Event};

use super::index_events;

/// A model whose embedding is the first two pixels, asked once for all.
fn host() -> Host {
    Host::new()
        .vectors("scans", 2, Metric::Cosine)
        .model("digits", |inputs| {
            let pixels: Vec<f32> = inputs[0].values()?;
            let count = inputs[0].shape[0];
            let embeddings: Vec<f32> = pixels
                .chunks(64)
                .flat_map(|scan| [scan[0], scan[1]])
                .collect();
            Ok(vec![
                Tensor::new("probabilities", [count, 1], &vec![1.0f32; count as usize])?,
                Tensor::new("embedding", [count, 2], &embeddings)?,
            ])
        })
}

fn scan(id: &str, label: u8, first: u8) -> Value {
    let mut pixels = vec![16; 64];
    pixels[0] = first;
    json!({"id": id, "label": label, "pixels": pixels})
}

fn batch(scans: Vec<Value>) -> Event {
    event().with_json(&json!({"scans": scans})).unwrap()
}

#[test]
fn scans_get_their_embedding_label_and_pixels() {
    let host = host();
    let reply = host
        .call(|| index_events(batch(vec![scan("train-0", 3, 4), scan("train-2", 5, 8)])))
        .unwrap();
    assert_eq!(reply[0].json::<Value>().unwrap(), json!({"indexed": 2}));
    let stored = host.vector("scans", "train-2").unwrap();
    assert_eq!(stored.values, [0.5, 1.0]);
    let metadata = stored.metadata.unwrap();
    assert_eq!(metadata["label"], 5);
    assert_eq!(metadata["scan"], format!("8{}", "g".repeat(63)));
    assert_eq!(host.logs()[0].message, "indexed 2 scans");
}

#[test]
fn the_same_scan_again_replaces_itself() {
    let host = host();
    for first in [4, 8] {
        host.call(|| index_events(batch(vec![scan("a", 3, first)])))
            .unwrap();
    }
    assert_eq!(host.vector("scans", "a").unwrap().values, [0.5, 1.0]);
}

#[test]
fn what_is_no_batch_is_the_events_fault() {
    let many: Vec<_> = (0..201).map(|n| scan(&n.to_string(), 1, 1)).collect();
    let mut short = scan("short", 1, 1);
    short["pixels"].as_array_mut().unwrap().pop();
    for scans in [
        vec![],
        many,
        vec![scan("x", 10, 1)],
        vec![scan("x", 1, 17)],
        vec![scan("good", 1, 1), short],
    ] {
        let result = host().call(|| index_events(batch(scans)));
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    }
    let result = host().call(|| index_events(event().with_text("[]")));
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
}

#[test]
fn nothing_is_stored_without_the_grant() {
    let ungranted = Host::new().model("digits", |_| {
        Ok(vec![Tensor::new("embedding", [1, 2], &[1.0f32, 1.0])?])
    });
    let result = ungranted.call(|| index_events(batch(vec![scan("a", 1, 1)])));
    assert!(
        matches!(&result, Err(Error::Failed(message)) if message.contains("granted")),
        "{result:?}"
    );
}

#[test]
fn a_model_with_another_shape_fails() {
    let host = Host::new()
        .vectors("scans", 2, Metric::Cosine)
        .model("digits", |_| {
            Ok(vec![Tensor::new("embedding", [3], &[1.0f32, 1.0, 1.0])?])
        });
    let result = host.call(|| index_events(batch(vec![scan("a", 1, 1), scan("b", 1, 1)])));
    assert!(matches!(result, Err(Error::Failed(_))), "{result:?}");
}
