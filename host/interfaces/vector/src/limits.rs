//! What a call may carry, the same for every backend: Pinecone's limits, so that what works on a laptop works there.

use std::collections::HashSet;

use serde_json::Value;

use crate::client::{
    Change, Listing, Match, Metadata, Metric, Place, Search, Selection, SparseValues, Target,
    Vector, VectorError,
};

/// Vectors of one upsert.
pub const MAX_UPSERT_VECTORS: usize = 1000;
/// Bytes of one upsert: ids, 4 a value, 8 a sparse value, metadata as JSON.
pub const MAX_UPSERT_BYTES: usize = 2 << 20;
/// Characters of an id or a namespace.
pub const MAX_ID_CHARS: usize = 512;
/// Values of a vector.
pub const MAX_DIMENSION: u32 = 20_000;
/// Sparse values of a vector.
pub const MAX_SPARSE_VALUES: usize = 1000;
/// Bytes of one vector's metadata as JSON.
pub const MAX_METADATA_BYTES: usize = 40 << 10;
/// Matches of one query.
pub const MAX_TOP_K: u32 = 10_000;
/// Bytes of an answer, counted as for an upsert.
pub const MAX_RESULT_BYTES: usize = 4 << 20;
/// Ids of one fetch or delete.
pub const MAX_IDS: usize = 1000;
/// Ids of one page.
pub const MAX_PAGE: u32 = 100;

/// What an index demands of vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) dimension: u32,
    pub(crate) metric: Metric,
}

type Checked = Result<(), VectorError>;

impl Shape {
    pub(crate) fn check_upsert(self, vectors: &[Vector]) -> Checked {
        at_most("vectors in one upsert", vectors.len(), MAX_UPSERT_VECTORS)?;
        let mut bytes = 0;
        for vector in vectors {
            check_id(&vector.id)?;
            let about = |error| at_vector(&vector.id, error);
            self.check_stored(&vector.values).map_err(about)?;
            self.check_sparse(vector.sparse.as_ref()).map_err(about)?;
            if let Some(metadata) = &vector.metadata {
                check_metadata(metadata).map_err(about)?;
            }
            bytes += size(vector);
        }
        at_most("bytes in one upsert", bytes, MAX_UPSERT_BYTES)
    }

    pub(crate) fn check_search(self, search: &Search) -> Checked {
        if search.top_k == 0 {
            return Err(invalid(
                "a query asks for at least one match, this one for 0",
            ));
        }
        at_most(
            "matches in one query",
            search.top_k as usize,
            MAX_TOP_K as usize,
        )?;
        match &search.target {
            Target::Id(id) => check_id(id),
            Target::Values { dense, sparse } => {
                self.check_dense(dense)?;
                self.check_sparse(sparse.as_ref())
            }
        }
    }

    pub(crate) fn check_change(self, change: &Change) -> Checked {
        check_id(&change.id)?;
        if let Some(values) = &change.values {
            self.check_stored(values)?;
        }
        self.check_sparse(change.sparse.as_ref())?;
        change.metadata.as_ref().map_or(Ok(()), check_metadata)
    }

    fn check_stored(self, values: &[f32]) -> Checked {
        self.check_dense(values)?;
        if values.iter().all(|value| *value == 0.0) {
            return Err(invalid("at least one value must not be zero"));
        }
        Ok(())
    }

    fn check_dense(self, values: &[f32]) -> Checked {
        if values.len() != self.dimension as usize {
            return Err(invalid(format!(
                "the index has {} dimensions, the vector has {} values",
                self.dimension,
                values.len()
            )));
        }
        check_finite(values)
    }

    fn check_sparse(self, sparse: Option<&SparseValues>) -> Checked {
        let Some(sparse) = sparse else { return Ok(()) };
        if self.metric != Metric::Dotproduct {
            return Err(invalid(format!(
                "sparse values need a dotproduct index, this one is {}",
                self.metric
            )));
        }
        if sparse.indices.len() != sparse.values.len() {
            return Err(invalid(format!(
                "there are {} sparse indices and {} sparse values",
                sparse.indices.len(),
                sparse.values.len()
            )));
        }
        at_most(
            "sparse values in one vector",
            sparse.values.len(),
            MAX_SPARSE_VALUES,
        )?;
        if sparse.values.is_empty() {
            return Err(invalid("sparse values are given, but there are none"));
        }
        check_finite(&sparse.values)?;
        let mut seen = HashSet::with_capacity(sparse.indices.len());
        match sparse.indices.iter().find(|index| !seen.insert(**index)) {
            Some(twice) => Err(invalid(format!("the sparse index {twice} is given twice"))),
            None => Ok(()),
        }
    }
}

pub(crate) fn check_ids(ids: &[String]) -> Checked {
    at_most("ids in one call", ids.len(), MAX_IDS)?;
    ids.iter().try_for_each(|id| check_id(id))
}

pub(crate) fn check_selection(selection: &Selection) -> Checked {
    match selection {
        Selection::All => Ok(()),
        Selection::Ids(ids) => check_ids(ids),
        Selection::Filter(filter) if filter.is_empty() => Err(invalid(
            "an empty filter would delete everything: ask for all if that is meant",
        )),
        Selection::Filter(_) => Ok(()),
    }
}

/// Checks a listing, and takes a limit of more than a page as a page.
pub(crate) fn check_listing(mut listing: Listing) -> Result<Listing, VectorError> {
    if listing.limit == Some(0) {
        return Err(invalid("a page has at least one id, this one asks for 0"));
    }
    listing.limit = Some(listing.limit.unwrap_or(MAX_PAGE).min(MAX_PAGE));
    check_text("a prefix", &listing.prefix)?;
    if let Some(token) = &listing.token {
        at_most("bytes in a page token", token.len(), 4096)?;
    }
    Ok(listing)
}

