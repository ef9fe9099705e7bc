use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use stepwell_core::{ErrorKind, Event, Limits, Reuse, StepError};
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p3::bindings::Service;

use crate::call::{Call, Shared};
use crate::clock::CpuClock;
use crate::crowd::Crowd;
use crate::function::Body;
use crate::idle::Resting;
use crate::memory::{Share, Tenant};
use crate::plugin::{Code, Plugin, process};
use crate::slots::Slot;
use crate::step::Step;
use crate::store::{Bind, StoreState};

/// The instances that one deployed step keeps for its later calls. Nobody else's calls ever get them, so what a call leaves in
/// an instance's memory reaches later calls of that step and nothing else.
///
/// A call takes the instance that was used last, or starts one. An instance takes one call at a time, and ends with its last
/// call or its idle time, with the first trap, limit, timeout or cancelled call, when a call leaves handles of the host open, when
/// other calls need its slot, and when this is dropped.
pub struct Kept<S: StoreState>(Arc<Pool<S>>);

struct Pool<S: StoreState> {
    shared: Arc<Shared>,
    limits: Limits,
    reuse: Reuse,
    /// How many slots an instance takes up.
    slots: u32,
    /// Whose they are, when the first has been started; none: nobody's in particular.
    tenant: OnceLock<Tenant>,
    idle: Mutex<IdleInstances<S>>,
    /// Those that answer several calls at once, where the component can.
    crowd: Option<Arc<Crowd<S>>>,
}

struct IdleInstances<S: 'static> {
    /// The one that was used last is at the end.
    instances: VecDeque<Instance<S>>,
    /// Whether the engine knows of them.
    listed: bool,
    /// Whether there was one since the last sweep.
    touched: bool,
    /// Whether the step is gone.
    retired: bool,
}

/// An instance between two calls. The fields are dropped in this order, so a slot is free when its instance is gone.
struct Instance<S: 'static> {
    store: Store<S>,
    exports: Exports,
    clock: Arc<CpuClock>,
    calls: u32,
    since: Instant,
    slot: Slot,
}

/// What a call enters an instance through.
pub(crate) enum Exports {
    Step(Step),
    Http(Proxy),
    Service(Service),
}

/// Why an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    MaxCalls,
    Idle,
    Trap,
    Limit,
    Timeout,
    Cancelled,
    Failed,
    Handles,
    Evicted,
    Retired,
}

/// An instance for one call: one that is kept between calls, or a fresh one that ends with the call.
pub(crate) struct Lease<S: StoreState> {
    pub(crate) call: Call<S>,
    /// None until the component is instantiated, which is part of the call that does it.
    pub(crate) exports: Option<Exports>,
    home: Option<Home<S>>,
}

/// Where an instance goes after its call.
struct Home<S: StoreState> {
    pool: Arc<Pool<S>>,
    calls: u32,
    /// When the call's time is up, and it is dropped.
    until: Instant,
    /// Why it does not go there; a call that is dropped half way leaves this as it was at the beginning.
    discard: Option<Discard>,
}

impl<S: StoreState> Kept<S> {
    /// `concurrent`: whether the component can answer several calls at once.
    pub(crate) fn new(
        shared: Arc<Shared>,
        limits: Limits,
        reuse: Reuse,
        slots: u32,
        concurrent: bool,
    ) -> Self {
        let crowd = (concurrent && reuse.concurrency > 1)
            .then(|| Arc::new(Crowd::new(shared.clone(), limits, reuse, slots)));
        Self(Arc::new(Pool {
            crowd,
            shared,
            limits,
            reuse,
            slots,
            tenant: OnceLock::new(),
            idle: Mutex::new(IdleInstances {
                instances: VecDeque::new(),
                listed: false,
                touched: false,
                retired: false,
            }),
        }))
    }

    /// [`Plugin::process`] in an instance of these. `plugin` must be the same each time.
    ///
    /// # Errors
    /// As there.
    pub async fn process(
        &self,
        plugin: &Plugin<S>,
        bind: &impl Bind<S>,
        deadline: Instant,
        event: Event,
    ) -> Result<Vec<Event>, StepError> {
        let Code::Step(pre) = &plugin.code else {
            return Err(plugin.wrong_world("an event"));
        };
        let lease = self.lease(bind, deadline).await?;
        process(&self.0.shared, pre, lease, event).await
    }

