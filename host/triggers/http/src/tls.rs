//! TLS for a listener: handshakes that cannot hold anything up, and a certificate that can be replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// What a client gets that speaks HTTP without TLS.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 35\r\nconnection: close\r\n\r\nthis port speaks https and not http";

/// How long, and how much, such a client may still send, so that it reads the answer before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// What handshakes may cost.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Time for one, from the connection on.
    pub timeout: Duration,
    /// Handshakes under way at once. A further one takes the place of the one that has taken longest, so that clients who
    /// connect and say nothing keep nobody out.
    pub at_once: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            at_once: 1024,
        }
    }
}

/// The server's side of TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1.
pub struct Tls {
    /// `data` or `admin`, for metrics.
    listener: &'static str,
    acceptor: TlsAcceptor,
    certificate: Arc<Current>,
    limits: HandshakeLimits,
    waiting: Arc<Waiting>,
}

impl Tls {
    /// TLS with this certificate.
    ///
    /// # Errors
    /// What rustls says: there is no randomness, for one.
    pub fn new(
        listener: &'static str,
        certificate: CertifiedKey,
        limits: HandshakeLimits,
    ) -> Result<Self, rustls::Error> {
        let certificate = Arc::new(Current(ArcSwap::from_pointee(certificate)));
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Clients that come back need no new key exchange, and the host keeps nothing for them.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
            limits,
            waiting: Arc::default(),
        })
    }

    /// Replaces the certificate; connections that are there keep theirs.
    pub fn replace(&self, certificate: CertifiedKey) {
        self.certificate.0.store(Arc::new(certificate));
    }

    /// Makes a TLS connection of a connection; none when nothing comes of it. It ends within the limits, whatever the client
    /// does.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let place = self.waiting.enter(self.limits.at_once);
        let handshake = tokio::time::timeout(self.limits.timeout, self.handshake(stream));
        let outcome = tokio::select! {
            outcome = handshake => outcome.unwrap_or(Err("timeout")),
            () = place.lost.cancelled() => Err("displaced"),
        };
        let label = match &outcome {
            Ok(_) => "ok",
            Err(label) => label,
        };
        metrics::counter!("stepwell_tls_handshakes_total", "listener" => self.listener, "outcome" => label)
            .increment(1);
        outcome.ok()
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, &'static str> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err("closed"),
        }
        // The beginning of a method; a TLS record begins with 22.
        if first.iter().all(u8::is_ascii_uppercase) {
            refuse_plain(stream).await;
            return Err("plain");
        }
        self.acceptor.accept(stream).await.map_err(|error| {
            tracing::debug!(%error, listener = self.listener, "a TLS handshake failed");
            "failed"
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("listener", &self.listener)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

async fn refuse_plain(mut stream: TcpStream) {
    let answer = async {
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whether the client has read it is its own affair.
    let _ = tokio::time::timeout(LINGER, answer).await;
}

/// The certificate that is shown to everybody.
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

/// The handshakes under way, by when they began.
#[derive(Default)]
struct Waiting(Mutex<Places>);

#[derive(Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// A handshake's place; it is given back when dropped.
struct Place {
    number: u64,
    lost: CancellationToken,
    waiting: Arc<Waiting>,
}

impl Waiting {
    fn enter(self: &Arc<Self>, most: usize) -> Place {
        let lost = CancellationToken::new();
        let mut places = self.lock();
        while places.taken.len() >= most.max(1) {
            if let Some((_, oldest)) = places.taken.pop_first() {
                oldest.cancel();
            }
        }
        let number = places.next;
        places.next += 1;
        places.taken.insert(number, lost.clone());
        Place {
            number,
            lost,
            waiting: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.lock().taken.remove(&self.number);
    }
}
