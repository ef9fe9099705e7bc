use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{Blame, ByteSize, ErrorKind, Fault, Limits, StepError, show_duration};
use wasmtime::ResourceLimiter;

use crate::clock::CpuClock;
use crate::config::{CORE_INSTANCES, MEMORIES, TABLE_ELEMENTS, TABLES};
use crate::memory::{NoMemory, Share};

/// A limit that a call ran into, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    Cpu(Duration),
    Memory(u64),
    /// All guests of the host together.
    GuestMemory(u64),
    /// All guests of its namespace together.
    TenantMemory(u64),
    Output(u64),
    /// Extensions of one event.
    Extensions(usize),
    /// What the host says of the request, in all events together.
    Carried(u64),
    Tables(usize),
    Handles(usize),
    HostCall(u64),
}

impl Exceeded {
    /// The word for metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Memory(_) => "memory",
            Self::GuestMemory(_) => "guest_memory",
            Self::TenantMemory(_) => "guest_memory_share",
            Self::Output(_) => "output",
            Self::Extensions(_) => "extensions",
            Self::Carried(_) => "carried",
            Self::Tables(_) => "tables",
            Self::Handles(_) => "handles",
            Self::HostCall(_) => "host_call",
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cpu(limit) => write!(
                f,
                "the guest used more than its {} of CPU time; the setting is limits.cpu",
                show_duration(limit)
            ),
            Self::Memory(limit) => write!(
                f,
                "the guest wanted more than its {} of memory; the setting is limits.memory",
                ByteSize(limit)
            ),
            Self::GuestMemory(limit) => write!(
                f,
                "the guests of this host hold {} of memory together, and there is no more for them; the host's setting is limits.guest_memory",
                ByteSize(limit)
            ),
            Self::TenantMemory(limit) => write!(
                f,
                "the guests of this namespace hold {} of memory together, and there is no more for them while other namespaces use this host: it is three quarters of the host's setting limits.guest_memory",
                ByteSize(limit)
            ),
            Self::Output(limit) => write!(
                f,
                "the guest returned more than its {} of output; the setting is limits.output",
                ByteSize(limit)
            ),
            Self::Extensions(limit) => write!(
                f,
                "the guest returned an event with more than {limit} extensions; this limit is the host's own and has no setting"
            ),
            Self::Carried(limit) => write!(
                f,
                "the guest returned so many events that the request's path, query and parameters, which each of them carries, exceed {} together; this limit is the host's own and has no setting",
                ByteSize(limit)
            ),
            Self::Tables(limit) => write!(
                f,
                "the guest wanted more than {limit} table elements; this limit is the host's own and has no setting"
            ),
            Self::Handles(limit) => write!(
                f,
                "the guest held more than {limit} resource handles; this limit is the host's own and has no setting"
            ),
            Self::HostCall(limit) => write!(
                f,
                "the guest passed more than {} to one host function; this limit is the host's own and has no setting",
                ByteSize(limit)
            ),
        }
    }
}

impl std::error::Error for Exceeded {}

impl From<Exceeded> for StepError {
    fn from(exceeded: Exceeded) -> Self {
        metrics::counter!("stepwell_limit_hits_total", "limit" => exceeded.as_str()).increment(1);
        let error = match exceeded {
            Exceeded::GuestMemory(_) | Exceeded::TenantMemory(_) => {
                Self::new(ErrorKind::Unavailable, exceeded.to_string()).blamed(Blame::Host)
            }
            _ => Self::new(ErrorKind::Limit, exceeded.to_string()),
        };
        // Where the guest was is added by whoever stopped it there.
        error.with_fault(Fault::nowhere(exceeded.as_str()))
    }
}

impl From<NoMemory> for Exceeded {
    fn from(refused: NoMemory) -> Self {
        match refused {
            NoMemory::OfHost(limit) => Self::GuestMemory(limit),
            NoMemory::OfTenant(limit) => Self::TenantMemory(limit),
        }
    }
}

/// Memory of one store from which on it is large: writing all of it takes milliseconds, and so does giving it back.
pub(crate) const LARGE: u64 = 16 << 20;

