use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{fmt, fs};

use stepwell_core::{StepError, share_of};
use wasmtime::EngineWeak;

use crate::config::Flavor;
use crate::idle::Evictor;
use crate::kept::KeptThreads;
use crate::meter::Exceeded;
use crate::slots::Places;

/// The linear memory that all guests of a host hold together. Each instance takes from it what its memories have grown to, and gives
/// it back when it goes.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    limit: u64,
    held: AtomicU64,
    /// Of every namespace that has something deployed.
    tenants: Mutex<HashMap<String, Weak<Share>>>,
    /// How many those are.
    deployed: AtomicUsize,
    /// The engines' idle instances, which make room.
    idle: Mutex<Vec<Evictor>>,
    /// The engines, whose guests can be told to yield.
    engines: Mutex<Vec<Guests>>,
}

/// Those of one engine.
struct Guests(EngineWeak);

/// Whose guests hold some of it.
#[derive(Debug)]
pub(crate) struct Share {
    held: AtomicU64,
    /// Whether it is a namespace's, and so bounded while there are others.
    bounded: bool,
    /// How long its calls have kept threads that others wait for.
    pub(crate) kept: KeptThreads,
    /// What its instances take up of each engine's slots.
    lean: Places,
    concurrent: Places,
    of: Arc<GuestMemory>,
}

/// A namespace whose guests' memory counts together, as [`Engine::tenant`](crate::Engine::tenant) gives it. While steps of other
/// namespaces are deployed, it may hold three quarters of `limits.guest_memory`, and of the
/// places for instances.
#[derive(Clone, Debug)]
pub struct Tenant(pub(crate) Arc<Share>);

/// What is held of a [`Tenant`]'s memory beside its guests; it is given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    of: Arc<Share>,
    bytes: u64,
}

/// Why there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoMemory {
    /// All guests together hold this much.
    OfHost(u64),
    /// The namespace's do.
    OfTenant(u64),
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guests").finish_non_exhaustive()
    }
}

impl GuestMemory {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: AtomicU64::new(0),
            tenants: Mutex::default(),
            deployed: AtomicUsize::new(0),
            idle: Mutex::default(),
            engines: Mutex::default(),
        }
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Has these idle instances make room.
    pub(crate) fn evicts(&self, idle: Evictor) {
        lock(&self.idle).push(idle);
    }

    /// Has this engine's guests yield when one of them has become large.
    pub(crate) fn interrupts(&self, engine: EngineWeak) {
        lock(&self.engines).push(Guests(engine));
    }

    /// The share of whoever is no namespace.
    pub(crate) fn nobodys(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            held: AtomicU64::new(0),
            bounded: false,
            kept: KeptThreads::default(),
            lean: Places::default(),
            concurrent: Places::default(),
            of: self.clone(),
        })
    }

    pub(crate) fn tenant(self: &Arc<Self>, namespace: &str) -> Tenant {
        let mut tenants = lock(&self.tenants);
        if let Some(share) = tenants.get(namespace).and_then(Weak::upgrade) {
            return Tenant(share);
        }
        tenants.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            held: AtomicU64::new(0),
            bounded: true,
            kept: KeptThreads::default(),
            lean: Places::default(),
            concurrent: Places::default(),
            of: self.clone(),
        });
        tenants.insert(namespace.to_owned(), Arc::downgrade(&share));
        self.deployed.fetch_add(1, Ordering::Relaxed);
        Tenant(share)
    }

    /// Whether there was as much; if not, nothing is taken.
    fn take(&self, bytes: u64) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.limit;
        if !fits {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Ends some idle instances, only those of one namespace if one is given, and answers how many it were.
    fn evict(&self, of: Option<&Share>) -> usize {
        // Copied: an instance that goes may be the last to hold anything.
        let idle = lock(&self.idle).clone();
        idle.iter().map(|idle| idle.evict(of)).sum()
    }
}

impl Share {
    /// Takes as much, or nothing. Idle instances make room for it.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), NoMemory> {
        loop {
            let Err(refused) = self.take_now(bytes) else {
                return Ok(());
            };
            let of = match refused {
                NoMemory::OfHost(_) => None,
                NoMemory::OfTenant(_) => Some(self),
            };
            if self.of.evict(of) == 0 {
                return Err(refused);
            }
        }
    }

    /// The same, from what nobody holds.
    pub(crate) fn take_now(&self, bytes: u64) -> Result<(), NoMemory> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let refused = match self.most() {
            Some(most) if before.saturating_add(bytes) > most => Some(NoMemory::OfTenant(most)),
            _ if self.of.take(bytes) => None,
            _ => Some(NoMemory::OfHost(self.of.limit)),
        };
        if let Some(refused) = refused {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(refused);
        }
        Ok(())
    }

    /// Has every guest yield once, before its next loop, call or instruction that fills or copies: the one that has just become
    /// large goes on elsewhere before it touches what it was given.
    pub(crate) fn interrupt(&self) {
        for guests in lock(&self.of.engines).iter() {
            if let Some(engine) = guests.0.upgrade() {
                engine.increment_epoch();
            }
        }
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.of.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What it may hold, if that is less than all.
    fn most(&self) -> Option<u64> {
        let limit = self.of.limit;
        (!self.is_alone()).then(|| share_of(limit))
    }

    pub(crate) fn is_alone(&self) -> bool {
        !self.bounded || self.of.deployed.load(Ordering::Relaxed) < 2
    }

    pub(crate) fn places(&self, flavor: Flavor) -> &Places {
        match flavor {
            Flavor::Lean => &self.lean,
            Flavor::Concurrent => &self.concurrent,
        }
    }

    /// What its instances may take up of so many slots, if that is less than all.
    pub(crate) fn most_slots(&self, all: u32) -> Option<u32> {
        (!self.is_alone()).then(|| share_of(all))
    }
}

