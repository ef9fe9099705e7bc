//! JSON is YAML but for one thing: it writes characters beyond U+FFFF as two escapes, which YAML knows as one.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// The same document for a YAML reader.
pub(super) fn as_yaml(text: &str) -> Cow<'_, str> {
    let is_json = text.trim_start().starts_with('{') && text.contains("\\u");
    if !is_json || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let length = match surrogates(escape) {
            Some(code) => {
                out.push_str(&format!("\\U{code:08x}"));
                12
            }
            None => {
                let length = 1 + escape.chars().nth(1).map_or(0, char::len_utf8);
                out.push_str(escape.get(..length).unwrap_or_default());
                length
            }
        };
        rest = escape.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character that `\uD8..\uDC..` at the beginning stands for.
fn surrogates(text: &str) -> Option<u32> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let units = [unit(0)?, unit(6)?];
    let mut decoded = char::decode_utf16(units);
    match (decoded.next(), decoded.next()) {
        (Some(Ok(character)), None) => Some(u32::from(character)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_one_escape_and_nothing_else_changes() {
        for (json, yaml) in [
            (r#"{"a": "\ud83d\ude00!"}"#, r#"{"a": "\U0001f600!"}"#),
            (r#"{"a": "\u00e9\n\\ud83d"}"#, r#"{"a": "\u00e9\n\\ud83d"}"#),
            (r#"{"a": "\\\ud83d\ude00é"}"#, r#"{"a": "\\\U0001f600é"}"#),
            (r#"{a: '\ud83d\ude00'}"#, r#"{a: '\ud83d\ude00'}"#),
        ] {
            assert_eq!(as_yaml(json), yaml);
        }
    }
}
