use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body::Body as _;
use stepwell_core::{Digest, Event, Limits, Lingering, StepError};
use stepwell_engine::{
    Bind, Body, Engine, EngineConfig, Environment, LogSink, LogStream, Plugin, StoreBase,
    StoreState,
};
use tempfile::TempDir;

/// A store's state with nothing beside the base.
pub(crate) struct State(StoreBase);

impl StoreState for State {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

/// Keeps what guests log.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<(LogStream, String)>>);

impl LogSink for Lines {
    fn line(&self, stream: LogStream, text: &str) {
        self.0.lock().unwrap().push((stream, text.to_owned()));
    }
}

impl Lines {
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    pub(crate) fn all(&self) -> Vec<(LogStream, String)> {
        self.0.lock().unwrap().clone()
    }
}

/// An engine of its own, with one log for all its calls.
pub(crate) struct Host {
    pub(crate) engine: Engine<State>,
    pub(crate) lines: Arc<Lines>,
    environment: Arc<Environment>,
    _cache: TempDir,
}

pub(crate) fn host() -> Host {
    // Tests run side by side, each with its own pool.
    host_of(100)
}

/// A host that holds so many instances.
pub(crate) fn host_of(instances: u32) -> Host {
    host_with(|config| config.instances = instances)
}

/// A host with another configuration, of a hundred instances unless that says otherwise.
pub(crate) fn host_with(change: impl FnOnce(&mut EngineConfig)) -> Host {
    let cache = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(cache.path());
    config.instances = 100;
    change(&mut config);
    Host {
        engine: Engine::new(config, |_| Ok(())).unwrap(),
        lines: Arc::default(),
        environment: Arc::new(Environment::new([(
            "neighbours".to_owned(),
            "5".to_owned(),
        )])),
        _cache: cache,
    }
}

impl Host {
    pub(crate) fn state(&self) -> State {
        State(StoreBase::new(self.environment.clone(), self.lines.clone()))
    }

    pub(crate) fn calling(&self) -> Calling {
        self.calling_with(&self.lines)
    }

    /// For the calls of another step.
    pub(crate) fn calling_as(&self, step: &Arc<Environment>) -> Calling {
        Calling {
            environment: step.clone(),
            lines: self.lines.clone(),
        }
    }

    pub(crate) fn calling_with(&self, lines: &Arc<Lines>) -> Calling {
        Calling {
            environment: self.environment.clone(),
            lines: lines.clone(),
        }
    }

    pub(crate) async fn plugin(&self, bytes: Vec<u8>) -> Arc<Plugin<State>> {
        self.engine.inspect(&bytes).unwrap();
        let bytes = Bytes::from(bytes);
        let fetched = bytes.clone();
        self.engine
            .load(Digest::of(&bytes), async move { Ok::<_, String>(fetched) })
            .await
            .unwrap()
    }

    /// The state of a call of another step.
    pub(crate) fn state_of(&self, step: &Arc<Environment>) -> State {
        State(StoreBase::new(step.clone(), self.lines.clone()))
    }

    pub(crate) async fn call(
        &self,
        plugin: &Plugin<State>,
        limits: Limits,
        what: &str,
    ) -> Result<Vec<Event>, StepError> {
        plugin
            .process(self.state(), limits, soon(), event(what))
            .await
    }
}

/// A call in a kept instance, with a log of its own.
pub(crate) struct Calling {
    environment: Arc<Environment>,
    lines: Arc<Lines>,
}

impl Bind<State> for Calling {
    fn fresh(&self) -> State {
        State(StoreBase::new(self.environment.clone(), self.lines.clone()))
    }

    fn renew(&self, state: &mut State) {
        state.0.rebind(self.lines.clone());
    }
}

/// What a call answers where nothing interrupts its guest between the head of its response and the rest: a busy machine may, and then
/// the head goes out before the rest is known.
pub(crate) async fn at_once<F>(call: impl Fn() -> F) -> Result<Response<Body>, StepError>
where
    F: Future<Output = Result<Response<Body>, StepError>>,
{
    let mut tries = 0;
    loop {
        let answer = call().await;
        let is_whole = |response: &Response<Body>| {
            let lingers = response.extensions().get::<Lingering>().is_some();
            !lingers && response.body().size_hint().exact().is_some()
        };
        if answer.as_ref().map_or(true, is_whole) {
            return answer;
        }
        tries += 1;
        assert!(tries < 100, "the head always came first");
    }
}

/// A deadline far away.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Limits that no well-behaved call of these tests comes near.
pub(crate) fn generous() -> Limits {
    Limits {
        cpu: Duration::from_secs(30),
        wall: Duration::from_secs(50),
        ..Limits::default()
    }
}

pub(crate) fn event(what: &str) -> Event {
    Event {
        id: "42".into(),
        source: "/test".into(),
        r#type: what.into(),
        subject: Some("subject".into()),
        time: None,
        datacontenttype: Some("text/plain".into()),
        extensions: vec![("partitionkey".into(), "k".into())],
        data: Bytes::from_static(b"data"),
    }
}

pub(crate) fn data(events: &[Event]) -> String {
    assert_eq!(events.len(), 1, "{events:?}");
    String::from_utf8(events[0].data.to_vec()).unwrap()
}

/// The bytes of a guest in tests/guests.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("STEPWELL_GUESTS").map_or_else(
        || {
            let home = std::env::var_os("HOME").unwrap();
            PathBuf::from(home).join(".cache/stepwell/guest-target/stepwell")
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; build the guests with `make guests` (STEPWELL_GUESTS says where they are)",
            path.display()
        )
    })
}
