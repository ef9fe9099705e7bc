use std::time::Duration;

use serde_json::Value;

use super::bindings::stepwell::vector::index as wit;
use crate::vectors::{
    Change, Error, IndexInfo, Match, Metric, Page, Query, Selection, Sparse, Target, Vector,
};

pub(crate) fn upsert(
    index: &str,
    namespace: Option<&str>,
    vectors: Vec<Vector>,
) -> Result<u32, Error> {
    let vectors: Vec<_> = vectors
        .into_iter()
        .map(|vector| wit::Vector {
            id: vector.id,
            values: vector.values,
            sparse: vector.sparse.map(sparse_out),
            metadata: json_out(vector.metadata),
        })
        .collect();
    wit::upsert(index, namespace, &vectors).map_err(error)
}

pub(crate) fn query(
    index: &str,
    namespace: Option<&str>,
    query: Query,
) -> Result<Vec<Match>, Error> {
    let search = wit::Search {
        target: match query.target {
            Target::Values(values) => wit::Target::Values(values),
            Target::Hybrid(values, sparse) => wit::Target::Hybrid((values, sparse_out(sparse))),
            Target::Id(id) => wit::Target::Id(id),
        },
        top_k: query.top,
        filter: json_out(query.filter),
        include_values: query.include_values,
        include_metadata: query.include_metadata,
    };
    let found = wit::query(index, namespace, &search).map_err(error)?;
    found
        .into_iter()
        .map(|found| {
            Ok(Match {
                id: found.id,
                score: found.score,
                values: found.values,
                sparse: found.sparse.map(sparse_in),
                metadata: json_in(found.metadata)?,
            })
        })
        .collect()
}

pub(crate) fn fetch(
    index: &str,
    namespace: Option<&str>,
    ids: &[&str],
) -> Result<Vec<Vector>, Error> {
    let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
    let vectors = wit::fetch(index, namespace, &ids).map_err(error)?;
    vectors
        .into_iter()
        .map(|vector| {
            Ok(Vector {
                id: vector.id,
                values: vector.values,
                sparse: vector.sparse.map(sparse_in),
                metadata: json_in(vector.metadata)?,
            })
        })
        .collect()
}

pub(crate) fn update(index: &str, namespace: Option<&str>, change: Change) -> Result<(), Error> {
    let change = wit::Change {
        id: change.id,
        values: change.values,
        sparse: change.sparse.map(sparse_out),
        metadata: json_out(change.metadata),
    };
    wit::update(index, namespace, &change).map_err(error)
}

pub(crate) fn delete(
    index: &str,
    namespace: Option<&str>,
    selection: Selection,
) -> Result<(), Error> {
    let selection = match selection {
        Selection::Ids(ids) => wit::Selection::Ids(ids),
        Selection::Filter(filter) => wit::Selection::Filter(filter.to_string()),
        Selection::All => wit::Selection::All,
    };
    wit::delete(index, namespace, &selection).map_err(error)
}

pub(crate) fn list(
    index: &str,
    namespace: Option<&str>,
    prefix: Option<&str>,
    token: Option<&str>,
) -> Result<Page, Error> {
    let page = wit::list(index, namespace, prefix, None, token).map_err(error)?;
    Ok(Page {
        ids: page.ids,
        next: page.next,
    })
}

pub(crate) fn describe(index: &str) -> Result<IndexInfo, Error> {
    let info = wit::describe(index).map_err(error)?;
    Ok(IndexInfo {
        dimension: info.dimension,
        metric: match info.metric {
            wit::Metric::Cosine => Metric::Cosine,
            wit::Metric::Euclidean => Metric::Euclidean,
            wit::Metric::Dotproduct => Metric::Dotproduct,
        },
        namespaces: info
            .namespaces
            .into_iter()
            .map(|namespace| (namespace.name, namespace.vectors))
            .collect(),
    })
}

fn sparse_out(sparse: Sparse) -> wit::SparseValues {
    wit::SparseValues {
        indices: sparse.indices,
        values: sparse.values,
    }
}

fn sparse_in(sparse: wit::SparseValues) -> Sparse {
    Sparse {
        indices: sparse.indices,
        values: sparse.values,
    }
}

fn json_out(value: Option<Value>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn json_in(text: Option<String>) -> Result<Option<Value>, Error> {
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| Error::Internal(format!("metadata is no JSON: {error}")))
}

fn error(error: wit::Error) -> Error {
    match error {
        wit::Error::NotGranted(what) => Error::NotGranted(what),
        wit::Error::NotFound(what) => Error::NotFound(what),
        wit::Error::InvalidInput(what) => Error::InvalidInput(what),
        wit::Error::TooLarge(what) => Error::TooLarge(what),
        wit::Error::Unavailable(what) => Error::Unavailable(what),
        wit::Error::Overloaded(after) => Error::Overloaded(after.map(Duration::from_millis)),
        wit::Error::DeadlineExceeded => Error::DeadlineExceeded,
        wit::Error::Internal(what) => Error::Internal(what),
    }
}
