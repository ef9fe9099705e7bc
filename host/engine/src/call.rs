use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use stepwell_core::{Blame, ErrorKind, Fault, Limits, StepError, show_duration, within};
use tokio::sync::{Semaphore, TryAcquireError};
use tracing::Instrument as _;
use wasmtime::{PoolConcurrencyLimitError, Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use crate::blame::{blame, busy, crowded};
use crate::clock::{CpuClock, timed};
use crate::config::Flavor;
use crate::epoch::{Ticker, Ticking};
use crate::idle::Idle;
use crate::lane::{Moved, SlowLane};
use crate::memory::{Share, Tenant};
use crate::meter::{Exceeded, Meter};
use crate::slots::{Place, Slot};
use crate::step::{Step, StepPre};
use crate::store::{Environment, HANDLES, StoreState};

/// What all calls of an engine share.
pub(crate) struct Shared {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) ticker: Ticker,
    pub(crate) lane: Arc<SlowLane>,
    /// What guests of no namespace take memory from.
    pub(crate) memory: Arc<Share>,
    pub(crate) slots: Arc<Semaphore>,
    /// How many slots there are.
    pub(crate) all_slots: u32,
    pub(crate) flavor: Flavor,
    pub(crate) idle: Idle,
    pub(crate) host_call_bytes: u64,
    pub(crate) log_bytes: usize,
    pub(crate) calls: metrics::Counter,
    /// Instances that were started to be kept.
    pub(crate) started: metrics::Counter,
    /// Calls that found an instance that had been kept.
    pub(crate) reused: metrics::Counter,
}

/// One call: a store within its limits. The fields are dropped in this order, so a slot is free when its instance is gone.
pub(crate) struct Call<S: 'static> {
    pub(crate) store: Store<S>,
    pub(crate) limits: Limits,
    clock: Arc<CpuClock>,
    host_call_bytes: u64,
    lane: Arc<SlowLane>,
    until: Instant,
    /// Whether `until` is the limit's doing, not the caller's.
    by_wall: bool,
    ticking: Option<Ticking>,
    slot: Slot,
}

/// What of a call may be kept for the next one.
pub(crate) type Parts<S> = (Store<S>, Arc<CpuClock>, Slot);

impl Shared {
    /// A call with a store of its own, whose instance takes up so many slots.
    pub(crate) async fn begin<S: StoreState>(
        &self,
        mut state: S,
        limits: Limits,
        slots: u32,
        deadline: Instant,
    ) -> Result<Call<S>, StepError> {
        let tenant = state.base().environment.tenant.as_ref();
        let slot = self.slot(tenant, slots, deadline).await?;
        let now = Instant::now();
        if deadline <= now {
            return Err(StepError::new(
                ErrorKind::Timeout,
                "the run's time was up before the guest was called",
            ));
        }
        let mut store = Store::try_new(&self.engine, state).map_err(|error| {
            StepError::new(
                ErrorKind::Unavailable,
                format!("no memory for another call: {error:#}"),
            )
            .blamed(Blame::Host)
        })?;
        let base = store.data_mut().base();
        let tenant = base.environment.tenant.as_ref();
        let memory = tenant.map_or(&self.memory, |tenant| &tenant.0);
        base.meter = Meter::new(limits, Some(memory.clone()));
        let clock = CpuClock::new(limits.cpu, base.cpu.clone());
        store.limiter(|state| &mut state.base().meter);
        store.set_max_component_handles(HANDLES);
        // Its tasks, streams and futures: an end of each is a handle, and what is between the ends counts here.
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(HANDLES.saturating_mul(4));
        }
        let fuel = usize::try_from(self.host_call_bytes(limits));
        store.set_hostcall_fuel(fuel.unwrap_or(usize::MAX));

