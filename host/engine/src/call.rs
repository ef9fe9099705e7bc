use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use stepwell_core::{Blame, ErrorKind, Limits, StepError, show_duration, within};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::clock::{CpuClock, timed};
use crate::epoch::{Ticker, Ticking};
use crate::meter::{Exceeded, Meter};
use crate::store::{HANDLES, StoreState};

/// What all calls of an engine share.
pub(crate) struct Shared {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) ticker: Ticker,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) host_call_bytes: u64,
    pub(crate) log_bytes: usize,
    pub(crate) calls: metrics::Counter,
}

/// One call: a fresh store within its limits. The fields are dropped in this order, so a slot is free when its instance is gone.
pub(crate) struct Call<S: 'static> {
    pub(crate) store: Store<S>,
    pub(crate) limits: Limits,
    clock: Arc<CpuClock>,
    host_call_bytes: u64,
    until: Instant,
    /// Whether `until` is the limit's doing, not the caller's.
    by_wall: bool,
    _ticking: Ticking,
    _slot: OwnedSemaphorePermit,
}

impl Shared {
    pub(crate) async fn begin<S: StoreState>(
        &self,
        state: S,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Call<S>, StepError> {
        let slot = self.slot(deadline).await?;
        let now = Instant::now();
        if deadline <= now {
            return Err(StepError::new(
                ErrorKind::Timeout,
                "the run's time was up before the guest was called",
            ));
        }
        let wall = now.checked_add(limits.wall).unwrap_or(deadline);
        let mut store = Store::try_new(&self.engine, state).map_err(|error| {
            StepError::new(
                ErrorKind::Unavailable,
                format!("no memory for another call: {error:#}"),
            )
            .blamed(Blame::Host)
        })?;
        let base = store.data_mut().base();
        base.meter = Meter::new(limits);
        base.log.allow(self.log_bytes);
        store.limiter(|state| &mut state.base().meter);
        // A result is lifted on the same allowance, so an output within its limit must fit with what its records add to it.
        let host_call_bytes = self
            .host_call_bytes
            .max(limits.output.saturating_mul(2).saturating_add(64 << 10));
        store.set_hostcall_fuel(usize::try_from(host_call_bytes).unwrap_or(usize::MAX));

        let clock = Arc::new(CpuClock::new(limits.cpu));
        // A first deadline of 0 would be over at once.
        store.set_epoch_deadline(1);
        let of_callback = clock.clone();
        store.epoch_deadline_callback(move |_| {
            if of_callback.used() > limits.cpu {
                return Err(wasmtime::Error::new(Exceeded::Cpu(limits.cpu)));
            }
            // Neighbours and timers get their turn at every tick.
            Ok(UpdateDeadline::Yield(1))
        });
        self.calls.increment(1);
        Ok(Call {
            store,
            clock,
            limits,
            host_call_bytes,
            until: wall.min(deadline),
            by_wall: wall <= deadline,
            _ticking: self.ticker.ticking(),
            _slot: slot,
        })
    }

    /// A place among the instances that live at once.
    async fn slot(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, StepError> {
        match self.slots.clone().try_acquire_owned() {
            Ok(slot) => Ok(slot),
            Err(TryAcquireError::NoPermits) => {
                tokio::time::timeout_at(deadline.into(), self.slots.clone().acquire_owned())
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .ok_or_else(busy)
            }
            Err(TryAcquireError::Closed) => Err(busy()),
        }
    }
}

fn busy() -> StepError {
    StepError::new(
        ErrorKind::Unavailable,
        "the host runs as many instances as it can hold",
    )
    .blamed(Blame::Host)
}

/// The guest's time was up.
pub(crate) struct Elapsed;

/// Times a guest's future and ends it when its time is up.
pub(crate) struct Guard {
    clock: Arc<CpuClock>,
    until: Instant,
}

impl Guard {
    pub(crate) async fn run<F: Future>(self, guest: F) -> Result<F::Output, Elapsed> {
        // The guest's use of the task's budget must not keep the alarm from being heard.
        let alarm = || tokio::task::unconstrained(tokio::time::sleep_until(self.until.into()));
        within(alarm, timed(&self.clock, guest))
            .await
            .ok_or(Elapsed)
    }
}

impl<S: StoreState> Call<S> {
    /// Keeps what the guest does within the call's CPU budget and time.
    pub(crate) fn guard(&self) -> Guard {
        Guard {
            clock: self.clock.clone(),
            until: self.until,
        }
    }

    /// Says whose fault it was if the guest did not come to its end.
    pub(crate) fn settle<T>(
        &mut self,
        outcome: Result<wasmtime::Result<T>, Elapsed>,
    ) -> Result<T, StepError> {
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.blame(&error)),
            Err(_) => Err(self.timeout()),
        }
    }

    fn timeout(&self) -> StepError {
        let message = if self.by_wall {
            format!(
                "the guest took more than its {}; the setting is limits.wall",
                show_duration(self.limits.wall)
            )
        } else {
            "the run's time was up while the guest was being called; the settings are the step's and the trigger's timeout".to_owned()
        };
        StepError::new(ErrorKind::Timeout, message)
    }

    fn blame(&mut self, error: &wasmtime::Error) -> StepError {
        if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
            return (*exceeded).into();
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return busy();
        }
        // Guests are told of a refused growth and mostly abort: what comes after is the limit's doing.
        if let Some(refused) = self.store.data_mut().base().meter.refused {
            return refused.into();
        }
        let backtrace = error.downcast_ref::<WasmBacktrace>();
        if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
            return Exceeded::Handles(HANDLES).into();
        }
        let cause = error.root_cause().to_string();
        if cause.contains("fuel allocated for hostcalls has been exhausted") {
            // With a backtrace the guest was calling the host; without one it had returned.
            return match backtrace {
                Some(_) => Exceeded::HostCall(self.host_call_bytes),
                None => Exceeded::Output(self.limits.output),
            }
            .into();
        }
        let what = match (
            error.downcast_ref::<I32Exit>(),
            error.downcast_ref::<Trap>(),
        ) {
            (Some(exit), _) => format!("called exit with status {}", exit.0),
            (None, Some(trap)) => {
                let text = trap.to_string();
                format!("trapped: {}", text.trim_start_matches("wasm trap: "))
            }
            (None, None) => format!("trapped: {}", cause.chars().take(500).collect::<String>()),
        };
        StepError::new(
            ErrorKind::Trap,
            format!("the guest {what}{}", frames(backtrace)),
        )
    }
}

/// The innermost functions, by name.
fn frames(backtrace: Option<&WasmBacktrace>) -> String {
    let names: Vec<String> = backtrace
        .map(WasmBacktrace::frames)
        .unwrap_or_default()
        .iter()
        .take(8)
        .map(|frame| match frame.func_name() {
            Some(name) => name.chars().take(120).collect(),
            None => format!("function {}", frame.func_index()),
        })
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(" (in {})", names.join(", called by "))
}
