use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use stepwell_core::{Blame, ErrorKind, Gone, Limits, Reuse, StepError};
use tokio::sync::{Notify, mpsc, watch};
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use crate::call::{Call, SLICE, Shared, closed, overdrawn};
use crate::clock::{CpuClock, OVERRUN};
use crate::keep::Discard;
use crate::lane::SlowLane;
use crate::memory::{Share, Tenant};
use crate::meter::Exceeded;
use crate::paced::Paced;
use crate::seat::{Seat, Ticket};
use crate::service::answer;
use crate::store::{Environment, StoreState};

/// An instance that answers several calls at once, as they see it.
pub(crate) struct Room<S> {
    shared: Arc<Shared>,
    pub(crate) limits: Limits,
    reuse: Reuse,
    door: mpsc::UnboundedSender<Ticket<S>>,
    inside: Mutex<Inside>,
    /// Tells the instance's task that `inside` is another.
    changed: Notify,
    /// Why the instance ended, if it did not do so in peace.
    pub(crate) fate: watch::Receiver<Option<StepError>>,
    environment: Arc<Environment>,
    /// Nanoseconds of CPU time that it may have used by now: each call brings its own, and what calls have left over is for what
    /// the guest does after its responses, up to one call's.
    allowance: AtomicU64,
    /// Nanoseconds of CPU time up to which it is not executed in the slow lane: each call brings a slice.
    light: AtomicU64,
    clock: OnceLock<Arc<CpuClock>>,
}

struct Inside {
    /// Calls under way.
    seats: u32,
    /// Calls up to now.
    calls: u32,
    /// CPU time by the end of the last call.
    noted: Duration,
    /// Why it takes no more calls.
    closed: Option<Discard>,
    /// When the last call ended.
    since: Instant,
    /// When the time of all its calls is up.
    until: Instant,
    guest: Guest,
}

/// Whether there is a guest still.
enum Guest {
    Here {
        /// What the last of its calls leaves until the guest is gone.
        last: Option<Gone>,
    },
    Gone,
}

type Fate = watch::Sender<Option<StepError>>;

