use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use http::{Request, Response};
use stepwell_core::{ErrorKind, Limits, Reuse, StepError};
use tokio::sync::{mpsc, oneshot};
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::call::Shared;
use crate::function::{Body, Terms};
use crate::idle::Resting;
use crate::keep::Discard;
use crate::memory::Share;
use crate::room::{Room, work};
use crate::seat::{Seat, Ticket};
use crate::store::{Bind, StoreState};

/// The instances of one deployed WASI 0.3 function, each of which answers several calls at once.
///
/// A call takes a seat in the first instance that has one, or starts another. An instance runs in a task of its own. When it traps or
/// runs into a limit, the calls that it was answering fail with it; when a call's time is up, it takes no more, and ends with the
/// last of the others: a guest cannot be made to give up one call. `limits.memory` holds for all calls of an instance together.
/// Each call brings `limits.cpu` to what the instance may use, since nobody can tell which of them computes.
pub(crate) struct Crowd<S: StoreState> {
    shared: Arc<Shared>,
    limits: Limits,
    reuse: Reuse,
    slots: u32,
    rooms: Mutex<Rooms<S>>,
}

struct Rooms<S: StoreState> {
    all: Vec<Arc<Room<S>>>,
    /// Whether the engine knows of them.
    listed: bool,
}

impl<S: StoreState> Crowd<S> {
    /// `slots`: how many an instance takes up.
    pub(crate) fn new(shared: Arc<Shared>, limits: Limits, reuse: Reuse, slots: u32) -> Self {
        Self {
            shared,
            limits,
            reuse,
            slots,
            rooms: Mutex::new(Rooms {
                all: Vec::new(),
                listed: false,
            }),
        }
    }

    pub(crate) async fn handle(
        self: &Arc<Self>,
        pre: &ServicePre<S>,
        bind: &impl Bind<S>,
        deadline: Instant,
        request: Request<Body>,
    ) -> Result<Response<Body>, StepError> {
        let now = Instant::now();
        if deadline <= now {
            return Err(StepError::new(
                ErrorKind::Timeout,
                "the run's time was up before the guest was called",
            ));
        }
        let terms = Terms::of(&request, self.limits);
        let (head, answer) = oneshot::channel();
        let ticket = Ticket {
            state: bind.fresh(),
            request,
            head,
        };
        let seat = self.enter(pre, bind, ticket, now, deadline);
        seat.answer(answer, terms).await
    }

    fn enter(
        self: &Arc<Self>,
        pre: &ServicePre<S>,
        bind: &impl Bind<S>,
        ticket: Ticket<S>,
        now: Instant,
        deadline: Instant,
    ) -> Seat<S> {
        let mut rooms = self.lock();
        rooms.all.retain(|room| !room.is_closed());
        let found = rooms
            .all
            .iter()
            .find_map(|room| Room::sit(room, now, deadline));
        if let Some(seat) = found {
            self.shared.reused.increment(1);
            seat.send(ticket);
            return seat;
        }
        let (door, inbox) = mpsc::unbounded_channel();
        let mut state = bind.fresh();
        let environment = state.base().environment.clone();
        let (room, fate) = Room::new(
            self.shared.clone(),
            self.limits,
            self.reuse,
            environment,
            door,
            now,
        );
        let seat = Room::first(&room, now, deadline);
        seat.send(ticket);
        rooms.all.push(room.clone());
        let unlisted = !std::mem::replace(&mut rooms.listed, true);
        drop(rooms);
        if unlisted {
            // The engine's list is locked before any crowd.
            let this = Arc::downgrade(self) as Weak<dyn Resting>;
            self.shared.idle.list(this, || false);
        }
        self.shared.started.increment(1);
        let begins = (state, self.slots, deadline);
        tokio::spawn(work(room, pre.clone(), begins, inbox, fate));
        seat
    }

    /// Ends the instances when they have answered what they were asked.
    pub(crate) fn retire(&self) {
        for room in self.lock().all.drain(..) {
            room.close(Discard::Retired);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rooms<S>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> Vec<(Instant, Arc<Room<S>>)> {
        let idle = |room: &Arc<Room<S>>| Some((room.idle_since()?, room.clone()));
        self.lock().all.iter().filter_map(idle).collect()
    }
}

impl<S: StoreState> Resting for Crowd<S> {
    fn count(&self) -> usize {
        self.idle().len()
    }

    fn is_of(&self, share: &Share) -> bool {
        let rooms = self.lock();
        rooms.all.first().is_some_and(|room| room.is_of(share))
    }

    fn oldest(&self) -> Option<Instant> {
        self.idle().into_iter().map(|(since, _)| since).min()
    }

    /// Its slot is free a little later, when its task has seen it.
    fn evict(&self) -> bool {
        let oldest = self.idle().into_iter().min_by_key(|(since, _)| *since);
        oldest.is_some_and(|(_, room)| room.close(Discard::Evicted))
    }

    /// Their tasks do it themselves.
    fn sweep(&self, now: Instant) -> Instant {
        now + self.reuse.idle
    }

    fn unlist(&self) -> bool {
        let mut rooms = self.lock();
        rooms.all.retain(|room| !room.is_closed());
        let unused = rooms.all.is_empty();
        rooms.listed &= !unused;
        unused
    }
}
