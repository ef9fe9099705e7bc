use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

use async_trait::async_trait;

/// Turns names into addresses. Asked once for each new connection, which then goes to one of the addresses that were checked: what
/// a second look-up would say does not matter.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of a DNS name.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The operating system's resolver.
pub(crate) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || {
            // The port is of no account.
            let addresses = (name.as_str(), 0).to_socket_addrs()?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
        .await
        .map_err(io::Error::other)?
    }
}
