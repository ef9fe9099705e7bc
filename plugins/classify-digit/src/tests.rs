use serde_json::{Value, json};
use stepwell_sdk::models::{Error as ModelError, Tensor};
use stepwell_sdk::testing::{Host, event};
use stepwell_sdk::vectors::{self, Metric, Vector};
use stepwell_sdk::{Error, Event};

use super::classify_events;

/// A model that is sure of 7, and whose embedding is the mean of the upper and of the lower half.
fn host() -> Host {
    Host::new()
        .vectors("scans", 2, Metric::Cosine)
        .model("digits", |inputs| {
            assert_eq!(
                (inputs[0].name.as_str(), inputs[0].shape.as_slice()),
                ("image", [1, 8, 8].as_slice())
            );
            let pixels: Vec<f32> = inputs[0].values()?;
            let mean = |half: &[f32]| half.iter().sum::<f32>() / 32.0;
            let embedding = [mean(&pixels[..32]), mean(&pixels[32..])];
            let mut probabilities = [0.01f32; 10];
            probabilities[7] = 0.91;
            Ok(vec![
                Tensor::new("probabilities", [1, 10], &probabilities)?,
                Tensor::new("embedding", [1, 2], &embedding)?,
            ])
        })
}

fn know(host: &Host, scans: &[(&str, [f32; 2], Value)]) {
    let vectors = scans
        .iter()
        .map(|(id, values, metadata)| Vector::new(*id, *values).metadata(metadata).unwrap())
        .collect();
    host.call(|| vectors::index("scans").upsert(vectors))
        .unwrap();
}

fn scan(upper: f32, lower: f32) -> Event {
    let pixels = [[upper; 32], [lower; 32]].concat();
    event()
        .with_json(&json!({"pixels": pixels, "width": 8, "height": 8}))
        .unwrap()
}

fn answer(host: &Host, event: Event) -> Value {
    host.call(|| classify_events(event)).unwrap()[0]
        .json()
        .unwrap()
}

#[test]
fn the_model_decides_and_the_neighbours_agree_or_not() {
    let host = host().config("neighbours", "3");
    know(
        &host,
        &[
            ("near", [1.0, 0.1], json!({"label": 7, "scan": "0g"})),
            ("nearer", [1.0, 0.0], json!({"label": 1})),
            ("far", [0.0, 1.0], json!({"label": 7})),
            ("farther", [-1.0, 0.0], json!({"label": 7})),
        ],
    );
    let answer = answer(&host, scan(1.0, 0.0));
    assert_eq!(answer["digit"], 7);
    assert!((answer["confidence"].as_f64().unwrap() - 0.91).abs() < 1e-6);
    assert_eq!(answer["probabilities"].as_array().unwrap().len(), 10);
    assert_eq!(answer["pixels"].as_array().unwrap().len(), 64);
    let neighbours = answer["neighbours"].as_array().unwrap();
    assert_eq!(neighbours.len(), 3);
    assert_eq!(neighbours[0]["id"], "nearer");
    assert_eq!(neighbours[0]["label"], 1);
    assert_eq!(neighbours[1]["scan"], "0g");
    assert!((answer["agreement"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-6);
}

#[test]
fn five_neighbours_are_the_default_and_none_is_fine() {
    let host = host();
    let lonely = answer(&host, scan(1.0, 0.5));
    assert_eq!(lonely["agreement"], Value::Null);
    assert_eq!(lonely["neighbours"], json!([]));
    let seven: Vec<_> = (0..7)
        .map(|n| {
            (
                ["a", "b", "c", "d", "e", "f", "g"][n],
                [1.0, n as f32],
                json!({"label": 7}),
            )
        })
        .collect();
    know(&host, &seven);
    assert_eq!(
        answer(&host, scan(1.0, 0.5))["neighbours"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
}

#[test]
fn what_is_no_scan_is_the_events_fault() {
    for data in [
        json!({}),
        json!({"pixels": [0.5]}),
        json!({"pixels": vec![2.0; 64]}),
        json!({"pixels": vec![-0.1; 64]}),
    ] {
        let result = host().call(|| classify_events(event().with_json(&data).unwrap()));
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{data}: {result:?}"
        );
    }
}

#[test]
fn a_busy_model_is_unavailable_and_a_missing_grant_or_bad_config_fails() {
    let busy = Host::new().model("digits", |_| Err(ModelError::Overloaded(None)));
    let result = busy.call(|| classify_events(scan(1.0, 0.0)));
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    let result = Host::new().call(|| classify_events(scan(1.0, 0.0)));
    assert!(matches!(result, Err(Error::Failed(_))), "{result:?}");
    let result = host()
        .config("neighbours", "many")
        .call(|| classify_events(scan(1.0, 0.0)));
    assert!(
        matches!(&result, Err(Error::Failed(message)) if message.contains("'many'")),
        "{result:?}"
    );
}
