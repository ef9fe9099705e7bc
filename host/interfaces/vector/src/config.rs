use std::net::IpAddr;

use stepwell_core::Secret;

use crate::client::Metric;
use crate::limits::MAX_DIMENSION;

/// `[bindings.vectors.NAME]`: one index.
#[derive(Clone, Debug)]
pub struct VectorBindingConfig {
    /// What holds the vectors.
    pub backend: VectorBackend,
    /// How many values each vector has.
    pub dimension: u32,
    /// How vectors are compared.
    pub metric: Metric,
}

/// What holds the vectors of a binding.
#[derive(Clone, Debug)]
pub enum VectorBackend {
    /// The embedded exact index.
    Local,
    /// Pinecone's service.
    Pinecone {
        /// The index's host as Pinecone shows it, or a URL.
        host: String,
        /// The key.
        api_key: Secret,
        /// The one namespace that the binding may use; none: all of the index.
        namespace: Option<String>,
    },
}

impl VectorBackend {
    /// The word in configuration and reports.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Pinecone { .. } => "pinecone",
        }
    }
}

impl VectorBindingConfig {
    /// Every mistake, each with the key it belongs to; none: the binding can be opened.
    pub fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if self.dimension == 0 || self.dimension > MAX_DIMENSION {
            mistakes.push((
                "dimension",
                format!("{} is not between 1 and {MAX_DIMENSION}", self.dimension),
            ));
        }
        if let VectorBackend::Pinecone { host, api_key, .. } = &self.backend {
            if let Err(mistake) = base_url(host) {
                mistakes.push(("host", mistake));
            }
            let key = api_key.expose();
            if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                mistakes.push((
                    "api_key",
                    "is empty or has characters that no key has (a line break?)".into(),
                ));
            }
        }
        mistakes
    }
}

/// The URL that requests start with, without a slash at its end.
pub(crate) fn base_url(host: &str) -> Result<reqwest::Url, String> {
    let text = if host.contains("://") {
        host.to_owned()
    } else {
        format!("https://{host}")
    };
    let url = reqwest::Url::parse(&text)
        .map_err(|error| format!("is neither a host name nor a URL: {error}"))?;
    let named = url.host_str().is_some_and(|host| !host.is_empty());
    if !named || !matches!(url.scheme(), "http" | "https") {
        return Err("is neither a host name nor an http or https URL".into());
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("has more than a scheme, a host, a port and a path".into());
    }
    Ok(url)
}

/// Whether a key sent there could be read on the way.
pub(crate) fn is_open_text(url: &reqwest::Url) -> bool {
    let here = url.host_str().is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    });
    url.scheme() == "http" && !here
}
