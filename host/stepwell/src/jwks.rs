//! Gets the keys of issuers of JSON Web Tokens. What a deployer names must lead to the public internet, over TLS.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use stepwell_core::Name;
use stepwell_egress::{Egress, GuardedClient};
use stepwell_http_trigger::{FetchError, KeyFetcher, KeySource};
use stepwell_pipeline::JwtHost;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;

/// Bytes of a key set.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Time for one attempt, from the wait for its turn to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts at once for one namespace; hosts with many issuers ask them all when they start.
const AT_ONCE: usize = 8;

/// Fetches key sets.
pub(crate) struct Fetcher {
    host: JwtHost,
    /// Goes wherever the operator says.
    trusted: Client,
    /// Goes where the rules of outbound HTTP let it.
    egress: Arc<Egress>,
    tenants: Mutex<HashMap<Name, Arc<Tenant>>>,
}

/// What the issuers of one namespace share, and no other's: those that never answer hold up their neighbours alone.
struct Tenant {
    client: GuardedClient,
    slots: Semaphore,
}

impl Fetcher {
    /// A fetcher that reaches what is not public only at the origins that the operator trusts.
    pub(crate) fn new(host: JwtHost, egress: Arc<Egress>) -> Result<Self, reqwest::Error> {
        let trusted = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1)
            .build()?;
        Ok(Self {
            host,
            trusted,
            egress,
            tenants: Mutex::default(),
        })
    }

    fn tenant(&self, namespace: &Name) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = tenants.get(namespace) {
            return tenant.clone();
        }
        // Those that nobody waits for are made again when they are needed: namespaces come and go.
        tenants.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        let tenant = Arc::new(Tenant {
            client: self.egress.client(),
            slots: Semaphore::new(AT_ONCE),
        });
        tenants.insert(namespace.clone(), tenant.clone());
        tenant
    }

    async fn get_for(&self, namespace: &Name, url: &str) -> Result<Bytes, FetchError> {
        let tenant = self.tenant(namespace);
        let _slot = tenant.slots.acquire().await;
        if self.host.trusts(url) {
            return self.get_trusted(url).await;
        }
        let fetched = tenant.client.get(url, MAX_BYTES, TIMEOUT).await;
        fetched.map_err(|error| FetchError(error.to_string()))
    }

    async fn get_trusted(&self, url: &str) -> Result<Bytes, FetchError> {
        let url: Url = url
            .parse()
            .map_err(|error| FetchError(format!("this is no URL: {error}")))?;
        let mut response = self.trusted.get(url).send().await.map_err(innermost)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(FetchError(format!(
                "the answer was {status}: redirects are not followed, name the place itself"
            )));
        }
        if !status.is_success() {
            return Err(FetchError(format!("the answer was {status}")));
        }
        let mut all = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(innermost)? {
            if all.len() + chunk.len() > MAX_BYTES {
                return Err(too_large());
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }
}

#[async_trait]
impl KeyFetcher for Fetcher {
    async fn fetch(&self, source: &KeySource) -> Result<Bytes, FetchError> {
        match source {
            KeySource::Operator(place) if !is_url(place) => {
                let read = tokio::time::timeout(TIMEOUT, read(place)).await;
                read.unwrap_or_else(|_| Err(FetchError("the file took too long".to_owned())))
            }
            KeySource::Operator(url) => self.get_trusted(url).await,
            KeySource::Deployer { namespace, url } => {
                let fetched = tokio::time::timeout(TIMEOUT, self.get_for(namespace, url)).await;
                fetched
                    .unwrap_or_else(|_| Err(FetchError("the keys did not come in time".to_owned())))
            }
        }
    }
}

/// Whether an operator's place of keys is a URL, and otherwise a file.
pub(crate) fn is_url(place: &str) -> bool {
    place.starts_with("https://") || place.starts_with("http://")
}

async fn read(path: &str) -> Result<Bytes, FetchError> {
    let failed = |error: std::io::Error| FetchError(format!("cannot read the file: {error}"));
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut all = Vec::new();
    let most = MAX_BYTES as u64 + 1;
    file.take(most)
        .read_to_end(&mut all)
        .await
        .map_err(failed)?;
    if all.len() > MAX_BYTES {
        return Err(too_large());
    }
    Ok(all.into())
}

fn too_large() -> FetchError {
    FetchError(format!("the key set has more than {MAX_BYTES} bytes"))
}

