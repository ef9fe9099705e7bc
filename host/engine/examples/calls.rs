//! What a call of a guest costs without anything around it, in a fresh instance and in one that is kept.
//!
//! `cargo run --release -p stepwell-engine --example calls -- echo.wasm [CALLS]`, with a step that takes any event.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stepwell_core::{Digest, Event, Limits, Reuse};
use stepwell_engine::{
    Bind, Engine, EngineConfig, Environment, LogSink, LogStream, StoreBase, StoreState,
};

struct State(StoreBase);

impl StoreState for State {
    fn base(&mut self) -> &mut StoreBase {
        &mut self.0
    }
}

struct Silent;

impl LogSink for Silent {
    fn line(&self, _stream: LogStream, _text: &str) {}
}

struct Calling(Arc<Environment>, Arc<Silent>);

impl Bind<State> for Calling {
    fn fresh(&self) -> State {
        State(StoreBase::new(self.0.clone(), self.1.clone()))
    }

    fn renew(&self, state: &mut State) {
        state.0.rebind(self.1.clone());
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("which component?")?;
    let calls: u32 = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    let cache = tempfile::tempdir()?;
    let engine = Engine::<State>::new(EngineConfig::new(cache.path()), |_| Ok(()))?;
    let bytes = Bytes::from(std::fs::read(file)?);
    let fetched = bytes.clone();
    let fetch = async move { Ok::<_, String>(fetched) };
    let plugin = engine.load(Digest::of(&bytes), fetch).await?;
    let limits = Limits::default();
    let kept = plugin.keep(limits, Reuse::default());
    let calling = Calling(Arc::default(), Arc::new(Silent));
    let event = Event {
        id: "1".into(),
        source: "/example".into(),
        r#type: "echo".into(),
        subject: None,
        time: None,
        datacontenttype: Some("application/octet-stream".into()),
        extensions: Vec::new(),
        data: Bytes::from(vec![7; 4096]),
    };
    let deadline = || Instant::now() + Duration::from_secs(60);
    let mut out = std::io::stdout();
    // By turns, so that what disturbs the machine disturbs both.
    for _ in 0..3 {
        let began = Instant::now();
        for _ in 0..calls {
            let state = calling.fresh();
            plugin
                .process(state, limits, deadline(), event.clone())
                .await?;
        }
        let fresh = began.elapsed() / calls;
        let began = Instant::now();
        for _ in 0..calls {
            kept.process(&plugin, &calling, deadline(), event.clone())
                .await?;
        }
        let reused = began.elapsed() / calls;
        writeln!(
            out,
            "a call in a fresh instance {fresh:?}, reused {reused:?}"
        )?;
    }
    Ok(())
}
