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
}

impl Allocator {
    /// Whether there may be much to give back: the process has grown since.
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
        resident >= least.saturating_add(GROWTH)
    }

    /// What is resident now is what is needed.
    pub(crate) fn was_trimmed(&mut self) {
        self.least = resident();
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
