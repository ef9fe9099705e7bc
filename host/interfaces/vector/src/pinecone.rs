//! Pinecone's service, through its REST data plane.

mod retry;
mod transport;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use stepwell_core::Secret;

pub(crate) use self::retry::Budgets;
use self::transport::Transport;
use self::wire::{
    DeleteRequest, Done, FetchReply, ListReply, QueryReply, QueryRequest, StatsReply,
    UpdateRequest, WireVector, some,
};
use crate::client::{
    Change, DEFAULT_NAMESPACE, Description, Health, Listing, Match, Page, Place, Search, Selection,
    Target, Vector, VectorError, VectorStore,
};
use crate::limits::{ResultSize, Shape};

/// Bytes of one upsert's JSON, a little under the service's limit.
const MAX_BODY: usize = 1_900_000;
/// Bytes of ids in one fetch's URL.
const MAX_URL_IDS: usize = 4000;

/// One index of Pinecone's. Reads may lag behind writes.
pub(crate) struct PineconeStore {
    transport: Transport,
    namespace: Option<String>,
    shape: Shape,
}

impl PineconeStore {
    pub(crate) fn new(
        name: Arc<str>,
        host: &str,
        api_key: &Secret,
        namespace: Option<String>,
        shape: Shape,
        budgets: &Budgets,
    ) -> Result<Self, String> {
        Ok(Self {
            transport: Transport::new(name, host, api_key, budgets)?,
            namespace: namespace.filter(|name| !name.is_empty()),
            shape,
        })
    }

    /// The namespace to name in a request; none is the default one.
    fn space<'a>(&'a self, at: &Place<'a>) -> Result<Option<&'a str>, VectorError> {
        let asked = at.name();
        let name = match self.namespace.as_deref() {
            None => asked,
            Some(own) if asked == DEFAULT_NAMESPACE || asked == own => own,
            Some(_) => {
                return Err(VectorError::NotGranted(
                    "the binding is confined to one namespace, and this is another".into(),
                ));
            }
        };
        Ok((name != DEFAULT_NAMESPACE).then_some(name))
    }

    async fn stats(&self, deadline: Instant) -> Result<StatsReply, VectorError> {
        self.transport
            .post(deadline, "/describe_index_stats", &serde_json::json!({}))
            .await?
            .ok_or_else(|| VectorError::NotFound("the service does not know the index".into()))
    }
}

#[async_trait]
impl VectorStore for PineconeStore {
    /// One call may be several requests, since JSON is longer than what limits count.
    async fn upsert(&self, at: &Place<'_>, vectors: Vec<Vector>) -> Result<u32, VectorError> {
        let space = self.space(at)?;
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        for body in upsert_bodies(vectors, space)? {
            let _: Option<Done> = self
                .transport
                .post_bytes(at.deadline, "/vectors/upsert", body)
                .await?;
        }
        Ok(count)
    }

    async fn query(&self, at: &Place<'_>, search: Search) -> Result<Vec<Match>, VectorError> {
        let (vector, sparse_vector, id) = match &search.target {
            Target::Values { dense, sparse } => (Some(dense.as_slice()), sparse.as_ref(), None),
            Target::Id(id) => (None, None, Some(id.as_str())),
        };
        let request = QueryRequest {
            top_k: search.top_k,
            vector,
            sparse_vector,
            id,
            namespace: self.space(at)?,
            filter: search.filter.as_ref().map(|filter| filter.as_json()),
            include_values: search.include_values,
            include_metadata: search.include_metadata,
        };
        let reply: Option<QueryReply> =
            self.transport.post(at.deadline, "/query", &request).await?;
        let mut size = ResultSize::default();
        reply
            .map_or_else(Vec::new, |reply| reply.matches)
            .into_iter()
            .map(|found| {
                let found = Match {
                    id: found.id,
                    score: found.score,
                    values: search.include_values.then_some(found.values),
                    sparse: some(found.sparse_values).filter(|_| search.include_values),
                    metadata: found
                        .metadata
                        .filter(|metadata| search.include_metadata && !metadata.is_empty()),
                };
                size.add_match(&found)?;
                Ok(found)
            })
            .collect()
    }

