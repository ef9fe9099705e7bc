//! The JSON format of CloudEvents 1.0, and what both content modes ask of attributes, the same for every transport.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Event;

/// What is wrong with a request or record that says it is a CloudEvent; for whoever sent it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CloudEvent: {0}")]
pub struct Malformed(pub String);

/// A [`Malformed`] event.
pub fn malformed(what: impl Into<String>) -> Malformed {
    Malformed(what.into())
}

/// Attributes as they come, in whichever mode.
#[derive(Default)]
pub struct Attributes {
    known: BTreeMap<&'static str, String>,
    extensions: Vec<(String, String)>,
}

const KNOWN: [&str; 7] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
];

impl Attributes {
    /// Adds one.
    ///
    /// # Errors
    /// The name is none of an attribute, or is there already, or the value has characters that no attribute may have, or it is one
    /// extension more than [`Event::MAX_EXTENSIONS`].
    pub fn insert(&mut self, name: &str, value: String) -> Result<(), Malformed> {
        if value.chars().any(char::is_control) {
            return Err(malformed(format!(
                "the attribute '{}' has control characters",
                shown(name)
            )));
        }
        let twice = || malformed(format!("the attribute '{}' is there twice", shown(name)));
        if let Some(known) = KNOWN.into_iter().find(|known| *known == name) {
            return match self.known.insert(known, value) {
                None => Ok(()),
                Some(_) => Err(twice()),
            };
        }
        if !Event::is_extension_name(name) || name == "data" {
            return Err(malformed(format!(
                "'{}' is no attribute: names are lower-case letters and digits",
                shown(name)
            )));
        }
        if self.extensions.iter().any(|(other, _)| other == name) {
            return Err(twice());
        }
        if self.extensions.len() >= Event::MAX_EXTENSIONS {
            let most = Event::MAX_EXTENSIONS;
            return Err(malformed(format!("it has more than {most} extensions")));
        }
        self.extensions.push((name.to_owned(), value));
        Ok(())
    }

    /// The event of these attributes; the host's own extensions are dropped.
    ///
    /// # Errors
    /// A required attribute is missing, or one is malformed.
    pub fn into_event(mut self, data: Bytes) -> Result<Event, Malformed> {
        match self.known.remove("specversion").as_deref() {
            Some("1.0") => {}
            Some(other) => {
                let other = shown(other);
                return Err(malformed(format!("specversion '{other}' is not 1.0")));
            }
            None => return Err(malformed("the attribute 'specversion' is missing")),
        }
        let mut required = |name| match self.known.remove(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(malformed(format!("the attribute '{name}' is missing"))),
        };
        let (id, source, r#type) = (required("id")?, required("source")?, required("type")?);
        let time = self.known.remove("time");
        if time
            .as_deref()
            .is_some_and(|time| OffsetDateTime::parse(time, &Rfc3339).is_err())
        {
            return Err(malformed("the attribute 'time' is no RFC 3339 timestamp"));
        }
        let mut event = Event {
            id,
            source,
            r#type,
            subject: self.known.remove("subject").filter(|text| !text.is_empty()),
            time,
            datacontenttype: self.known.remove("datacontenttype"),
            extensions: self.extensions,
            data,
        };
        event.drop_http_extensions();
        Ok(event)
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Reads an event in the JSON format.
///
/// # Errors
/// [`Malformed`] names what is missing or malformed.
pub fn from_json(body: &[u8]) -> Result<Event, Malformed> {
    let members: Members<'_> = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the body is no JSON object: {error}")))?;
    let mut attributes = Attributes::default();
    let (mut data, mut data_base64) = (None, None);
    for (name, value) in members.0 {
        match name.as_str() {
            "data" => data = Some(value),
            "data_base64" => data_base64 = Some(value),
            _ => {
                if let Some(text) = attribute(&name, value)? {
                    attributes.insert(&name, text)?;
                }
            }
        }
    }
    let content_type = attributes.known.get("datacontenttype");
    let bytes = match (data, data_base64) {
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => return Err(malformed("both 'data' and 'data_base64' are there")),
        (None, Some(encoded)) => {
            let text: String = serde_json::from_str(encoded.get())
                .map_err(|_| malformed("'data_base64' is no text"))?;
            let bytes = BASE64.decode(text);
            Bytes::from(bytes.map_err(|_| malformed("'data_base64' is not base64"))?)
        }
        (Some(value), None) => {
            let is_json = content_type.is_none_or(|content_type| is_json(content_type));
            // Declared to be something else, a text is the data itself and not its JSON form.
            match serde_json::from_str::<String>(value.get()) {
                Ok(text) if !is_json => Bytes::from(text),
                _ => {
                    if content_type.is_none() {
                        attributes.insert("datacontenttype", "application/json".to_owned())?;
                    }
                    Bytes::copy_from_slice(value.get().as_bytes())
                }
            }
        }
    };
    attributes.into_event(bytes)
}

/// The text of an attribute; none: it is `null`, which means that it is not there.
fn attribute(name: &str, value: &RawValue) -> Result<Option<String>, Malformed> {
    match serde_json::from_str(value.get()) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::String(text)) => Ok(Some(text)),
        Ok(Value::Bool(flag)) => Ok(Some(flag.to_string())),
        Ok(Value::Number(number)) if number.is_i64() => Ok(Some(number.to_string())),
        _ => Err(malformed(format!(
            "the attribute '{}' is no text, integer or boolean",
            shown(name)
        ))),
    }
}

/// An object's members in their order; a name that comes twice is seen twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn is_json(content_type: &str) -> bool {
    let event = Event {
        id: String::new(),
        source: String::new(),
        r#type: String::new(),
        subject: None,
        time: None,
        datacontenttype: Some(content_type.to_owned()),
        extensions: Vec::new(),
        data: Bytes::new(),
    };
    event.is_json()
}

