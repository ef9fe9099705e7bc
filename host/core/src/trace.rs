/// W3C trace context as it came with a request or record, already checked for its form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`: `00-TRACE-SPAN-FLAGS`.
    pub traceparent: Option<String>,
    /// `tracestate`, opaque.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// Reads the two headers; a malformed `traceparent` is dropped together with its state, as the standard asks.
    pub fn from_headers(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        match traceparent.filter(|text| is_traceparent(text)) {
            None => Self::default(),
            Some(parent) => Self {
                traceparent: Some(parent.to_owned()),
                tracestate: tracestate
                    .filter(|state| {
                        state.len() <= 512 && state.bytes().all(|b| (0x20..0x7f).contains(&b))
                    })
                    .map(str::to_owned),
            },
        }
    }
}

fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, len: usize| {
        part.len() == len
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let parts: Vec<&str> = text.split('-').collect();
    match parts.as_slice() {
        [version, trace, span, flags] => {
            *version == "00"
                && hex(trace, 32)
                && hex(span, 16)
                && hex(flags, 2)
                && trace.bytes().any(|b| b != b'0')
                && span.bytes().any(|b| b != b'0')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_parents_are_kept() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(
            TraceContext::from_headers(Some(good), Some("a=b"))
                .traceparent
                .as_deref(),
            Some(good)
        );
        for bad in [
            "",
            "junk",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(
                TraceContext::from_headers(Some(bad), Some("a=b")),
                TraceContext::default()
            );
        }
    }
}
