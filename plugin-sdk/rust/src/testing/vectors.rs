//! An exact index in memory, with the metrics and filters of the real ones.

mod filter;

use std::collections::BTreeMap;

use serde_json::Value;

use super::current;
use crate::vectors::{
    Change, Error, IndexInfo, Match, Metric, Page, Query, Selection, Sparse, Target, Vector,
};

const DEFAULT_NAMESPACE: &str = "__default__";
const PAGE: usize = 100;

pub(super) struct Index {
    dimension: usize,
    metric: Metric,
    namespaces: BTreeMap<String, BTreeMap<String, Vector>>,
}

impl Index {
    pub(super) fn new(dimension: usize, metric: Metric) -> Self {
        Self {
            dimension,
            metric,
            namespaces: BTreeMap::new(),
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<&Vector> {
        self.namespaces.get(DEFAULT_NAMESPACE)?.get(id)
    }

    fn check(&self, values: &[f32]) -> Result<(), Error> {
        if values.len() != self.dimension {
            return Err(Error::InvalidInput(format!(
                "a vector of {} values in an index of dimension {}",
                values.len(),
                self.dimension
            )));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::InvalidInput("a value is not finite".into()));
        }
        Ok(())
    }

    fn score(&self, a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        match self.metric {
            Metric::Dotproduct => dot(a, b),
            Metric::Euclidean => a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum(),
            Metric::Cosine => {
                let norms = (dot(a, a) * dot(b, b)).sqrt();
                if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
            }
        }
    }
}

fn with<T>(
    index: &str,
    namespace: Option<&str>,
    action: &str,
    act: impl FnOnce(&Index, &mut BTreeMap<String, Vector>) -> Result<T, Error>,
) -> Result<T, Error> {
    let host = current().map_err(Error::Internal)?;
    let mut indexes = host.vectors.borrow_mut();
    let index = indexes
        .get_mut(index)
        .ok_or_else(|| Error::NotGranted(format!("no grant to {action} vectors '{index}'")))?;
    let namespace = match namespace {
        None | Some("") => DEFAULT_NAMESPACE,
        Some(name) => name,
    };
    let mut vectors = index.namespaces.remove(namespace).unwrap_or_default();
    let result = act(index, &mut vectors);
    if !vectors.is_empty() {
        index.namespaces.insert(namespace.to_owned(), vectors);
    }
    result
}

pub(crate) fn upsert(
    index: &str,
    namespace: Option<&str>,
    vectors: Vec<Vector>,
) -> Result<u32, Error> {
    with(index, namespace, "upsert", |index, stored| {
        if vectors.len() > 1000 {
            return Err(Error::TooLarge(format!(
                "{} vectors at once, 1000 is the most",
                vectors.len()
            )));
        }
        for vector in &vectors {
            index.check(&vector.values)?;
            if vector.values.iter().all(|value| *value == 0.0) {
                return Err(Error::InvalidInput(format!(
                    "all values of '{}' are zero",
                    vector.id
                )));
            }
            if vector
                .metadata
                .as_ref()
                .is_some_and(|metadata| !metadata.is_object())
            {
                return Err(Error::InvalidInput(format!(
                    "the metadata of '{}' is no object",
                    vector.id
                )));
            }
        }
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        stored.extend(
            vectors
                .into_iter()
                .map(|vector| (vector.id.clone(), vector)),
        );
        Ok(count)
    })
}

pub(crate) fn query(
    index: &str,
    namespace: Option<&str>,
    query: Query,
) -> Result<Vec<Match>, Error> {
    with(index, namespace, "query", |index, stored| {
        if !(1..=10_000).contains(&query.top) {
            return Err(Error::InvalidInput(format!(
                "top is {}, 1 to 10000 is possible",
                query.top
            )));
        }
        let (target, sparse) = match &query.target {
            Target::Values(values) => (values.clone(), None),
            Target::Hybrid(values, sparse) => (values.clone(), Some(sparse.clone())),
            Target::Id(id) => match stored.get(id) {
                Some(vector) => (vector.values.clone(), vector.sparse.clone()),
                None => return Ok(Vec::new()),
            },
        };
        index.check(&target)?;
        let mut found = Vec::new();
        for vector in stored.values() {
            let metadata = vector.metadata.as_ref().unwrap_or(&Value::Null);
            if let Some(filter) = &query.filter
                && !filter::holds(filter, metadata)?
            {
                continue;
            }
            let extra = match (&sparse, &vector.sparse) {
                (Some(a), Some(b)) => sparse_dot(a, b),
                _ => 0.0,
            };
            found.push(Match {
                id: vector.id.clone(),
                score: index.score(&target, &vector.values) + extra,
                values: query.include_values.then(|| vector.values.clone()),
                sparse: vector.sparse.clone().filter(|_| query.include_values),
                metadata: vector.metadata.clone().filter(|_| query.include_metadata),
            });
        }
        found.sort_by(|a, b| match index.metric {
            Metric::Euclidean => a.score.total_cmp(&b.score),
            Metric::Cosine | Metric::Dotproduct => b.score.total_cmp(&a.score),
        });
        found.truncate(query.top as usize);
        Ok(found)
    })
}

pub(crate) fn fetch(
    index: &str,
    namespace: Option<&str>,
    ids: &[&str],
) -> Result<Vec<Vector>, Error> {
    with(index, namespace, "fetch", |_, stored| {
        Ok(ids
            .iter()
            .filter_map(|id| stored.get(*id).cloned())
            .collect())
    })
}

pub(crate) fn update(index: &str, namespace: Option<&str>, change: Change) -> Result<(), Error> {
    with(index, namespace, "update", |index, stored| {
        if let Some(values) = &change.values {
            index.check(values)?;
        }
        let Some(vector) = stored.get_mut(&change.id) else {
            return Ok(());
        };
        vector.values = change
            .values
            .unwrap_or_else(|| std::mem::take(&mut vector.values));
        vector.sparse = change.sparse.or_else(|| vector.sparse.take());
        match (&mut vector.metadata, change.metadata) {
            (Some(Value::Object(old)), Some(Value::Object(new))) => old.extend(new),
            (_, None) => {}
            (old, new) => *old = new,
        }
        Ok(())
    })
}

pub(crate) fn delete(
    index: &str,
    namespace: Option<&str>,
    selection: Selection,
) -> Result<(), Error> {
    with(index, namespace, "delete", |_, stored| {
        match selection {
            Selection::All => stored.clear(),
            Selection::Ids(ids) => stored.retain(|id, _| !ids.contains(id)),
            Selection::Filter(filter) => {
                let mut kept = BTreeMap::new();
                for (id, vector) in stored.iter() {
                    if !filter::holds(&filter, vector.metadata.as_ref().unwrap_or(&Value::Null))? {
                        kept.insert(id.clone(), vector.clone());
                    }
                }
                *stored = kept;
            }
        }
        Ok(())
    })
}

pub(crate) fn list(
    index: &str,
    namespace: Option<&str>,
    prefix: Option<&str>,
    token: Option<&str>,
) -> Result<Page, Error> {
    with(index, namespace, "list", |_, stored| {
        let mut ids: Vec<_> = stored
            .keys()
            .filter(|id| {
                id.starts_with(prefix.unwrap_or_default())
                    && token.is_none_or(|token| id.as_str() > token)
            })
            .take(PAGE + 1)
            .cloned()
            .collect();
        let more = ids.len() > PAGE;
        ids.truncate(PAGE);
        let next = ids.last().cloned().filter(|_| more);
        Ok(Page { ids, next })
    })
}

pub(crate) fn describe(index: &str) -> Result<IndexInfo, Error> {
    let host = current().map_err(Error::Internal)?;
    let indexes = host.vectors.borrow();
    let index = indexes
        .get(index)
        .ok_or_else(|| Error::NotGranted(format!("no grant to query vectors '{index}'")))?;
    Ok(IndexInfo {
        dimension: u32::try_from(index.dimension).unwrap_or(u32::MAX),
        metric: index.metric,
        namespaces: index
            .namespaces
            .iter()
            .map(|(name, vectors)| (name.clone(), vectors.len() as u64))
            .collect(),
    })
}

fn sparse_dot(a: &Sparse, b: &Sparse) -> f32 {
    a.indices
        .iter()
        .zip(&a.values)
        .filter_map(|(index, value)| {
            let at = b.indices.iter().position(|other| other == index)?;
            Some(value * b.values.get(at)?)
        })
        .sum()
}