/// The data of an event that says it is JSON, if it is.
pub fn json_data(event: &Event) -> Option<&RawValue> {
    event
        .is_json()
        .then(|| serde_json::from_slice(&event.data).ok())
        .flatten()
}

/// An event in the JSON format, without the host's own extensions.
pub struct Structured<'a>(pub &'a Event);

impl Serialize for Structured<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &event.id)?;
        map.serialize_entry("source", &event.source)?;
        map.serialize_entry("type", &event.r#type)?;
        for (name, value) in [
            ("subject", &event.subject),
            ("time", &event.time),
            ("datacontenttype", &event.datacontenttype),
        ] {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in sendable_extensions(event) {
            map.serialize_entry(name, value)?;
        }
        if event.data.is_empty() {
            return map.end();
        }
        // A text without content type would be read as JSON.
        let text = || {
            let is_other = event.datacontenttype.is_some() && !event.is_json();
            is_other.then(|| std::str::from_utf8(&event.data).ok())?
        };
        if let Some(json) = json_data(event) {
            map.serialize_entry("data", json)?;
        } else if let Some(text) = text() {
            map.serialize_entry("data", text)?;
        } else {
            map.serialize_entry("data_base64", &BASE64.encode(&event.data))?;
        }
        map.end()
    }
}

/// The extensions that may leave the host: legal names, none of the host's own, none that would pass for another attribute.
pub fn sendable_extensions(event: &Event) -> impl Iterator<Item = (&str, &str)> {
    let extensions = event.extensions.iter();
    extensions
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| {
            Event::is_extension_name(name)
                && !name.starts_with("http")
                && *name != "data"
                && !KNOWN.contains(name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Event, Malformed> {
        from_json(&Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn structured_events_are_read_and_written_back() {
        for (member, data, content_type) in [
            (
                r#""data":{"a": [1, 2.50]}"#,
                r#"{"a": [1, 2.50]}"#,
                Some("application/json"),
            ),
            (r#""data":"text""#, r#""text""#, Some("application/json")),
            (
                r#""datacontenttype":"text/plain","data":"a\"b""#,
                "a\"b",
                Some("text/plain"),
            ),
            (
                r#""datacontenttype":"x/y+json","data":"a""#,
                r#""a""#,
                Some("x/y+json"),
            ),
            (
                r#""data_base64":"AP8=","datacontenttype":"image/png""#,
                "\0",
                Some("image/png"),
            ),
            (r#""subject":"s""#, "", None),
        ] {
            let json = format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","count":3,"flag":true,"none":null,{member}}}"#
            );
            let event = read(&json).unwrap();
            assert!(event.data.starts_with(data.as_bytes()), "{member}");
            assert_eq!(event.datacontenttype.as_deref(), content_type, "{member}");
            assert_eq!(event.extension("count"), Some("3"));
            assert_eq!(event.extension("flag"), Some("true"));
            assert_eq!(event.extension("none"), None);
            let written = serde_json::to_string(&Structured(&event)).unwrap();
            assert_eq!(read(&written).unwrap(), event, "{written}");
        }
    }

    #[test]
    fn malformed_events_say_why() {
        let good = r#""specversion":"1.0","id":"1","source":"/s","type":"t""#;
        for (json, part) in [
            ("".to_owned(), "no JSON object"),
            ("[]".to_owned(), "no JSON object"),
            (format!("{{{good}"), "no JSON object"),
            (
                r#"{"id":"1","source":"/s","type":"t"}"#.to_owned(),
                "'specversion' is missing",
            ),
            (good.replace("1.0", "0.3"), "'0.3' is not 1.0"),
            (good.replace(r#""id":"1","#, ""), "'id' is missing"),
            (good.replace(r#""id":"1""#, r#""id":"""#), "'id' is missing"),
            (good.replace(r#""source":"/s","#, ""), "'source' is missing"),
            (good.replace(r#","type":"t""#, ""), "'type' is missing"),
            (good.replace(r#""id":"1""#, r#""id":{}"#), "'id' is no text"),
            (format!(r#"{good},"id":"2""#), "'id' is there twice"),
            (format!(r#"{good},"x":"2","x":"3""#), "'x' is there twice"),
            (
                format!(r#"{good},"Bad-Name":"2""#),
                "'Bad-Name' is no attribute",
            ),
            (format!(r#"{good},"x":1.5"#), "'x' is no text"),
            (format!(r#"{good},"time":"yesterday""#), "RFC 3339"),
            (format!(r#"{good},"data":1,"data_base64":"AA==""#), "both"),
            (format!(r#"{good},"data_base64":"*""#), "not base64"),
            (format!(r#"{good},"data_base64":1"#), "no text"),
        ] {
            let json = if json.starts_with('"') {
                format!("{{{json}}}")
            } else {
                json
            };
            let error = read(&json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn so_many_extensions_and_no_more() {
        let of = |count: usize| {
            let extensions: String = (0..count).map(|i| format!(r#","x{i}":1"#)).collect();
            read(&format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"s","data":1{extensions}}}"#
            ))
        };
        let most = Event::MAX_EXTENSIONS;
        assert_eq!(of(most).unwrap().extensions.len(), most);
        for count in [most + 1, 80_000] {
            let error = of(count).unwrap_err().to_string();
            assert!(error.contains("more than 256 extensions"), "{error}");
        }
    }

    #[test]
    fn forged_and_illegal_extensions_do_not_pass() {
        let json = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","httppath":"/admin","httpx":"y","mine":"z"}"#;
        let mut event = read(json).unwrap();
        assert_eq!(event.extensions, [("mine".to_owned(), "z".to_owned())]);
        for name in ["httpstatus", "id", "data", "Bad", "a-b", "a\r\nb", ""] {
            event.extensions.push((name.to_owned(), "x".to_owned()));
        }
        let sent: Vec<_> = sendable_extensions(&event).collect();
        assert_eq!(sent, [("mine", "z")]);
    }

    #[test]
    fn data_that_lies_about_its_type_is_sent_as_bytes() {
        let mut event = read(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#).unwrap();
        for (content_type, data) in [
            (Some("application/json"), "{\"a\":"),
            (None, "text"),
            (Some("text/plain"), "\u{0}"),
        ] {
            event.datacontenttype = content_type.map(str::to_owned);
            event.data = Bytes::from(data.to_owned());
            let written = serde_json::to_string(&Structured(&event)).unwrap();
            let back = from_json(&Bytes::from(written.clone())).unwrap();
            assert_eq!(back.data, event.data, "{written}");
        }
    }
}
