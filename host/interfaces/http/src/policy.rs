use std::net::{IpAddr, SocketAddr, UdpSocket};

use stepwell_core::{HostName, HostPattern, Origin};

use crate::address::{Net, Reach, reach};
use crate::config::EgressConfig;
use crate::error::EgressError;

/// Where a connection goes, and to which of its host's addresses it may go. Connections are shared only where both are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) origin: Origin,
    pub(crate) access: Access,
}

/// Which addresses a target may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Public ones.
    Public,
    /// Public ones and those of the networks that the operator opened.
    Opened,
    /// Those of the networks that the operator opened, and no public ones: what is asked for in the clear.
    OnlyOpened,
}

/// The operator's rules.
#[derive(Debug)]
pub(crate) struct Policy {
    private: Vec<Net>,
    allow: Vec<HostPattern>,
    deny: Vec<HostPattern>,
    own: Vec<SocketAddr>,
}

impl Policy {
    pub(crate) fn new(config: &EgressConfig) -> Self {
        Self {
            private: config.private.clone(),
            allow: config.allow.clone(),
            deny: config.deny.clone(),
            own: config.own.clone(),
        }
    }

    /// Whether grants may name this host.
    pub(crate) fn check_host(&self, host: &HostName) -> Result<(), EgressError> {
        let named = |patterns: &[HostPattern]| patterns.iter().any(|pattern| pattern.matches(host));
        if named(&self.deny) || !(self.allow.is_empty() || named(&self.allow)) {
            return Err(EgressError::Closed);
        }
        Ok(())
    }

    /// Whether a connection may go to this very address.
    pub(crate) fn allows(&self, address: SocketAddr, access: Access) -> bool {
        let opened = || self.private.iter().any(|net| net.contains(address.ip()));
        let open = match (reach(address.ip()), access) {
            (Reach::Public, Access::Public | Access::Opened) => true,
            (Reach::Private, Access::Opened | Access::OnlyOpened) => opened(),
            _ => false,
        };
        open && !self.is_own(address)
    }

    /// Whether this host itself listens there, on a listener that is not for guests.
    fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.own.iter().any(|own| {
            own.port() == address.port()
                && (own.ip().to_canonical() == ip || (own.ip().is_unspecified() && is_local(ip)))
        })
    }
}

/// Whether the address is one of this machine's: only then can a socket have it.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(private: &[&str], own: &[&str]) -> Policy {
        Policy::new(&EgressConfig {
            private: private.iter().map(|net| net.parse().unwrap()).collect(),
            own: own.iter().map(|own| own.parse().unwrap()).collect(),
            ..EgressConfig::default()
        })
    }

    fn allows(policy: &Policy, address: &str, access: Access) -> bool {
        policy.allows(address.parse().unwrap(), access)
    }

    #[test]
    fn private_addresses_need_the_operator_and_a_grant_that_names_the_origin() {
        let closed = policy(&[], &[]);
        let open = policy(&["10.1.0.0/16", "127.0.0.1/32", "0.0.0.0/8", "::/0"], &[]);
        for (address, of_closed, of_open) in [
            ("8.8.8.8:443", [true, true, false], [true, true, false]),
            ("10.1.2.3:80", [false; 3], [false, true, true]),
            ("[::ffff:10.1.2.3]:80", [false; 3], [false, true, true]),
            ("10.2.0.1:80", [false; 3], [false; 3]),
            ("169.254.169.254:80", [false; 3], [false; 3]),
            ("[::1]:80", [false; 3], [false, true, true]),
            // What nobody reaches cannot be opened either.
            ("0.0.0.0:80", [false; 3], [false; 3]),
            ("[::]:80", [false; 3], [false; 3]),
            ("[64:ff9b::7f00:1]:80", [false; 3], [false; 3]),
            ("[2002:7f00:1::]:80", [false; 3], [false; 3]),
            ("[ff02::1]:80", [false; 3], [false; 3]),
        ] {
            for (access, of_closed, of_open) in [
                (Access::Public, of_closed[0], of_open[0]),
                (Access::Opened, of_closed[1], of_open[1]),
                (Access::OnlyOpened, of_closed[2], of_open[2]),
            ] {
                assert_eq!(
                    allows(&closed, address, access),
                    of_closed,
                    "{address} {access:?}"
                );
                assert_eq!(
                    allows(&open, address, access),
                    of_open,
                    "{address} {access:?}"
                );
            }
        }
    }

    #[test]
    fn the_hosts_own_listeners_are_out_of_reach() {
        let open = ["127.0.0.0/8", "10.0.0.0/8", "::1/128"];
        let exact = policy(&open, &["127.0.0.1:8081"]);
        assert!(!allows(&exact, "127.0.0.1:8081", Access::Opened));
        assert!(!allows(&exact, "[::ffff:127.0.0.1]:8081", Access::Opened));
        assert!(allows(&exact, "127.0.0.1:8080", Access::Opened));
        for everywhere in ["0.0.0.0:8081", "[::]:8081"] {
            let everywhere = policy(&open, &[everywhere]);
            for address in ["127.0.0.1:8081", "127.9.9.9:8081", "[::1]:8081"] {
                assert!(!allows(&everywhere, address, Access::Opened), "{address}");
            }
            assert!(allows(&everywhere, "127.0.0.1:8082", Access::Opened));
            assert!(allows(&everywhere, "10.255.255.254:8081", Access::Opened));
        }
    }

    #[test]
    fn the_operator_closes_hosts() {
        let check = |allow: &[&str], deny: &[&str], host: &str| {
            let patterns =
                |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let policy = Policy::new(&EgressConfig {
                allow: patterns(allow),
                deny: patterns(deny),
                ..EgressConfig::default()
            });
            policy.check_host(&HostName::Dns(host.to_owned())).is_ok()
        };
        assert!(check(&[], &[], "a.example"));
        assert!(check(&["*.a.example"], &[], "x.a.example"));
        assert!(!check(&["*.a.example"], &[], "b.example"));
        assert!(!check(&[], &["b.example"], "b.example"));
        assert!(!check(&["*.a.example"], &["x.a.example"], "x.a.example"));
    }
}
