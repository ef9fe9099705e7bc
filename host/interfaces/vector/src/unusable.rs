use std::time::Instant;

use async_trait::async_trait;

use crate::client::{
    Change, Description, Health, Listing, Match, Page, Place, Search, Selection, Vector,
    VectorError, VectorStore,
};

/// An index that cannot work as it is configured: the host runs without it, and says why. The reason is for the
/// operator; guests only hear that the index is not available.
pub(crate) struct Unusable(pub(crate) String);

fn refused<T>() -> Result<T, VectorError> {
    Err(VectorError::Unavailable(
        "the index cannot be used as it is configured".into(),
    ))
}

#[async_trait]
impl VectorStore for Unusable {
    async fn upsert(&self, _: &Place<'_>, _: Vec<Vector>) -> Result<u32, VectorError> {
        refused()
    }
    async fn query(&self, _: &Place<'_>, _: Search) -> Result<Vec<Match>, VectorError> {
        refused()
    }
    async fn fetch(&self, _: &Place<'_>, _: Vec<String>) -> Result<Vec<Vector>, VectorError> {
        refused()
    }
    async fn update(&self, _: &Place<'_>, _: Change) -> Result<(), VectorError> {
        refused()
    }
    async fn delete(&self, _: &Place<'_>, _: Selection) -> Result<(), VectorError> {
        refused()
    }
    async fn list(&self, _: &Place<'_>, _: Listing) -> Result<Page, VectorError> {
        refused()
    }
    async fn describe(&self, _: Instant) -> Result<Description, VectorError> {
        refused()
    }
    async fn probe(&self, _: Instant) -> Health {
        Health::Down(self.0.clone())
    }
    async fn close(&self) {}
}
