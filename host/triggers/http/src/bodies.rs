//! Room for bodies that are held in memory as a whole: on all connections together there is so much of it for those of requests, and
//! as much for those of responses.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use stepwell_core::{Name, share_of};

use crate::problem::Problem;

/// The room, where nobody says how much of it there is.
pub(crate) const DEFAULT: u64 = 256 << 20;

/// A body of at most so many bytes that comes at once is not counted: it waits for nothing but its run.
pub(crate) const SMALL: usize = 64 << 10;

/// A response of at most so many bytes is not counted until its client has taken it.
pub(crate) const SMALL_REPLY: u64 = 16 << 10;

/// How much of the room is taken, and by whom.
pub(crate) struct Bodies {
    limit: u64,
    /// What one namespace may take of it while there are others.
    share: u64,
    taken: AtomicU64,
    tenants: ArcSwap<HashMap<Name, Arc<AtomicU64>>>,
}

/// Where a namespace's bodies find room; nothing is looked up before one needs it.
#[derive(Clone, Copy)]
pub(crate) struct Room<'a> {
    pub(crate) bodies: &'a Arc<Bodies>,
    pub(crate) namespace: &'a Name,
}

/// The room of one body; it is given back when this is dropped.
pub(crate) struct Held {
    bodies: Arc<Bodies>,
    tenant: Arc<AtomicU64>,
    bytes: u64,
}

impl Bodies {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            share: share_of(limit),
            taken: AtomicU64::new(0),
            tenants: ArcSwap::default(),
        })
    }

    /// Sets which namespaces there are.
    pub(crate) fn set_namespaces<'a>(&self, namespaces: impl Iterator<Item = &'a Name> + Clone) {
        self.tenants.rcu(|tenants| {
            let of = |name: &Name| (name.clone(), tenants.get(name).cloned().unwrap_or_default());
            namespaces.clone().map(of).collect::<HashMap<_, _>>()
        });
    }

    /// The bytes that are taken now.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether a namespace has as much as it may.
    pub(crate) fn is_full(&self, namespace: &Name) -> bool {
        let taken = self.taken();
        if taken < self.share {
            return false;
        }
        let tenants = self.tenants.load();
        let own = tenants.get(namespace);
        let over_share = own.is_some_and(|own| own.load(Ordering::Relaxed) >= self.share);
        taken >= self.limit || over_share && tenants.len() > 1
    }

    fn tenant(&self, namespace: &Name) -> Arc<AtomicU64> {
        if let Some(tenant) = self.tenants.load().get(namespace) {
            return tenant.clone();
        }
        let new = Arc::<AtomicU64>::default();
        self.tenants.rcu(|tenants| {
            let mut tenants = HashMap::clone(tenants);
            tenants
                .entry(namespace.clone())
                .or_insert_with(|| new.clone());
            tenants
        });
        let tenants = self.tenants.load();
        tenants.get(namespace).cloned().unwrap_or(new)
    }
}

impl Room<'_> {
    /// No room yet.
    pub(crate) fn hold(self) -> Held {
        Held {
            bodies: self.bodies.clone(),
            tenant: self.bodies.tenant(self.namespace),
            bytes: 0,
        }
    }
}

impl Held {
    /// Takes room for more bytes.
    pub(crate) fn take(&mut self, more: u64) -> Result<(), Problem> {
        let bodies = &self.bodies;
        let own = self.tenant.fetch_add(more, Ordering::Relaxed);
        let all = bodies.taken.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        let over_share = own.saturating_add(more) > bodies.share && bodies.tenants.load().len() > 1;
        if over_share || all.saturating_add(more) > bodies.limit {
            metrics::counter!("stepwell_limit_hits_total", "limit" => "bodies").increment(1);
            return Err(Problem::NoRoom);
        }
        Ok(())
    }

    /// Takes room that is needed whether there is any or not.
    pub(crate) fn must_take(&mut self, more: u64) {
        self.tenant.fetch_add(more, Ordering::Relaxed);
        self.bodies.taken.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
    }

    /// The same bytes, which hold the room for as long as any of them are in memory.
    pub(crate) fn keep(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Kept { bytes, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tenant.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bodies.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Kept {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    #[test]
    fn one_namespace_leaves_room_for_the_others() {
        let bodies = Bodies::new(100);
        let (a, b) = (name("a"), name("b"));
        let hold = |namespace| {
            let bodies = &bodies;
            Room { bodies, namespace }.hold()
        };
        // Alone it may have everything.
        let mut first = hold(&a);
        first.take(100).unwrap();
        assert!(hold(&a).take(1).is_err());
        drop(first);
        bodies.set_namespaces([&a, &b].into_iter());
        let mut first = hold(&a);
        first.take(75).unwrap();
        assert!(hold(&a).take(1).is_err());
        let mut second = hold(&b);
        second.take(25).unwrap();
        assert!(hold(&b).take(1).is_err());
        assert_eq!(bodies.taken(), 100);
        drop((first, second));
        assert_eq!(bodies.taken(), 0);
        hold(&a).take(75).unwrap();
    }

    #[test]
    fn what_must_be_held_leaves_no_room_for_the_next() {
        let bodies = Bodies::new(100);
        let (a, b) = (name("a"), name("b"));
        let hold = |namespace, bytes| {
            let bodies = &bodies;
            let mut held = Room { bodies, namespace }.hold();
            held.must_take(bytes);
            held
        };
        let first = hold(&a, 99);
        assert!(!bodies.is_full(&a), "alone it may have everything");
        let beyond = hold(&a, 70);
        assert!(bodies.is_full(&a));
        drop((first, beyond));
        bodies.set_namespaces([&a, &b].into_iter());
        let _share = hold(&a, 75);
        assert_eq!((bodies.is_full(&a), bodies.is_full(&b)), (true, false));
        let _rest = hold(&b, 25);
        assert!(bodies.is_full(&b));
    }

    #[test]
    fn room_is_held_as_long_as_any_of_the_bytes() {
        let bodies = Bodies::new(100);
        let namespace = &name("a");
        let mut held = Room {
            bodies: &bodies,
            namespace,
        }
        .hold();
        held.take(10).unwrap();
        let bytes = held.keep(Bytes::from_static(b"0123456789"));
        let part = bytes.slice(2..4);
        drop(bytes);
        assert_eq!((&part[..], bodies.taken()), (&b"23"[..], 10));
        drop(part);
        assert_eq!(bodies.taken(), 0);
    }
}
