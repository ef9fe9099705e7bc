//! Memory that was freed and that the C library keeps for itself.
//!
//! glibc gives back what lies at the end of a heap and keeps what lies between: after a burst of requests the process would stay as
//! large as it was at its peak. Giving all of it back takes a while, in which other threads wait for the heaps that are gone
//! through: so it is done when nothing runs, and only after the process has grown.

use std::fs;

/// Growth that is worth it.
const GROWTH: usize = 32 << 20;

/// How large the process was when memory was given back last.
#[derive(Default)]
pub(crate) struct Allocator {
    least: Option<usize>,
    /// How large it was then.
    trimmed: Option<usize>,
}

impl Allocator {
    /// Whether there may be much to give back: the process has grown since, or some of what was still in use then is not any more.
    pub(crate) fn has_grown(&mut self) -> bool {
        self.has_grown_to(resident())
    }

    fn has_grown_to(&mut self, resident: Option<usize>) -> bool {
        let Some(resident) = resident else {
            return false;
        };
        let least = *self.least.get_or_insert(resident);
        // It shrinks by itself, too.
        self.least = Some(least.min(resident));
        let grown = resident >= least.saturating_add(GROWTH);
        let shrunk = |trimmed: usize| resident.saturating_add(GROWTH) <= trimmed;
        grown || self.trimmed.is_some_and(shrunk)
    }

    /// What is resident now is what is needed.
    pub(crate) fn was_trimmed(&mut self) {
        self.was_trimmed_to(resident());
    }

    fn was_trimmed_to(&mut self, resident: Option<usize>) {
        self.least = resident;
        self.trimmed = resident;
    }
}

/// Gives back what it can. It takes milliseconds, hundreds of them after gigabytes.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes the locks of the heaps, and touches nothing that is in use.
        #[allow(unsafe_code, reason = "no library has this call")]
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

/// Bytes of this process that are in memory.
fn resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_worth_it_after_growth() {
        let mut allocator = Allocator::default();
        for (mib, expected) in [
            (100, false),
            (131, false),
            (132, true),
            (90, false),
            (121, false),
            (122, true),
        ] {
            assert_eq!(allocator.has_grown_to(Some(mib << 20)), expected, "{mib}");
        }
        assert!(!allocator.has_grown_to(None));
    }

    #[test]
    fn it_is_worth_it_when_what_was_in_use_is_gone() {
        let mut allocator = Allocator::default();
        assert!(!allocator.has_grown_to(Some(100 << 20)));
        assert!(allocator.has_grown_to(Some(1000 << 20)));
        allocator.was_trimmed_to(Some(900 << 20));
        assert!(!allocator.has_grown_to(Some(900 << 20)));
        assert!(!allocator.has_grown_to(Some(880 << 20)));
        assert!(allocator.has_grown_to(Some(400 << 20)));
        allocator.was_trimmed_to(Some(110 << 20));
        assert!(!allocator.has_grown_to(Some(110 << 20)));
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_is_free_between_what_is_used_is_given_back() {
        let mut all: Vec<Vec<u8>> = (0..40_000).map(|_| vec![1; 4_000]).collect();
        // Every fortieth stays, on a heap that cannot shrink for it.
        let mut index = 0;
        all.retain(|_| {
            index += 1;
            index % 40 == 0
        });
        let before = resident().unwrap();
        trim();
        let after = resident().unwrap();
        assert!(after + (64 << 20) < before, "{before} {after}");
        assert_eq!(all.len(), 1_000);
    }
}
