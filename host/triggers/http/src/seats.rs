//! The connections that a listener has open, and which of them goes when another one comes and there is no place left.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// An idle connection is not closed for another one before it was idle for so long: what has only just come is about to ask.
const YOUNG: Duration = Duration::from_secs(1);

/// Where so many are idle, the one that is idle longest has had its time, however short that was.
const MANY: usize = 256;

/// How often it is tried again to find a place, where nobody has to give up one.
const AGAIN: Duration = Duration::from_millis(50);

/// All seats of a listener.
pub(crate) struct Seats {
    places: Arc<Semaphore>,
    /// Whether a connection that is being answered gives up its place too, where none is idle.
    displaces_busy: bool,
    began: Instant,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    next: u64,
    taken: HashMap<u64, Arc<Seat>>,
    /// Those that were idle longest when they were looked through, with the time since when; so a crowd that comes is not
    /// looked through for each of it.
    longest: VecDeque<(u64, u64)>,
}

/// One connection, as far as others need to know it. Requests write to their own connection's alone.
pub(crate) struct Seat {
    began: Instant,
    notes_begin: bool,
    /// Requests that are being answered, from their head to the end of the response, and writes that the client keeps waiting.
    busy: AtomicU32,
    /// When a request last ended (or began, where that is noted), in microseconds of the listener's life.
    since: AtomicU64,
    told: Notify,
    told_though_busy: AtomicBool,
}

