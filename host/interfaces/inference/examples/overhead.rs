//! What one inference costs through the host, beside the bare session call: the same model, process and settings.
//!
//!     cargo run --release -p stepwell-inference --example overhead [MODELS_DIRECTORY]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a measurement fails loudly"
)]

use std::time::{Duration, Instant};

use stepwell_inference::{
    DataType, InferRequest, ModelBindingConfig, Models, ModelsConfig, Tensor,
};
use tensorflow::{Graph, SavedModelBundle, SessionOptions, SessionRunArgs};

const RUNS: usize = 5000;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1);
    let directory = directory.unwrap_or_else(|| "tests/models/saved".to_owned());
    let binding = ModelBindingConfig {
        model: "half_plus_two".parse().unwrap(),
        version: "1".parse().unwrap(),
    };
    let models = Models::start(ModelsConfig {
        directory: directory.clone().into(),
        bindings: [("model".into(), binding)].into(),
        ..ModelsConfig::default()
    })
    .unwrap();
    models.rescan().await;
    println!("{:?}", models.library());

    let cores = std::thread::available_parallelism().unwrap().get();
    let mut options = SessionOptions::new();
    options.set_config(&[0x10, cores as u8, 0x28, 1]).unwrap();
    let mut graph = Graph::new();
    let bundle = SavedModelBundle::load(
        &options,
        ["serve"],
        &mut graph,
        format!("{directory}/half_plus_two/1"),
    )
    .unwrap();
    let signature = bundle
        .meta_graph_def()
        .get_signature("serving_default")
        .unwrap();
    let input = signature.get_input("x").unwrap().name().clone();
    let output = signature.get_output("y").unwrap().name().clone();
    let input = (
        graph.operation_by_name_required(&input.name).unwrap(),
        input.index,
    );
    let output = (
        graph.operation_by_name_required(&output.name).unwrap(),
        output.index,
    );

    println!(
        "{cores} cores, {ROUNDS} rounds of {RUNS} runs each in turn, p50 and p99 in microseconds"
    );
    for _ in 0..ROUNDS {
        let (mut bare, mut hosted) = (Vec::with_capacity(RUNS), Vec::with_capacity(RUNS));
        for _ in 0..RUNS {
            let started = Instant::now();
            let x = tensorflow::Tensor::<f32>::new(&[4]);
            let mut args = SessionRunArgs::new();
            args.add_feed(&input.0, input.1, &x);
            let token = args.request_fetch(&output.0, output.1);
            bundle.session.run(&mut args).unwrap();
            assert_eq!(args.fetch::<f32>(token).unwrap().len(), 4);
            bare.push(started.elapsed());

            let started = Instant::now();
            let request = InferRequest {
                inputs: vec![Tensor {
                    name: "x".into(),
                    datatype: DataType::F32,
                    shape: vec![4],
                    data: vec![0; 16],
                }],
                ..InferRequest::default()
            };
            let deadline = started + Duration::from_secs(10);
            let answer = models
                .infer(&"default".parse().unwrap(), "model", request, deadline)
                .await
                .unwrap();
            assert_eq!(answer[0].data.len(), 16);
            hosted.push(started.elapsed());
        }
        let (bare, hosted) = (percentiles(bare), percentiles(hosted));
        println!(
            "bare {:.1} / {:.1}   hosted {:.1} / {:.1}   over {:.1} / {:.1}",
            bare.0,
            bare.1,
            hosted.0,
            hosted.1,
            hosted.0 - bare.0,
            hosted.1 - bare.1
        );
    }
}

fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    (at(50), at(99))
}
