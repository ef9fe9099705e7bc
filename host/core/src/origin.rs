use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The two schemes of outbound HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The word in URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The scheme with this word, in any case.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|scheme| scheme.as_str().eq_ignore_ascii_case(word))
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The host of an origin, in the one form that it has here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostName {
    /// A DNS name in lower case, without a dot at its end. It never looks like a number.
    Dns(String),
    /// Four decimal numbers.
    V4(Ipv4Addr),
    /// An IPv6 address that does not stand for an IPv4 one.
    V6(Ipv6Addr),
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => write!(f, "[{address}]"),
        }
    }
}

/// Where an HTTP request goes: `scheme://host[:port]`. Equal origins are written in one way only, so comparing them is safe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Over TLS or not.
    pub scheme: Scheme,
    /// The host.
    pub host: HostName,
    /// The port; never 0.
    pub port: u16,
}

impl Origin {
    /// The origin of a URL with this authority (`host[:port]`).
    ///
    /// # Errors
    /// [`InvalidOrigin`]: user information, a host that is neither a name nor an address as they are usually written, a port that is
    /// none. Every form that another reader may take for a different host is refused rather than interpreted.
    pub fn new(scheme: Scheme, authority: &str) -> Result<Self, InvalidOrigin> {
        let (host, port) = split_port(authority)?;
        Ok(Self {
            scheme,
            host: host_name(host)?,
            port: port.map_or(Ok(scheme.port()), port_number)?,
        })
    }

    /// `host[:port]`, the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// A host, or with a leading `*.` every name below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    host: HostName,
    below: bool,
}

impl HostPattern {
    /// Whether the host is the one that is named, or one of those below it.
    pub fn matches(&self, host: &HostName) -> bool {
        match (self.below, &self.host, host) {
            (false, own, other) => own == other,
            (true, HostName::Dns(own), HostName::Dns(other)) => other
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            (true, _, _) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        lower_case(text)?;
        let (below, text) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if text.contains('*') {
            return Err(InvalidOrigin::new(
                "a '*' stands alone in front of the first dot",
            ));
        }
        let host = host_name(text.trim_start_matches('[').trim_end_matches(']'))?;
        if below && !matches!(&host, HostName::Dns(name) if name.contains('.')) {
            return Err(InvalidOrigin::new(
                "a '*.' stands in front of a name of two parts or more, such as *.example.com",
            ));
        }
        Ok(Self { host, below })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.below { "*." } else { "" };
        write!(f, "{prefix}{}", self.host)
    }
}

/// Origins that a step may send requests to: one, or with a leading `*.` those of every name below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginPattern {
    scheme: Scheme,
    host: HostPattern,
    port: u16,
}

impl OriginPattern {
    /// Whether a request may go there.
    pub fn matches(&self, origin: &Origin) -> bool {
        self.scheme == origin.scheme && self.port == origin.port && self.host.matches(&origin.host)
    }

    /// Whether this names exactly one origin.
    pub fn is_exact(&self) -> bool {
        !self.host.below
    }
}

impl FromStr for OriginPattern {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let hint = format!("perhaps https://{text}");
            return Err(InvalidOrigin::new("an origin begins with https:// or http://").hint(hint));
        };
        lower_case(text)?;
        let scheme = Scheme::parse(scheme)
            .ok_or_else(|| InvalidOrigin::new("an origin begins with https:// or http://"))?;
        if let Some(end) = rest.find(['/', '?', '#', '\\']) {
            let kept = rest.get(..end).unwrap_or_default();
            let hint = format!("perhaps {}://{kept}", scheme.as_str());
            let message = "an origin ends with its host or port: it has no path, not even a slash";
            return Err(InvalidOrigin::new(message).hint(hint));
        }
        let (host, port) = split_port(rest)?;
        Ok(Self {
            scheme,
            host: host.parse()?,
            port: port.map_or(Ok(scheme.port()), port_number)?,
        })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.host)?;
        if self.port != self.scheme.port() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// A text that is no origin, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidOrigin {
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl InvalidOrigin {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: String) -> Self {
        self.hint = Some(hint.chars().take(300).collect());
        self
    }
}

