use std::io;

use wasmtime_wasi_http::Error as HttpError;

/// Why a request was not sent, or not answered. The words are for the deployer; guests get an error code and nothing else.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// No grant names the origin.
    #[error("the step has no http grant for it")]
    NotGranted,
    /// The operator keeps the host closed.
    #[error("the operator does not let anybody reach this host ([egress] allow and deny)")]
    Closed,
    /// Every address of the host is one that may not be reached.
    #[error(
        "its address is private, loopback or reserved: the operator can open it ([egress] private), and the grant must then name the origin itself, without '*'"
    )]
    Prohibited,
    /// The method is none that may be sent.
    #[error("this method is not sent")]
    Method,
    /// The URL is none.
    #[error("its URL is refused: {0}")]
    Uri(String),
    /// A limit on requests under way is reached.
    #[error(
        "{limit} of {value} is reached: requests wait until their responses are read or dropped"
    )]
    Busy {
        /// The setting.
        limit: &'static str,
        /// Its value.
        value: usize,
    },
    /// No connection came free in time.
    #[error("no connection came free in time: the setting is [egress] connections, {0}")]
    Connections(usize),
    /// The name has no address.
    #[error("the host's name cannot be resolved")]
    Unknown,
    /// Looking up the name took too long.
    #[error("looking up the host's name took too long")]
    LookupTimeout,
    /// Connecting took too long.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// Nobody listens there, or nobody is there.
    #[error("cannot connect: {0}")]
    Connect(io::ErrorKind),
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(String, TlsFault),
    /// The response's head did not come in time.
    #[error("no response came in time")]
    ResponseTimeout,
    /// The response's body stalled.
    #[error("the response's body stalled")]
    BodyTimeout,
    /// The call's response bytes are used up.
    #[error(
        "its responses are larger than the call's {0} bytes; the setting is [egress] response_bytes"
    )]
    TooLarge(u64),
    /// The response's head is larger than is read.
    #[error("the response's headers are too large")]
    HeadTooLarge,
    /// The other side closed the connection before the end.
    #[error("the connection was closed before the response's end")]
    Incomplete,
    /// The other side does not speak HTTP as it should, or the guest did not finish its request.
    #[error("the exchange failed: {0}")]
    Protocol(String),
}

/// What is wrong with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate is not trusted.
    Certificate,
    /// The other side sent this alert.
    Alert(u8),
    /// Anything else.
    Other,
}

impl EgressError {
    /// The reason of a request that was never sent, for the metric; none for those that failed on their way.
    pub(crate) fn denied(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotGranted => "not-granted",
            Self::Closed => "operator",
            Self::Prohibited => "address",
            Self::Method => "method",
            Self::Uri(_) => "url",
            Self::Busy { .. } | Self::Connections(_) => "limit",
            _ => return None,
        })
    }

    /// The outcome, for the metric.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            _ if self.denied().is_some() => "denied",
            Self::LookupTimeout
            | Self::ConnectTimeout
            | Self::ResponseTimeout
            | Self::BodyTimeout => "timeout",
            _ => "failed",
        }
    }

    pub(crate) fn of_hyper(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::HeadTooLarge
        } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            Self::Incomplete
        } else {
            Self::Protocol(error.to_string())
        }
    }

    pub(crate) fn of_tls(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let (fault, text) = match inner {
            Some(rustls::Error::InvalidCertificate(reason)) => (
                TlsFault::Certificate,
                format!("the certificate is not trusted: {reason:?}"),
            ),
            Some(rustls::Error::AlertReceived(alert)) => (
                TlsFault::Alert(u8::from(*alert)),
                format!("the other side answered {alert:?}"),
            ),
            Some(other) => (TlsFault::Other, other.to_string()),
            None => (TlsFault::Other, error.kind().to_string()),
        };
        Self::Tls(text, fault)
    }
}

impl From<EgressError> for HttpError {
    fn from(error: EgressError) -> Self {
        use io::ErrorKind;
        match error {
            EgressError::NotGranted | EgressError::Closed => Self::HttpRequestDenied,
            EgressError::Prohibited => Self::DestinationIpProhibited,
            EgressError::Method => Self::HttpRequestMethodInvalid,
            EgressError::Uri(_) => Self::HttpRequestUriInvalid,
            EgressError::Busy { .. } | EgressError::Connections(_) => Self::ConnectionLimitReached,
            EgressError::Unknown => Self::DnsError {
                rcode: None,
                info_code: None,
            },
            EgressError::LookupTimeout => Self::DnsTimeout,
            EgressError::ConnectTimeout => Self::ConnectionTimeout,
            EgressError::Connect(ErrorKind::ConnectionRefused) => Self::ConnectionRefused,
            EgressError::Connect(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
                Self::DestinationIpUnroutable
            }
            EgressError::Connect(_) => Self::DestinationUnavailable,
            EgressError::Tls(_, TlsFault::Certificate) => Self::TlsCertificateError,
            EgressError::Tls(_, TlsFault::Alert(id)) => Self::TlsAlertReceived {
                alert_id: Some(id),
                alert_message: None,
            },
            EgressError::Tls(_, TlsFault::Other) => Self::TlsProtocolError,
            EgressError::ResponseTimeout => Self::HttpResponseTimeout,
            EgressError::BodyTimeout => Self::ConnectionReadTimeout,
            EgressError::TooLarge(limit) => Self::HttpResponseBodySize(Some(limit)),
            EgressError::HeadTooLarge => Self::HttpResponseHeaderSectionSize(None),
            EgressError::Incomplete => Self::HttpResponseIncomplete,
            EgressError::Protocol(_) => Self::HttpProtocolError,
        }
    }
}