/// Counts what one store holds: all of its memories together, all of its tables together.
pub(crate) struct Meter {
    pub(crate) limits: Limits,
    memory: u64,
    /// What the memory is taken from, and given back to with this.
    of_host: Option<Arc<Share>>,
    /// The current call's, which is told when the memory has become large.
    clock: Option<Arc<CpuClock>>,
    /// What its HTTP handles hold, and what they held until a little while ago.
    held: u64,
    /// How much that may become before they are looked at.
    unseen: u64,
    /// Whether the call has made a body. One is what nearly every call makes, and does not count.
    pub(crate) made_body: bool,
    tables: usize,
    /// The limit at which a growth was refused. Guests are told so by a failed `memory.grow`, and most abort then: the resulting
    /// trap is this limit's doing.
    pub(crate) refused: Option<Exceeded>,
}

impl Meter {
    pub(crate) fn new(limits: Limits, of_host: Option<Arc<Share>>) -> Self {
        Self {
            limits,
            memory: 0,
            held: 0,
            unseen: UNSEEN,
            made_body: false,
            of_host,
            clock: None,
            tables: 0,
            refused: None,
        }
    }

    /// A call with this clock begins: the clock is told when the memory has become large.
    pub(crate) fn tells(&mut self, clock: Arc<CpuClock>) {
        self.clock = Some(clock);
    }

    /// That of the current call.
    pub(crate) fn clock(&self) -> Option<&CpuClock> {
        self.clock.as_deref()
    }

    /// Gives the memory back ahead of the store, which others are about to drop: whoever needs the memory need not wait for it.
    pub(crate) fn release(&mut self) {
        if let Some(of_host) = self.of_host.take() {
            of_host.give_back(self.memory + of_all(self.held));
        }
    }

    /// Whether its memory counts here.
    pub(crate) fn is_of(&self, share: &Share) -> bool {
        let own = self.of_host.as_ref();
        own.is_some_and(|own| std::ptr::eq(&**own, share))
    }

    /// Whether a growth was refused since others hold the memory.
    pub(crate) fn lacked_memory(&self) -> bool {
        matches!(
            self.refused,
            Some(Exceeded::GuestMemory(_) | Exceeded::TenantMemory(_))
        )
    }

    /// Counts what HTTP handles are about to hold more: of the host's memory, and at most as much as the guest may have of its own.
    /// `all` is asked for what they really hold when it would be too much or twice what it was, since nobody says when one is gone.
    pub(crate) fn hold(&mut self, more: u64, all: impl FnOnce() -> u64) -> Result<(), Exceeded> {
        if self.held.saturating_add(more) <= self.unseen && self.take(more).is_ok() {
            return Ok(());
        }
        self.settle(all());
        self.take(more)
    }

    /// Whether its handles may hold some of what all guests have.
    pub(crate) fn holds_of_all(&self) -> bool {
        of_all(self.held) > 0
    }

    /// This is what its handles really hold.
    pub(crate) fn settle(&mut self, all: u64) {
        let left = self.held.min(all);
        if let Some(of_host) = &self.of_host {
            of_host.give_back(of_all(self.held) - of_all(left));
        }
        self.held = left;
        self.unseen = left.saturating_mul(2).max(UNSEEN);
    }

    /// Takes so many bytes more for its memories or tables; false: there are not as many.
    fn grow(&mut self, more: u64) -> bool {
        if more == 0 {
            return true;
        }
        let total = self.memory.saturating_add(more);
        if total > self.limits.memory {
            self.refused = Some(Exceeded::Memory(self.limits.memory));
            return false;
        }
        if let Some(of_host) = &self.of_host {
            // A guest that was refused memory does not get to look for idle instances again and again.
            let taken = match self.lacked_memory() {
                true => of_host.take_now(more),
                false => of_host.take(more),
            };
            if let Err(refused) = taken {
                self.refused = Some(refused.into());
                return false;
            }
        }
        self.memory = total;
        true
    }

