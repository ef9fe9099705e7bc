use bytes::Bytes;

/// A [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md) event: what flows
/// between triggers and steps. `id` and `source` identify it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique within `source`.
    pub id: String,
    /// A URI reference that names where the event comes from.
    pub source: String,
    /// What happened, such as `http.request`.
    pub r#type: String,
    /// What the event is about, within `source`.
    pub subject: Option<String>,
    /// RFC 3339 timestamp.
    pub time: Option<String>,
    /// The media type of `data`.
    pub datacontenttype: Option<String>,
    /// Extension attributes: names of lower-case letters and digits, in the order they came.
    pub extensions: Vec<(String, String)>,
    /// The payload, opaque to the host.
    pub data: Bytes,
}

impl Event {
    /// Extension attributes that an event may have when it comes from outside or from a step; what the host says of a request comes on
    /// top.
    pub const MAX_EXTENSIONS: usize = 256;

    /// The value of an extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.extensions
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Sets an extension attribute, replacing an earlier value.
    pub fn set_extension(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.extensions.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.extensions.push((name.to_owned(), value)),
        }
    }

    /// Drops the extensions whose names start with `http`: they come from the host alone, so incoming ones
    /// are forged and outgoing ones nobody's business.
    pub fn drop_http_extensions(&mut self) {
        self.extensions.retain(|(key, _)| !key.starts_with("http"));
    }

    /// Whether an attribute name is a legal CloudEvents extension name.
    pub fn is_extension_name(name: &str) -> bool {
        !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    }

    /// Bytes that this event occupies, attributes included: what size limits count.
    pub fn size(&self) -> usize {
        let optional = |value: &Option<String>| value.as_ref().map_or(0, String::len);
        self.id.len()
            + self.source.len()
            + self.r#type.len()
            + optional(&self.subject)
            + optional(&self.time)
            + optional(&self.datacontenttype)
            + self
                .extensions
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum::<usize>()
            + self.data.len()
    }

    /// Whether `data` is JSON by its content type (`application/json`, `text/json` or any `+json`).
    pub fn is_json(&self) -> bool {
        self.datacontenttype.as_deref().is_some_and(|content_type| {
            let essence = content_type
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase();
            essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
        })
    }
}