/// The cause that says it best.
fn innermost(error: reqwest::Error) -> FetchError {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    FetchError(cause.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use stepwell_egress::EgressConfig;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers every connection with these bytes, then with `more` for ever.
    async fn server(answer: &'static str, more: Option<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    while let Some(more) = more {
                        if stream.write_all(more).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn fetcher(trusted: &[String]) -> Fetcher {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = JwtHost {
            has_issuer: false,
            trusted: trusted.to_vec(),
        };
        Fetcher::new(host, Egress::new(EgressConfig::default()).unwrap()).unwrap()
    }

    fn deployers(namespace: &str, url: &str) -> KeySource {
        KeySource::Deployer {
            namespace: namespace.parse().unwrap(),
            url: url.to_owned(),
        }
    }

    #[tokio::test]
    async fn issuers_of_one_namespace_that_never_answer_hold_up_no_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = format!("http://{}", silent.local_addr().unwrap());
        let answers = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", None).await;
        let answers = format!("http://{answers}");
        let fetcher = Arc::new(fetcher(&[silent.clone(), answers.clone()]));
        let began = Instant::now();
        let waiting: Vec<_> = (0..10 * AT_ONCE)
            .map(|_| {
                let (fetcher, source) = (fetcher.clone(), deployers("a", &silent));
                tokio::spawn(async move { fetcher.fetch(&source).await.unwrap_err() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        for source in [
            deployers("b", &format!("{answers}/keys")),
            KeySource::Operator(answers),
        ] {
            assert_eq!(fetcher.fetch(&source).await.unwrap(), "{}");
        }
        assert!(began.elapsed() < TIMEOUT / 2, "others had to wait");
        // Those that wait for their turn do so within their time.
        for ended in waiting {
            ended.await.unwrap();
        }
        assert!(began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_deployers_url_reaches_nothing_private() {
        let address = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", None).await;
        let port = address.port();
        let guarded = fetcher(&[]);
        for url in [
            format!("https://127.0.0.1:{port}/"),
            format!("https://localhost:{port}/"),
            format!("https://2130706433:{port}/"),
            format!("https://0x7f.1:{port}/"),
            format!("https://[::1]:{port}/"),
            format!("https://[::ffff:127.0.0.1]:{port}/"),
            format!("http://127.0.0.1:{port}/"),
            "https://169.254.169.254/latest/meta-data".to_owned(),
        ] {
            let error = guarded.fetch(&deployers("a", &url)).await;
            assert!(error.is_err(), "{url}");
        }
        // Over plain HTTP nothing is asked at all, wherever it leads.
        let plain = deployers("a", "http://1.1.1.1/");
        assert!(guarded.fetch(&plain).await.is_err());
        // What the operator allows, and what is the operator's own.
        let url = format!("http://127.0.0.1:{port}/keys");
        let trusting = fetcher(&[format!("http://127.0.0.1:{port}")]);
        let own = trusting.fetch(&deployers("a", &url)).await;
        assert_eq!(own.unwrap(), "{}");
        let operators = guarded.fetch(&KeySource::Operator(url)).await;
        assert_eq!(operators.unwrap(), "{}");
    }

    #[tokio::test]
    async fn redirects_endless_bodies_and_silence_are_given_up() {
        let target = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", None).await;
        let location = format!(
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{}/\r\ncontent-length: 0\r\n\r\n",
            target.port()
        );
        let redirect = server(Box::leak(location.into_boxed_str()), None).await;
        let endless = server(
            "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n",
            Some(&[b' '; 65536]),
        )
        .await;
        let gone = server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", None).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fetcher = fetcher(&[]);
        let began = Instant::now();
        for (address, expected) in [
            (redirect, "redirects are not followed"),
            (endless, "more than 1048576 bytes"),
            (gone, "404"),
            (silent.local_addr().unwrap(), "timed out"),
        ] {
            let source = KeySource::Operator(format!("http://{address}/"));
            let error = fetcher.fetch(&source).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(began.elapsed() < TIMEOUT * 3);
    }

    #[tokio::test]
    async fn the_operators_keys_may_be_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let source = KeySource::Operator(path.display().to_string());
        let fetcher = fetcher(&[]);
        assert!(fetcher.fetch(&source).await.is_err());
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(fetcher.fetch(&source).await.unwrap(), "{}");
        std::fs::write(&path, vec![b' '; MAX_BYTES + 1]).unwrap();
        assert!(fetcher.fetch(&source).await.is_err());
    }
}