    fn take(&mut self, more: u64) -> Result<(), Exceeded> {
        let held = self.held.saturating_add(more);
        if held > self.limits.memory {
            return Err(Exceeded::Memory(self.limits.memory));
        }
        let of_all = of_all(held) - of_all(self.held);
        if let Some(of_host) = &self.of_host
            && of_all > 0
        {
            of_host.take_now(of_all)?;
        }
        self.held = held;
        Ok(())
    }
}

/// What handles may be thought to hold before anybody looks.
const UNSEEN: u64 = 2 << 20;

/// Elements of all tables together that do not count as memory: nearly all components have fewer.
const FEW_ELEMENTS: usize = 8_192;

/// Bytes of memory that so many elements of tables count as.
fn of_elements(elements: usize) -> u64 {
    const EACH: u64 = size_of::<usize>() as u64;
    elements.saturating_sub(FEW_ELEMENTS) as u64 * EACH
}

/// How much of what handles hold counts among all guests' memory: most calls hold little, and need not ask.
fn of_all(held: u64) -> u64 {
    held.saturating_sub(64 << 10)
}

// What a growth was granted is not given back if it then fails for another reason: wasmtime does not say which growth failed, and
// a guest could so be made to count less than it holds.
impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if !self.grow(desired.saturating_sub(current) as u64) {
            return Ok(false);
        }
        if self.memory > LARGE
            && let Some(clock) = &self.clock
            && !clock.is_large()
        {
            clock.be_large();
            if let Some(of_host) = &self.of_host {
                of_host.interrupt();
            }
        }
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.tables.saturating_add(desired.saturating_sub(current));
        if total > TABLE_ELEMENTS {
            self.refused = Some(Exceeded::Tables(TABLE_ELEMENTS));
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if !self.grow(of_elements(total) - of_elements(self.tables)) {
            return Ok(false);
        }
        self.tables = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    fn meter(memory: u64) -> Meter {
        of(None, memory)
    }

    fn of(of_host: Option<&Arc<Share>>, memory: u64) -> Meter {
        let limits = Limits {
            memory,
            ..Limits::default()
        };
        Meter::new(limits, of_host.cloned())
    }

    #[test]
    fn all_memories_count_together() {
        let mut meter = meter(1 << 20);
        assert!(meter.memory_growing(0, 512 << 10, None).unwrap());
        assert!(meter.memory_growing(0, 512 << 10, None).unwrap());
        assert_eq!(meter.refused, None);
        assert!(!meter.memory_growing(512 << 10, 576 << 10, None).unwrap());
        assert_eq!(meter.refused, Some(Exceeded::Memory(1 << 20)));
    }

    #[test]
    fn growth_beyond_a_memorys_own_maximum_is_no_limit_of_ours() {
        let mut meter = meter(1 << 20);
        assert!(!meter.memory_growing(0, 128 << 10, Some(64 << 10)).unwrap());
        assert_eq!(meter.refused, None);
        assert!(meter.memory_growing(0, 1 << 20, None).unwrap());
    }

    #[test]
    fn all_guests_of_a_host_count_together_until_they_are_gone() {
        let host = Arc::new(GuestMemory::new(3 << 20));
        let share = host.nobodys();
        let mut one = of(Some(&share), 2 << 20);
        let mut other = of(Some(&share), 2 << 20);
        assert!(one.memory_growing(0, 2 << 20, None).unwrap());
        assert!(other.memory_growing(0, 1 << 20, None).unwrap());
        assert!(!other.memory_growing(1 << 20, 2 << 20, None).unwrap());
        assert_eq!(other.refused, Some(Exceeded::GuestMemory(3 << 20)));
        assert_eq!(
            StepError::from(Exceeded::GuestMemory(1)).kind,
            ErrorKind::Unavailable
        );
        drop(one);
        assert_eq!(host.held(), 1 << 20);
        assert!(other.memory_growing(1 << 20, 2 << 20, None).unwrap());
        // What the guest's own limit refuses is not taken from the host.
        assert!(!other.memory_growing(2 << 20, 4 << 20, None).unwrap());
        assert_eq!(host.held(), 2 << 20);
        drop(other);
        assert_eq!(host.held(), 0);
    }

    #[test]
    fn what_handles_hold_is_looked_at_when_it_would_be_too_much() {
        let host = Arc::new(GuestMemory::new(3 << 20));
        let share = host.nobodys();
        let mut one = of(Some(&share), 2 << 20);
        let never = || panic!("there is room");
        one.hold(64 << 10, never).unwrap();
        assert_eq!(host.held(), 0);
        one.hold(1 << 20, never).unwrap();
        assert_eq!(host.held(), 1 << 20);
        let full = one.hold(1 << 20, || (1 << 20) + 1);
        assert_eq!(full, Err(Exceeded::Memory(2 << 20)));
        // Most of them are gone.
        one.hold(1 << 20, || 64 << 10).unwrap();
        assert_eq!(host.held(), 1 << 20);
        let mut other = of(Some(&share), 4 << 20);
        let full = other.hold(3 << 20, || 0);
        assert_eq!(full, Err(Exceeded::GuestMemory(3 << 20)));
        drop((one, other));
        assert_eq!(host.held(), 0);
    }

    #[test]
    fn what_handles_held_is_given_back_before_it_is_much() {
        let host = Arc::new(GuestMemory::new(64 << 20));
        let mut one = of(Some(&host.nobodys()), 64 << 20);
        // Each is gone when the next one comes.
        for _ in 0..1000 {
            one.hold(128 << 10, || 0).unwrap();
            assert!(host.held() <= UNSEEN, "{}", host.held());
        }
        one.settle(0);
        assert_eq!(host.held(), 0);
        // All of them stay.
        for held in 0..200 {
            one.hold(128 << 10, || held * (128 << 10)).unwrap();
        }
        assert_eq!(host.held(), 200 * (128 << 10) - (64 << 10));
    }

    #[test]
    fn a_clock_learns_once_that_the_memory_is_large() {
        let mut meter = meter(1 << 30);
        let clock = Arc::new(CpuClock::new(Duration::from_secs(1), None));
        meter.tells(clock.clone());
        let half = LARGE as usize / 2;
        assert!(meter.memory_growing(0, half, None).unwrap());
        assert!(meter.memory_growing(0, half, None).unwrap());
        assert!(!clock.is_large());
        assert!(meter.memory_growing(half, half + 1, None).unwrap());
        assert!(clock.is_large());
    }

    #[test]
    fn what_was_released_is_not_given_back_again() {
        let host = Arc::new(GuestMemory::new(3 << 20));
        let mut one = of(Some(&host.nobodys()), 2 << 20);
        assert!(one.memory_growing(0, 2 << 20, None).unwrap());
        one.release();
        assert_eq!(host.held(), 0);
        drop(one);
        assert_eq!(host.held(), 0);
    }

    #[test]
    fn all_tables_count_together() {
        let mut meter = meter(1 << 20);
        assert!(meter.table_growing(0, TABLE_ELEMENTS, None).unwrap());
        assert!(!meter.table_growing(0, 1, None).unwrap());
        assert_eq!(meter.refused, Some(Exceeded::Tables(TABLE_ELEMENTS)));
    }

    #[test]
    fn large_tables_count_as_memory() {
        let host = Arc::new(GuestMemory::new(1 << 20));
        let share = host.nobodys();
        let mut one = of(Some(&share), 2 << 20);
        assert!(one.table_growing(0, FEW_ELEMENTS / 2, None).unwrap());
        assert!(one.table_growing(0, FEW_ELEMENTS / 2, None).unwrap());
        assert_eq!(host.held(), 0);
        assert!(one.table_growing(10, 60_010, None).unwrap());
        assert_eq!(host.held(), 480_000);
        let mut other = of(Some(&share), 2 << 20);
        assert!(!other.table_growing(0, TABLE_ELEMENTS, None).unwrap());
        assert_eq!(other.refused, Some(Exceeded::GuestMemory(1 << 20)));
        let mut small = of(Some(&share), 100_000);
        assert!(!small.table_growing(0, 40_000, None).unwrap());
        assert_eq!(small.refused, Some(Exceeded::Memory(100_000)));
        // What was refused is not held.
        assert!(small.table_growing(0, 20_000, None).unwrap());
        drop((one, small));
        assert_eq!(host.held(), 0);
    }
}