impl<S: StoreState> Room<S> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        limits: Limits,
        reuse: Reuse,
        environment: Arc<Environment>,
        door: mpsc::UnboundedSender<Ticket<S>>,
        now: Instant,
    ) -> (Arc<Self>, Fate) {
        let (sender, fate) = watch::channel(None);
        let room = Self {
            shared,
            limits,
            reuse,
            environment,
            door,
            inside: Mutex::new(Inside {
                seats: 0,
                calls: 0,
                noted: Duration::ZERO,
                closed: None,
                since: now,
                until: now,
                guest: Guest::Here { last: None },
            }),
            changed: Notify::new(),
            fate,
            allowance: AtomicU64::new(0),
            light: AtomicU64::new(0),
            clock: OnceLock::new(),
        };
        (Arc::new(room), sender)
    }

    /// The seat of the call that starts the instance.
    pub(crate) fn first(this: &Arc<Self>, now: Instant, deadline: Instant) -> Seat<S> {
        this.seat(&mut this.lock(), now, deadline)
    }

    /// A seat if there is one.
    pub(crate) fn sit(this: &Arc<Self>, now: Instant, deadline: Instant) -> Option<Seat<S>> {
        let mut inside = this.lock();
        let free = inside.closed.is_none() && inside.seats < this.reuse.concurrency;
        free.then(|| this.seat(&mut inside, now, deadline))
    }

    fn seat(self: &Arc<Self>, inside: &mut Inside, now: Instant, deadline: Instant) -> Seat<S> {
        let wall = now.checked_add(self.limits.wall).unwrap_or(deadline);
        let until = wall.min(deadline);
        inside.seats += 1;
        inside.calls += 1;
        inside.until = inside.until.max(until);
        if inside.calls >= self.reuse.max_calls {
            inside.closed = Some(Discard::MaxCalls);
        }
        self.pay(inside.seats);
        Seat::new(
            self.clone(),
            until,
            wall <= deadline,
            self.shared.ticker.ticking(),
        )
    }

    /// Hands a call in.
    pub(crate) fn send(&self, ticket: Ticket<S>) {
        // Where nobody takes it any more, the caller sees that its ticket is gone.
        let _ = self.door.send(ticket);
    }

    /// A call has ended; `unfinished`: the guest may still be at it, and cannot be told to give it up. `gone` is kept until the guest
    /// is if no other call will be here until then.
    pub(crate) fn leave(&self, unfinished: Option<Discard>, gone: Option<Gone>) {
        let mut inside = self.lock();
        inside.seats -= 1;
        inside.since = Instant::now();
        if inside.closed.is_none() {
            inside.closed = unfinished;
        }
        if inside.seats == 0 && inside.closed.is_none() && self.is_awaited() {
            inside.closed = Some(Discard::Evicted);
            inside.until = inside.since;
        }
        let used = self.used();
        let mine = used.saturating_sub(std::mem::replace(&mut inside.noted, used));
        self.environment
            .temper
            .note(mine, self.clock.get().is_some_and(|clock| clock.overran()));
        // Never more than before: what the call has not used stays for what the guest does after its response.
        let most = total(used, self.limits.cpu, inside.seats);
        self.allowance.fetch_min(most, Ordering::Relaxed);
        let was_last = inside.seats == 0 && inside.closed.is_some();
        let over = match &mut inside.guest {
            Guest::Here { last } if was_last => std::mem::replace(last, gone),
            Guest::Here { .. } | Guest::Gone => gone,
        };
        drop(inside);
        // The lock is free again: what goes with the call is not known here.
        drop(over);
        self.changed.notify_one();
    }

    /// One of so many calls brings its CPU time. It brings no more than that, however many wait beside it: a guest that computes
    /// beside its calls would otherwise never come to an end.
    fn pay(&self, seats: u32) {
        let used = self.used();
        bring(&self.allowance, used, self.limits.cpu, seats);
        if !self.environment.is_heavy() {
            bring(&self.light, used, SLICE, seats);
        }
    }

    /// CPU time of the guest's polls that are over.
    fn used(&self) -> Duration {
        self.clock
            .get()
            .map_or(Duration::ZERO, |clock| clock.charged())
    }

    /// Whether whoever polls the guest may execute it; otherwise it is for the slow lane.
    pub(crate) fn is_light(&self) -> bool {
        !self.is_large() && nanos(self.used()) < self.light.load(Ordering::Relaxed)
    }

    /// Whether calls wait for its slot.
    fn is_awaited(&self) -> bool {
        self.shared.is_awaited(self.environment.tenant.as_ref())
    }

    /// Whether the guest has so much memory that one of its instructions may take long.
    pub(crate) fn is_large(&self) -> bool {
        self.clock.get().is_some_and(|clock| clock.is_large())
    }

    /// Whether it has used more than its calls have brought without a yield at which it could be told so.
    fn is_overdrawn(&self) -> bool {
        let allowed = self.allowance.load(Ordering::Relaxed);
        nanos(self.used()) > allowed.saturating_add(OVERRUN)
    }

    /// Executes the guest for one poll. It may have no call just now, and needs the engine's clock all the same.
    pub(crate) fn execute<F: Future + ?Sized>(
        &self,
        guest: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let _executing = self.shared.ticker.executing();
        let Some(clock) = self.clock.get() else {
            return guest.poll(cx);
        };
        let polled = clock.timed(|| guest.poll(cx));
        if self.is_overdrawn() {
            self.changed.notify_one();
        }
        polled
    }

    /// The same, on a thread that other calls wait for.
    pub(crate) fn execute_here<F: Future + ?Sized>(
        &self,
        guest: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let before = self.used();
        let polled = self.execute(guest, cx);
        self.environment
            .note_poll(self.used().saturating_sub(before));
        polled
    }

    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        self.environment.tenant.as_ref()
    }

    pub(crate) fn lane(&self) -> &SlowLane {
        &self.shared.lane
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    pub(crate) fn is_of(&self, share: &Share) -> bool {
        let tenant = self.environment.tenant.as_ref();
        tenant.is_some_and(|tenant| std::ptr::eq(&*tenant.0, share))
    }

    /// Since when it has had nothing to do; none if it has, or is about to end.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let inside = self.lock();
        (inside.seats == 0 && inside.closed.is_none()).then_some(inside.since)
    }

    /// Takes no more calls; false: it did not anyway.
    pub(crate) fn close(&self, why: Discard) -> bool {
        let mut inside = self.lock();
        let open = inside.closed.is_none();
        inside.closed.get_or_insert(why);
        if why == Discard::Evicted {
            // Others wait for its slot.
            inside.until = Instant::now();
        }
        drop(inside);
        self.changed.notify_one();
        open
    }

    /// Whether it has answered all that it ever will.
    fn is_over(&self) -> bool {
        let inside = self.lock();
        inside.closed.is_some() && inside.seats == 0
    }

    /// When it may be time to end.
    fn wake(&self) -> Option<Instant> {
        let inside = self.lock();
        match (inside.seats, inside.closed) {
            (0, Some(_)) => Some(inside.until),
            (0, None) => Some(inside.since + self.reuse.idle),
            _ => None,
        }
    }

    /// Ends it if its time is up, whatever the guest does beside its calls.
    fn expire(&self) -> bool {
        let now = Instant::now();
        let mut inside = self.lock();
        match (inside.seats, inside.closed) {
            (0, Some(_)) => now >= inside.until,
            (0, None) if now >= inside.since + self.reuse.idle => {
                inside.closed = Some(Discard::Idle);
                true
            }
            _ => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs an instance from its start to its end.
pub(crate) async fn work<S: StoreState>(
    room: Arc<Room<S>>,
    pre: ServicePre<S>,
    (state, slots, deadline): (S, u32, Instant),
    inbox: mpsc::UnboundedReceiver<Ticket<S>>,
    fate: Fate,
) {
    let ending = Ending { room: &room, fate };
    let begun = room.shared.begin(state, room.limits, slots, deadline);
    let begun = begun.await;
    let (outcome, call) = match begun {
        Ok(call) => run(&room, call, pre, inbox).await,
        Err(error) => (Err(error), None),
    };
    let seats = {
        let mut inside = room.lock();
        let because = outcome.as_ref().err().map(Discard::because);
        let why = because.or(inside.closed).unwrap_or(Discard::Retired);
        inside.closed = Some(why);
        why.count();
        inside.seats
    };
    if let Err(mut error) = outcome {
        if seats > 1 {
            error.message = format!(
                "{} (or one of the {} other calls that its instance was answering)",
                error.message,
                seats - 1
            );
        }
        if seats == 0 {
            room.environment.late.note(&error);
        }
        // Said before the store goes, and with it the guest's ends of the bodies.
        ending.fate.send_replace(Some(error));
    }
    if room.is_large() {
        // Giving its memory back takes as long as many calls.
        room.shared.idle.retire(Box::new(call));
    }
}

/// The end of an instance's task, however it comes: nobody is let in any more.
struct Ending<'a, S: StoreState> {
    room: &'a Room<S>,
    fate: Fate,
}

impl<S: StoreState> Drop for Ending<'_, S> {
    fn drop(&mut self) {
        let was = std::mem::replace(&mut self.room.lock().guest, Guest::Gone);
        // The lock is free again: what its last call has left is not known here.
        drop(was);
        // Otherwise all later calls would sit down where nobody serves them.
        if self.room.close(Discard::Failed) {
            Discard::Failed.count();
            // Its task may also be dropped with the whole host.
            let error = match std::thread::panicking() {
                true => broken(),
                false => closed(),
            };
            self.fate.send_replace(Some(error));
        }
    }
}

