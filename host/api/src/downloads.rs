use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::ApiError;

/// Components that may be on their way to callers at once: each is in memory as a whole.
const AT_ONCE: usize = 4;

/// How long a download waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Places for the components that are being downloaded: those for which there is none wait, unread.
pub(crate) struct Downloads {
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Downloads {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
            patience: PATIENCE,
        }
    }

    /// A place, which [`Place::keep`] ties to the bytes.
    pub(crate) async fn place(&self) -> Result<Place, ApiError> {
        match timeout(self.patience, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("stepwell_limit_hits_total", "limit" => "downloads").increment(1);
                Err(ApiError::busy(format!(
                    "{AT_ONCE} components are being downloaded, as many as the host sends at once"
                )))
            }
        }
    }
}

/// A component's place among those that are being downloaded.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

struct Kept {
    bytes: Bytes,
    _place: Place,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Place {
    /// The same bytes, which hold the place for as long as any of them are in memory.
    pub(crate) fn keep(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Kept {
            bytes,
            _place: self,
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse as _;

    use super::*;

    #[tokio::test]
    async fn a_place_is_taken_until_the_bytes_are_gone() {
        let downloads = Downloads {
            patience: Duration::from_millis(20),
            ..Downloads::new()
        };
        let mut sent = Vec::new();
        for _ in 0..AT_ONCE {
            let place = downloads
                .place()
                .await
                .unwrap_or_else(|_| panic!("no place"));
            sent.push(place.keep(Bytes::from_static(b"component")));
        }
        let refused = downloads.place().await.err().unwrap().into_response();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        let part = sent.pop().unwrap().slice(..4);
        assert!(downloads.place().await.is_err());
        assert_eq!(part, "comp");
        drop(part);
        assert!(downloads.place().await.is_ok());
    }
}