    async fn fetch(&self, at: &Place<'_>, ids: Vec<String>) -> Result<Vec<Vector>, VectorError> {
        let space = self.space(at)?;
        let mut size = ResultSize::default();
        let mut found = Vec::new();
        for ids in url_batches(&ids) {
            let mut query: Vec<(&str, &str)> = ids.iter().map(|id| ("ids", id.as_str())).collect();
            query.extend(space.map(|name| ("namespace", name)));
            let reply: Option<FetchReply> = self
                .transport
                .get(at.deadline, "/vectors/fetch", &query)
                .await?;
            let Some(mut reply) = reply else { break };
            for id in ids {
                if let Some(vector) = reply.vectors.remove(id) {
                    let vector = Vector::from(vector);
                    size.add_vector(&vector)?;
                    found.push(vector);
                }
            }
        }
        Ok(found)
    }

    async fn update(&self, at: &Place<'_>, change: Change) -> Result<(), VectorError> {
        let request = UpdateRequest {
            id: &change.id,
            values: change.values.as_deref(),
            sparse_values: change.sparse.as_ref(),
            set_metadata: change.metadata.as_ref(),
            namespace: self.space(at)?,
        };
        let _: Option<Done> = self
            .transport
            .post(at.deadline, "/vectors/update", &request)
            .await?;
        Ok(())
    }

    async fn delete(&self, at: &Place<'_>, selection: Selection) -> Result<(), VectorError> {
        let mut request = DeleteRequest {
            ids: None,
            filter: None,
            delete_all: false,
            namespace: self.space(at)?,
        };
        match &selection {
            Selection::Ids(ids) => request.ids = Some(ids),
            Selection::Filter(filter) => request.filter = Some(filter.as_json()),
            Selection::All => request.delete_all = true,
        }
        let _: Option<Done> = self
            .transport
            .post(at.deadline, "/vectors/delete", &request)
            .await?;
        Ok(())
    }

    async fn list(&self, at: &Place<'_>, listing: Listing) -> Result<Page, VectorError> {
        let limit = listing.limit.map(|limit| limit.to_string());
        let mut query = Vec::new();
        query.extend(
            Some(listing.prefix.as_str())
                .filter(|it| !it.is_empty())
                .map(|it| ("prefix", it)),
        );
        query.extend(limit.as_deref().map(|it| ("limit", it)));
        query.extend(listing.token.as_deref().map(|it| ("paginationToken", it)));
        query.extend(self.space(at)?.map(|it| ("namespace", it)));
        let reply: Option<ListReply> = self
            .transport
            .get(at.deadline, "/vectors/list", &query)
            .await?;
        Ok(reply.map_or_else(Page::default, |reply| Page {
            ids: reply.vectors.into_iter().map(|listed| listed.id).collect(),
            next: reply
                .pagination
                .and_then(|pagination| pagination.next)
                .filter(|next| !next.is_empty()),
        }))
    }

    async fn describe(&self, deadline: Instant) -> Result<Description, VectorError> {
        let stats = self.stats(deadline).await?;
        let mut description = Description {
            dimension: stats.dimension.unwrap_or(self.shape.dimension),
            metric: stats.metric.unwrap_or(self.shape.metric),
            namespaces: std::collections::BTreeMap::new(),
        };
        let mut size = ResultSize::default();
        for (name, stats) in stats.namespaces {
            let name = if name.is_empty() {
                DEFAULT_NAMESPACE.to_owned()
            } else {
                name
            };
            if stats.vector_count == 0 || self.namespace.as_ref().is_some_and(|own| *own != name) {
                continue;
            }
            size.add(name.len() + 8)?;
            *description.namespaces.entry(name).or_default() += stats.vector_count;
        }
        Ok(description)
    }

