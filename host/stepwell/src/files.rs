//! The open files that this process may have: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Files beside connections: databases, components, clients of services.
const BESIDE: u64 = 1024;

/// Raises the limit as far as it may be raised, and warns where that is too little for so many connections.
pub(crate) fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        debug!(%error, "the limit of open files could not be raised");
    }
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < wanted(connections)
    {
        warn!(
            files,
            wanted = wanted(connections),
            "this process may open too few files for all the connections that it takes: raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

fn wanted(connections: usize) -> u64 {
    (connections as u64).saturating_add(BESIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit {
            current: Some(before.current.map_or(512, |current| current.min(512))),
            ..before
        };
        setrlimit(Resource::Nofile, lower).unwrap();
        raise_limit(10);
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
