//! The host's log lines, on their way to stderr.
//!
//! Whoever reads stderr may stop to. Nothing of the host may wait for them: lines go through a queue to a thread of their own, and
//! what the queue has no room for is left out, counted and told of.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use metrics::counter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written; as many may be being written.
const ROOM: usize = 4 << 20;

/// Time for what waits when the host ends.
const LAST: Duration = Duration::from_secs(1);

/// Time that a thread which panics gives its words: the process may be about to end with it.
const PANIC: Duration = Duration::from_millis(100);

/// Where log lines go; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    room: usize,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were left out after those in the queue.
    left_out: u64,
    /// Whether some are being written.
    writing: bool,
    /// Whether nobody is left who writes any.
    closed: bool,
}

/// Sees to it, when it is dropped, that what waits is written if anybody reads it.
pub(crate) struct Flush(Lines);

impl Drop for Flush {
    fn drop(&mut self) {
        self.0.flush(LAST);
    }
}

impl Lines {
    /// Starts the thread that writes to stderr.
    pub(crate) fn to_stderr(as_json: bool) -> io::Result<(Self, Flush)> {
        // Its own handle: whoever else writes to stderr must not wait for a lock that this thread holds.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start(stderr, as_json, ROOM)
    }

    fn start(
        output: impl Write + AsFd + Send + 'static,
        as_json: bool,
        room: usize,
    ) -> io::Result<(Self, Flush)> {
        let lines = Self(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            room,
        }));
        let shared = lines.0.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || shared.write_to(output, as_json))?;
        Ok((lines.clone(), Flush(lines)))
    }

    /// Has panics told of on the same way; otherwise a thread that panics waits for whoever reads stderr.
    pub(crate) fn take_panics(&self) {
        let lines = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("<unnamed>");
            let backtrace = std::backtrace::Backtrace::capture();
            let mut text = format!("\nthread '{name}' {panic}\n");
            if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
                text.push_str(&format!("stack backtrace:\n{backtrace}\n"));
            }
            lines.push(text.as_bytes());
            lines.flush(PANIC);
        }));
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        // Once one is left out, so are all until there is room again: where lines are missing, it is said how many.
        if queue.left_out > 0 || queue.bytes + line.len() > self.0.room || queue.closed {
            queue.left_out += 1;
            drop(queue);
            dropped(1);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, or for this long.
    fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut queue = self.0.lock();
        while queue.writing || !queue.lines.is_empty() || queue.left_out > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.closed {
                return;
            }
            queue = match self.0.changed.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Shared {
    fn write_to(&self, mut output: impl Write + AsFd, as_json: bool) {
        let _closed = Closed(self);
        loop {
            let (lines, left_out) = {
                let mut queue = self.lock();
                queue.writing = false;
                self.changed.notify_all();
                while queue.lines.is_empty() && queue.left_out == 0 {
                    queue = self
                        .changed
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                queue.writing = true;
                queue.bytes = 0;
                (mem::take(&mut queue.lines), mem::take(&mut queue.left_out))
            };
            let lost = lines
                .iter()
                .filter(|line| write(&mut output, line).is_err())
                .count() as u64;
            // Nobody has stderr open any more, or its disk is full: so it may be again.
            dropped(lost);
            if left_out > 0 {
                let _ = write(&mut output, note(left_out, as_json).as_bytes());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends all waiting if the thread that writes ever does.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// Writes all of a line, also where somebody has made stderr non-blocking.
fn write(output: &mut (impl Write + AsFd), mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let second = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                let _ = poll(&mut [PollFd::new(&*output, PollFlags::OUT)], Some(&second));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn dropped(count: u64) {
    if count > 0 {
        counter!("stepwell_log_lines_dropped_total").increment(count);
    }
}

/// A line that stands for those that were left out, in the form of the others.
fn note(left_out: u64, as_json: bool) -> String {
    let now = OffsetDateTime::now_utc();
    let time = now.format(&Rfc3339).unwrap_or_default();
    let message = "log lines were left out here: stderr was not read fast enough";
    if as_json {
        let line = serde_json::json!({
            "timestamp": time, "level": "WARN", "message": message, "lines": left_out, "target": module_path!(),
        });
        format!("{line}\n")
    } else {
        format!("{time}  WARN {message} lines={left_out}\n")
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.clone())
    }
}

/// One event's line, which the formatter writes as a whole.
pub(crate) struct Line(Lines);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "stepwell_log_lines_dropped_total",
        "Lines of the host's own log that were left out, since nobody read them or they could not be written."
    );
}

/// Says something on a thread of its own, and waits for it no longer than this; none: nobody read it.
pub(crate) fn say<T: Send + 'static>(
    limit: Duration,
    words: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, said) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name("words".into())
        .spawn(move || {
            let _ = sender.send(words());
        })
        .ok()?;
    said.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    fn text(line: &str) -> Vec<u8> {
        format!("{line}\n").into_bytes()
    }

    #[test]
    fn what_nobody_reads_stops_nobody_and_is_told_of_when_it_is_read_again() {
        let (reader, writer) = io::pipe().unwrap();
        let (lines, _flush) = Lines::start(writer, true, 10_000).unwrap();
        let line = "x".repeat(999);
        let begin = Instant::now();
        // The pipe holds 64 KiB, and the queue ten lines.
        for _ in 0..300 {
            lines.push(&text(&line));
        }
        lines.flush(Duration::from_millis(50));
        assert!(begin.elapsed() < Duration::from_secs(5), "nothing waits");
        let mut reader = BufReader::new(reader).lines();
        let (mut whole, mut left_out) = (0, 0);
        // A quick thread leaves more than one gap.
        while whole + left_out < 300 {
            let read = reader.next().unwrap().unwrap();
            if read == line {
                whole += 1;
            } else {
                let note: serde_json::Value = serde_json::from_str(&read).unwrap();
                assert_eq!(note["level"], "WARN");
                left_out += note["lines"].as_u64().unwrap();
            }
        }
        assert_eq!(whole + left_out, 300, "each is there or counted");
        assert!(whole >= 10 && left_out > 100, "{whole} {left_out}");
        lines.push(&text("after"));
        assert_eq!(reader.next().unwrap().unwrap(), "after");
    }

    #[test]
    fn the_end_waits_for_what_is_read_and_not_for_ever() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (lines, flush) = Lines::start(writer, false, ROOM).unwrap();
        for _ in 0..100 {
            lines.push(&text("last words"));
        }
        drop(flush);
        let mut all = vec![0; 100 * 11];
        reader.read_exact(&mut all).unwrap();

        let (_unread, writer) = io::pipe().unwrap();
        let (lines, flush) = Lines::start(writer, false, ROOM).unwrap();
        lines.push(&vec![b'x'; 1 << 20]);
        let begin = Instant::now();
        drop(flush);
        assert!(begin.elapsed() >= LAST && begin.elapsed() < LAST * 10);
    }

    #[test]
    fn a_closed_or_full_stderr_is_no_reason_to_stop() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (lines, flush) = Lines::start(writer, false, 100).unwrap();
        for _ in 0..1_000 {
            lines.push(&text("nobody"));
        }
        let begin = Instant::now();
        drop(flush);
        assert!(begin.elapsed() < LAST, "nothing is left to be written");
    }

    #[test]
    fn a_line_waits_for_room_in_a_pipe_that_does_not_block() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let reading = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all.len()
        });
        write(&mut writer, &vec![b'x'; 1 << 20]).unwrap();
        drop(writer);
        assert_eq!(reading.join().unwrap(), 1 << 20);
    }

    #[test]
    fn words_that_nobody_takes_are_not_waited_for() {
        assert_eq!(say(Duration::from_secs(60), || 1), Some(1));
        let slow = || thread::sleep(Duration::from_secs(5));
        assert_eq!(say(Duration::from_millis(10), slow), None);
    }
}
