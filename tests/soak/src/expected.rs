use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a pipeline may be at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is not there: 404.
    Absent,
    /// It answers with this tag.
    Tagged(u64),
}

/// What one pipeline may answer: everything that was proposed since the last change that was acknowledged.
pub(crate) struct Expected {
    pub(crate) name: String,
    log: Mutex<Log>,
}

struct Log {
    states: Vec<State>,
    /// From here on, each may hold now.
    floor: usize,
}

/// When a request began.
#[derive(Clone, Copy)]
pub(crate) struct Since(usize);

impl Expected {
    pub(crate) fn new(name: String) -> Self {
        let log = Log {
            states: vec![State::Absent],
            floor: 0,
        };
        Self {
            name,
            log: Mutex::new(log),
        }
    }

    /// A change to this is about to be asked for.
    pub(crate) fn propose(&self, state: State) {
        self.log().states.push(state);
    }

    /// It is this now, and nothing else.
    pub(crate) fn settle(&self, state: State) {
        let mut log = self.log();
        log.states.push(state);
        log.floor = log.states.len() - 1;
    }

    /// A request begins.
    pub(crate) fn since(&self) -> Since {
        Since(self.log().floor)
    }

    /// Whether a request that began then may have been answered so.
    pub(crate) fn allows(&self, since: Since, state: State) -> bool {
        self.log()
            .states
            .get(since.0..)
            .is_some_and(|states| states.contains(&state))
    }

    /// Everything that may hold, for messages.
    pub(crate) fn shown(&self, since: Since) -> String {
        let log = self.log();
        format!("{:?}", log.states.get(since.0..).unwrap_or_default())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_see_what_was_proposed_since_the_last_acknowledgement() {
        let expected = Expected::new("p".into());
        expected.settle(State::Tagged(1));
        let early = expected.since();
        expected.propose(State::Tagged(2));
        assert!(expected.allows(expected.since(), State::Tagged(1)));
        assert!(expected.allows(expected.since(), State::Tagged(2)));
        expected.settle(State::Tagged(2));
        assert!(!expected.allows(expected.since(), State::Tagged(1)));
        assert!(expected.allows(early, State::Tagged(1)));
        assert!(!expected.allows(early, State::Absent));
    }
}
