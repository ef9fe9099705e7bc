//! Outbound HTTP against real servers on loopback, with names that resolve to what each test says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod client;
mod exchange;
mod limits;
mod rules;
mod server;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use stepwell_core::{Grants, StepScope};
use stepwell_egress::{CallEgress, Egress, EgressConfig, Resolver};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks as _};

/// A resolver whose answers to a name follow each other; the last one stays.
#[derive(Default)]
pub(crate) struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    pub(crate) asked: AtomicUsize,
}

impl Names {
    pub(crate) fn of(names: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let answers = names.iter().map(|(name, answers)| {
            let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
            (name.to_string(), answers.iter().map(parse).collect())
        });
        Arc::new(Self {
            answers: Mutex::new(answers.collect()),
            asked: AtomicUsize::new(0),
        })
    }

    /// Every name that a test uses is this machine.
    pub(crate) fn loopback(names: &[&str]) -> Arc<Self> {
        let here: &[&[&str]] = &[&["127.0.0.1"]];
        Self::of(&names.iter().map(|name| (*name, here)).collect::<Vec<_>>())
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if name.starts_with("never") {
            std::future::pending::<()>().await;
        }
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(match answers.len() {
            1 => answers[0].clone(),
            _ => answers.remove(0),
        })
    }
}

/// Loopback is open.
pub(crate) fn open() -> EgressConfig {
    EgressConfig {
        private: vec!["127.0.0.1/32".parse().unwrap()],
        ..EgressConfig::default()
    }
}

pub(crate) fn egress(config: EgressConfig, names: &Arc<Names>) -> Arc<Egress> {
    Egress::with_resolver(config, names.clone()).unwrap()
}

/// One call of a step with these grants; what it notes is kept.
pub(crate) struct Call {
    pub(crate) hooks: CallEgress,
    pub(crate) notes: Arc<Mutex<Vec<String>>>,
}

pub(crate) fn call(egress: &Arc<Egress>, namespace: &str, origins: &[&str]) -> Call {
    call_until(egress, namespace, origins, Duration::from_secs(60))
}

pub(crate) fn call_until(
    egress: &Arc<Egress>,
    namespace: &str,
    origins: &[&str],
    time: Duration,
) -> Call {
    let mut grants = Grants::default();
    for origin in origins {
        grants.allow_http(origin.parse().unwrap());
    }
    let scope = egress
        .scope(&Arc::new(StepScope {
            namespace: namespace.parse().unwrap(),
            pipeline: "p".parse().unwrap(),
            revision: 1,
            step: "s".parse().unwrap(),
            plugin: "caller@1.0.0".into(),
            digest: None,
            grants,
            config: Vec::new(),
            cpu: Arc::default(),
        }))
        .expect("a grant");
    let notes = Arc::new(Mutex::new(Vec::new()));
    let kept = notes.clone();
    let note = Arc::new(move |text: &str| kept.lock().unwrap().push(text.to_owned()));
    Call {
        hooks: scope.call(Instant::now() + time, note),
        notes,
    }
}

pub(crate) type Answer = Result<Response<WasiBody>, HttpError>;

pub(crate) fn body(text: &'static str) -> WasiBody {
    Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn request(method: &str, url: &str) -> Request<WasiBody> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(url)
        .body(body(""))
        .unwrap()
}

impl Call {
    pub(crate) fn begin(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> impl Future<Output = Answer> + use<> {
        let sent = Box::new(std::future::ready(Ok(())));
        let answer = Box::into_pin(self.hooks.send_request(request, options, sent));
        async move { Ok(answer.await?.0) }
    }

    pub(crate) async fn send(&mut self, request: Request<WasiBody>) -> Answer {
        self.begin(request, None).await
    }

    pub(crate) async fn get(&mut self, url: &str) -> Answer {
        self.send(request("GET", url)).await
    }

    /// The body of what must be answered.
    pub(crate) async fn text(&mut self, url: &str) -> String {
        text(self.get(url).await.expect(url)).await
    }

    /// The error of what must be refused.
    pub(crate) async fn error(&mut self, url: &str) -> HttpError {
        self.get(url).await.map(drop).expect_err(url)
    }

    pub(crate) fn noted(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

pub(crate) async fn text(response: Response<WasiBody>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits for something that another task does.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
