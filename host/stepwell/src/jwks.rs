//! Gets the keys of issuers of JSON Web Tokens. What a deployer names must lead to the public internet, over TLS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Url};
use stepwell_http_trigger::{FetchError, KeyFetcher, KeySource};
use stepwell_pipeline::JwtHost;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;

/// Bytes of a key set.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Time for one attempt, from the name's resolution to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts at once; hosts with many issuers ask them all when they start.
const AT_ONCE: usize = 64;

/// Fetches key sets.
pub(crate) struct Fetcher {
    host: JwtHost,
    /// Goes wherever the operator says.
    trusted: Client,
    /// Goes to public addresses only.
    guarded: Client,
    slots: Semaphore,
}

impl Fetcher {
    /// A fetcher that reaches what is not public only at the origins that the operator trusts.
    pub(crate) fn new(host: JwtHost) -> Result<Self, reqwest::Error> {
        let builder = || -> ClientBuilder {
            Client::builder()
                .no_proxy()
                .redirect(Policy::none())
                .timeout(TIMEOUT)
                .pool_max_idle_per_host(1)
        };
        Ok(Self {
            host,
            trusted: builder().build()?,
            guarded: builder()
                .https_only(true)
                .dns_resolver(Arc::new(Public))
                .build()?,
            slots: Semaphore::new(AT_ONCE),
        })
    }

    async fn over_http(&self, client: &Client, url: Url) -> Result<Bytes, FetchError> {
        let mut response = client.get(url).send().await.map_err(innermost)?;
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
        let _slot = self.slots.acquire().await;
        match source {
            KeySource::Operator(place) if !is_url(place) => {
                let read = tokio::time::timeout(TIMEOUT, read(place)).await;
                read.unwrap_or_else(|_| Err(FetchError("the file took too long".to_owned())))
            }
            KeySource::Operator(url) => self.over_http(&self.trusted, parsed(url)?).await,
            KeySource::Deployer(url) if self.host.trusts(url) => {
                self.over_http(&self.trusted, parsed(url)?).await
            }
            KeySource::Deployer(url) => {
                let url = parsed(url)?;
                // An address in the URL itself is never resolved, so that the resolver does not see it.
                let address = url.host_str().and_then(|host| {
                    let host = host.trim_start_matches('[').trim_end_matches(']');
                    host.parse::<IpAddr>().ok()
                });
                if address.is_some_and(|address| !is_public(address)) {
                    return Err(not_public());
                }
                self.over_http(&self.guarded, url).await
            }
        }
    }
}

/// Whether an operator's place of keys is a URL, and otherwise a file.
pub(crate) fn is_url(place: &str) -> bool {
    place.starts_with("https://") || place.starts_with("http://")
}

fn parsed(url: &str) -> Result<Url, FetchError> {
    url.parse()
        .map_err(|error| FetchError(format!("this is no URL: {error}")))
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

fn not_public() -> FetchError {
    let message =
        "the keys are not at a public address; the operator may allow that in [server.jwt] trusted";
    FetchError(message.to_owned())
}

/// The cause that says it best.
fn innermost(error: reqwest::Error) -> FetchError {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    FetchError(cause.to_string())
}

/// A resolver that knows public addresses only: what it answers is what is connected to.
struct Public;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(not_public().into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let reserved = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared by carriers, IETF protocols, relays of old, benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19));
    !reserved
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    if let [0, 0, 0, 0, 0, 0xffff, high, low]
    | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
    | [0x2002, high, low, ..] = segments
    {
        // An IPv4 address in disguise: mapped, translated, tunnelled.
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let [first, second, ..] = segments;
    // Of what is global unicast, Teredo and documentation are not out there.
    (0x2000..0x4000).contains(&first)
        && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
        && !(first == 0x3fff && second < 0x1000)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_not_public_is_known_in_every_disguise() {
        for private in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "::7f00:1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

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
        Fetcher::new(host).unwrap()
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
            let error = guarded.fetch(&KeySource::Deployer(url.clone())).await;
            let error = error.unwrap_err().to_string();
            assert!(error.contains("not at a public address"), "{url}: {error}");
        }
        // Over plain HTTP nothing is asked at all, wherever it leads.
        let plain = KeySource::Deployer("http://1.1.1.1/".to_owned());
        assert!(guarded.fetch(&plain).await.is_err());
        // What the operator allows, and what is the operator's own.
        let url = format!("http://127.0.0.1:{port}/keys");
        let trusting = fetcher(&[format!("http://127.0.0.1:{port}")]);
        let own = trusting.fetch(&KeySource::Deployer(url.clone())).await;
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