fn lower_case(text: &str) -> Result<(), InvalidOrigin> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let hint = format!("perhaps {}", text.to_ascii_lowercase());
        return Err(InvalidOrigin::new("origins are written in lower case").hint(hint));
    }
    Ok(())
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; the brackets are taken off.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), InvalidOrigin> {
    if authority.contains('@') {
        return Err(InvalidOrigin::new(
            "there is no user information in an origin",
        ));
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .filter(|(host, _)| host.contains(':'))
            .ok_or_else(|| InvalidOrigin::new("brackets hold an IPv6 address"))?;
        return match after.strip_prefix(':') {
            _ if after.is_empty() => Ok((host, None)),
            Some(port) => Ok((host, Some(port))),
            None => Err(InvalidOrigin::new("a ':' and a port follow the brackets")),
        };
    }
    match authority.split_once(':') {
        None => Ok((authority, None)),
        Some((_, port)) if port.contains(':') => {
            Err(InvalidOrigin::new("an IPv6 address is written in brackets"))
        }
        Some((host, port)) => Ok((host, Some(port))),
    }
}

fn port_number(text: &str) -> Result<u16, InvalidOrigin> {
    // `u16`'s own parser would take a plus sign and leading zeros.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| InvalidOrigin::new("a port is a number from 1 to 65535"))
}

fn host_name(text: &str) -> Result<HostName, InvalidOrigin> {
    if text.contains(':') {
        let address: Ipv6Addr = text
            .parse()
            .map_err(|_| InvalidOrigin::new("this is no IPv6 address"))?;
        return match address.to_ipv4_mapped() {
            Some(address) => Err(InvalidOrigin::new("this stands for an IPv4 address")
                .hint(format!("perhaps {address}"))),
            None => Ok(HostName::V6(address)),
        };
    }
    if let Ok(address) = text.parse() {
        return Ok(HostName::V4(address));
    }
    dns_name(text).map(HostName::Dns)
}

