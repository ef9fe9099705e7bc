use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell_core::{ByteSize, Name, Principal};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ApiError;
use crate::room::{Full, Held, Room};

/// Memory for the components that are being uploaded. It is taken as their bytes come; those for which there is none wait, unread.
/// So that not all of them wait for each other half-way, one that began later gives way to one that began before it.
pub(crate) struct Uploads {
    room: Arc<Room>,
    bytes: u64,
    patience: Duration,
    coming: Mutex<Coming>,
}

/// The uploads of which more is to come, in the order in which they began.
#[derive(Default)]
struct Coming {
    next: u64,
    uploads: BTreeMap<u64, Entry>,
}

struct Entry {
    namespace: Option<Name>,
    holds: u64,
    gives_way: Arc<Notify>,
}

/// How long an upload waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Uploads {
    /// `largest` is the size of the largest component that is accepted.
    pub(crate) fn new(bytes: u64, largest: u64) -> Self {
        Self {
            room: Room::new(bytes, largest),
            bytes,
            patience: PATIENCE,
            coming: Mutex::default(),
        }
    }

    /// An upload, of which nothing has come yet.
    pub(crate) fn begin(&self, by: &Principal) -> Upload<'_> {
        let gives_way = Arc::<Notify>::default();
        let entry = Entry {
            namespace: by.namespace.clone(),
            holds: 0,
            gives_way: gives_way.clone(),
        };
        let mut coming = self.lock();
        let number = coming.next;
        coming.next += 1;
        coming.uploads.insert(number, entry);
        let place = Place {
            uploads: self,
            number,
        };
        Upload {
            place,
            held: self.room.hold(by),
            gives_way,
        }
    }

    /// Tells the upload to give way that began last after `number`, and holds any of what is full.
    fn make_way(&self, number: u64, of: Option<&Name>, full: Full) {
        let coming = self.lock();
        let later = coming.uploads.range(number + 1..).rev();
        let mut holding = later.filter(|(_, later)| {
            later.holds > 0 && (full == Full::OfAll || later.namespace.as_ref() == of)
        });
        if let Some((_, last)) = holding.next() {
            last.gives_way.notify_one();
        }
    }

    fn busy(&self) -> ApiError {
        metrics::counter!("stepwell_limit_hits_total", "limit" => "uploads").increment(1);
        ApiError::busy(format!(
            "components of {} are being uploaded, as much as limits.uploads allows (three quarters of it those of one namespace)",
            ByteSize(self.bytes)
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One upload, as far as it has come.
pub(crate) struct Upload<'a> {
    place: Place<'a>,
    held: Held,
    gives_way: Arc<Notify>,
}

/// An upload's place among those of which more is to come.
struct Place<'a> {
    uploads: &'a Uploads,
    number: u64,
}

impl Upload<'_> {
    /// Takes room for more of it, and waits for that if there is none.
    pub(crate) async fn take(&mut self, more: u64) -> Result<(), ApiError> {
        let uploads = self.place.uploads;
        let end = Instant::now() + uploads.patience;
        loop {
            let mut freed = std::pin::pin!(uploads.room.freed());
            freed.as_mut().enable();
            let Err(full) = self.held.take(more) else {
                break;
            };
            uploads.make_way(self.place.number, self.held.namespace(), full);
            tokio::select! {
                waited = timeout_at(end, freed) => waited.map_err(|_| uploads.busy())?,
                () = self.gives_way.notified() => return Err(uploads.busy()),
            }
        }
        if let Some(entry) = uploads.lock().uploads.get_mut(&self.place.number) {
            entry.holds = self.held.amount();
        }
        Ok(())
    }

    /// Returns when it must give way to an upload that began before it.
    pub(crate) async fn gives_way(&self) -> ApiError {
        self.gives_way.notified().await;
        self.place.uploads.busy()
    }

    /// All of it has come: it gives way no more, and holds its room until this is dropped.
    pub(crate) fn has_come(self) -> Held {
        self.held
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.uploads.lock().uploads.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse as _;
    use stepwell_test_hits::hits;
    use tokio::time::timeout;

    use super::*;
    use crate::room::tests::of;

    fn uploads(bytes: u64) -> Uploads {
        Uploads {
            patience: Duration::from_millis(50),
            ..Uploads::new(bytes, 0)
        }
    }

    #[tokio::test]
    async fn what_has_no_room_waits_and_is_told_so_in_the_end() {
        let uploads = uploads(100);
        let operator = Principal::admin_token();
        let (mut first, mut second) = (uploads.begin(&operator), uploads.begin(&operator));
        first.take(60).await.unwrap();
        second.take(40).await.unwrap();
        let (mut third, before) = (uploads.begin(&operator), hits("uploads"));
        let refused = third.take(1).await.unwrap_err().into_response();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        assert!(hits("uploads") > before);
        drop(first);
        third.take(60).await.unwrap();
        // What has come holds its room on.
        let stored = third.has_come();
        assert!(uploads.begin(&operator).take(1).await.is_err());
        drop(stored);
        assert!(uploads.begin(&operator).take(60).await.is_ok());
    }

    #[tokio::test]
    async fn one_namespace_leaves_room_and_who_announces_much_takes_none() {
        let uploads = uploads(100);
        let mut idle: Vec<_> = (0..80).map(|_| uploads.begin(&of("a"))).collect();
        for upload in &mut idle {
            let _ = upload.take(1).await;
        }
        let mut operator = uploads.begin(&Principal::admin_token());
        operator.take(25).await.unwrap();
    }

    #[tokio::test]
    async fn of_uploads_that_wait_for_each_other_the_last_gives_way() {
        let uploads = Uploads::new(100, 0);
        let (a, b) = (of("a"), of("b"));
        let (mut first, mut other) = (uploads.begin(&a), uploads.begin(&b));
        let (mut second, waiting) = (uploads.begin(&a), uploads.begin(&a));
        first.take(40).await.unwrap();
        other.take(20).await.unwrap();
        second.take(35).await.unwrap();
        // The namespace has no more: what gives way is its own, and has bytes.
        let (done, gone) = tokio::join!(first.take(10), async {
            let gone = timeout(Duration::from_secs(5), second.gives_way()).await;
            drop(second);
            gone.unwrap()
        });
        assert!(done.is_ok() && gone.code() == crate::ErrorCode::Busy);
        for stays in [&other, &waiting] {
            let told = timeout(Duration::from_millis(10), stays.gives_way()).await;
            assert!(told.is_err());
        }
        // One that waits itself gives way too; those that have come do not.
        other.take(5).await.unwrap();
        first.take(25).await.unwrap();
        let mut last = uploads.begin(&Principal::admin_token());
        assert!(
            timeout(Duration::from_millis(10), last.take(1))
                .await
                .is_err()
        );
        let stored = other.has_come();
        let mut more = uploads.begin(&b);
        assert!(
            timeout(Duration::from_millis(10), more.take(1))
                .await
                .is_err()
        );
        drop((stored, first));
        last.take(90).await.unwrap();
        more.take(10).await.unwrap();
        let (done, gone) = tokio::join!(last.take(10), async {
            let gone = more.take(5).await;
            drop(more);
            gone
        });
        assert!(done.is_ok() && gone.is_err());
    }
}