    async fn probe(&self, deadline: Instant) -> Health {
        let stats = match self.stats(deadline).await {
            Ok(stats) => stats,
            Err(VectorError::Overloaded { .. }) => {
                return Health::Degraded("the service limits the rate of calls".into());
            }
            Err(error) => return Health::Down(error.to_string()),
        };
        let Shape { dimension, metric } = self.shape;
        if let Some(real) = stats.dimension.filter(|real| *real != dimension) {
            return Health::Down(format!(
                "the service's index has {real} dimensions, the configuration says {dimension}"
            ));
        }
        if let Some(real) = stats.metric.filter(|real| *real != metric) {
            return Health::Down(format!(
                "the service's index has the metric {real}, the configuration says {metric}"
            ));
        }
        Health::Ok
    }

    async fn close(&self) {}
}

/// The vectors as requests, none of them larger than the service takes.
fn upsert_bodies(vectors: Vec<Vector>, space: Option<&str>) -> Result<Vec<Vec<u8>>, VectorError> {
    let unwritable = |error: serde_json::Error| {
        VectorError::Internal(format!("a request cannot be written: {error}"))
    };
    let end = match space {
        None => b"]}".to_vec(),
        Some(name) => format!(
            "],\"namespace\":{}}}",
            serde_json::to_string(name).map_err(unwritable)?
        )
        .into_bytes(),
    };
    const START: &[u8] = b"{\"vectors\":[";
    let mut bodies = Vec::new();
    let mut body = START.to_vec();
    for vector in vectors {
        let written = serde_json::to_vec(&WireVector::from(vector)).map_err(unwritable)?;
        if body.len() > START.len() {
            if body.len() + written.len() + end.len() > MAX_BODY {
                body.extend_from_slice(&end);
                bodies.push(std::mem::replace(&mut body, START.to_vec()));
            } else {
                body.push(b',');
            }
        }
        body.extend_from_slice(&written);
    }
    body.extend_from_slice(&end);
    bodies.push(body);
    Ok(bodies)
}

/// Ids in groups that fit into a URL, each byte counted as it may be escaped.
fn url_batches(ids: &[String]) -> Vec<&[String]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (end, id) in ids.iter().enumerate() {
        bytes += id.len() * 3 + 5;
        if bytes > MAX_URL_IDS && end > start {
            batches.extend(ids.get(start..end));
            (start, bytes) = (end, id.len() * 3 + 5);
        }
    }
    batches.extend(ids.get(start..).filter(|rest| !rest.is_empty()));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(count: usize, dimension: usize) -> Vec<Vector> {
        (0..count)
            .map(|id| Vector {
                id: format!("v{id}"),
                values: vec![0.123_456_79; dimension],
                sparse: None,
                metadata: None,
            })
            .collect()
    }

    #[test]
    fn large_upserts_become_several_requests_with_every_vector_once() {
        let bodies = upsert_bodies(vectors(1000, 500), Some("a\"b")).unwrap();
        assert!(bodies.len() > 1);
        let mut ids = Vec::new();
        for body in &bodies {
            assert!(body.len() <= MAX_BODY);
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!(body["namespace"], "a\"b");
            ids.extend(
                body["vectors"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|it| it["id"].clone()),
            );
        }
        assert_eq!(
            ids,
            (0..1000).map(|id| format!("v{id}")).collect::<Vec<_>>()
        );
        assert_eq!(upsert_bodies(vectors(2, 2), None).unwrap().len(), 1);
    }

    #[test]
    fn url_batches_keep_every_id_in_order() {
        let ids: Vec<String> = (0..300).map(|id| format!("{id:0>100}")).collect();
        let batches = url_batches(&ids);
        assert!(batches.len() > 5);
        assert_eq!(batches.concat(), ids);
        assert!(url_batches(&[]).is_empty());
        assert_eq!(url_batches(&["x".repeat(4096)]).len(), 1);
    }
}
