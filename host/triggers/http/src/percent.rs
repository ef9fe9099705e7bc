use std::borrow::Cow;
use std::fmt::Write as _;

/// Decodes `%XX`; a `%` that starts no such thing stands for itself. None: the result is no UTF-8.
pub(crate) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octet = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = octet {
            decoded.push(high << 4 | low);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            decoded.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Encodes an attribute's value for a header as the HTTP binding of CloudEvents asks: spaces, double quotes, percent signs and
/// everything outside of printable ASCII. What comes out is always a legal header value.
pub(crate) fn encode_attribute(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'%';
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        for (text, decoded) in [
            ("", ""),
            ("plain", "plain"),
            ("a%20b%2Fc", "a b/c"),
            ("%C3%A9", "é"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
        ] {
            assert_eq!(decode(text).unwrap(), decoded);
        }
        assert_eq!(decode("%ff"), None);
    }

    #[test]
    fn encoded_attributes_come_back() {
        for value in [
            "",
            "plain",
            "a b",
            "100%",
            "\"q\"",
            "é€😀",
            "x\r\nset-cookie: a=b",
            "\0",
        ] {
            let encoded = encode_attribute(value);
            assert!(http::HeaderValue::from_str(&encoded).is_ok(), "{encoded}");
            assert_eq!(decode(&encoded).unwrap(), value);
        }
        // The examples of the binding itself.
        assert_eq!(
            encode_attribute("Euro € 😀"),
            "Euro%20%E2%82%AC%20%F0%9F%98%80"
        );
    }
}