fn dns_name(text: &str) -> Result<String, InvalidOrigin> {
    if !text.is_ascii() {
        let message =
            "a name has letters a to z, digits and hyphens: write others in their xn-- form";
        return Err(InvalidOrigin::new(message));
    }
    if text.ends_with('.') {
        return Err(InvalidOrigin::new("a name has no dot at its end"));
    }
    let well_formed = text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        });
    if !well_formed {
        return Err(InvalidOrigin::new(
            "this is neither a DNS name nor an address",
        ));
    }
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last
            .get(..2)
            .is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    if number {
        // 2130706433, 0x7f.1 and 127.1 are all addresses to some readers.
        return Err(InvalidOrigin::new(
            "an IPv4 address is written as four decimal numbers without leading zeros",
        ));
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(scheme: Scheme, authority: &str) -> Result<String, String> {
        Origin::new(scheme, authority)
            .map(|origin| origin.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_origin_has_one_form() {
        for (authority, shown) in [
            ("API.Example.com", "https://api.example.com"),
            ("example.com:443", "https://example.com"),
            ("example.com:8443", "https://example.com:8443"),
            ("10.0.0.5:80", "https://10.0.0.5:80"),
            ("[2001:DB8::1]:443", "https://[2001:db8::1]"),
            ("[0:0:0:0:0:0:0:1]", "https://[::1]"),
            ("xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("my_host", "https://my_host"),
        ] {
            assert_eq!(origin(Scheme::Https, authority).as_deref(), Ok(shown));
        }
        assert_eq!(origin(Scheme::Http, "a:80").as_deref(), Ok("http://a"));
    }

    #[test]
    fn what_others_may_read_differently_is_refused() {
        for authority in [
            "",
            ".",
            "a..b",
            ".example.com",
            "example.com.",
            "good.example@evil.example",
            "user:pass@example.com",
            "@example.com",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "127.1",
            "127.0.0.01",
            "127.0.0.256",
            "1.2.3.4.5",
            "127.0.0.1.",
            "example.0x7",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[fe80::1%25eth0]",
            "[127.0.0.1]",
            "[::1",
            "::1",
            "[::1]x",
            "example.com:",
            "example.com:0",
            "example.com:080",
            "example.com:+80",
            "example.com:65536",
            "example.com:80:90",
            "exam ple.com",
            "example.com/",
            "example.com#a",
            "example.com\\evil.example",
            "example.com\r\nx: y",
            "example.com\0",
            "%31%32%37.0.0.1",
            "bücher.example",
            "１２７.０.０.１",
            "-a.example",
        ] {
            assert!(origin(Scheme::Http, authority).is_err(), "{authority:?}");
        }
        assert!(origin(Scheme::Http, &format!("{}.a", "x".repeat(64))).is_err());
        assert!(origin(Scheme::Http, &"abcd.".repeat(60)).is_err());
    }

    fn allows(pattern: &str, scheme: Scheme, authority: &str) -> bool {
        let pattern: OriginPattern = pattern.parse().unwrap();
        pattern.matches(&Origin::new(scheme, authority).unwrap())
    }

    #[test]
    fn a_grant_is_for_its_own_origin() {
        use Scheme::{Http, Https};
        assert!(allows("https://api.example.com", Https, "api.example.com"));
        assert!(allows(
            "https://api.example.com",
            Https,
            "API.EXAMPLE.COM:443"
        ));
        assert!(allows("http://10.0.0.5:8080", Http, "10.0.0.5:8080"));
        for (scheme, authority) in [
            (Http, "api.example.com"),
            (Http, "api.example.com:443"),
            (Https, "api.example.com:8443"),
            (Https, "example.com"),
            (Https, "x.api.example.com"),
            (Https, "api.example.com.evil.example"),
            (Https, "xapi.example.com"),
        ] {
            assert!(!allows("https://api.example.com", scheme, authority));
        }
    }

    #[test]
    fn a_star_is_for_the_names_below() {
        let pattern = "https://*.example.com";
        assert!(allows(pattern, Scheme::Https, "a.example.com"));
        assert!(allows(pattern, Scheme::Https, "b.a.example.com"));
        assert!(!allows(pattern, Scheme::Https, "example.com"));
        assert!(!allows(pattern, Scheme::Https, "aexample.com"));
        assert!(!allows(pattern, Scheme::Http, "a.example.com"));
        assert!(!pattern.parse::<OriginPattern>().unwrap().is_exact());
    }

    #[test]
    fn a_wrong_grant_says_how_it_is_written() {
        let error = |text: &str| text.parse::<OriginPattern>().unwrap_err();
        for (text, hint) in [
            ("example.com", Some("perhaps https://example.com")),
            ("https://example.com/", Some("perhaps https://example.com")),
            (
                "https://example.com/v1?x",
                Some("perhaps https://example.com"),
            ),
            ("HTTPS://Example.com", Some("perhaps https://example.com")),
            ("http://[::ffff:10.0.0.1]", Some("perhaps 10.0.0.1")),
            ("ftp://example.com", None),
            ("https://", None),
            ("https://*", None),
            ("https://*.com", None),
            ("https://*.10.0.0.1", None),
            ("https://a.*.example.com", None),
            ("https://*a.example.com", None),
            ("https://u:p@example.com", None),
            ("https://example.com:0", None),
        ] {
            assert_eq!(error(text).hint.as_deref(), hint, "{text}");
        }
        for text in ["https://*.example.com:8443", "http://[2001:db8::1]:8080"] {
            assert_eq!(text.parse::<OriginPattern>().unwrap().to_string(), text);
        }
    }
}
