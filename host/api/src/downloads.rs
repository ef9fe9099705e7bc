use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use stepwell_core::Principal;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::ApiError;
use crate::room::{Held, Room};

/// Components that may be on their way to callers at once: each is in memory as a whole.
const AT_ONCE: u64 = 4;

/// How long a download waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is handed to the connection at once. It is a copy, so that no part of a component that is given up keeps it in memory.
const PART: usize = 64 << 10;

/// How slowly a caller may take a component.
#[derive(Clone, Copy)]
struct Pace {
    /// Time to begin with.
    start: Duration,
    /// Bytes that are taken in each second from then on.
    per_second: u64,
}

/// Places for the components that are being downloaded: those for which there is none wait, unread.
pub(crate) struct Downloads {
    places: Arc<Room>,
    patience: Duration,
    pace: Pace,
}

impl Downloads {
    pub(crate) fn new() -> Self {
        Self {
            places: Room::new(AT_ONCE, 0),
            patience: PATIENCE,
            pace: Pace {
                start: Duration::from_secs(30),
                per_second: 64 << 10,
            },
        }
    }

    /// A place, which [`Place::send`] ties to the bytes.
    pub(crate) async fn place(&self, by: &Principal) -> Result<Place, ApiError> {
        let mut held = self.places.hold(by);
        if held.take_within(1, self.patience).await.is_err() {
            metrics::counter!("stepwell_limit_hits_total", "limit" => "downloads").increment(1);
            return Err(ApiError::busy(format!(
                "{AT_ONCE} components are being downloaded, as many as the host sends at once (three of them to one namespace); this limit is the host's own and has no setting"
            )));
        }
        Ok(Place {
            held,
            pace: self.pace,
        })
    }
}

/// A component's place among those that are being downloaded.
pub(crate) struct Place {
    held: Held,
    pace: Pace,
}

impl Place {
    /// A component on its way: it holds the place, and its bytes are in memory, until the last of them is taken, the caller is
    /// gone, or takes them too slowly.
    pub(crate) fn send(self, component: Bytes) -> Sent {
        let pace = self.pace;
        let sending = Arc::new(Mutex::new(Sending {
            rest: component,
            taken: 0,
            is_given_up: false,
            place: Some(self.held),
        }));
        // Who takes nothing does not ask either: somebody else must look.
        let watch = tokio::spawn(give_up(Arc::downgrade(&sending), pace)).abort_handle();
        Sent { sending, watch }
    }
}

/// The body of a download.
pub(crate) struct Sent {
    sending: Arc<Mutex<Sending>>,
    watch: AbortHandle,
}

struct Sending {
    rest: Bytes,
    taken: u64,
    is_given_up: bool,
    /// None once the last byte is taken, or it is given up.
    place: Option<Held>,
}

async fn give_up(sending: Weak<Mutex<Sending>>, pace: Pace) {
    let begun = Instant::now();
    let mut end = begun + pace.start;
    loop {
        sleep_until(end).await;
        let Some(sending) = sending.upgrade() else {
            return;
        };
        let mut sending = sending.lock().unwrap_or_else(PoisonError::into_inner);
        if sending.place.is_none() {
            return;
        }
        let earned = Duration::from_secs(sending.taken / pace.per_second.max(1));
        let before = std::mem::replace(&mut end, begun + pace.start + earned);
        if end <= before {
            metrics::counter!("stepwell_limit_hits_total", "limit" => "downloads").increment(1);
            sending.rest = Bytes::new();
            sending.is_given_up = true;
            sending.place = None;
            return;
        }
    }
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut sending = self.lock();
        if sending.is_given_up {
            return Poll::Ready(Some(Err(axum::Error::new(TooSlow))));
        }
        let length = sending.rest.len().min(PART);
        let part = Bytes::copy_from_slice(&sending.rest.split_to(length));
        sending.taken += length as u64;
        if sending.rest.is_empty() {
            sending.rest = Bytes::new();
            sending.place = None;
        }
        Poll::Ready((length > 0).then(|| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        let sending = self.lock();
        sending.rest.is_empty() && !sending.is_given_up
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.lock().rest.len() as u64)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the component was taken too slowly")]
struct TooSlow;

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;
    use stepwell_test_hits::hits;

    use super::*;
    use crate::room::tests::of;

    fn downloads(pace: Pace) -> Downloads {
        Downloads {
            patience: Duration::from_millis(20),
            pace,
            ..Downloads::new()
        }
    }

    async fn send(downloads: &Downloads, by: &Principal, length: usize) -> Option<Sent> {
        let place = downloads.place(by).await.ok()?;
        Some(place.send(Bytes::from(vec![7; length])))
    }

    #[tokio::test]
    async fn a_place_is_taken_until_the_last_byte_is_and_one_namespace_has_three() {
        let downloads = downloads(Downloads::new().pace);
        let operator = Principal::admin_token();
        let mut sent = Vec::new();
        for _ in 0..3 {
            sent.push(send(&downloads, &of("a"), PART + 1).await.unwrap());
        }
        let before = hits("downloads");
        assert!(send(&downloads, &of("a"), 1).await.is_none());
        assert!(hits("downloads") > before);
        let other = send(&downloads, &operator, 1).await.unwrap();
        let refused = downloads.place(&operator).await.err().unwrap();
        let refused = refused.into_response();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        let mut first = sent.pop().unwrap();
        assert_eq!(first.size_hint().exact(), Some(PART as u64 + 1));
        let part = first.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(part.len(), PART);
        assert!(send(&downloads, &operator, 1).await.is_none());
        let rest = first.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(rest.len() == 1 && first.is_end_stream());
        assert!(send(&downloads, &operator, 1).await.is_some());
        assert!(first.frame().await.is_none());
        // Who goes away gives it back too.
        drop(other);
        assert!(send(&downloads, &operator, 1).await.is_some());
    }

    #[tokio::test]
    async fn who_takes_nothing_loses_the_place_and_who_takes_enough_does_not() {
        let downloads = downloads(Pace {
            start: Duration::from_millis(50),
            per_second: PART as u64,
        });
        let operator = Principal::admin_token();
        let mut idle = Vec::new();
        for _ in 0..3 {
            idle.push(send(&downloads, &operator, 10 * PART).await.unwrap());
        }
        let mut taken = send(&downloads, &operator, 10 * PART).await.unwrap();
        // Enough for more than the time that the others have.
        taken.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        for mut idle in idle {
            assert!(idle.frame().await.unwrap().is_err());
        }
        let rest = taken.collect().await.unwrap().to_bytes();
        assert_eq!(rest.len(), 9 * PART);
    }
}
