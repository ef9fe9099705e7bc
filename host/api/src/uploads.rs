use std::time::Duration;

use axum::http::{HeaderMap, header};
use stepwell_core::ByteSize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::ApiError;

/// Memory for the components that are being uploaded: those for which there is none wait, unread.
pub(crate) struct Uploads {
    room: Semaphore,
    bytes: u64,
    patience: Duration,
}

/// Room is counted in pieces of this size.
const PIECE: u64 = 1 << 10;
/// How long an upload waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Uploads {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            room: Semaphore::new(pieces(bytes) as usize),
            bytes,
            patience: PATIENCE,
        }
    }

    /// Room for a body of at most `limit` bytes: as much as it announces, which its reader holds it to.
    pub(crate) async fn room(
        &self,
        headers: &HeaderMap,
        limit: u64,
    ) -> Result<SemaphorePermit<'_>, ApiError> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        // One that is larger than the limit is refused before it is read.
        let wanted = announced.unwrap_or(limit).min(limit).min(self.bytes);
        match timeout(self.patience, self.room.acquire_many(pieces(wanted))).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) | Err(_) => Err(ApiError::busy(format!(
                "components of {} are being uploaded, as much as limits.uploads allows",
                ByteSize(self.bytes)
            ))),
        }
    }
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    fn announcing(bytes: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, bytes.into());
        headers
    }

    #[tokio::test]
    async fn what_has_no_room_waits_and_is_told_so_in_the_end() {
        let uploads = Uploads {
            patience: Duration::from_millis(20),
            ..Uploads::new(100 << 10)
        };
        let (small, large) = (announcing(40 << 10), announcing(60 << 10));
        let first = uploads.room(&large, 64 << 10).await.unwrap();
        let second = uploads.room(&small, 64 << 10).await.unwrap();
        let refused = uploads.room(&small, 64 << 10).await.unwrap_err();
        let response = refused.into_response();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        drop(second);
        let third = uploads.room(&small, 64 << 10).await;
        assert!(third.is_ok());
        drop(first);
        // Whoever says nothing may send as much as the limit.
        let silent = uploads.room(&HeaderMap::new(), 60 << 10).await;
        assert!(silent.is_ok());
        assert!(uploads.room(&announcing(1), 60 << 10).await.is_err());
    }

    #[tokio::test]
    async fn one_upload_never_wants_more_than_there_is() {
        let uploads = Uploads::new(1000);
        assert!(uploads.room(&announcing(u64::MAX), 1 << 40).await.is_ok());
    }
}