/// A connection's place; it is given back when this is dropped.
pub(crate) struct Place {
    number: u64,
    pub(crate) seat: Arc<Seat>,
    seats: Arc<Seats>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Something under way on a connection, which is not idle until this is dropped.
pub(crate) struct Exchange(Arc<Seat>);

impl Seats {
    pub(crate) fn new(places: usize, displaces_busy: bool) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            displaces_busy,
            began: Instant::now(),
            all: Mutex::default(),
        })
    }

    /// A place for one connection. Where there is none, whoever is idle longest loses theirs.
    pub(crate) async fn enter(self: &Arc<Self>) -> Place {
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => loop {
                self.displace();
                let freed = timeout(AGAIN, self.places.clone().acquire_owned()).await;
                if let Ok(place) = freed {
                    break place.ok();
                }
            },
        };
        let seat = Arc::new(Seat {
            began: self.began,
            notes_begin: self.displaces_busy,
            busy: AtomicU32::new(0),
            since: AtomicU64::new(micros(self.began.elapsed())),
            told: Notify::new(),
            told_though_busy: AtomicBool::new(false),
        });
        let mut all = self.lock();
        let number = all.next;
        all.next += 1;
        all.taken.insert(number, seat.clone());
        Place {
            number,
            seat,
            seats: self.clone(),
            _place: place,
        }
    }

    /// Tells one connection to give up its place, if there is one that should.
    fn displace(&self) {
        let mut all = self.lock();
        if all.longest.is_empty() {
            all.longest = longest_idle(&all.taken, micros(self.began.elapsed()));
        }
        while let Some((since, number)) = all.longest.pop_front() {
            if let Some(seat) = all.taken.get(&number)
                && seat.idle_since() == Some(since)
            {
                return seat.told.notify_one();
            }
        }
        if !self.displaces_busy {
            return;
        }
        let since = |seat: &&Arc<Seat>| seat.since.load(Ordering::Relaxed);
        if let Some(seat) = all.taken.values().min_by_key(since) {
            seat.told_though_busy.store(true, Ordering::Release);
            seat.told.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn longest_idle(taken: &HashMap<u64, Arc<Seat>>, now: u64) -> VecDeque<(u64, u64)> {
    let idle = |(number, seat): (&u64, &Arc<Seat>)| Some((seat.idle_since()?, *number));
    let mut idle: Vec<_> = taken.iter().filter_map(idle).collect();
    idle.sort_unstable();
    if idle.len() >= MANY {
        idle.truncate(idle.len() / 4);
    } else {
        let grown_up = now.saturating_sub(micros(YOUNG));
        idle.retain(|(since, _)| *since <= grown_up);
    }
    idle.into()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Seat {
    /// Something begins on this connection.
    pub(crate) fn begin(self: &Arc<Self>) -> Exchange {
        if self.notes_begin {
            self.note();
        }
        self.busy.fetch_add(1, Ordering::Relaxed);
        Exchange(self.clone())
    }

    /// Returns when the connection has lost its place. Whoever polls this polls the connection before, so that a request that
    /// came in the same moment is seen.
    pub(crate) async fn lost(&self) {
        loop {
            self.told.notified().await;
            if self.told_though_busy.load(Ordering::Acquire) || self.idle_since().is_some() {
                return;
            }
        }
    }

    fn note(&self) {
        let now = micros(self.began.elapsed());
        self.since.store(now, Ordering::Relaxed);
    }

    fn idle_since(&self) -> Option<u64> {
        (self.busy.load(Ordering::Acquire) == 0).then(|| self.since.load(Ordering::Relaxed))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.note();
        self.0.busy.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.number);
    }
}

/// A response's body, as long as which its connection is not idle.
pub(crate) struct Lasting<B> {
    body: B,
    _exchange: Exchange,
}

impl<B> Lasting<B> {
    pub(crate) fn new(body: B, exchange: Exchange) -> Self {
        Self {
            body,
            _exchange: exchange,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Lasting<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets since when a connection is as it is: so many seconds of the listener's life.
    fn since(taken: &Place, seconds: u64) {
        let since = &taken.seat.since;
        since.store(seconds * 1_000_000, Ordering::Relaxed);
    }

    async fn is_told(taken: &Place) -> bool {
        timeout(Duration::from_millis(5), taken.seat.lost())
            .await
            .is_ok()
    }

    /// Seats whose life began long ago.
    fn seats(places: usize, displaces_busy: bool) -> Arc<Seats> {
        let mut seats = Seats::new(places, displaces_busy);
        let began = Instant::now().checked_sub(Duration::from_secs(1000));
        Arc::get_mut(&mut seats).unwrap().began = began.unwrap();
        seats
    }

    #[tokio::test]
    async fn who_is_idle_longest_goes_first_and_who_is_answered_never() {
        let seats = seats(4, false);
        let mut taken = Vec::new();
        for seconds in [300, 100, 200, 400] {
            taken.push(seats.enter().await);
            since(taken.last().unwrap(), seconds);
        }
        let answered = taken[1].seat.begin();
        since(&taken[1], 100);
        seats.displace();
        assert!(is_told(&taken[2]).await);
        for other in [0, 1, 3] {
            assert!(!is_told(&taken[other]).await, "{other}");
        }
        taken.remove(2);
        // What asks again has not been idle since: the next one goes.
        drop(taken[0].seat.begin());
        seats.displace();
        assert!(is_told(&taken[2]).await);
        // None but young ones and one that is answered are left.
        taken.remove(2);
        seats.displace();
        assert!(!is_told(&taken[0]).await && !is_told(&taken[1]).await);
        drop(answered);
        since(&taken[1], 100);
        seats.displace();
        assert!(is_told(&taken[1]).await);
    }

    #[tokio::test]
    async fn where_it_must_one_goes_that_is_answered_but_none_that_is_idle_stays_for_it() {
        let seats = seats(3, true);
        let mut taken = Vec::new();
        let mut answered = Vec::new();
        for seconds in [200, 100, 300] {
            taken.push(seats.enter().await);
            let last = taken.last().unwrap();
            answered.push(last.seat.begin());
            since(last, seconds);
        }
        drop(answered.pop());
        since(&taken[2], 300);
        seats.displace();
        assert!(is_told(&taken[2]).await);
        taken.remove(2);
        seats.displace();
        assert!(is_told(&taken[1]).await && !is_told(&taken[0]).await);
    }

    #[tokio::test]
    async fn a_request_that_came_in_the_same_moment_keeps_the_place() {
        let seats = seats(1, false);
        let taken = seats.enter().await;
        since(&taken, 1);
        seats.displace();
        let answered = taken.seat.begin();
        assert!(!is_told(&taken).await);
        drop(answered);
        // Nobody has asked for the place since.
        assert!(!is_told(&taken).await);
    }

    #[tokio::test]
    async fn of_a_crowd_the_first_goes_at_once_and_each_only_once() {
        let seats = seats(MANY, false);
        let mut crowd = Vec::new();
        for _ in 0..MANY {
            crowd.push(seats.enter().await);
        }
        for (number, taken) in crowd.iter().enumerate() {
            // Half a second ago.
            let since = 999_500_000 + number as u64;
            taken.seat.since.store(since, Ordering::Relaxed);
        }
        for told in 0..MANY / 4 + 3 {
            seats.displace();
            let first = crowd.remove(0);
            assert!(is_told(&first).await, "{told}");
            drop(first);
            crowd.push(seats.enter().await);
        }
        assert_eq!(seats.lock().taken.len(), MANY);
        drop(crowd);
        assert_eq!(seats.lock().taken.len(), 0);
    }
}