    /// [`Plugin::handle`] in an instance of these. `plugin` must be the same each time.
    ///
    /// # Errors
    /// As there.
    pub async fn handle(
        &self,
        plugin: &Plugin<S>,
        bind: &impl Bind<S>,
        deadline: Instant,
        request: Request<Body>,
    ) -> Result<Response<Body>, StepError> {
        if matches!(plugin.code, Code::Step(_)) {
            return Err(plugin.wrong_world("an HTTP request"));
        }
        if let (Some(crowd), Code::Service(pre)) = (&self.0.crowd, &plugin.code) {
            return crowd.handle(pre, bind, deadline, request).await;
        }
        plugin
            .answer(self.lease(bind, deadline).await?, request)
            .await
    }

    /// How many instances wait for their next call.
    pub fn idle(&self) -> usize {
        self.0.count()
    }

    async fn lease(&self, bind: &impl Bind<S>, deadline: Instant) -> Result<Lease<S>, StepError> {
        let pool = &self.0;
        let now = Instant::now();
        // Whoever is too late is told so by `begin`, and leaves an instance for the next.
        let instance = if now < deadline { pool.take(now) } else { None };
        let (call, exports, calls) = match instance {
            Some(instance) => {
                let mut store = instance.store;
                bind.renew(store.data_mut());
                pool.shared.reused.increment(1);
                let clock = instance.clock.next(pool.limits.cpu);
                let parts = (store, clock, instance.slot);
                let call = pool.shared.arm(parts, pool.limits, now, deadline);
                (call, Some(instance.exports), instance.calls)
            }
            None => {
                let mut fresh = bind.fresh();
                if let Some(tenant) = &fresh.base().environment.tenant
                    && pool.tenant.get().is_none()
                {
                    let _ = pool.tenant.set(tenant.clone());
                }
                let begun = pool.shared.begin(fresh, pool.limits, pool.slots, deadline);
                let call = begun.await?;
                pool.shared.started.increment(1);
                (call, None, 0)
            }
        };
        let until = call.until();
        Ok(Lease {
            call,
            exports,
            home: Some(Home {
                pool: pool.clone(),
                calls,
                until,
                discard: Some(Discard::Cancelled),
            }),
        })
    }
}

impl<S: StoreState> Drop for Kept<S> {
    fn drop(&mut self) {
        let retired = {
            let mut idle = self.0.lock();
            idle.retired = true;
            std::mem::take(&mut idle.instances)
        };
        if let Some(crowd) = &self.0.crowd {
            crowd.retire();
        }
        if !retired.is_empty() {
            retired.iter().for_each(|_| Discard::Retired.count());
            self.0.shared.idle.retire(Box::new(retired));
        }
    }
}

impl<S: StoreState> fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("reuse", &self.0.reuse)
            .finish_non_exhaustive()
    }
}

impl<S: StoreState> Lease<S> {
    /// An instance that ends with this call.
    pub(crate) fn fresh(call: Call<S>) -> Self {
        Self {
            call,
            exports: None,
            home: None,
        }
    }

    /// What came of the guest, and whose fault it was if it did not come to its end.
    pub(crate) fn settle<T>(&mut self, outcome: wasmtime::Result<T>) -> Result<T, StepError> {
        let outcome = self.call.settle(outcome);
        if let Some(home) = &mut self.home {
            home.discard = outcome.as_ref().err().map(Discard::because);
        }
        outcome
    }

    /// Ends a call that was settled: its instance is kept for the next one unless it has met its end.
    pub(crate) fn end<T>(mut self, outcome: &Result<T, StepError>) {
        let (Some(mut home), Some(exports)) = (self.home.take(), self.exports.take()) else {
            return;
        };
        let now = Instant::now();
        let over = matches!(outcome, Err(error) if error.kind == ErrorKind::Limit)
            || self.call.clock().used_at(now) > self.call.limits.cpu;
        let base = self.call.store.data_mut().base();
        base.log.finish();
        let calls = home.calls.saturating_add(1);
        home.discard = home.discard.or(if over || base.meter.refused.is_some() {
            Some(Discard::Limit)
        } else if calls >= home.pool.reuse.max_calls {
            Some(Discard::MaxCalls)
        } else if !base.is_at_rest() {
            Some(Discard::Handles)
        } else {
            None
        });
        if home.discard.is_none() {
            let (store, clock, slot) = self.call.into_parts();
            let instance = Instance {
                store,
                exports,
                clock,
                calls,
                since: now,
                slot,
            };
            home.discard = home.pool.put(instance).err();
        }
    }
}

impl<S: StoreState> Drop for Home<S> {
    fn drop(&mut self) {
        match self.discard {
            Some(Discard::Cancelled) if Instant::now() >= self.until => Discard::Timeout.count(),
            Some(discard) => discard.count(),
            None => {}
        }
    }
}

