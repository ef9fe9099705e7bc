//! The real services that tests and the demo talk to: PostgreSQL, Redis and Apache Kafka, each started on a free port
//! in a temporary directory, and stopped when its value is dropped or the process that started it ends, however it ends.
//!
//! `deploy/setup.sh` installs them; a service that is missing is an error that says so.

mod guarded;
mod kafka;
mod postgres;
mod redis;

pub use kafka::Kafka;
pub use postgres::Postgres;
pub use redis::Redis;

use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Ports that Linux gives to nobody by itself, unless it is told to: neither to whoever connects nor to whoever listens on any port.
/// What listens on one of these can end and begin again, and nobody has taken it meanwhile.
const PORTS: Range<u16> = 20_000..32_000;

/// A port that nobody listens on just now; another one each time.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Processes that run side by side begin far from each other.
    let first = process::id().wrapping_mul(97);
    (0..count)
        .map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count)
        .filter_map(|offset| PORTS.start.checked_add(u16::try_from(offset).ok()?))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free port on loopback")
}

/// Where `deploy/setup.sh` puts what it installs.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("STEPWELL_CACHE").map_or_else(
        || {
            let home =
                std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
            home.join(".cache/stepwell")
        },
        PathBuf::from,
    )
}

/// The checkout that this runs in: the working directory, which `cargo test` sets to the package's own, or one above it. What the
/// compiler saw may be another checkout, since build products are shared.
pub fn checkout() -> Result<PathBuf> {
    let here = std::env::current_dir().context("no working directory")?;
    here.ancestors()
        .find(|directory| directory.join("plugin-sdk").is_dir() && directory.join("wit").is_dir())
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a checkout of Stepwell", here.display()))
}

/// Waits until `ready` holds.
fn wait_for(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !ready() {
        if Instant::now() > end {
            bail!("{what} was not ready within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
