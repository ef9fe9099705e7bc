//! The JSON format of CloudEvents 1.0 (structured mode), the same for every transport.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::Event;

/// Why a text is no CloudEvent; the words are for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CloudEvent: {0}")]
pub struct InvalidCloudEvent(pub String);

impl Event {
    /// Reads an event in the JSON format.
    ///
    /// # Errors
    /// [`InvalidCloudEvent`] names the attribute that is missing or malformed.
    pub fn from_cloudevents_json(text: &[u8]) -> Result<Self, InvalidCloudEvent> {
        let invalid = |message: String| InvalidCloudEvent(message);
        let value: Value =
            serde_json::from_slice(text).map_err(|error| invalid(format!("not JSON: {error}")))?;
        let Value::Object(mut map) = value else {
            return Err(invalid("expected a JSON object".into()));
        };
        check_specversion(take_text(&mut map, "specversion")?.as_deref())?;
        let (id, source) = (required(&mut map, "id")?, required(&mut map, "source")?);
        let r#type = required(&mut map, "type")?;
        let subject = take_text(&mut map, "subject")?;
        let time = take_text(&mut map, "time")?;
        let content_type = take_text(&mut map, "datacontenttype")?;
        let _ = take_text(&mut map, "dataschema")?;
        let (data, datacontenttype) = match (map.remove("data"), map.remove("data_base64")) {
            (Some(_), Some(_)) => {
                return Err(invalid("both 'data' and 'data_base64' are there".into()));
            }
            (None, None) | (Some(Value::Null), None) => (Bytes::new(), content_type),
            (None, Some(encoded)) => {
                let text = encoded
                    .as_str()
                    .ok_or_else(|| invalid("'data_base64' is not a text".into()))?;
                let bytes = decode_base64(text)
                    .ok_or_else(|| invalid("'data_base64' is not base64".into()))?;
                (bytes.into(), content_type)
            }
            (Some(data), None) => {
                let content_type = content_type.unwrap_or_else(|| "application/json".into());
                let bytes = match &data {
                    // A JSON string is the text itself when the content is not JSON.
                    Value::String(text) if !is_json(&content_type) => text.clone().into_bytes(),
                    other => other.to_string().into_bytes(),
                };
                (bytes.into(), Some(content_type))
            }
        };
        let mut extensions = Vec::new();
        for (name, value) in map {
            if !Self::is_extension_name(&name) {
                return Err(invalid(format!(
                    "'{}' is not an attribute name: lower-case letters and digits",
                    name.chars().take(64).collect::<String>()
                )));
            }
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Array(_) | Value::Object(_) => {
                    return Err(invalid(format!("the attribute '{name}' is not a simple value")));
                }
            };
            extensions.push((name, text));
        }
        Ok(Self {
            id,
            source,
            r#type,
            subject,
            time,
            datacontenttype,
            extensions,
            data,
        })
    }

    /// Writes the event in the JSON format; `data` that is JSON by its content type stands as JSON, other data as base64.
    pub fn to_cloudevents_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("specversion".into(), "1.0".into());
        map.insert("id".into(), self.id.as_str().into());
        map.insert("source".into(), self.source.as_str().into());
        map.insert("type".into(), self.r#type.as_str().into());
        let optional = [
            ("subject", &self.subject),
            ("time", &self.time),
            ("datacontenttype", &self.datacontenttype),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                map.insert(name.into(), value.as_str().into());
            }
        }
        for (name, value) in &self.extensions {
            map.insert(name.clone(), value.as_str().into());
        }
        if !self.data.is_empty() {
            match serde_json::from_slice::<Value>(&self.data) {
                Ok(value) if self.is_json() => map.insert("data".into(), value),
                _ => map.insert("data_base64".into(), encode_base64(&self.data).into()),
            };
        }
        Value::Object(map)
    }
}

/// Checks the `specversion` of an event in any mode.
///
/// # Errors
/// It is missing, or a version that we do not speak.
pub fn check_specversion(version: Option<&str>) -> Result<(), InvalidCloudEvent> {
    match version {
        Some("1.0") => Ok(()),
        Some(other) => Err(InvalidCloudEvent(format!(
            "specversion '{}' is not 1.0",
            other.chars().take(20).collect::<String>()
        ))),
        None => Err(InvalidCloudEvent("the attribute 'specversion' is missing".into())),
    }
}

fn required(map: &mut Map<String, Value>, name: &str) -> Result<String, InvalidCloudEvent> {
    take_text(map, name)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| InvalidCloudEvent(format!("the attribute '{name}' is missing")))
}

fn take_text(map: &mut Map<String, Value>, name: &str) -> Result<Option<String>, InvalidCloudEvent> {
    match map.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(InvalidCloudEvent(format!("the attribute '{name}' is not a text"))),
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

fn encode_base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_round_trip() {
        let text = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","traceid":"x","data":{"a":1}}"#;
        let event = Event::from_cloudevents_json(text).unwrap();
        assert_eq!(event.data, Bytes::from_static(br#"{"a":1}"#));
        assert_eq!(event.extension("traceid"), Some("x"));
        let again = Event::from_cloudevents_json(event.to_cloudevents_json().to_string().as_bytes());
        assert_eq!(again.unwrap(), event);
    }

    #[test]
    fn binary_data_travels_as_base64() {
        let text = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"image/png","data_base64":"/wA="}"#;
        let event = Event::from_cloudevents_json(text).unwrap();
        assert_eq!(event.data, Bytes::from_static(&[0xff, 0]));
        assert_eq!(event.to_cloudevents_json()["data_base64"], "/wA=");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, part) in [
            ("[]", "a JSON object"),
            ("{", "not JSON"),
            (r#"{"specversion":"1.0","id":"1","source":"/s"}"#, "'type' is missing"),
            (r#"{"specversion":"0.3","id":"1","source":"/s","type":"t"}"#, "not 1.0"),
            (r#"{"id":"1","source":"/s","type":"t"}"#, "'specversion' is missing"),
            (r#"{"specversion":"1.0","id":1,"source":"/s","type":"t"}"#, "not a text"),
            (r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","A-b":"x"}"#, "not an attribute name"),
        ] {
            let error = Event::from_cloudevents_json(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
