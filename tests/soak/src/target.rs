use std::sync::{Arc, Mutex, PoisonError};

use stepwell_tests::Host;

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
}

/// One life of the host, as a request saw it begin.
#[derive(Clone)]
pub(crate) struct Visit {
    pub(crate) http: reqwest::Client,
    life: u64,
    pub(crate) data: Arc<str>,
    pub(crate) admin: Arc<str>,
}

impl Target {
    pub(crate) fn new(host: &Host) -> Self {
        let place = Place {
            life: 0,
            data: host.data().into(),
            admin: host.admin().into(),
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
