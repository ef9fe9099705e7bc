//! What the store of every call holds, and what guests may import.

use std::sync::Arc;

use stepwell_core::{Call, CpuAccount};
use stepwell_egress::EgressScope;
use stepwell_engine::{Bind, Environment, LogSink, LogStream, StoreBase, StoreState};
use stepwell_inference::{HasInference, InferenceView};
use stepwell_keyvalue::{KeyValueCtx, KeyValueView};
use stepwell_logging::{CallLog, Level, LoggingView, Source};
use stepwell_sql::DatabasesView;
use stepwell_vector::{HasVectors, VectorsView};
use wasmtime::component::Linker;

use crate::services::Services;

/// The state of one call at a time.
pub(crate) struct GuestState {
    base: StoreBase,
    call: Call,
    keyvalue: KeyValueCtx,
    log: Arc<Streams>,
    services: Arc<Services>,
}

/// What a call brings to its store. The deployed step gives the environment, the grants and the services, so that they are the
/// same for every call that a store ever has.
pub(crate) struct GuestCall<'a> {
    pub(crate) services: &'a Arc<Services>,
    pub(crate) environment: &'a Arc<Environment>,
    /// Where its HTTP requests may go; none: nowhere.
    pub(crate) egress: Option<&'a Arc<EgressScope>>,
    /// Who is charged for the guest's CPU time.
    pub(crate) cpu: &'a Arc<CpuAccount>,
    pub(crate) call: &'a Call,
}

impl GuestCall<'_> {
    /// Lets the call send its HTTP requests; what comes of those that are not answered is in the step's log.
    fn open_egress(&self, base: &mut StoreBase, log: &Arc<Streams>) {
        if let Some(egress) = self.egress {
            let log = log.clone();
            let note = Arc::new(move |text: &str| log.0.line(Level::Warn, Source::Run, text));
            base.set_egress(Box::new(egress.call(self.call.deadline, note)));
        }
    }

    fn log(&self) -> Arc<Streams> {
        let log = CallLog::new(self.services.logs.clone(), self.call.clone());
        Arc::new(Streams(log))
    }

    fn keyvalue(&self) -> KeyValueCtx {
        KeyValueCtx::new(self.services.keyvalues.clone(), self.call.clone())
    }
}

impl Bind<GuestState> for GuestCall<'_> {
    fn fresh(&self) -> GuestState {
        let log = self.log();
        let mut base = StoreBase::new(self.environment.clone(), log.clone());
        base.charge_to(self.cpu.clone());
        self.open_egress(&mut base, &log);
        GuestState {
            base,
            call: self.call.clone(),
            keyvalue: self.keyvalue(),
            log,
            services: self.services.clone(),
        }
    }

    fn renew(&self, state: &mut GuestState) {
        // Every field by name, so that a new one cannot be forgotten here.
        let GuestState {
            base,
            call,
            keyvalue,
            log,
            services: _,
        } = state;
        *log = self.log();
        base.rebind(log.clone());
        self.open_egress(base, log);
        *call = self.call.clone();
        *keyvalue = self.keyvalue();
    }
}

/// The interfaces that [`link`] adds to WASI, each with its version: what a component may import.
pub(crate) const INTERFACES: [&str; 13] = [
    "stepwell:pipeline/types@0.1.0",
    "stepwell:model/inference@0.1.0",
    "stepwell:vector/index@0.1.0",
    "stepwell:sql/database@0.1.0",
    "wasi:keyvalue/store@0.2.0-draft",
    "wasi:keyvalue/atomics@0.2.0-draft",
    "wasi:keyvalue/batch@0.2.0-draft",
    "wasi:keyvalue/store@0.2.0-draft2",
    "wasi:keyvalue/atomics@0.2.0-draft2",
    "wasi:keyvalue/batch@0.2.0-draft2",
    "wasi:logging/logging@0.1.0-draft",
    "wasi:logging/logging",
    "wasi:config/store@0.2.0-rc.1",
];

/// Adds every interface of [`INTERFACES`] that the engine does not link itself. To add one: its crate, a view in
/// [`GuestState`], a line here and one above.
pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    stepwell_inference::add_to_linker(linker)?;
    stepwell_vector::add_to_linker(linker)?;
    stepwell_sql::add_to_linker(linker, |state| DatabasesView {
        databases: &state.services.databases,
        call: &state.call,
        table: &mut state.base.table,
    })?;
    stepwell_keyvalue::add_to_linker(linker, |state| KeyValueView {
        ctx: &mut state.keyvalue,
        table: &mut state.base.table,
    })?;
    stepwell_logging::add_to_linker(linker, |state| LoggingView { log: &state.log.0 })
}

impl StoreState for GuestState {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.base
    }
}

impl HasInference for GuestState {
    fn inference(&mut self) -> InferenceView<'_> {
        InferenceView {
            models: &self.services.models,
            call: &self.call,
        }
    }
}

impl HasVectors for GuestState {
    fn vectors(&mut self) -> VectorsView<'_> {
        VectorsView {
            vectors: &self.services.vectors,
            call: &self.call,
        }
    }
}

/// A guest's stdout and stderr are part of its log.
struct Streams(CallLog);

impl LogSink for Streams {
    fn line(&self, stream: LogStream, text: &str) {
        match stream {
            LogStream::Stdout => self.0.line(Level::Info, Source::Stdout, text),
            LogStream::Stderr => self.0.line(Level::Warn, Source::Stderr, text),
        }
    }
}
