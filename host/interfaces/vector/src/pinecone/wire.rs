//! Pinecone's JSON, version 2025-10 of its data plane.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::{Metadata, Metric, SparseValues, Vector};

/// The version that is asked for in every request.
pub(crate) const API_VERSION: &str = "2025-10";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WireVector {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) values: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sparse_values: Option<SparseValues>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Metadata>,
}

impl From<Vector> for WireVector {
    fn from(vector: Vector) -> Self {
        Self {
            id: vector.id,
            values: vector.values,
            sparse_values: vector.sparse,
            metadata: vector.metadata,
        }
    }
}

impl From<WireVector> for Vector {
    fn from(vector: WireVector) -> Self {
        Self {
            id: vector.id,
            values: vector.values,
            sparse: some(vector.sparse_values),
            metadata: vector.metadata.filter(|metadata| !metadata.is_empty()),
        }
    }
}

/// Some answers spell "no sparse values" as empty lists.
pub(crate) fn some(sparse: Option<SparseValues>) -> Option<SparseValues> {
    sparse.filter(|sparse| !sparse.indices.is_empty())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QueryRequest<'a> {
    pub(crate) top_k: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vector: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sparse_vector: Option<&'a SparseValues>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<&'a serde_json::Value>,
    pub(crate) include_values: bool,
    pub(crate) include_metadata: bool,
}

#[derive(Deserialize)]
pub(crate) struct QueryReply {
    #[serde(default)]
    pub(crate) matches: Vec<WireMatch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WireMatch {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) score: f32,
    #[serde(default)]
    pub(crate) values: Vec<f32>,
    #[serde(default)]
    pub(crate) sparse_values: Option<SparseValues>,
    #[serde(default)]
    pub(crate) metadata: Option<Metadata>,
}

#[derive(Deserialize)]
pub(crate) struct FetchReply {
    #[serde(default)]
    pub(crate) vectors: BTreeMap<String, WireVector>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpdateRequest<'a> {
    pub(crate) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) values: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sparse_values: Option<&'a SparseValues>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) set_metadata: Option<&'a Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeleteRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ids: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) delete_all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<&'a str>,
}

#[derive(Deserialize)]
pub(crate) struct ListReply {
    #[serde(default)]
    pub(crate) vectors: Vec<ListedId>,
    #[serde(default)]
    pub(crate) pagination: Option<Pagination>,
}

#[derive(Deserialize)]
pub(crate) struct ListedId {
    pub(crate) id: String,
}

#[derive(Deserialize)]
pub(crate) struct Pagination {
    #[serde(default)]
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatsReply {
    #[serde(default)]
    pub(crate) namespaces: BTreeMap<String, NamespaceStats>,
    #[serde(default)]
    pub(crate) dimension: Option<u32>,
    #[serde(default)]
    pub(crate) metric: Option<Metric>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamespaceStats {
    #[serde(default)]
    pub(crate) vector_count: u64,
}

/// Replies whose content does not matter.
#[derive(Deserialize)]
pub(crate) struct Done {}

/// Both of Pinecone's error shapes.
#[derive(Deserialize)]
pub(crate) struct ErrorReply {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    message: Option<String>,
}

impl ErrorReply {
    pub(crate) fn message(self) -> Option<String> {
        self.message
            .or_else(|| self.error.and_then(|error| error.message))
    }
}
