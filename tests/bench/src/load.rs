//! The load generator: one thread, kept-alive HTTP/1.1 connections, bounded in time. It runs as a process of its own, so that its
//! work is not taken for the server's.

mod response;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

use response::Answer;

/// What to send, how often and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long)]
    pub(crate) path: String,
    /// Bytes of the body, which is expected back; 0 sends a GET
    #[arg(long)]
    pub(crate) body: usize,
    /// The body that every answer must have
    #[arg(long)]
    pub(crate) expect: Option<String>,
    #[arg(long)]
    pub(crate) connections: usize,
    #[arg(long)]
    pub(crate) seconds: f64,
    /// Requests a second, at fixed times whether or not the server keeps up; none: each connection asks when it has its answer
    #[arg(long)]
    pub(crate) rate: Option<f64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Measured {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Every request that was answered, the unmeasured first ones included.
    pub(crate) answered: u64,
}

/// Requests in this time are not measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const TIMER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// When the request that is under way was to be sent.
    asked: Option<Instant>,
}

struct Load {
    connections: Vec<Connection>,
    idle: Vec<usize>,
    request: Vec<u8>,
    expected: Vec<u8>,
    latencies: Vec<u64>,
    answered: u64,
    measure_from: Instant,
    end: Instant,
}

/// Sends the load. Any failure, and any answer that is not the expected one, ends it.
pub(crate) fn run(args: &LoadArgs) -> Result<Measured> {
    ensure!(
        args.seconds > 0.0 && args.seconds <= 600.0,
        "--seconds {} is not within 0 to 600",
        args.seconds
    );
    ensure!(
        (1..=1000).contains(&args.connections),
        "--connections {} is not within 1 to 1000",
        args.connections
    );
    let body = vec![b'x'; args.body];
    let request = request(args, &body);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for key in 0..args.connections {
        let stream = TcpStream::connect(args.address)
            .with_context(|| format!("cannot connect to {}", args.address))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let key = epoll::EventData::new_u64(key as u64);
        epoll::add(&epoll, &stream, key, epoll::EventFlags::IN)?;
        connections.push(Connection {
            stream,
            received: Vec::with_capacity(16 << 10),
            asked: None,
        });
    }
    let start = Instant::now();
    let mut load = Load {
        idle: (0..args.connections).collect(),
        connections,
        request,
        expected: args.expect.clone().map_or(body, String::into_bytes),
        latencies: Vec::new(),
        answered: 0,
        measure_from: start + WARM_UP,
        end: start + WARM_UP + Duration::from_secs_f64(args.seconds),
    };
    match args.rate {
        None => load.closed_loop(&epoll)?,
        Some(rate) => load.open_loop(&epoll, rate)?,
    }
    load.measured(args.seconds)
}

fn request(args: &LoadArgs, body: &[u8]) -> Vec<u8> {
    let (path, host) = (&args.path, args.address);
    let mut request = match body.len() {
        0 => format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        length => format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n"
        ),
    }
    .into_bytes();
    request.extend_from_slice(body);
    request
}

impl Load {
    /// As much as the server takes: the latencies are those of a full server.
    fn closed_loop(&mut self, epoll: &OwnedFd) -> Result<()> {
        let mut events = Vec::with_capacity(self.connections.len());
        loop {
            let now = Instant::now();
            if now >= self.end {
                return Ok(());
            }
            while let Some(key) = self.idle.pop() {
                self.ask(key, now)?;
            }
            for key in wait(epoll, &mut events, PATIENCE)? {
                self.hear(key)?;
            }
        }
    }

    /// At fixed times: a request that had to wait for a connection counts from when it was due, so a server that stalls cannot
    /// hide what its stall kept from being sent.
    fn open_loop(&mut self, epoll: &OwnedFd, rate: f64) -> Result<()> {
        ensure!(
            (1.0..=1e6).contains(&rate),
            "--rate {rate} is not within 1 to 1000000"
        );
        let period = Duration::from_secs_f64(1.0 / rate);
        let timer = ticks(period)?;
        let key = epoll::EventData::new_u64(TIMER);
        epoll::add(epoll, &timer, key, epoll::EventFlags::IN)?;
        let mut next = Instant::now();
        let mut due = VecDeque::new();
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        loop {
            let now = Instant::now();
            while next <= now && next < self.end {
                due.push_back(next);
                next += period;
            }
            if now >= self.end && due.is_empty() && self.idle.len() == self.connections.len() {
                return Ok(());
            }
            ensure!(
                now < self.end + PATIENCE,
                "the server is {} requests behind",
                due.len()
            );
            while !due.is_empty() {
                let Some(key) = self.idle.pop() else { break };
                if let Some(intended) = due.pop_front() {
                    self.ask(key, intended)?;
                }
            }
            for key in wait(epoll, &mut events, PATIENCE)? {
                if key == TIMER {
                    rustix::io::read(&timer, &mut [0u8; 8])?;
                } else {
                    self.hear(key)?;
                }
            }
        }
    }

    fn ask(&mut self, key: usize, intended: Instant) -> Result<()> {
        let connection = self
            .connections
            .get_mut(key)
            .context("no such connection")?;
        connection.asked = Some(intended);
        // A request is smaller than a socket's buffer, which is empty when the last answer has come.
        connection
            .stream
            .write_all(&self.request)
            .context("a request could not be sent")
    }

    fn hear(&mut self, key: u64) -> Result<()> {
        let key = usize::try_from(key)?;
        let connection = self
            .connections
            .get_mut(key)
            .context("no such connection")?;
        if !connection.receive()? {
            return Ok(());
        }
        let Some(answer) = Answer::parse(&connection.received)? else {
            return Ok(());
        };
        if answer.status != b"200" || answer.body.as_ref() != self.expected {
            bail!(
                "an answer is not the expected one:\n{}",
                String::from_utf8_lossy(&connection.received)
            );
        }
        connection.received.clear();
        let asked = connection.asked.take().context("an answer to nothing")?;
        self.answered += 1;
        if asked >= self.measure_from {
            self.latencies
                .push(u64::try_from(asked.elapsed().as_nanos())?);
        }
        self.idle.push(key);
        Ok(())
    }

    fn measured(mut self, seconds: f64) -> Result<Measured> {
        ensure!(
            !self.latencies.is_empty(),
            "no request was answered in time"
        );
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let quantile = |percent: usize| {
            let at = (count * percent / 100).min(count - 1);
            self.latencies.get(at).copied().unwrap_or_default() as f64 / 1e3
        };
        Ok(Measured {
            requests_per_second: count as f64 / seconds,
            p50_us: quantile(50),
            p99_us: quantile(99),
            answered: self.answered,
        })
    }
}

impl Connection {
    /// Whether anything came.
    fn receive(&mut self) -> Result<bool> {
        let mut chunk = [0u8; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => {
                self.received
                    .extend_from_slice(chunk.get(..length).unwrap_or_default());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("an answer could not be read"),
        }
    }
}

fn wait<'a>(
    epoll: &OwnedFd,
    events: &'a mut Vec<epoll::Event>,
    patience: Duration,
) -> Result<impl Iterator<Item = u64> + 'a> {
    events.clear();
    let timeout = Timespec::try_from(patience)?;
    match epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(events),
        Some(&timeout),
    ) {
        Ok(0) => bail!("no answer within {patience:?}"),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(events.iter().map(|event| event.data.u64()))
}

/// A timer of the kernel's: time limits of `epoll` are whole milliseconds.
fn ticks(period: Duration) -> Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let period = Timespec::try_from(period)?;
    let each = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
    Ok(timer)
}
