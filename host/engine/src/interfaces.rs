use serde::{Deserialize, Serialize};

use crate::link::{WASI, WASI_CONFIG, WASI_INTERFACES};
use crate::link_03::{WASI_03, WASI_03_INTERFACES};

/// The interfaces that a guest may import, by their full names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interfaces(Vec<String>);

impl Interfaces {
    /// WASI's and these.
    pub(crate) fn new(others: &[String]) -> Self {
        let mut names: Vec<String> = WASI_INTERFACES
            .iter()
            .map(|name| format!("{name}@{WASI}"))
            .chain(
                WASI_03_INTERFACES
                    .iter()
                    .map(|name| format!("{name}@{WASI_03}")),
            )
            .chain([WASI_CONFIG.to_owned()])
            .chain(others.iter().cloned())
            .collect();
        names.sort();
        names.dedup();
        Self(names)
    }

    /// Whether the linker finds something under this name: itself, or a release that is compatible with it.
    pub(crate) fn provides(&self, import: &str) -> bool {
        self.0.iter().any(|name| {
            name == import
                || matches!((compatible(name), compatible(import)), (Some(ours), Some(theirs)) if ours == theirs)
        })
    }

    /// The interface that was most probably meant: another version of the same, else one of the same package, else one that is
    /// written almost the same.
    pub(crate) fn nearest(&self, import: &str) -> Option<&str> {
        let (path, version) = split(import);
        let package = path.split('/').next().unwrap_or(path);
        self.0
            .iter()
            .map(|name| {
                let (ours, _) = split(name);
                let rank = if ours == path {
                    0
                } else if ours.split('/').next() == Some(package) {
                    1 + distance(ours, path)
                } else {
                    // Nothing of another package is near unless it looks like a slip of the pen.
                    match distance(ours, path) {
                        few @ 0..=3 => 1000 + few,
                        _ => usize::MAX,
                    }
                };
                // Of two versions, the one that the import was written for.
                let other = release(name) != version.and_then(release_of);
                (rank, other, name.as_str())
            })
            .filter(|(rank, ..)| *rank != usize::MAX)
            .min()
            .map(|(.., name)| name)
    }
}

/// `name@version` in two.
pub(crate) fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((path, version)) => (path, Some(version)),
        None => (name, None),
    }
}

/// The first two numbers of a name's version.
fn release(name: &str) -> Option<(&str, &str)> {
    split(name).1.and_then(release_of)
}

fn release_of(version: &str) -> Option<(&str, &str)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?, numbers.next()?))
}

/// The name with what may differ between compatible releases cut off, as wasmtime's linker has it; none for pre-releases and for
/// names without a version.
fn compatible(name: &str) -> Option<(&str, u64, Option<u64>)> {
    let (path, version) = split(name);
    let mut numbers = version?.split('.');
    let mut number = || numbers.next()?.parse::<u64>().ok();
    let (major, minor, patch) = (number()?, number()?, number()?);
    if numbers.next().is_some() {
        return None;
    }
    match (major, minor) {
        (0, 0) => None,
        (0, minor) => Some((path, 0, Some(minor))),
        (major, _) => Some((path, major, None)),
    }
    .filter(|_| patch < u64::MAX)
}

/// Levenshtein's distance of two names; those that are absurdly long are far from everything.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 200 || b.len() > 200 {
        return 500;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, cell) in b.bytes().zip(row.iter_mut().skip(1)) {
            let up = *cell;
            left = (up + 1).min(left + 1).min(diagonal + usize::from(x != y));
            diagonal = up;
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Interfaces {
        Interfaces::new(&[
            "stepwell:vector/index@0.1.0".into(),
            "wasi:keyvalue/store@0.2.0-draft".into(),
            "wasi:keyvalue/store@0.2.0-draft2".into(),
        ])
    }

    #[test]
    fn compatible_releases_are_provided_and_pre_releases_are_not() {
        let interfaces = interfaces();
        for name in [
            "wasi:io/poll@0.2.12",
            "wasi:io/poll@0.2.0",
            "wasi:io/poll@0.2.99",
            "wasi:http/types@0.3.0",
            "wasi:http/client@0.3.1",
            "wasi:config/store@0.2.0-rc.1",
            "stepwell:vector/index@0.1.7",
            "wasi:keyvalue/store@0.2.0-draft2",
        ] {
            assert!(interfaces.provides(name), "{name}");
        }
        for name in [
            "wasi:io/poll",
            "wasi:io/poll@0.3.0",
            "wasi:http/types@0.3.0-rc-2026-03-15",
            "wasi:http/types@0.4.0",
            "wasi:io/poll@0.2.0-rc-2023-11-10",
            "wasi:io/poll@0.2.0.1",
            "wasi:config/store@0.2.0",
            "wasi:config/store@0.2.0-rc.2",
            "stepwell:vector/index@0.2.0",
            "wasi:keyvalue/store@0.2.0",
            "",
            "@",
        ] {
            assert!(!interfaces.provides(name), "{name}");
        }
    }

    #[test]
    fn the_nearest_is_the_one_that_was_meant() {
        let interfaces = interfaces();
        for (wrong, meant) in [
            (
                "wasi:io/poll@0.3.0-rc-2025-09-16",
                Some("wasi:io/poll@0.2.12"),
            ),
            (
                "wasi:http/types@0.3.0-rc-2026-03-15",
                Some("wasi:http/types@0.3.0"),
            ),
            ("wasi:http/types@0.2.0-rc-1", Some("wasi:http/types@0.2.12")),
            (
                "stepwell:vector/indexes@0.1.0",
                Some("stepwell:vector/index@0.1.0"),
            ),
            (
                "stepwel:vector/index@0.1.0",
                Some("stepwell:vector/index@0.1.0"),
            ),
            (
                "wasi:keyvalue/store@0.1.0",
                Some("wasi:keyvalue/store@0.2.0-draft"),
            ),
            ("acme:thing/foo", None),
        ] {
            assert_eq!(interfaces.nearest(wrong), meant, "{wrong}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
