use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{CpuAccount, Limits};
use tracing::Span;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::WasiCliCtxView;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView};
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::{FieldMap, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks};

use crate::clock::OVERRUN;
use crate::command::{CommandError, Surroundings};
use crate::held;
use crate::late::Late;
use crate::logs::{CallLog, LogSink, LogStream};
use crate::memory::Tenant;
use crate::meter::Meter;
use crate::outbound::Outbound;
use crate::temper::Temper;

/// What the store of every call holds. The composition root's own type implements this; beside the base it holds the state of
/// the interfaces that it links.
pub trait StoreState: Send + 'static {
    /// The part that the engine looks after.
    fn base(&mut self) -> &mut StoreBase;
}

/// What one call binds a store to: who calls, for which run, until when.
pub trait Bind<S: StoreState>: Sync {
    /// The state of a store that nobody has used yet.
    fn fresh(&self) -> S;

    /// Turns the state of an earlier call of the same step over to this one: nothing of the earlier call may be left but what is
    /// in the base's table. Use [`StoreBase::rebind`] for the base.
    fn renew(&self, state: &mut S);
}

/// A step's `config`, as its guest sees it: through `wasi:config` and as its environment. It lives as long as the pipeline
/// revision, and calls share it; what the engine learns of the step's calls is kept here too.
#[derive(Default)]
pub struct Environment {
    pub(crate) entries: Vec<(String, String)>,
    pub(crate) variables: WasiConfigVariables,
    pub(crate) temper: Temper,
    pub(crate) late: Late,
    /// Whose the memory of its instances is; none: nobody's in particular.
    pub(crate) tenant: Option<Tenant>,
    /// Tells the span of what a thread works for.
    span: Option<fn() -> Option<Span>>,
}

impl Environment {
    /// An environment with these entries and nothing else.
    pub fn new(entries: impl IntoIterator<Item = (String, String)>) -> Self {
        let entries: Vec<_> = entries.into_iter().collect();
        let variables = entries.iter().cloned().collect();
        Self {
            entries,
            variables,
            temper: Temper::default(),
            late: Late::default(),
            tenant: None,
            span: None,
        }
    }

    /// Whether the step's next call had better begin in the slow lane.
    pub(crate) fn is_heavy(&self) -> bool {
        let alone = self
            .tenant
            .as_ref()
            .is_none_or(|tenant| tenant.0.is_alone());
        self.temper.is_heavy(alone) || (!alone && self.has_kept_much())
    }

    fn has_kept_much(&self) -> bool {
        let tenant = self.tenant.as_ref();
        tenant.is_some_and(|tenant| tenant.0.kept.is_much())
    }

    /// Learns how long a poll took on a thread that other calls wait for.
    pub(crate) fn note_poll(&self, took: Duration) {
        if took > Duration::from_nanos(OVERRUN)
            && let Some(tenant) = &self.tenant
        {
            tenant.0.kept.note(took);
            metrics::counter!("stepwell_threads_kept_total").increment(1);
        }
    }

    /// The memory of the step's instances counts as this namespace's.
    #[must_use]
    pub fn of(mut self, tenant: Tenant) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// What the log calls the step where no run is left that would tell which it is.
    #[must_use]
    pub fn called(mut self, step: impl Into<String>) -> Self {
        self.late.step = step.into();
        self
    }

    /// Where the host makes its spans when something is logged: what the thread is asked when a call goes on on another one.
    #[must_use]
    pub fn in_spans(mut self, current: fn() -> Option<Span>) -> Self {
        self.span = Some(current);
        self
    }

    /// The span of the call that this thread works for.
    pub(crate) fn span(&self) -> Span {
        let of_host = self.span.and_then(|current| current());
        of_host.unwrap_or_else(Span::current)
    }
}

/// The engine's part of a store: WASI, the guest's resources and what it has used so far. One call at a time owns it.
pub struct StoreBase {
    /// The guest's resources; interfaces keep theirs here too.
    pub table: ResourceTable,
    pub(crate) meter: Meter,
    pub(crate) log: CallLog,
    pub(crate) cpu: Option<Arc<CpuAccount>>,
    pub(crate) environment: Arc<Environment>,
    /// Made when the guest first asks for something of it: seeding its random numbers costs more than many calls take.
    wasi: Option<Box<WasiCtx>>,
    http: WasiHttpCtx,
    outbound: Outbound,
}

/// Resource handles that one call may hold. Each may stand for memory of the host: what HTTP headers and bodies hold is counted beside.
pub(crate) const HANDLES: usize = 1_000;

/// Resource handles that a guest may keep from one call to the next.
const HANDLES_AT_REST: usize = 256;