/// The host has failed while it executed the guest.
fn broken() -> StepError {
    let message = "the host broke off while the guest was being called, which is a bug in the host";
    StepError::new(ErrorKind::Unavailable, message).blamed(Blame::Host)
}

async fn run<S: StoreState>(
    room: &Arc<Room<S>>,
    mut call: Call<S>,
    pre: ServicePre<S>,
    mut inbox: mpsc::UnboundedReceiver<Ticket<S>>,
) -> (Result<(), StepError>, Option<Call<S>>) {
    // Its calls and its polls have the engine's clock tick, each for itself.
    call.rest();
    let _ = room.clock.set(call.clock().clone());
    let of_guest = room.clone();
    let guest = Paced::new(room, async move {
        let outcome = start(&of_guest, &mut call, &pre, &mut inbox).await;
        (call.settle(outcome), call)
    });
    let mut guest = pin!(guest);
    loop {
        if room.is_overdrawn() {
            return (Err(overdrawn(room.limits.cpu)), None);
        }
        // Told here, not inside: a guest that computes or waits for a host function keeps its other tasks waiting.
        let wake = room.wake();
        let time = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = &mut guest => return match outcome {
                Ok((outcome, call)) => (outcome, Some(call)),
                Err(_) => (Err(closed()), None),
            },
            () = room.changed.notified() => {}
            // The guest's use of the task's budget must not keep it from being heard.
            () = tokio::task::unconstrained(time) => if room.expire() {
                return (Ok(()), None);
            }
        }
    }
}

