use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidNet {
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl Net {
    /// Whether the address is in it; an IPv6 address that stands for an IPv4 one is taken as that.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => masked_v4(address, self.bits) == net,
            (IpAddr::V6(net), IpAddr::V6(address)) => masked_v6(address, self.bits) == net,
            _ => false,
        }
    }
}

impl FromStr for Net {
    type Err = InvalidNet;

    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let invalid = |message: &str, hint: Option<String>| InvalidNet {
            message: message.to_owned(),
            hint,
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            let hint = "such as 10.1.0.0/16 or fd00::/8".to_owned();
            invalid("this is no network", Some(hint))
        })?;
        if address.to_canonical() != address {
            let hint = format!("perhaps {}", address.to_canonical());
            return Err(invalid("this stands for IPv4 addresses", Some(hint)));
        }
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|number| *number <= all && !bits.starts_with('+'))
                .ok_or_else(|| {
                    invalid(&format!("the part after '/' is a number up to {all}"), None)
                })?,
        };
        let net: IpAddr = match address {
            IpAddr::V4(address) => masked_v4(address, bits).into(),
            IpAddr::V6(address) => masked_v6(address, bits).into(),
        };
        if net != address {
            let hint = format!("perhaps {net}/{bits}");
            return Err(invalid(
                "the address has bits beyond its network",
                Some(hint),
            ));
        }
        Ok(Self { address, bits })
    }
}

fn masked_v4(address: Ipv4Addr, bits: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn masked_v6(address: Ipv6Addr, bits: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

/// Who may connect to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Whoever has a grant.
    Public,
    /// Nobody unless the operator names it.
    Private,
    /// Nobody.
    Never,
}

/// What kind of address this is. Whatever is not known to be public is not.
pub(crate) fn reach(address: IpAddr) -> Reach {
    match address.to_canonical() {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

/// IPv4 ranges that nobody reaches: "this network", whose addresses end up at this very host, and multicast.
const NEVER_V4: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::BROADCAST, 32),
];

/// IPv4 ranges that are not the internet, after IANA's registry of special-purpose addresses.
const PRIVATE_V4: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(168, 63, 129, 16), 32), // the metadata service of a large cloud, in the midst of public addresses
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

fn reach_v4(address: Ipv4Addr) -> Reach {
    let within = |ranges: &[(Ipv4Addr, u8)]| {
        ranges
            .iter()
            .any(|(net, bits)| masked_v4(address, *bits) == *net)
    };
    if within(&NEVER_V4) {
        Reach::Never
    } else if within(&PRIVATE_V4) {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// IPv6 ranges that nobody reaches: multicast, and those that carry an IPv4 address (6to4, Teredo, the deprecated compatible form,
/// local translation) or none at all.
const NEVER_V6: [(Ipv6Addr, u8); 6] = [
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// Parts of 2000::/3 that are not the internet.
const PRIVATE_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

const GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const TRANSLATED: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

fn reach_v6(address: Ipv6Addr) -> Reach {
    let within = |(net, bits): &(Ipv6Addr, u8)| masked_v6(address, *bits) == *net;
    if within(&TRANSLATED) {
        // A translator hands it on to the IPv4 address in its last 32 bits, which counts like itself, and cannot be named.
        let [.., a, b, c, d] = address.octets();
        return match reach_v4(Ipv4Addr::new(a, b, c, d)) {
            Reach::Public => Reach::Public,
            Reach::Private | Reach::Never => Reach::Never,
        };
    }
    if address == Ipv6Addr::LOCALHOST {
        return Reach::Private;
    }
    let compatible = masked_v6(address, 96) == Ipv6Addr::UNSPECIFIED;
    if compatible || NEVER_V6.iter().any(within) {
        Reach::Never
    } else if within(&GLOBAL) && !PRIVATE_V6.iter().any(within) {
        Reach::Public
    } else {
        Reach::Private
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().unwrap())
    }

    #[test]
    fn the_internet_is_public_and_nothing_else() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(of(address), Reach::Public, "{address}");
        }
        for address in [
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "240.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "2001:db8::1",
            "2001:10::1",
            "2001:2::1",
            "3fff::1",
            "4000::1",
        ] {
            assert_eq!(of(address), Reach::Private, "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
            "::",
            "::7f00:1",
            "::ffff:0.0.0.0",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "2001:0:53aa:64c:0:0:80ff:fffe",
            "ff02::1",
            "5f00::1",
        ] {
            assert_eq!(of(address), Reach::Never, "{address}");
        }
    }

    #[test]
    fn networks_hold_what_is_in_them() {
        let holds = |net: &str, address: &str| {
            net.parse::<Net>()
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(holds("10.1.0.0/16", "10.1.255.255"));
        assert!(holds("10.1.0.0/16", "::ffff:10.1.0.1"));
        assert!(!holds("10.1.0.0/16", "10.2.0.0"));
        assert!(holds("127.0.0.1", "127.0.0.1"));
        assert!(!holds("127.0.0.1/32", "127.0.0.2"));
        assert!(holds("0.0.0.0/0", "203.0.113.1"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fd12::1"));
        assert!(!holds("fd00::/8", "fe80::1"));
        assert!(holds("::/0", "::1"));
        assert!(holds("::1", "::1"));
    }

    #[test]
    fn a_wrong_network_says_how_it_is_written() {
        let hint = |text: &str| text.parse::<Net>().unwrap_err().hint;
        assert_eq!(hint("10.1.2.3/16").as_deref(), Some("perhaps 10.1.0.0/16"));
        assert_eq!(hint("fd00::1/8").as_deref(), Some("perhaps fd00::/8"));
        assert_eq!(hint("::ffff:10.0.0.1").as_deref(), Some("perhaps 10.0.0.1"));
        for text in [
            "",
            "localhost",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.1/16",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}
