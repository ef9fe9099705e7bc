use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// A [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md) event: what a step gets and gives.
///
/// `id` and `source` identify it together: use them as the key of whatever must happen only once, since a step may see an event
/// again after a failure.
///
/// ```
/// # use stepwell_sdk::{Error, Event};
/// fn shout(event: Event) -> Result<Event, Error> {
///     let louder = event.text()?.to_uppercase();
///     Ok(event.with_text(louder))
/// }
/// # let event = Event::new("1", "/doc", "test").with_text("hello");
/// # assert_eq!(shout(event).unwrap().text().unwrap(), "HELLO");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// The payload.
    pub data: Vec<u8>,
}

impl Event {
    /// An event without data.
    pub fn new(
        id: impl Into<String>,
        source: impl Into<String>,
        r#type: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            source: source.into(),
            r#type: r#type.into(),
            ..Self::default()
        }
    }

    /// Reads `data` as JSON, whatever `datacontenttype` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no JSON or does not fit `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.data).map_err(|error| {
            Error::invalid(format!("cannot read the event's data as JSON: {error}"))
        })
    }

    /// Reads `data` as UTF-8 text.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is none.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.data)
            .map_err(|error| Error::invalid(format!("the event's data is no UTF-8 text: {error}")))
    }

    /// Whether `datacontenttype` says that `data` is JSON (`application/json` or any `+json`).
    pub fn is_json(&self) -> bool {
        self.datacontenttype.as_deref().is_some_and(|content_type| {
            let essence = content_type.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
                || essence.eq_ignore_ascii_case("text/json")
                || essence.to_ascii_lowercase().ends_with("+json")
        })
    }

    /// The value of an extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.extensions
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Sets an extension attribute, replacing an earlier value. CloudEvents allows lower-case letters and digits in names.
    pub fn set_extension(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.extensions.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.extensions.push((name.to_owned(), value)),
        }
    }

    /// Takes an extension attribute out.
    pub fn remove_extension(&mut self, name: &str) -> Option<String> {
        let at = self.extensions.iter().position(|(key, _)| key == name)?;
        Some(self.extensions.remove(at).1)
    }

    /// The HTTP method, if the event is a request.
    pub fn method(&self) -> Option<&str> {
        self.extension("httpmethod")
    }

    /// The path that was requested, if the event is an HTTP request.
    pub fn path(&self) -> Option<&str> {
        self.extension("httppath")
    }

    /// The query of the request as it came, without the question mark.
    pub fn query(&self) -> Option<&str> {
        self.extension("httpquery")
    }

    /// The first value of a query parameter, decoded.
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.query()?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
    }

    /// A parameter of the HTTP route: `param("set")` is what stood for `{set}` in the trigger's path.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.extensions
            .iter()
            .find(|(key, _)| key.strip_prefix("httpparam") == Some(name))
            .map(|(_, value)| value.as_str())
    }

    /// The same event with this value as its JSON data.
    ///
    /// # Errors
    /// [`Error::Failed`] if the value cannot be JSON, such as a map whose keys are no strings.
    pub fn with_json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, Error> {
        let data = serde_json::to_vec(value).map_err(|error| {
            Error::failed(format!("cannot write the event's data as JSON: {error}"))
        })?;
        Ok(self.with_data("application/json", data))
    }

    /// The same event with this text as its data.
    #[must_use]
    pub fn with_text(self, text: impl Into<String>) -> Self {
        self.with_data("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// The same event with these bytes as its data.
    #[must_use]
    pub fn with_data(mut self, content_type: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.datacontenttype = Some(content_type.into());
        self.data = data.into();
        self
    }

    /// The same event with another id; events that one event is split into need an id each.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// The same event with another type.
    #[must_use]
    pub fn with_type(mut self, r#type: impl Into<String>) -> Self {
        self.r#type = r#type.into();
        self
    }

    /// The same event with a subject.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// The same event with an extension attribute.
    #[must_use]
    pub fn with_extension(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set_extension(name, value);
        self
    }

    /// The same event, answered with this HTTP status where an HTTP trigger started the run.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        self.with_extension("httpstatus", status.to_string())
    }
}

/// Undoes percent encoding and `+` of a query; what is not encoded rightly stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, literal)) = rest.split_first() {
        let (byte, after) = match (first, literal) {
            (b'+', _) => (b' ', literal),
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (first, literal),
            },
            _ => (first, literal),
        };
        out.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_both_ways_and_misfits_are_the_events_fault() {
        let event = Event::new("1", "/t", "test").with_json(&[1, 2]).unwrap();
        assert!(event.is_json());
        assert_eq!(event.json::<Vec<u8>>().unwrap(), [1, 2]);
        let Err(Error::Invalid(message)) = event.json::<String>() else {
            panic!("a list is no string")
        };
        assert!(
            message.contains("cannot read the event's data as JSON"),
            "{message}"
        );
        assert!(matches!(
            event.with_json(&std::collections::BTreeMap::from([((1, 2), 3)])),
            Err(Error::Failed(_))
        ));
    }

    #[test]
    fn text_must_be_utf_8() {
        let event = Event::default().with_text("ä");
        assert_eq!(event.text().unwrap(), "ä");
        assert!(matches!(
            event.with_data("x", [0xff]).text(),
            Err(Error::Invalid(_))
        ));
    }

    #[test]
    fn extensions_are_replaced_and_removed() {
        let mut event = Event::default()
            .with_extension("a", "1")
            .with_extension("a", "2");
        assert_eq!(event.extensions, [("a".to_owned(), "2".to_owned())]);
        assert_eq!(event.remove_extension("a").as_deref(), Some("2"));
        assert_eq!(event.remove_extension("a"), None);
        assert_eq!(event.with_status(201).extension("httpstatus"), Some("201"));
    }

    #[test]
    fn the_request_is_readable() {
        let event = Event::default()
            .with_extension("httpmethod", "POST")
            .with_extension("httppath", "/digits/test")
            .with_extension("httpquery", "q=a%20b+c&x&bad=%zz%4")
            .with_extension("httpparamset", "test");
        assert_eq!(event.method(), Some("POST"));
        assert_eq!(event.path(), Some("/digits/test"));
        assert_eq!(event.param("set"), Some("test"));
        assert_eq!(event.param("other"), None);
        assert_eq!(event.query_param("q").as_deref(), Some("a b c"));
        assert_eq!(event.query_param("x").as_deref(), Some(""));
        assert_eq!(event.query_param("bad").as_deref(), Some("%zz%4"));
        assert_eq!(event.query_param("none"), None);
    }
}
