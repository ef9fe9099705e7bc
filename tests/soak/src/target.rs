use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use reqwest::{Body, Method, RequestBuilder};
use stepwell_tests::{Host, Reply, send};

/// Where the host is now, if it runs.
pub(crate) struct Target {
    http: reqwest::Client,
    place: Mutex<Place>,
}

#[derive(Clone)]
struct Place {
    /// Even while the host runs, odd while it is being stopped or started.
    life: u64,
    data: Arc<str>,
    admin: Arc<str>,
    kafka: Arc<str>,
}

/// One life of the host, as a request saw it begin.
#[derive(Clone)]
pub(crate) struct Visit {
    pub(crate) http: reqwest::Client,
    life: u64,
    pub(crate) data: Arc<str>,
    pub(crate) admin: Arc<str>,
    /// The embedded broker, whose records end with the host.
    pub(crate) kafka: Arc<str>,
}

impl Visit {
    /// Asks the management API.
    pub(crate) async fn manage(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Result<Reply> {
        let url = format!("{}/api/v1{path}", self.admin);
        send(self.http.request(method, url).body(body)).await
    }

    /// The same where only these statuses are right.
    pub(crate) async fn expect(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
        good: &[u16],
    ) -> Result<Reply> {
        let what = format!("{method} {path}");
        let reply = self.manage(method, path, body).await?;
        match good.contains(&reply.status.as_u16()) {
            true => Ok(reply),
            false => Err(unexpected(&reply).context(what)),
        }
    }

    /// An event for a route, without its data.
    pub(crate) fn event(&self, path: &str, id: &str, kind: &str) -> RequestBuilder {
        self.http
            .post(format!("{}{path}", self.data))
            .header("ce-specversion", "1.0")
            .header("ce-id", id)
            .header("ce-source", "/soak")
            .header("ce-type", kind)
    }
}

/// An answer that should have been another.
pub(crate) fn unexpected(reply: &Reply) -> anyhow::Error {
    let text = String::from_utf8_lossy(&reply.body);
    let text: String = text.chars().take(500).collect();
    anyhow!("unexpected {}: {text}", reply.status)
}

impl Target {
    pub(crate) fn new(host: &Host) -> Self {
        let place = Place {
            life: 0,
            data: host.data().into(),
            admin: host.admin().into(),
            kafka: host.kafka().into(),
        };
        Self {
            http: reqwest::Client::new(),
            place: Mutex::new(place),
        }
    }

    /// The host; none while it is down.
    pub(crate) fn visit(&self) -> Option<Visit> {
        let place = self.place();
        place.life.is_multiple_of(2).then(|| Visit {
            http: self.http.clone(),
            life: place.life,
            data: place.data,
            admin: place.admin,
            kafka: place.kafka,
        })
    }

    /// Whether the host has been the same since, so that nothing excuses a broken connection.
    pub(crate) fn undisturbed(&self, visit: &Visit) -> bool {
        self.place().life == visit.life
    }

    /// The host is about to go.
    pub(crate) fn down(&self) {
        self.change(|place| place.life += 1);
    }

    /// The host is back.
    pub(crate) fn up(&self, host: &Host) {
        self.change(|place| {
            place.life += 1;
            place.data = host.data().into();
            place.admin = host.admin().into();
            place.kafka = host.kafka().into();
        });
    }

    fn place(&self) -> Place {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Place)) {
        change(&mut self.place.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