        store.epoch_deadline_callback(move |mut context| {
            let meter = &context.data_mut().base().meter;
            match meter.clock() {
                Some(clock) if clock.used() > limits.cpu => {
                    Err(wasmtime::Error::new(Exceeded::Cpu(limits.cpu)))
                }
                Some(clock) => Ok(clock.turn()),
                None => Ok(UpdateDeadline::Yield(1)),
            }
        });
        Ok(self.arm((store, clock, slot), limits, now, deadline))
    }

    /// The next call of a store: everything but its memory and tables counts from nothing, and its CPU time by this clock, which no
    /// other call has. `limits` are always those the store was made with.
    pub(crate) fn arm<S: StoreState>(
        &self,
        (mut store, clock, slot): (Store<S>, CpuClock, Slot),
        limits: Limits,
        now: Instant,
        deadline: Instant,
    ) -> Call<S> {
        let clock = Arc::new(clock);
        let base = store.data_mut().base();
        base.meter.tells(clock.clone());
        base.meter.refused = None;
        base.settle();
        base.log.allow(self.log_bytes);
        // A first deadline of 0 would be over at once.
        store.set_epoch_deadline(1);
        self.calls.increment(1);
        let wall = now.checked_add(limits.wall).unwrap_or(deadline);
        Call {
            store,
            clock,
            limits,
            lane: self.lane.clone(),
            host_call_bytes: self.host_call_bytes(limits),
            until: wall.min(deadline),
            by_wall: wall <= deadline,
            ticking: Some(self.ticker.ticking()),
            slot,
        }
    }

    /// A result is lifted on the same allowance, so an output within its limit must fit with what its records add to it.
    fn host_call_bytes(&self, limits: Limits) -> u64 {
        let output = limits.output.saturating_mul(2).saturating_add(64 << 10);
        self.host_call_bytes.max(output)
    }

    /// Instantiates a component in a call's store. Where the pool has too little of something, idle instances make room.
    pub(crate) async fn instantiate<S: StoreState, P: Pre<S>>(
        &self,
        pre: &P,
        store: &mut Store<S>,
    ) -> wasmtime::Result<P::Instance> {
        let mut waited = false;
        loop {
            let error = match pre.instantiate(store).await {
                Ok(instance) => return Ok(instance),
                Err(error) => error,
            };
            let meter = &mut store.data_mut().base().meter;
            if error.is::<PoolConcurrencyLimitError>() {
                if self.idle.evict(1, None) == 0 {
                    return Err(error);
                }
            } else if meter.lacked_memory() && !waited {
                // Those that answer several calls at once were told to end, and do so in a moment.
                waited = true;
                meter.refused = None;
                tokio::time::sleep(MOMENT).await;
            } else {
                return Err(error);
            }
        }
    }

    /// A place, or as many as it takes, among the instances that live at once. Idle ones make room for it.
    async fn slot(
        &self,
        tenant: Option<&Tenant>,
        slots: u32,
        deadline: Instant,
    ) -> Result<Slot, StepError> {
        let wanted = slots.min(self.all_slots);
        // First of the namespace's own: what it has too much of waits there, not in the line of all namespaces.
        let place = match tenant {
            Some(tenant) => Some(self.place(&tenant.0, wanted, deadline).await?),
            None => None,
        };
        let permit = match self.slots.clone().try_acquire_many_owned(wanted) {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => {
                let _waiting = self.idle.wait();
                self.idle.evict(wanted as usize, None);
                let acquired = self.slots.clone().acquire_many_owned(wanted);
                tokio::time::timeout_at(deadline.into(), acquired)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .ok_or_else(busy)?
            }
            Err(TryAcquireError::Closed) => return Err(busy()),
        };
        Ok(Slot::new(permit, place))
    }

    /// The same among those of a namespace, whose own idle instances make room for it.
    async fn place(
        &self,
        share: &Arc<Share>,
        slots: u32,
        deadline: Instant,
    ) -> Result<Place, StepError> {
        if let Some(place) = Place::take(share, self.flavor, slots, self.all_slots) {
            return Ok(place);
        }
        let _waiting = share.places(self.flavor).wait();
        self.idle.evict(slots as usize, Some(share));
        let place = Place::wait(share, self.flavor, slots, self.all_slots);
        tokio::time::timeout_at(deadline.into(), place)
            .await
            .map_err(|_| crowded(self.all_slots))
    }

    /// Whether calls wait for a slot that an instance of this namespace has.
    pub(crate) fn is_awaited(&self, tenant: Option<&Tenant>) -> bool {
        let of_tenant = |tenant: &Tenant| tenant.0.places(self.flavor).is_awaited();
        self.idle.is_awaited() || tenant.is_some_and(of_tenant)
    }
}

/// CPU time after which a call goes on in the slow lane. Most calls are over by then.
pub(crate) const SLICE: Duration = Duration::from_millis(1);

