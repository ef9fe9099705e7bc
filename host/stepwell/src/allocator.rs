//! Memory that was freed and that the C library keeps for itself.
//!
//! glibc gives back what lies at the end of a heap and keeps what lies between: after a burst of requests the process would stay as
//! large as it was at its peak. Giving all of it back takes a while, in which other threads wait for the heaps that are gone
//! through: so it is done when nothing runs, and only after the process has grown.

use std::fs;

/// Growth that is worth it.
const GROWTH: usize = 32 << 20;

/// Threads whose end is worth it: what they have freed stays in heaps that hardly anybody uses any more.
const THREADS: usize = 16;

/// How large the process was when memory was given back last.
#[derive(Default)]
pub(crate) struct Allocator {
    least: Option<usize>,
    /// How large it was then.
    trimmed: Option<usize>,
    /// The most threads that it has had since.
    threads: usize,
}

/// What the system says of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    /// Bytes in memory.
    resident: usize,
    threads: usize,
}

impl Allocator {
    /// Whether there may be much to give back: the process has grown since, or some of what was still in use then is not any more.
    pub(crate) fn has_grown(&mut self) -> bool {
        self.has_grown_to(process())
    }

    fn has_grown_to(&mut self, process: Option<Process>) -> bool {
        let Some(Process { resident, threads }) = process else {
            return false;
        };
        self.threads = self.threads.max(threads);
        let least = *self.least.get_or_insert(resident);
        // It shrinks by itself, too.
        self.least = Some(least.min(resident));
        let grown = resident >= least.saturating_add(GROWTH);
        let shrunk = |trimmed: usize| resident.saturating_add(GROWTH) <= trimmed;
        let ended = threads.saturating_add(THREADS) <= self.threads;
        grown || ended || self.trimmed.is_some_and(shrunk)
    }

    /// What is resident now is what is needed.
    pub(crate) fn was_trimmed(&mut self) {
        self.was_trimmed_to(process());
    }

    fn was_trimmed_to(&mut self, process: Option<Process>) {
        self.least = process.map(|process| process.resident);
        self.trimmed = self.least;
        self.threads = process.map_or(0, |process| process.threads);
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

/// This process as it is now.
fn process() -> Option<Process> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = |key: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(key)).map(str::trim)
    };
    let kib: usize = value("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(Process {
        resident: kib.checked_mul(1024)?,
        threads: value("Threads:")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mib: usize) -> Option<Process> {
        with_threads(mib, 20)
    }

    fn with_threads(mib: usize, threads: usize) -> Option<Process> {
        let resident = mib << 20;
        Some(Process { resident, threads })
    }

    #[test]
    fn it_is_worth_it_when_threads_have_ended() {
        let mut allocator = Allocator::default();
        for (threads, expected) in [(20, false), (200, false), (185, false), (184, true)] {
            let process = with_threads(100, threads);
            assert_eq!(allocator.has_grown_to(process), expected, "{threads}");
        }
        allocator.was_trimmed_to(with_threads(90, 184));
        assert!(!allocator.has_grown_to(with_threads(90, 184)));
        assert!(allocator.has_grown_to(with_threads(90, 25)));
    }

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
            assert_eq!(allocator.has_grown_to(of(mib)), expected, "{mib}");
        }
        assert!(!allocator.has_grown_to(None));
    }

    #[test]
    fn it_is_worth_it_when_what_was_in_use_is_gone() {
        let mut allocator = Allocator::default();
        assert!(!allocator.has_grown_to(of(100)));
        assert!(allocator.has_grown_to(of(1000)));
        allocator.was_trimmed_to(of(900));
        assert!(!allocator.has_grown_to(of(900)));
        assert!(!allocator.has_grown_to(of(880)));
        assert!(allocator.has_grown_to(of(400)));
        allocator.was_trimmed_to(of(110));
        assert!(!allocator.has_grown_to(of(110)));
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
        let before = process().unwrap().resident;
        trim();
        let after = process().unwrap().resident;
        assert!(after + (64 << 20) < before, "{before} {after}");
        assert_eq!(all.len(), 1_000);
    }
}