async fn start<S: StoreState>(
    room: &Arc<Room<S>>,
    call: &mut Call<S>,
    pre: &ServicePre<S>,
    inbox: &mut mpsc::UnboundedReceiver<Ticket<S>>,
) -> wasmtime::Result<()> {
    let (of_callback, clock) = (room.clone(), call.clock().clone());
    call.store.epoch_deadline_callback(move |_| {
        if nanos(clock.used()) > of_callback.allowance.load(Ordering::Relaxed) {
            return Err(wasmtime::Error::new(Exceeded::Cpu(of_callback.limits.cpu)));
        }
        Ok(clock.turn())
    });
    let service = room.shared.instantiate(pre, &mut call.store).await?;
    call.store
        .run_concurrent(async |accessor| serve(room, accessor, &service, inbox).await)
        .await?
}

/// Lets calls in and answers them, until there will be no more.
async fn serve<S: StoreState>(
    room: &Room<S>,
    accessor: &Accessor<S>,
    service: &Service,
    inbox: &mut mpsc::UnboundedReceiver<Ticket<S>>,
) -> wasmtime::Result<()> {
    let mut calls = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(Some(ticket)) = inbox.poll_recv(cx) {
                calls.push(admit(room, accessor, service, ticket));
                continue;
            }
            match calls.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) | Poll::Pending => {}
            }
            if room.is_over() && calls.is_empty() {
                ready!(accessor.poll_no_interesting_tasks(cx));
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    })
    .await
}

async fn admit<S: StoreState>(
    room: &Room<S>,
    accessor: &Accessor<S>,
    service: &Service,
    ticket: Ticket<S>,
) -> wasmtime::Result<()> {
    let Ticket {
        state,
        request,
        head,
    } = ticket;
    accessor.with(|mut store| {
        // From now on host functions act for this call: nobody can tell which of an instance's calls is calling them.
        let mut before = std::mem::replace(store.data_mut(), state);
        let base = store.data_mut().base();
        base.succeed(before.base());
        base.meter.refused = None;
        base.log.allow(room.shared.log_bytes);
    });
    room.shared.calls.increment(1);
    answer(accessor, service, request, head).await
}

/// Adds to what may be used what one of so many calls brings, up to what all of them bring from now on.
fn bring(allowed: &AtomicU64, used: Duration, each: Duration, seats: u32) {
    let (now, most) = (nanos(used), total(used, each, seats));
    // Only changed under the room's lock.
    let left = allowed.load(Ordering::Relaxed).max(now);
    let next = left.saturating_add(nanos(each)).min(most);
    allowed.store(next, Ordering::Relaxed);
}

/// What has been used and what so many calls bring; what one brings where there is none, for what the guest does after its responses.
fn total(used: Duration, each: Duration, seats: u32) -> u64 {
    let all = nanos(each).saturating_mul(u64::from(seats.max(1)));
    nanos(used).saturating_add(all)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