pub(crate) fn check_place(at: &Place<'_>) -> Checked {
    check_text("a namespace", at.name())
}

/// Counts an answer's bytes while a backend puts it together, so that it stops in time.
#[derive(Default)]
pub(crate) struct ResultSize(usize);

impl ResultSize {
    pub(crate) fn add(&mut self, bytes: usize) -> Checked {
        self.0 += bytes;
        if self.0 > MAX_RESULT_BYTES {
            return Err(VectorError::TooLarge(format!(
                "an answer has at most {MAX_RESULT_BYTES} bytes: ask for fewer vectors, or without values and metadata"
            )));
        }
        Ok(())
    }

    pub(crate) fn add_match(&mut self, found: &Match) -> Checked {
        self.add(
            found.id.len()
                + found.values.as_ref().map_or(0, |values| values.len() * 4)
                + found
                    .sparse
                    .as_ref()
                    .map_or(0, |sparse| sparse.values.len() * 8)
                + found.metadata.as_ref().map_or(0, metadata_size)
                + 16,
        )
    }

    pub(crate) fn add_vector(&mut self, vector: &Vector) -> Checked {
        self.add(size(vector))
    }
}

/// A vector's size as limits count it.
pub(crate) fn size(vector: &Vector) -> usize {
    vector.id.len()
        + vector.values.len() * 4
        + vector
            .sparse
            .as_ref()
            .map_or(0, |sparse| sparse.values.len() * 8)
        + vector.metadata.as_ref().map_or(0, metadata_size)
}

/// Bytes of metadata as JSON, without writing it.
pub(crate) fn metadata_size(metadata: &Metadata) -> usize {
    fn text(text: &str) -> usize {
        let escaped: usize = text
            .bytes()
            .map(|byte| match byte {
                b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
                0..32 => 5,
                _ => 0,
            })
            .sum();
        text.len() + escaped + 2
    }
    fn value(json: &Value) -> usize {
        match json {
            Value::String(string) => text(string),
            Value::Array(items) => 1 + items.iter().map(|item| value(item) + 1).sum::<usize>(),
            Value::Number(number) => number.to_string().len(),
            _ => 5,
        }
    }
    1 + metadata
        .iter()
        .map(|(field, json)| text(field) + value(json) + 2)
        .sum::<usize>()
}

pub(crate) fn check_metadata(metadata: &Metadata) -> Checked {
    for (field, json) in metadata {
        let legal = match json {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => true,
            Value::Array(items) => items.iter().all(Value::is_string),
            Value::Null | Value::Object(_) => false,
        };
        if field.is_empty() || field.starts_with('$') {
            return Err(invalid(
                "a metadata field's name is not empty and does not start with $",
            ));
        }
        if !legal {
            return Err(invalid(format!(
                "metadata field '{}' must be a string, a number, a boolean or a list of strings",
                shown(field)
            )));
        }
    }
    at_most(
        "bytes of metadata in one vector",
        metadata_size(metadata),
        MAX_METADATA_BYTES,
    )
}

fn check_id(id: &str) -> Checked {
    if id.is_empty() {
        return Err(invalid("an id has at least one character"));
    }
    check_text("an id", id)
}

/// Ids and namespaces are printable ASCII, as they are for Pinecone (which also takes control characters, but who wants them).
fn check_text(what: &str, text: &str) -> Checked {
    if text.len() > MAX_ID_CHARS {
        return Err(VectorError::TooLarge(format!(
            "{what} has at most {MAX_ID_CHARS} characters, '{}…' has more",
            shown(text)
        )));
    }
    if !text
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_control())
    {
        return Err(invalid(format!(
            "{what} is of ASCII characters, none of them a control character; '{}' is not",
            shown(text)
        )));
    }
    Ok(())
}

fn check_finite(values: &[f32]) -> Checked {
    match values
        .iter()
        .enumerate()
        .find(|(_, value)| !value.is_finite())
    {
        Some((position, value)) => Err(invalid(format!(
            "every value is a finite number, value {position} is {value}"
        ))),
        None => Ok(()),
    }
}

fn at_most(what: &str, count: usize, limit: usize) -> Checked {
    if count > limit {
        return Err(VectorError::TooLarge(format!(
            "{count} {what}, at most {limit} are allowed"
        )));
    }
    Ok(())
}

fn at_vector(id: &str, error: VectorError) -> VectorError {
    let about = |message| format!("vector '{}': {message}", shown(id));
    match error {
        VectorError::InvalidInput(message) => VectorError::InvalidInput(about(message)),
        VectorError::TooLarge(message) => VectorError::TooLarge(about(message)),
        other => other,
    }
}

fn invalid(message: impl Into<String>) -> VectorError {
    VectorError::InvalidInput(message.into())
}

fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_measured_as_it_is_written() {
        for text in [
            "{}",
            r#"{"a":1}"#,
            r#"{"a":"x\"y\\z\n","b":[],"c":["p","q"],"d":true,"e":1.5e300}"#,
            r#"{"\u0001":"\u001fé"}"#,
        ] {
            let metadata: Metadata = serde_json::from_str(text).unwrap();
            let written = serde_json::to_string(&metadata).unwrap().len();
            let measured = metadata_size(&metadata);
            assert!(
                measured + 1 >= written && measured <= written + 4,
                "{text}: {measured}"
            );
        }
    }
}