/// What instances that were told to end have time for.
const MOMENT: Duration = Duration::from_millis(10);

/// A component that is linked, of whatever world.
pub(crate) trait Pre<S: StoreState>: Sync {
    /// What its calls go through.
    type Instance: Send;

    fn instantiate(
        &self,
        store: &mut Store<S>,
    ) -> impl Future<Output = wasmtime::Result<Self::Instance>> + Send;
}

impl<S: StoreState> Pre<S> for ProxyPre<S> {
    type Instance = Proxy;

    async fn instantiate(&self, store: &mut Store<S>) -> wasmtime::Result<Proxy> {
        self.instantiate_async(store).await
    }
}

impl<S: StoreState> Pre<S> for ServicePre<S> {
    type Instance = Service;

    async fn instantiate(&self, store: &mut Store<S>) -> wasmtime::Result<Service> {
        self.instantiate_async(store).await
    }
}

impl<S: StoreState> Pre<S> for StepPre<S> {
    type Instance = Step;

    async fn instantiate(&self, store: &mut Store<S>) -> wasmtime::Result<Step> {
        self.instantiate_async(store).await
    }
}

/// Times a guest's future, lets it go on in the slow lane when it takes long, and ends it when its time is up.
pub(crate) struct Guard {
    clock: Arc<CpuClock>,
    pub(crate) environment: Arc<Environment>,
    lane: Arc<SlowLane>,
    until: Instant,
    limits: Limits,
    by_wall: bool,
}

impl Guard {
    /// Whatever polls the guest, or drops it, does so through what this returns. The future owns all that the guest needs, since
    /// it may go to another thread between two polls.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        guest: impl Future<Output = Result<T, StepError>> + Send + 'static,
    ) -> Result<T, StepError> {
        let guest = Guest {
            at: At::Here(Box::pin(guest)),
            clock: self.clock,
            environment: self.environment,
            lane: self.lane,
            cpu: self.limits.cpu,
        };
        // The guest's use of the task's budget must not keep the alarm from being heard.
        let alarm = || tokio::task::unconstrained(tokio::time::sleep_until(self.until.into()));
        within(alarm, guest)
            .await
            .unwrap_or_else(|| Err(timeout(&self.limits, self.by_wall)))
    }
}

/// A guest under way.
struct Guest<T: 'static> {
    at: At<T>,
    clock: Arc<CpuClock>,
    environment: Arc<Environment>,
    lane: Arc<SlowLane>,
    /// What it may use.
    cpu: Duration,
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, StepError>> + Send>>;

enum At<T> {
    /// On the thread that its caller polls it on.
    Here(Boxed<T>),
    /// In the slow lane.
    Lane(Moved<Result<T, StepError>>),
    Ended,
}

impl<T: Send + 'static> Future for Guest<T> {
    type Output = Result<T, StepError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let At::Here(guest) = &mut this.at {
            let before = this.clock.charged();
            let fresh = before.is_zero();
            if !(fresh && (this.environment.is_heavy() || this.clock.is_large())) {
                let polled = this.clock.timed(|| guest.as_mut().poll(cx));
                this.environment
                    .note_poll(this.clock.charged().saturating_sub(before));
                if let Poll::Ready(outcome) = polled {
                    this.at = At::Ended;
                    return Poll::Ready(this.within_budget(outcome));
                }
                if this.clock.charged() < SLICE && !this.clock.is_large() {
                    return Poll::Pending;
                }
            }
            if let At::Here(guest) = std::mem::replace(&mut this.at, At::Ended) {
                let clock = this.clock.clone();
                clock.be_exact();
                let timed = async move { timed(&clock, guest).await };
                let span = this.environment.span();
                let tenant = this.environment.tenant.as_ref();
                this.at = At::Lane(this.lane.take(tenant, timed.instrument(span)));
            }
        }
        match &mut this.at {
            At::Lane(moved) => {
                let outcome = ready!(Pin::new(moved).poll(cx));
                this.at = At::Ended;
                let outcome = outcome.unwrap_or_else(|_| Err(closed()));
                Poll::Ready(this.within_budget(outcome))
            }
            At::Here(_) | At::Ended => Poll::Pending,
        }
    }
}

