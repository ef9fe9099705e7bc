//! Vectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, RawQuery, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Shared;
use crate::index::{Index, Sparse, Stored, check_metadata};
use crate::reply::Refusal;
use crate::{filter, form};

type Reply = Result<Json<Value>, Refusal>;
type World = State<Arc<Shared>>;

const INVALID: u8 = 3;
const NOT_FOUND: u8 = 5;
const MAX_IDS: usize = 1000;

/// Old versions call the default namespace "", new ones `__default__`.
fn space(name: Option<&str>) -> String {
    name.filter(|name| *name != "__default__")
        .unwrap_or_default()
        .to_owned()
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::data(INVALID, message)
}

fn with<T>(
    shared: &Shared,
    name: &str,
    work: impl FnOnce(&mut Index) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut world = shared.world();
    let index = world.indexes.get_mut(name);
    work(index.ok_or_else(|| Refusal::data(NOT_FOUND, "Index not found"))?)
}

fn check_filter(filter: Option<&Value>) -> Result<(), Refusal> {
    filter.map_or(Ok(()), |filter| filter::check(filter).map_err(invalid))
}

#[derive(Deserialize)]
pub(crate) struct Upsert {
    vectors: Vec<Stored>,
    namespace: Option<String>,
}

pub(crate) async fn upsert(
    State(shared): World,
    Path(name): Path<String>,
    Json(request): Json<Upsert>,
) -> Reply {
    if request.vectors.is_empty() || request.vectors.len() > 1000 {
        return Err(invalid("An upsert has between 1 and 1000 vectors"));
    }
    with(&shared, &name, |index| {
        for vector in &request.vectors {
            index.check(vector).map_err(invalid)?;
        }
        let count = request.vectors.len();
        let space = index
            .spaces
            .entry(space(request.namespace.as_deref()))
            .or_default();
        space.extend(
            request
                .vectors
                .into_iter()
                .map(|vector| (vector.id.clone(), vector)),
        );
        Ok(Json(json!({"upsertedCount": count})))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Search {
    top_k: u32,
    vector: Option<Vec<f32>>,
    id: Option<String>,
    sparse_vector: Option<Sparse>,
    namespace: Option<String>,
    filter: Option<Value>,
    #[serde(default)]
    include_values: bool,
    #[serde(default)]
    include_metadata: bool,
}

pub(crate) async fn query(
    State(shared): World,
    Path(name): Path<String>,
    Json(request): Json<Search>,
) -> Reply {
    if !(1..=10_000).contains(&request.top_k) {
        return Err(invalid("topK must be between 1 and 10000"));
    }
    check_filter(request.filter.as_ref())?;
    with(&shared, &name, |index| {
        let space = space(request.namespace.as_deref());
        let (dense, sparse) = match (request.vector, request.id) {
            (Some(dense), None) => {
                index.check_values(&dense).map_err(invalid)?;
                (dense, request.sparse_vector)
            }
            (None, Some(id)) => match index.spaces.get(&space).and_then(|space| space.get(&id)) {
                Some(stored) => (stored.values.clone(), stored.sparse_values.clone()),
                None => {
                    return Ok(Json(
                        json!({"matches": [], "namespace": space, "usage": {"readUnits": 1}}),
                    ));
                }
            },
            _ => return Err(invalid("Exactly one of vector and id must be given")),
        };
        let scored = index
            .query(&space, &dense, sparse.as_ref(), request.filter.as_ref())
            .map_err(invalid)?;
        let matches: Vec<Value> = scored
            .into_iter()
            .take(request.top_k as usize)
            .map(|(score, stored)| {
                let mut found = json!({"id": stored.id, "score": score, "values": []});
                if request.include_values {
                    found["values"] = json!(stored.values);
                    if let Some(sparse) = &stored.sparse_values {
                        found["sparseValues"] = json!(sparse);
                    }
                }
                if let Some(metadata) = stored
                    .metadata
                    .as_ref()
                    .filter(|_| request.include_metadata)
                {
                    found["metadata"] = json!(metadata);
                }
                found
            })
            .collect();
        Ok(Json(
            json!({"matches": matches, "namespace": space, "usage": {"readUnits": 5}}),
        ))
    })
}

pub(crate) async fn fetch(
    State(shared): World,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Reply {
    let pairs = form::pairs(query.as_deref().unwrap_or_default());
    let ids: Vec<&String> = pairs
        .iter()
        .filter(|(key, _)| key == "ids")
        .map(|(_, id)| id)
        .collect();
    if ids.is_empty() || ids.len() > MAX_IDS {
        return Err(invalid("A fetch has between 1 and 1000 ids"));
    }
    let named = pairs.iter().find(|(key, _)| key == "namespace");
    let space = space(named.map(|(_, name)| name.as_str()));
    with(&shared, &name, |index| {
        let stored = index.spaces.get(&space);
        let found: BTreeMap<&String, &Stored> = ids
            .into_iter()
            .filter_map(|id| Some((id, stored?.get(id)?)))
            .collect();
        Ok(Json(
            json!({"vectors": found, "namespace": space, "usage": {"readUnits": 1}}),
        ))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FetchByMetadata {
    filter: Value,
    namespace: Option<String>,
    limit: Option<usize>,
    pagination_token: Option<String>,
}

pub(crate) async fn fetch_by_metadata(
    State(shared): World,
    Path(name): Path<String>,
    Json(request): Json<FetchByMetadata>,
) -> Reply {
    check_filter(Some(&request.filter))?;
    let space = space(request.namespace.as_deref());
    with(&shared, &name, |index| {
        let mut found = Vec::new();
        for stored in index
            .spaces
            .get(&space)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            let after = request
                .pagination_token
                .as_ref()
                .is_none_or(|token| stored.id > *token);
            if after
                && index
                    .matches(stored, Some(&request.filter))
                    .map_err(invalid)?
            {
                found.push(stored);
            }
        }
        let limit = request.limit.unwrap_or(100).clamp(1, 100);
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found
            .last()
            .filter(|_| more)
            .map(|stored| stored.id.clone());
        let vectors: BTreeMap<&String, &Stored> = found
            .into_iter()
            .map(|stored| (&stored.id, stored))
            .collect();
        let mut reply = json!({"vectors": vectors, "namespace": space, "usage": {"readUnits": 1}});
        if let Some(next) = next {
            reply["pagination"] = json!({"next": next});
        }
        Ok(Json(reply))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Update {
    id: Option<String>,
    values: Option<Vec<f32>>,
    sparse_values: Option<Sparse>,
    set_metadata: Option<Map<String, Value>>,
    namespace: Option<String>,
    filter: Option<Value>,
    #[serde(default)]
    dry_run: bool,
}

pub(crate) async fn update(
    State(shared): World,
    Path(name): Path<String>,
    Json(request): Json<Update>,
) -> Reply {
    check_filter(request.filter.as_ref())?;
    let space = space(request.namespace.as_deref());
    with(&shared, &name, |index| {
        let ids: Vec<String> = match (&request.id, &request.filter) {
            (Some(id), None) => vec![id.clone()],
            (None, Some(_)) => {
                let mut ids = Vec::new();
                for stored in index
                    .spaces
                    .get(&space)
                    .into_iter()
                    .flat_map(BTreeMap::values)
                {
                    if index
                        .matches(stored, request.filter.as_ref())
                        .map_err(invalid)?
                    {
                        ids.push(stored.id.clone());
                    }
                }
                ids
            }
            _ => return Err(invalid("Exactly one of id and filter must be given")),
        };
        if let Some(values) = &request.values {
            index.check_values(values).map_err(invalid)?;
        }
        let matched = ids.len();
        for id in ids.iter().filter(|_| !request.dry_run) {
            let Some(mut stored) = index
                .spaces
                .get(&space)
                .and_then(|space| space.get(id))
                .cloned()
            else {
                continue;
            };
            if let Some(values) = &request.values {
                stored.values.clone_from(values);
            }
            if request.sparse_values.is_some() {
                stored.sparse_values.clone_from(&request.sparse_values);
            }
            if let Some(fields) = &request.set_metadata {
                let metadata = stored.metadata.get_or_insert_default();
                metadata.extend(fields.clone());
                check_metadata(metadata).map_err(invalid)?;
            }
            index.check(&stored).map_err(invalid)?;
            index
                .spaces
                .entry(space.clone())
                .or_default()
                .insert(id.clone(), stored);
        }
        Ok(Json(match request.filter {
            Some(_) => json!({"matchedRecords": matched}),
            None => json!({}),
        }))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delete {
    ids: Option<Vec<String>>,
    #[serde(default)]
    delete_all: bool,
    filter: Option<Value>,
    namespace: Option<String>,
}

pub(crate) async fn delete(
    State(shared): World,
    Path(name): Path<String>,
    Json(request): Json<Delete>,
) -> Reply {
    check_filter(request.filter.as_ref())?;
    let ways = usize::from(request.ids.is_some())
        + usize::from(request.delete_all)
        + usize::from(request.filter.is_some());
    if ways != 1 {
        return Err(invalid(
            "Exactly one of ids, deleteAll and filter must be given",
        ));
    }
    if request
        .ids
        .as_ref()
        .is_some_and(|ids| ids.is_empty() || ids.len() > MAX_IDS)
    {
        return Err(invalid("A delete has between 1 and 1000 ids"));
    }
    if request
        .filter
        .as_ref()
        .is_some_and(|filter| *filter == json!({}))
    {
        return Err(invalid("Delete with empty metadata filter is not allowed"));
    }
    let space = space(request.namespace.as_deref());
    with(&shared, &name, |index| {
        // The default namespace always exists, any other only while it holds something.
        if !space.is_empty() && !index.spaces.contains_key(&space) {
            return Err(Refusal::data(NOT_FOUND, "Namespace not found"));
        }
        let mut stored = index.spaces.remove(&space).unwrap_or_default();
        let mut malformed = None;
        stored.retain(|id, vector| match (&request.ids, &request.filter) {
            (Some(ids), _) => !ids.contains(id),
            (_, Some(_)) => match index.matches(vector, request.filter.as_ref()) {
                Ok(matches) => !matches,
                Err(error) => {
                    malformed = Some(error);
                    true
                }
            },
            _ => false,
        });
        if !stored.is_empty() {
            index.spaces.insert(space, stored);
        }
        malformed.map_or(Ok(Json(json!({}))), |error| Err(invalid(error)))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct List {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
    pagination_token: Option<String>,
    namespace: Option<String>,
}

/// Tokens are the last id in hexadecimal: like the vendor's, they look like nothing that a client could make itself.
pub(crate) async fn list(
    State(shared): World,
    Path(name): Path<String>,
    Query(request): Query<List>,
) -> Reply {
    let limit = request.limit.unwrap_or(100);
    if !(1..=100).contains(&limit) {
        return Err(invalid("The limit must be between 1 and 100"));
    }
    let after = request.pagination_token.as_deref().map(form::from_hex);
    let after = after
        .map(|token| token.ok_or_else(|| invalid("Invalid pagination token")))
        .transpose()?;
    let space = space(request.namespace.as_deref());
    with(&shared, &name, |index| {
        let mut ids: Vec<&String> = index
            .spaces
            .get(&space)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|id| {
                id.starts_with(&request.prefix) && after.as_ref().is_none_or(|after| *id > after)
            })
            .collect();
        let more = ids.len() > limit;
        ids.truncate(limit);
        let vectors: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
        let mut reply = json!({"vectors": vectors, "namespace": space, "usage": {"readUnits": 1}});
        // The vendor's client 7.3 pages for ever when the member is there but empty.
        if let Some(last) = ids.last().filter(|_| more) {
            reply["pagination"] = json!({"next": form::to_hex(last)});
        }
        Ok(Json(reply))
    })
}

pub(crate) async fn stats(State(shared): World, Path(name): Path<String>) -> Reply {
    with(&shared, &name, |index| {
        let total: usize = index.spaces.values().map(BTreeMap::len).sum();
        let namespaces: Map<String, Value> = index
            .spaces
            .iter()
            .map(|(name, stored)| {
                let name = if name.is_empty() { "__default__" } else { name };
                (name.to_owned(), json!({"vectorCount": stored.len()}))
            })
            .collect();
        Ok(Json(json!({
            "namespaces": namespaces,
            "dimension": index.dimension,
            "indexFullness": 0.0,
            "totalVectorCount": total,
            "metric": index.metric,
            "vectorType": "dense",
        })))
    })
}
