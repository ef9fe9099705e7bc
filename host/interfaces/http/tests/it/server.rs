use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A server on loopback that answers with what it was asked, and counts.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) open: Arc<AtomicUsize>,
    /// Method, version, URL and headers of each request.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// HTTP/1.1 in the clear.
    pub(crate) async fn start() -> Self {
        Self::with(None).await
    }

    /// Over TLS with this certificate; HTTP/2 for whoever can.
    pub(crate) async fn tls(certificate: &Certificate) -> Self {
        Self::with(Some(certificate.acceptor())).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            open: Arc::default(),
            seen: Arc::default(),
        };
        let running = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, tls) = (running.clone(), tls.clone());
                server.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    server.open.fetch_add(1, Ordering::SeqCst);
                    server.serve(stream, tls).await;
                    server.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    async fn serve(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let server = self.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        let Some(tls) = tls else {
            let io = TokioIo::new(stream);
            let _ = http1::Builder::new().serve_connection(io, service).await;
            return;
        };
        let Ok(stream) = tls.accept(stream).await else {
            return;
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if is_http2 {
            let http2 = http2::Builder::new(TokioExecutor::new());
            let _ = http2.serve_connection(io, service).await;
        } else {
            let _ = http1::Builder::new().serve_connection(io, service).await;
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let mut seen = format!("{} {:?} {}", head.method, head.version, head.uri);
        for (name, value) in &head.headers {
            seen += &format!("\n{name}: {}", value.to_str().unwrap());
        }
        self.seen.lock().unwrap().push(seen);
        let response = Response::builder();
        let path = head.uri.path();
        if let Some(location) = path.strip_prefix("/redirect/") {
            let response = response.status(302).header("location", location);
            return Ok(response.body(Full::default()).unwrap());
        }
        if path == "/close" {
            let response = response.header("connection", "close");
            return Ok(response.body(Full::from("closed")).unwrap());
        }
        if let Some(size) = path.strip_prefix("/bytes/") {
            let body = vec![b'x'; size.parse().unwrap()];
            return Ok(response.body(Full::from(body)).unwrap());
        }
        let body = match body.collect().await {
            Ok(body) if path == "/trailers" => Bytes::from(format!("{:?}", body.trailers())),
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::from_static(b"broken off"),
        };
        let text = match body.is_empty() {
            true => Bytes::from(format!("{} {path}", head.method)),
            false => body,
        };
        Ok(response.body(Full::from(text)).unwrap())
    }

    pub(crate) fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    pub(crate) fn origin(&self, host: &str) -> String {
        format!("http://{host}:{}", self.port)
    }

    pub(crate) fn made(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn is_open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> String {
        self.seen
            .lock()
            .unwrap()
            .last()
            .cloned()
            .unwrap_or_default()
    }
}

/// A server that reads what comes, writes `answer` and then, if `endless`, bytes without end; `closed` counts its ends.
pub(crate) struct Raw {
    pub(crate) port: u16,
    pub(crate) written: Arc<AtomicUsize>,
    pub(crate) closed: Arc<AtomicUsize>,
    pub(crate) accepted: Arc<AtomicUsize>,
}

impl Raw {
    pub(crate) async fn start(answer: &'static str, endless: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raw = Self {
            port: listener.local_addr().unwrap().port(),
            written: Arc::default(),
            closed: Arc::default(),
            accepted: Arc::default(),
        };
        let (written, closed, accepted) = (
            raw.written.clone(),
            raw.closed.clone(),
            raw.accepted.clone(),
        );
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let (written, closed) = (written.clone(), closed.clone());
                tokio::spawn(async move {
                    let mut buffer = [0; 16 << 10];
                    let _ = stream.read(&mut buffer).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    while endless && stream.write_all(&buffer).await.is_ok() {
                        written.fetch_add(buffer.len(), Ordering::SeqCst);
                    }
                    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        raw
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn ended(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }
}

/// A certificate for some names, and the authority that signed it.
pub(crate) struct Certificate {
    pub(crate) ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Certificate {
    pub(crate) fn of(names: &[&str]) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        Self {
            ca: authority.der().clone(),
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::try_from(self.key.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}