impl<T> Guest<T> {
    /// A guest is looked at when it yields, and one that has come to its end without a yield is looked at here.
    fn within_budget(&self, outcome: Result<T, StepError>) -> Result<T, StepError> {
        match outcome {
            Ok(_) if self.clock.charged() > self.cpu => Err(overdrawn(self.cpu)),
            outcome => outcome,
        }
    }
}

impl<T: 'static> Drop for Guest<T> {
    fn drop(&mut self) {
        self.environment
            .temper
            .note(self.clock.charged(), self.clock.overran());
        if self.clock.is_large() {
            // Giving its memory back takes as long as many calls.
            match std::mem::replace(&mut self.at, At::Ended) {
                At::Here(guest) => self.lane.discard(guest),
                At::Lane(moved) => moved.discard(),
                At::Ended => {}
            }
        }
    }
}

/// The guest has used more than its CPU time, and has come to its end all the same.
pub(crate) fn overdrawn(limit: Duration) -> StepError {
    StepError::from(Exceeded::Cpu(limit))
}

pub(crate) fn closed() -> StepError {
    StepError::new(
        ErrorKind::Unavailable,
        "the host stopped while the guest was being called",
    )
    .blamed(Blame::Host)
}

pub(crate) fn timeout(limits: &Limits, by_wall: bool) -> StepError {
    if by_wall {
        metrics::counter!("stepwell_limit_hits_total", "limit" => "wall").increment(1);
        let message = format!(
            "the guest took more than its {}; the setting is limits.wall",
            show_duration(limits.wall)
        );
        return StepError::new(ErrorKind::Timeout, message).with_fault(Fault::nowhere("wall"));
    }
    StepError::new(
        ErrorKind::Timeout,
        "the run's time was up while the guest was being called; the settings are the step's and the trigger's timeout",
    )
}

impl<S: StoreState> Call<S> {
    /// Keeps what the guest does within the call's CPU budget and time.
    pub(crate) fn guard(&mut self) -> Guard {
        Guard {
            clock: self.clock.clone(),
            environment: self.store.data_mut().base().environment.clone(),
            lane: self.lane.clone(),
            until: self.until,
            limits: self.limits,
            by_wall: self.by_wall,
        }
    }

    /// When the call's time is up.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn into_parts(self) -> Parts<S> {
        (self.store, self.clock, self.slot)
    }

    pub(crate) fn clock(&self) -> &Arc<CpuClock> {
        &self.clock
    }

    /// Stops to need the engine's clock: the calls that share this one's instance see to it themselves.
    pub(crate) fn rest(&mut self) {
        self.ticking = None;
    }

    /// Says whose fault it was if the guest did not come to its end.
    pub(crate) fn settle<T>(&mut self, outcome: wasmtime::Result<T>) -> Result<T, StepError> {
        let meter = &self.store.data_mut().base().meter;
        outcome.map_err(|error| blame(&error, meter, &self.limits, self.host_call_bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use stepwell_core::thread_time;

    use super::*;
    use crate::memory::{GuestMemory, Tenant};

    /// The thread that the first call of a new step begins on, which computes for so long without a yield.
    async fn begin(tenant: &Tenant, lane: &Arc<SlowLane>, time: Duration) -> ThreadId {
        let guest = async move {
            let began = thread_time();
            while thread_time() - began < time {}
            Ok(thread::current().id())
        };
        let guest = Guest {
            at: At::Here(Box::pin(guest)),
            clock: Arc::new(CpuClock::new(Duration::from_secs(10), None)),
            environment: Arc::new(Environment::default().of(tenant.clone())),
            lane: lane.clone(),
            cpu: Duration::from_secs(10),
        };
        guest.await.unwrap()
    }

    #[tokio::test]
    async fn a_namespace_that_keeps_threads_begins_elsewhere_even_with_new_steps() {
        let memory = Arc::new(GuestMemory::new(1 << 30));
        let (one, other) = (memory.tenant("one"), memory.tenant("other"));
        let lane = Arc::new(SlowLane::start(1).unwrap());
        let here = thread::current().id();
        let (short, long) = (Duration::from_micros(10), Duration::from_millis(20));
        for _ in 0..2 {
            assert_eq!(begin(&one, &lane, long).await, here, "now and then it may");
        }
        for _ in 0..5 {
            begin(&one, &lane, long).await;
        }
        assert_ne!(begin(&one, &lane, short).await, here);
        assert_eq!(begin(&other, &lane, short).await, here);
    }
}
