use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, ServerName};
use stepwell_core::{HostName, Scheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::error::EgressError;
use crate::policy::{Policy, Target};
use crate::resolve::Resolver;

/// Name look-ups of one namespace at once: a name server that never answers holds up its own namespace alone.
const LOOKUPS: usize = 8;

/// Addresses of one name that are tried.
const ADDRESSES: usize = 8;

/// Sessions that one namespace may resume.
const SESSIONS: usize = 64;

/// Makes connections. A name is looked up once, every address is checked, and the connection goes to one that passed: whatever the
/// name stands for a moment later makes no difference.
pub(crate) struct Dialer {
    policy: Arc<Policy>,
    resolver: Arc<dyn Resolver>,
    tls: ClientConfig,
    connector: TlsConnector,
    lookups: Arc<Semaphore>,
}

/// Both ends of a connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that was made.
pub(crate) struct Dialed {
    pub(crate) io: Box<dyn Io>,
    /// Whether both sides agreed on HTTP/2.
    pub(crate) http2: bool,
}

impl Dialer {
    pub(crate) fn new(
        policy: Arc<Policy>,
        resolver: Arc<dyn Resolver>,
        ca: &[CertificateDer<'static>],
    ) -> Result<Self, rustls::Error> {
        let mut roots = rustls::RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        for certificate in ca {
            roots.add(certificate.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self::with_tls(policy, resolver, tls))
    }

    fn with_tls(policy: Arc<Policy>, resolver: Arc<dyn Resolver>, mut tls: ClientConfig) -> Self {
        tls.resumption = Resumption::in_memory_sessions(SESSIONS);
        Self {
            policy,
            resolver,
            connector: TlsConnector::from(Arc::new(tls.clone())),
            tls,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }

    /// One with the same rules that shares no TLS session and no queue.
    pub(crate) fn apart(&self) -> Self {
        let (policy, resolver) = (self.policy.clone(), self.resolver.clone());
        Self::with_tls(policy, resolver, self.tls.clone())
    }

    /// The same, for HTTP/1.1 alone.
    pub(crate) fn http1_only(&self) -> Self {
        let (policy, resolver) = (self.policy.clone(), self.resolver.clone());
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::with_tls(policy, resolver, tls)
    }

    pub(crate) async fn dial(&self, target: &Target, by: Instant) -> Result<Dialed, EgressError> {
        let origin = &target.origin;
        let found = match &origin.host {
            HostName::Dns(name) => self.look_up(name, by).await?,
            HostName::V4(address) => vec![IpAddr::V4(*address)],
            HostName::V6(address) => vec![IpAddr::V6(*address)],
        };
        if found.is_empty() {
            return Err(EgressError::Unknown);
        }
        let mut addresses: Vec<SocketAddr> = found
            .into_iter()
            .map(|ip| SocketAddr::new(ip.to_canonical(), origin.port))
            .filter(|address| self.policy.allows(*address, target.access))
            .collect();
        addresses.truncate(ADDRESSES);
        if addresses.is_empty() {
            return Err(EgressError::Prohibited);
        }
        let stream = connect(&addresses, by).await?;
        // A request must not wait until the other side has acknowledged the one before.
        let _ = stream.set_nodelay(true);
        match origin.scheme {
            Scheme::Http => Ok(Dialed {
                io: Box::new(stream),
                http2: false,
            }),
            Scheme::Https => self.secure(stream, &origin.host, by).await,
        }
    }

    async fn secure(
        &self,
        stream: TcpStream,
        host: &HostName,
        by: Instant,
    ) -> Result<Dialed, EgressError> {
        let name = match host {
            HostName::Dns(name) => ServerName::try_from(name.clone())
                .map_err(|error| EgressError::Uri(error.to_string()))?,
            HostName::V4(address) => ServerName::from(IpAddr::V4(*address)),
            HostName::V6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        let stream = timeout_at(by, self.connector.connect(name, stream))
            .await
            .map_err(|_| EgressError::ConnectTimeout)?
            .map_err(|error| EgressError::of_tls(&error))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Dialed {
            io: Box::new(stream),
            http2,
        })
    }

    async fn look_up(&self, name: &str, by: Instant) -> Result<Vec<IpAddr>, EgressError> {
        let permit = timeout_at(by, self.lookups.clone().acquire_owned())
            .await
            .map_err(|_| EgressError::LookupTimeout)?
            .map_err(|_| EgressError::Unknown)?;
        let (resolver, name) = (self.resolver.clone(), name.to_owned());
        // A look-up cannot be called off, so it keeps its place in the queue until it ends by itself.
        let lookup = tokio::spawn(async move {
            let found = resolver.resolve(&name).await;
            drop(permit);
            found
        });
        match timeout_at(by, lookup).await {
            Err(_) => Err(EgressError::LookupTimeout),
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(_) => Err(EgressError::Unknown),
        }
    }
}

/// Connects to the first address that answers; each gets its share of the time.
async fn connect(addresses: &[SocketAddr], by: Instant) -> Result<TcpStream, EgressError> {
    let mut failure = EgressError::ConnectTimeout;
    for (tried, address) in addresses.iter().enumerate() {
        let left = by.saturating_duration_since(Instant::now());
        let untried = u32::try_from(addresses.len() - tried).unwrap_or(1);
        let share = Instant::now() + left / untried;
        failure = match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => EgressError::Connect(error.kind()),
            Err(_) => EgressError::ConnectTimeout,
        };
        if left == Duration::ZERO {
            break;
        }
    }
    Err(failure)
}