impl<S: StoreState> Pool<S> {
    /// The instance that was used last. When its time is up, so is that of all others, and the sweep is about to come.
    fn take(&self, now: Instant) -> Option<Instance<S>> {
        let in_time = |instance: &mut Instance<S>| !self.is_over(instance, now);
        self.lock().instances.pop_back_if(in_time)
    }

    fn is_over(&self, instance: &Instance<S>, now: Instant) -> bool {
        now.saturating_duration_since(instance.since) >= self.reuse.idle
    }

    /// Keeps an instance, unless it has to go.
    fn put(self: &Arc<Self>, instance: Instance<S>) -> Result<(), Discard> {
        if self.shared.is_awaited(self.tenant.get()) {
            return Err(Discard::Evicted);
        }
        let mut idle = self.lock();
        if idle.listed || idle.retired {
            idle.push(instance)?;
            drop(idle);
        } else {
            // The engine's list is locked before any pool.
            drop(idle);
            let this = Arc::downgrade(self) as Weak<dyn Resting>;
            let mut put = Ok(());
            self.shared.idle.list(this, || {
                let mut idle = self.lock();
                put = idle.push(instance);
                std::mem::replace(&mut idle.listed, true)
            });
            put?;
        }
        // A call that did not find the instance idle and waits now for its slot.
        if self.shared.idle.is_awaited() {
            self.shared.idle.evict(1, None);
        } else if let Some(tenant) = self.tenant.get()
            && self.shared.is_awaited(Some(tenant))
        {
            self.shared.idle.evict(1, Some(&tenant.0));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, IdleInstances<S>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: 'static> IdleInstances<S> {
    fn push(&mut self, instance: Instance<S>) -> Result<(), Discard> {
        if self.retired {
            return Err(Discard::Retired);
        }
        self.touched = true;
        self.instances.push_back(instance);
        Ok(())
    }
}

impl<S: StoreState> Resting for Pool<S> {
    fn count(&self) -> usize {
        self.lock().instances.len()
    }

    fn is_of(&self, share: &Share) -> bool {
        let mut idle = self.lock();
        let first = idle.instances.front_mut();
        first.is_some_and(|first| first.store.data_mut().base().meter.is_of(share))
    }

    fn oldest(&self) -> Option<Instant> {
        self.lock().instances.front().map(|instance| instance.since)
    }

    fn evict(&self) -> bool {
        let oldest = self.lock().instances.pop_front();
        let Some(mut oldest) = oldest else {
            return false;
        };
        Discard::Evicted.count();
        if oldest.clock.is_large() {
            // Its memory counts as free at once, and is so a moment later: whoever needs room is not the one to clear it.
            oldest.store.data_mut().base().meter.release();
            self.shared.idle.retire(Box::new(oldest));
        }
        true
    }

    fn sweep(&self, now: Instant) -> Instant {
        let mut expired = Vec::new();
        let mut idle = self.lock();
        let is_over = |instance: &mut Instance<S>| self.is_over(instance, now);
        while let Some(instance) = idle.instances.pop_front_if(is_over) {
            expired.push(instance);
        }
        idle.touched = false;
        let since = idle.instances.front().map_or(now, |oldest| oldest.since);
        let is_empty = idle.instances.is_empty();
        drop(idle);
        expired.iter().for_each(|_| Discard::Idle.count());
        match is_empty {
            true => now + self.reuse.idle.min(Duration::from_secs(1)),
            false => since + self.reuse.idle,
        }
    }

    fn unlist(&self) -> bool {
        let mut idle = self.lock();
        let unused = idle.instances.is_empty() && !idle.touched;
        idle.listed &= !unused;
        unused
    }
}

impl Discard {
    /// What ends an instance whose guest did not come to its end.
    pub(crate) fn because(error: &StepError) -> Self {
        match error.kind {
            ErrorKind::Trap => Self::Trap,
            ErrorKind::Limit => Self::Limit,
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::Invalid | ErrorKind::Unavailable | ErrorKind::Failed => Self::Failed,
        }
    }

    pub(crate) fn count(self) {
        let reason = match self {
            Self::MaxCalls => "max_calls",
            Self::Idle => "idle",
            Self::Trap => "trap",
            Self::Limit => "limit",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Handles => "handles",
            Self::Evicted => "evicted",
            Self::Retired => "retired",
        };
        metrics::counter!("stepwell_instances_discarded_total", "reason" => reason).increment(1);
    }
}
