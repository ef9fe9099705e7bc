use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The linear memory that all guests of a host hold together. Each instance takes from it what its memories have grown to, and gives
/// it back when it goes.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    limit: u64,
    held: AtomicU64,
}

impl GuestMemory {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: AtomicU64::new(0),
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether there was as much; if not, nothing is taken.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.limit;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
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
        let memory = GuestMemory::new(100);
        assert!(memory.take(60));
        assert!(!memory.take(41));
        assert_eq!(memory.held(), 60);
        assert!(memory.take(40));
        memory.give_back(60);
        assert!(memory.take(60));
        assert!(!memory.take(u64::MAX - 100));
        assert_eq!(memory.held(), 100);
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
