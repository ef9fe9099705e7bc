use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell_core::{Name, Principal, share_of};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// So much of something for all callers together. Those of one namespace leave a quarter to everybody else.
pub(crate) struct Room {
    all: u64,
    share: u64,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    all: u64,
    namespaces: HashMap<Name, u64>,
}

/// What one caller has of the room; it is given back when this is dropped.
pub(crate) struct Held {
    room: Arc<Room>,
    /// The namespace that the caller is confined to; none: an operator gave it every namespace.
    namespace: Option<Name>,
    amount: u64,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The caller's namespace has its share.
    OfNamespace,
    /// Everything is taken.
    OfAll,
}

impl Room {
    /// Room of which callers of one namespace get three quarters, or `least` where that is more.
    pub(crate) fn new(all: u64, least: u64) -> Arc<Self> {
        Arc::new(Self {
            all,
            share: share_of(all).max(least.min(all)),
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Nothing yet, for a caller.
    pub(crate) fn hold(self: &Arc<Self>, by: &Principal) -> Held {
        Held {
            room: self.clone(),
            namespace: by.namespace.clone(),
            amount: 0,
        }
    }

    /// Returns when room was given back after this was called and first polled.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes more, if there is more.
    pub(crate) fn take(&mut self, more: u64) -> Result<(), Full> {
        let mut taken = self.room.lock();
        let all = taken.all.saturating_add(more);
        let own = self.namespace.as_ref().map(|namespace| {
            let own = taken.namespaces.get(namespace).copied();
            (namespace, own.unwrap_or(0).saturating_add(more))
        });
        if own.is_some_and(|(_, own)| own > self.room.share) {
            return Err(Full::OfNamespace);
        }
        if all > self.room.all {
            return Err(Full::OfAll);
        }
        taken.all = all;
        if let Some((namespace, own)) = own {
            taken.namespaces.insert(namespace.clone(), own);
        }
        self.amount += more;
        Ok(())
    }

    /// Takes more as soon as there is more, within this time.
    pub(crate) async fn take_within(&mut self, more: u64, time: Duration) -> Result<(), Full> {
        let end = Instant::now() + time;
        let room = self.room.clone();
        loop {
            let mut freed = std::pin::pin!(room.freed());
            freed.as_mut().enable();
            let Err(full) = self.take(more) else {
                return Ok(());
            };
            timeout_at(end, freed).await.map_err(|_| full)?;
        }
    }

    pub(crate) fn namespace(&self) -> Option<&Name> {
        self.namespace.as_ref()
    }

    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.all = taken.all.saturating_sub(self.amount);
        if let Some(namespace) = &self.namespace
            && let Some(own) = taken.namespaces.get_mut(namespace)
        {
            *own = own.saturating_sub(self.amount);
            if *own == 0 {
                taken.namespaces.remove(namespace);
            }
        }
        drop(taken);
        self.room.freed.notify_waiters();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use stepwell_core::Role;

    use super::*;

    /// A deployer of this namespace.
    pub(crate) fn of(namespace: &str) -> Principal {
        Principal {
            id: "t".into(),
            name: "t".into(),
            role: Role::Deployer,
            namespace: Some(namespace.parse().unwrap()),
        }
    }

    #[test]
    fn callers_of_one_namespace_leave_a_quarter_to_the_others() {
        let room = Room::new(100, 0);
        let (mut a, mut again) = (room.hold(&of("a")), room.hold(&of("a")));
        assert_eq!((a.take(70), again.take(5)), (Ok(()), Ok(())));
        assert_eq!(again.take(1), Err(Full::OfNamespace));
        let mut operator = room.hold(&Principal::admin_token());
        assert_eq!(operator.take(20), Ok(()));
        let mut b = room.hold(&of("b"));
        assert_eq!((b.take(5), b.take(1)), (Ok(()), Err(Full::OfAll)));
        drop((a, again, b));
        assert_eq!(operator.take(80), Ok(()));
        assert_eq!(operator.take(u64::MAX), Err(Full::OfAll));
        drop(operator);
        assert!(room.lock().all == 0 && room.lock().namespaces.is_empty());
    }

    #[test]
    fn the_share_is_never_less_than_the_largest_thing() {
        assert_eq!(Room::new(100, 90).hold(&of("a")).take(90), Ok(()));
        assert_eq!(Room::new(100, 200).hold(&of("a")).take(100), Ok(()));
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let room = Room::new(10, 0);
        let mut first = room.hold(&Principal::admin_token());
        first.take(8).unwrap();
        let mut second = room.hold(&Principal::admin_token());
        let soon = Duration::from_millis(20);
        assert_eq!(second.take_within(3, soon).await, Err(Full::OfAll));
        let waits = tokio::spawn(async move {
            let outcome = second.take_within(3, Duration::from_secs(10)).await;
            (outcome, second.amount())
        });
        tokio::time::sleep(soon).await;
        drop(first);
        assert_eq!(waits.await.unwrap(), (Ok(()), 3));
    }
}
