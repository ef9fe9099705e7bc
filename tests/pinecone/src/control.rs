//! Index management. One reply carries the fields of every API version that the vendor's clients understand.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::Shared;
use crate::index::Index;
use crate::reply::Refusal;

type Reply = Result<(StatusCode, Json<Value>), Refusal>;

pub(crate) async fn create(State(shared): State<Arc<Shared>>, Json(wanted): Json<Value>) -> Reply {
    let invalid = |what: &str| Refusal::control(400, "INVALID_ARGUMENT", what);
    let name = wanted["name"].as_str().unwrap_or_default().to_owned();
    let legal = (1..=45).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !legal {
        return Err(invalid(
            "Name must consist of lower case alphanumeric characters or '-'",
        ));
    }
    // From 2026-07 on, vectors are fields of a schema; before, they are members of the request.
    let declared = wanted["schema"]["fields"]
        .as_object()
        .and_then(|fields| {
            fields
                .values()
                .find(|field| field["type"] == "dense_vector")
        })
        .unwrap_or(&wanted);
    let dimension = declared["dimension"]
        .as_u64()
        .filter(|it| (1..=20_000).contains(it));
    let dimension = dimension.ok_or_else(|| invalid("Dimension must be between 1 and 20000"))?;
    let metric = declared["metric"].as_str().unwrap_or("cosine");
    if !["cosine", "euclidean", "dotproduct"].contains(&metric) {
        return Err(invalid("Metric must be cosine, euclidean or dotproduct"));
    }
    let mut index = Index::new(usize::try_from(dimension).unwrap_or(usize::MAX), metric);
    for place in [&wanted["spec"]["serverless"], &wanted["deployment"]] {
        if let (Some(cloud), Some(region)) = (place["cloud"].as_str(), place["region"].as_str()) {
            (index.cloud, index.region) = (cloud.to_owned(), region.to_owned());
        }
    }
    let mut world = shared.world();
    if world.indexes.contains_key(&name) {
        return Err(Refusal::control(
            409,
            "ALREADY_EXISTS",
            "Resource already exists",
        ));
    }
    let model = model(&shared, &name, &index);
    world.indexes.insert(name, index);
    Ok((StatusCode::CREATED, Json(model)))
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Reply {
    let world = shared.world();
    let models: Vec<Value> = world
        .indexes
        .iter()
        .map(|(name, index)| model(&shared, name, index))
        .collect();
    Ok((StatusCode::OK, Json(json!({"indexes": models}))))
}

pub(crate) async fn describe(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Reply {
    let world = shared.world();
    let index = world.indexes.get(&name).ok_or_else(|| unknown(&name))?;
    Ok((StatusCode::OK, Json(model(&shared, &name, index))))
}

pub(crate) async fn delete(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Reply {
    let removed = shared.world().indexes.remove(&name);
    removed.ok_or_else(|| unknown(&name))?;
    Ok((StatusCode::ACCEPTED, Json(json!({}))))
}

fn unknown(name: &str) -> Refusal {
    Refusal::control(404, "NOT_FOUND", format!("Resource {name} not found"))
}

fn model(shared: &Shared, name: &str, index: &Index) -> Value {
    json!({
        "name": name,
        "host": shared.host_of(name),
        "status": {"ready": true, "state": "Ready"},
        "deletion_protection": "disabled",
        "tags": {},
        // until 2026-04
        "dimension": index.dimension,
        "metric": index.metric,
        "vector_type": "dense",
        "spec": {"serverless": {"cloud": index.cloud, "region": index.region}},
        // from 2026-07
        "schema": {"fields": {"_values": {"type": "dense_vector", "dimension": index.dimension, "metric": index.metric}}},
        "deployment": {"deployment_type": "managed", "cloud": index.cloud, "region": index.region},
    })
}