impl Tenant {
    /// Begins to hold memory, nothing at first.
    pub fn hold(&self) -> Held {
        Held {
            of: self.0.clone(),
            bytes: 0,
        }
    }
}

impl Held {
    /// Holds so many bytes from now on. Idle instances make room for them.
    ///
    /// # Errors
    /// There are not as many; what was held before still is.
    pub fn set(&mut self, bytes: u64) -> Result<(), StepError> {
        if bytes > self.bytes {
            let taken = self.of.take(bytes - self.bytes);
            taken.map_err(|refused| StepError::from(Exceeded::from(refused)))?;
        } else {
            self.of.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.give_back(self.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bounded {
            self.of.deployed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Half of the memory that this process may use, by the machine or its control group; what cannot be found out counts as 4 GiB.
pub(crate) fn half_of_the_machine() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit(Path::new("/sys/fs/cgroup"), &text));
    let all = match (machine, group) {
        (Some(machine), Some(group)) => machine.min(group),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => 4 << 30,
    };
    all / 2
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The smallest limit of this process's control group (version 2) and of those around it.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(path);
    own.ancestors()
        .take_while(|directory| directory.starts_with(root))
        .filter_map(|directory| fs::read_to_string(directory.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_given() {
        let memory = Arc::new(GuestMemory::new(100));
        let share = memory.nobodys();
        assert_eq!(share.take(60), Ok(()));
        assert_eq!(share.take(41), Err(NoMemory::OfHost(100)));
        assert_eq!(memory.held(), 60);
        assert_eq!(share.take(40), Ok(()));
        share.give_back(60);
        assert_eq!(share.take(60), Ok(()));
        assert_eq!(share.take(u64::MAX - 100), Err(NoMemory::OfHost(100)));
        assert_eq!(memory.held(), 100);
    }

    #[test]
    fn a_namespace_may_hold_three_quarters_while_there_are_others() {
        let memory = Arc::new(GuestMemory::new(100));
        let one = memory.tenant("one");
        assert_eq!(one.0.take(90), Ok(()));
        let other = memory.tenant("other");
        assert_eq!(memory.tenant("one").0.take(1), Err(NoMemory::OfTenant(75)));
        assert_eq!(other.0.take(11), Err(NoMemory::OfHost(100)));
        assert_eq!(other.0.take(10), Ok(()));
        one.0.give_back(40);
        assert_eq!(other.0.take(40), Ok(()));
        assert_eq!(
            (memory.held(), one.0.take(1)),
            (100, Err(NoMemory::OfHost(100)))
        );
        // Once more alone, all is its own.
        other.0.give_back(50);
        drop(other);
        assert_eq!(one.0.take(50), Ok(()));
        // Who leaves and comes back is counted once.
        let _other = [memory.tenant("other"), memory.tenant("other")];
        assert_eq!(memory.deployed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_is_held_beside_guests_counts_like_theirs() {
        let memory = Arc::new(GuestMemory::new(100));
        let (one, other) = (memory.tenant("one"), memory.tenant("other"));
        let mut held = one.hold();
        assert!(held.set(60).is_ok());
        assert_eq!(one.0.take(16), Err(NoMemory::OfTenant(75)));
        let error = held.set(76).unwrap_err();
        assert_eq!(error.kind, stepwell_core::ErrorKind::Unavailable);
        assert!(error.message.contains("limits.guest_memory"), "{error}");
        assert_eq!(memory.held(), 60);
        assert!(held.set(10).is_ok());
        assert_eq!(memory.held(), 10);
        assert_eq!(other.0.take(75), Ok(()));
        drop(held);
        assert_eq!(memory.held(), 75);
    }

    #[test]
    fn the_default_is_half_of_what_this_process_may_use() {
        let half = half_of_the_machine();
        assert!(half >= 64 << 20, "{half}");
        assert_eq!(
            total("MemFree: 1 kB\nMemTotal:       16384 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(total("nothing"), None);

        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit(root.path(), "1:x:/y\n0::/a/b\n"), Some(1000));
        fs::write(inner.join("memory.max"), "500\n").unwrap();
        assert_eq!(group_limit(root.path(), "0::/a/b\n"), Some(500));
        assert_eq!(group_limit(root.path(), "0::/elsewhere\n"), None);
        assert_eq!(group_limit(root.path(), "1:memory:/a\n"), None);
    }
}
