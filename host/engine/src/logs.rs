use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use stepwell_core::ByteSize;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Where a guest's stdout and stderr go.
pub trait LogSink: Send + Sync + 'static {
    /// Takes one line without its newline, free of control characters. Called from inside guest calls, so it must not block.
    fn line(&self, stream: LogStream, text: &str);
}

/// Which of the two streams a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error: where panic messages go.
    Stderr,
}

/// Bytes of a line; a longer one is passed on in pieces.
const LINE: usize = 8 << 10;

/// Bytes that a guest may write at once.
const CHUNK: usize = 64 << 10;

/// Both streams of one call at a time. They share one allowance of bytes.
#[derive(Clone)]
pub(crate) struct CallLog(Arc<Mutex<State>>);

struct State {
    sink: Arc<dyn LogSink>,
    limit: usize,
    left: usize,
    truncated: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl CallLog {
    pub(crate) fn new(sink: Arc<dyn LogSink>) -> Self {
        Self(Arc::new(Mutex::new(State {
            sink,
            limit: 0,
            left: 0,
            truncated: false,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })))
    }

    /// Sets how many bytes the call may log; none until then.
    pub(crate) fn allow(&self, bytes: usize) {
        let mut state = self.lock();
        state.limit = bytes;
        state.left = bytes;
        state.truncated = false;
    }

    /// Passes on what was written without a newline at its end: the call is over.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.flush(LogStream::Stdout);
        state.flush(LogStream::Stderr);
    }

    /// Later lines go there, those of streams that the guest has opened before too.
    pub(crate) fn rebind(&self, sink: Arc<dyn LogSink>) {
        self.lock().sink = sink;
    }

    /// Later lines go where those of the other log go.
    pub(crate) fn follow(&self, other: &Self) {
        self.finish();
        let sink = other.lock().sink.clone();
        self.rebind(sink);
    }

    /// A line of the host's among those of the guest, which pays for it: it is what provokes them.
    pub(crate) fn note(&self, text: &str) {
        self.lock()
            .write(LogStream::Stderr, format!("{text}\n").as_bytes());
    }

    pub(crate) fn stream(&self, stream: LogStream) -> GuestStream {
        GuestStream {
            log: self.clone(),
            stream,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A sink that panicked leaves nothing half done here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        let (kept, dropped) = bytes.split_at(bytes.len().min(self.left));
        self.left -= kept.len();
        for piece in kept.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            for part in text.chunks(LINE) {
                if self.buffer(stream).len() + part.len() > LINE {
                    self.flush(stream);
                }
                self.buffer(stream).extend_from_slice(part);
            }
            if ends {
                self.flush(stream);
            }
        }
        if !dropped.is_empty() && !self.truncated {
            self.truncated = true;
            self.flush(stream);
            let limit = ByteSize(self.limit as u64);
            self.sink.line(
                stream,
                &format!("log output truncated: one call may log {limit}; this limit is the host's own and has no setting"),
            );
        }
    }

    fn buffer(&mut self, stream: LogStream) -> &mut Vec<u8> {
        match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        }
    }

    fn flush(&mut self, stream: LogStream) {
        let mut line = std::mem::take(self.buffer(stream));
        if line.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        if text.contains(|c: char| c.is_control() && c != '\t') {
            let clean: String = text
                .chars()
                .map(|c| match c {
                    '\t' => c,
                    c if c.is_control() => char::REPLACEMENT_CHARACTER,
                    c => c,
                })
                .collect();
            self.sink.line(stream, &clean);
        } else {
            self.sink.line(stream, text);
        }
        line.clear();
        *self.buffer(stream) = line;
    }
}

impl Drop for State {
    /// Passes on what was written without a newline at its end.
    fn drop(&mut self) {
        self.flush(LogStream::Stdout);
        self.flush(LogStream::Stderr);
    }
}

/// The guest's end of one stream. Writing never blocks and never fails: what is over the allowance is dropped.
pub(crate) struct GuestStream {
    log: CallLog,
    stream: LogStream,
}

impl StdoutStream for GuestStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.log.stream(self.stream))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.log.stream(self.stream))
    }
}

impl IsTerminal for GuestStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl OutputStream for GuestStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.lock().write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

/// WASI 0.3's way to write.
impl AsyncWrite for GuestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = bytes.get(..CHUNK).unwrap_or(bytes);
        self.log.lock().write(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Pollable for GuestStream {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl LogSink for Lines {
        fn line(&self, stream: LogStream, text: &str) {
            self.0.lock().unwrap().push(format!("{stream:?} {text}"));
        }
    }

    fn log(limit: usize) -> (CallLog, Arc<Lines>) {
        let lines = Arc::new(Lines::default());
        let log = CallLog::new(lines.clone());
        log.allow(limit);
        (log, lines)
    }

    fn write(log: &CallLog, stream: LogStream, text: &[u8]) {
        log.stream(stream)
            .write(Bytes::copy_from_slice(text))
            .unwrap();
    }

    #[test]
    fn lines_are_put_together_and_kept_apart() {
        let (log, lines) = log(1000);
        write(&log, LogStream::Stdout, b"one\ntw");
        write(&log, LogStream::Stderr, b"err\r\n");
        write(&log, LogStream::Stdout, b"o\n\xff\x1b[31m\nrest");
        drop(log);
        assert_eq!(
            *lines.0.lock().unwrap(),
            [
                "Stdout one",
                "Stderr err",
                "Stdout two",
                "Stdout \u{fffd}\u{fffd}[31m",
                "Stdout rest"
            ]
        );
    }

    #[test]
    fn what_is_over_the_allowance_is_dropped_with_one_notice() {
        let (log, lines) = log(5);
        write(&log, LogStream::Stdout, b"123\n567\n");
        write(&log, LogStream::Stderr, b"more\n");
        drop(log);
        assert_eq!(
            *lines.0.lock().unwrap(),
            [
                "Stdout 123",
                "Stdout 5",
                "Stdout log output truncated: one call may log 5 B; this limit is the host's own and has no setting"
            ]
        );
    }

    #[test]
    fn a_long_line_comes_in_pieces() {
        let (log, lines) = log(1 << 20);
        write(&log, LogStream::Stdout, &vec![b'x'; LINE * 2 + 1]);
        drop(log);
        let lengths: Vec<usize> = lines.0.lock().unwrap().iter().map(String::len).collect();
        let head = "Stdout ".len();
        assert_eq!(lengths, [LINE + head, LINE + head, 1 + head]);
    }
}