impl StoreBase {
    /// The base of one call's store. The guest gets no directory, no socket and no environment but the given one.
    pub fn new(environment: Arc<Environment>, sink: Arc<dyn LogSink>) -> Self {
        let log = CallLog::new(sink);
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES);
        Self {
            table,
            meter: Meter::new(Limits::default(), None),
            outbound: Outbound::new(log.clone()),
            log,
            cpu: None,
            environment,
            wasi: None,
            http: WasiHttpCtx::new(),
        }
    }

    /// Sends the outbound HTTP requests of this call through these hooks; without any they are denied.
    pub fn set_egress(&mut self, hooks: Box<dyn WasiHttpHooks>) {
        self.outbound.set(hooks);
    }

    /// The base of one call's store outside of any pipeline: the guest sees of the machine what the surroundings say.
    ///
    /// # Errors
    /// [`CommandError`]: a directory cannot be opened.
    pub fn within(
        surroundings: &Surroundings,
        environment: Arc<Environment>,
        sink: Arc<dyn LogSink>,
    ) -> Result<Self, CommandError> {
        let mut base = Self::new(environment, sink);
        let mut builder = builder(&base.log);
        surroundings.apply(&mut builder)?;
        base.wasi = Some(Box::new(builder.build()));
        Ok(base)
    }

    /// The guest's streams go there from now on.
    pub fn rebind(&mut self, sink: Arc<dyn LogSink>) {
        self.log.rebind(sink);
    }

    /// Whether the guest holds nothing of the host's that belongs to the call that has just ended. Language runtimes keep the
    /// standard streams open and leave HTTP headers to their garbage collector. A body's stream is no standard stream, but a
    /// child of its body, which may not be here. StarlingMonkey leaves its request too, and cannot answer another one.
    pub(crate) fn is_at_rest(&mut self) -> bool {
        let mut handles = 0;
        self.table.iter_mut().all(|entry| {
            handles += 1;
            handles <= HANDLES_AT_REST
                && (entry.is::<DynOutputStream>()
                    || entry.is::<DynInputStream>()
                    || entry.is::<DynPollable>()
                    || entry.is::<FieldMap>())
        })
    }

    /// Takes over what the guest of an instance has and has used from the base of the instance's call before this one.
    pub(crate) fn succeed(&mut self, before: &mut Self) {
        std::mem::swap(&mut self.table, &mut before.table);
        std::mem::swap(&mut self.meter, &mut before.meter);
        std::mem::swap(&mut self.wasi, &mut before.wasi);
        // The guest's streams write to the log that they were made for.
        std::mem::swap(&mut self.log, &mut before.log);
        self.log.follow(&before.log);
        self.outbound.note_in(&self.log);
    }

    /// Charges the guest's CPU time to this account.
    pub fn charge_to(&mut self, account: Arc<CpuAccount>) {
        self.cpu = Some(account);
    }

    pub(crate) fn wasi(&mut self) -> WasiCtxView<'_> {
        let ctx = self
            .wasi
            .get_or_insert_with(|| Box::new(confined(&self.log)));
        WasiCtxView {
            ctx,
            table: &mut self.table,
        }
    }

    pub(crate) fn cli(&mut self) -> WasiCliCtxView<'_> {
        let WasiCtxView { ctx, table } = self.wasi();
        WasiCliCtxView {
            ctx: ctx.cli(),
            table,
        }
    }

    /// The next call begins: its handles hold what is still there, and the first body that it makes does not count.
    pub(crate) fn settle(&mut self) {
        self.meter.made_body = false;
        if self.meter.holds_of_all() {
            let all = held::of_table(&mut self.table) as u64;
            self.meter.settle(all);
        }
    }

    /// Counts a body of an outbound request or a response that is about to be made.
    pub(crate) fn hold_body(&mut self) -> wasmtime::Result<()> {
        if std::mem::replace(&mut self.meter.made_body, true) {
            self.hold(held::BODY)?;
        }
        Ok(())
    }

    /// Counts what a handle of HTTP is about to hold more.
    pub(crate) fn hold(&mut self, bytes: usize) -> wasmtime::Result<()> {
        let table = &mut self.table;
        let all = || held::of_table(table) as u64;
        Ok(self.meter.hold(bytes as u64, all)?)
    }

    pub(crate) fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// WASI without a directory and without a socket.
fn confined(log: &CallLog) -> WasiCtx {
    builder(log)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

fn builder(log: &CallLog) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder
        .stdout(log.stream(LogStream::Stdout))
        .stderr(log.stream(LogStream::Stderr))
        .max_random_size(1 << 20);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    #[test]
    fn a_namespace_whose_calls_keep_threads_begins_in_the_slow_lane_whatever_its_step() {
        let host = Arc::new(GuestMemory::new(1 << 20));
        let of = |namespace: &str| Environment::new([]).of(host.tenant(namespace));
        let (one, more) = (of("one"), of("one"));
        one.note_poll(Duration::from_millis(100));
        assert!(!more.is_heavy(), "nobody else is there");
        let other = of("other");
        assert!(one.is_heavy() && more.is_heavy());
        assert!(!other.is_heavy());
        // What is over in time counts nothing.
        for _ in 0..1000 {
            other.note_poll(Duration::from_millis(3));
        }
        assert!(!other.is_heavy());
    }
}
