//! What one run holds between its steps and at its end.

use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{mem, thread, vec};

use stepwell_core::{ByteSize, ErrorKind, Event, Fault, Name, StepError};

/// Events that one run may hold: those that wait for a step or for the run's end, and those that it will end with.
pub(crate) const MAX_EVENTS: usize = 10_000;

/// Bytes that these may occupy together, the host's own records of them included: one step may return as much as any may
/// (`limits.output`), and the run end with as much again.
pub(crate) const MAX_HELD: usize = 128 << 20;

/// Bytes of all events that one run may end with.
pub(crate) const MAX_DELIVERED: usize = 64 << 20;

/// Bytes that each run holds for nothing. What is more is taken from the memory that all runs share, in pieces of [`PIECE`].
const FREE: usize = 256 << 10;
const PIECE: usize = 1 << 20;

/// What the host's records of an event and of an extension occupy beside their texts.
const RECORD: usize = 300;
const EXTENSION: usize = 100;

/// So many events are dropped in no time; more than these are dropped by a thread of their own.
const FEW: usize = 500;

/// Sets how many bytes of a namespace's memory are held, or says why there are not as many. What is held is given back when it is
/// dropped.
pub type Hold = Box<dyn FnMut(u64) -> Result<(), StepError> + Send>;

/// Begins to hold a namespace's memory, nothing at first.
pub type EventMemory = Box<dyn Fn(&Name) -> Hold + Send + Sync>;

/// The events that a run has at hand, without the one that is in a step.
pub(crate) struct Backlog<'a> {
    namespace: &'a Name,
    memory: Option<&'a EventMemory>,
    /// What has to wait until the event in hand has come to its end, and at which step it goes on.
    waiting: Vec<(usize, vec::IntoIter<Event>)>,
    delivered: Vec<Event>,
    delivered_bytes: usize,
    /// Of all of them.
    events: usize,
    bytes: usize,
    hold: Option<Hold>,
    held: usize,
}

impl<'a> Backlog<'a> {
    pub(crate) fn new(namespace: &'a Name, memory: Option<&'a EventMemory>) -> Self {
        Self {
            namespace,
            memory,
            waiting: Vec::new(),
            delivered: Vec::new(),
            delivered_bytes: 0,
            events: 0,
            bytes: 0,
            hold: None,
            held: 0,
        }
    }

    /// The next event that waits, with its step.
    pub(crate) fn next(&mut self) -> Option<(usize, Event)> {
        loop {
            let (position, events) = self.waiting.last_mut()?;
            if let Some(event) = events.next() {
                let position = *position;
                self.events = self.events.saturating_sub(1);
                self.bytes = self.bytes.saturating_sub(cost(&event));
                return Some((position, event));
            }
            self.waiting.pop();
        }
    }

    /// Has these wait for the step at this position.
    ///
    /// # Errors
    /// The run holds too much.
    pub(crate) fn wait(
        &mut self,
        position: usize,
        events: vec::IntoIter<Event>,
    ) -> Result<(), StepError> {
        self.events = self.events.saturating_add(events.len());
        if self.events <= MAX_EVENTS {
            let bytes: usize = events.as_slice().iter().map(cost).sum();
            self.bytes = self.bytes.saturating_add(bytes);
        }
        // Kept even if they are too many, to be dropped with the rest.
        self.waiting.push((position, events));
        self.check()
    }

    /// Takes an event with which the run will end.
    ///
    /// # Errors
    /// The run ends with too much.
    pub(crate) fn deliver(&mut self, event: Event) -> Result<(), StepError> {
        self.events = self.events.saturating_add(1);
        self.bytes = self.bytes.saturating_add(cost(&event));
        self.delivered_bytes = self.delivered_bytes.saturating_add(event.size());
        self.delivered.push(event);
        if self.delivered_bytes > MAX_DELIVERED {
            let most = ByteSize(MAX_DELIVERED as u64);
            let message = format!(
                "the run's resulting events exceed {most} together; this limit is the host's own and has no setting"
            );
            return Err(exceeded("run_output", message));
        }
        self.check()
    }

    /// What the run ends with.
    pub(crate) fn into_delivered(mut self) -> Vec<Event> {
        mem::take(&mut self.delivered)
    }

    fn check(&mut self) -> Result<(), StepError> {
        if self.events > MAX_EVENTS {
            let message = format!(
                "the run held more than {MAX_EVENTS} events between its steps and at its end: its steps return too many; this limit is the host's own and has no setting"
            );
            return Err(exceeded("run_events", message));
        }
        if self.bytes > MAX_HELD {
            let most = ByteSize(MAX_HELD as u64);
            let message = format!(
                "the run's events between its steps and at its end exceeded {most} together; this limit is the host's own and has no setting"
            );
            return Err(exceeded("run_bytes", message));
        }
        if self.bytes <= FREE && self.hold.is_none() {
            return Ok(());
        }
        self.hold_enough()
    }

    /// Holds what the events occupy, rounded up; less than before only if it is a good deal less.
    fn hold_enough(&mut self) -> Result<(), StepError> {
        let Some(memory) = self.memory else {
            return Ok(());
        };
        let wanted = self.bytes.div_ceil(PIECE) * PIECE;
        if wanted <= self.held && self.held - wanted < 4 * PIECE {
            return Ok(());
        }
        let hold = self.hold.get_or_insert_with(|| memory(self.namespace));
        hold(wanted as u64)?;
        self.held = wanted;
        Ok(())
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        if self.events <= FEW {
            return;
        }
        let waiting = mem::take(&mut self.waiting);
        let delivered = mem::take(&mut self.delivered);
        let remains = Remains {
            _events: (waiting, delivered),
            _hold: self.hold.take(),
        };
        remains.drop_aside();
    }
}

/// What a run that has failed leaves; the memory is given back when the events are gone.
struct Remains {
    _events: (Vec<(usize, vec::IntoIter<Event>)>, Vec<Event>),
    _hold: Option<Hold>,
}

impl Remains {
    /// Drops this on a thread of its own: thousands of events take milliseconds, in which a worker would answer nobody.
    fn drop_aside(self) {
        static DROPPER: OnceLock<Option<Mutex<Sender<Remains>>>> = OnceLock::new();
        let dropper = DROPPER.get_or_init(|| {
            let (sender, receiver) = mpsc::channel::<Remains>();
            thread::Builder::new()
                .name("stepwell-drop".to_owned())
                .spawn(move || receiver.into_iter().for_each(drop))
                .ok()
                .map(|_| Mutex::new(sender))
        });
        if let Some(dropper) = dropper {
            let sender = dropper.lock().unwrap_or_else(PoisonError::into_inner);
            // Without that thread it is dropped here, with the error.
            let _ = sender.send(self);
        }
    }
}

/// What an event occupies.
fn cost(event: &Event) -> usize {
    let extensions = event.extensions.len().saturating_mul(EXTENSION);
    event.size() + RECORD + extensions
}

/// A limit of the run that was run into; the word is the metric's.
pub(crate) fn exceeded(limit: &'static str, message: String) -> StepError {
    metrics::counter!("stepwell_limit_hits_total", "limit" => limit).increment(1);
    StepError::new(ErrorKind::Limit, message).with_fault(Fault::nowhere(limit))
}
