use std::collections::HashSet;

use bytes::Bytes;
use stepwell_core::{ErrorKind, Event, StepError};

use crate::meter::Exceeded;

mod bindings {
    // The input is lent to the guest, not copied on its way.
    wasmtime::component::bindgen!({
        path: "../../wit/pipeline",
        world: "step",
        exports: { default: async },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

pub(crate) use bindings::exports::stepwell::pipeline::handler::Error as GuestError;
use bindings::exports::stepwell::pipeline::handler::{EventParam, EventResult};
pub(crate) use bindings::{Step, StepPre};

/// What `process` takes.
pub(crate) type Input<'a> = (EventParam<'a>,);
/// What `process` returns.
pub(crate) type Output = (Result<Vec<EventResult>, GuestError>,);

/// Lends an event to a guest.
pub(crate) fn lend<'a>(event: &'a Event, extensions: &'a [(&'a str, &'a str)]) -> EventParam<'a> {
    EventParam {
        id: &event.id,
        source: &event.source,
        type_: &event.r#type,
        subject: event.subject.as_deref(),
        time: event.time.as_deref(),
        datacontenttype: event.datacontenttype.as_deref(),
        extensions,
        data: &event.data,
    }
}

/// Takes what a guest returned for `input`: within the limit, and made a proper event.
pub(crate) fn take(
    returned: Vec<EventResult>,
    input: &Event,
    limit: u64,
) -> Result<Vec<Event>, StepError> {
    let of_host = of_host(input);
    let each: usize = of_host
        .clone()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    // Not the guest's output, and still memory that its events take up.
    if returned.len() > 1 && (returned.len() as u64).saturating_mul(each as u64) > MAX_CARRIED {
        return Err(Exceeded::Carried(MAX_CARRIED).into());
    }
    let mut size = 0u64;
    returned
        .into_iter()
        .map(|event| {
            let mut event = proper(event, input)?;
            size = size.saturating_add(event.size() as u64);
            if size > limit {
                return Err(Exceeded::Output(limit).into());
            }
            event.extensions.extend(of_host.clone().cloned());
            Ok(event)
        })
        .collect()
}

/// Bytes of what the host says of the request in all events that one call returns.
const MAX_CARRIED: u64 = 16 << 20;

/// What the host says of the request, which stands for every step of the run.
fn of_host(input: &Event) -> impl Iterator<Item = &(String, String)> + Clone {
    let extensions = input.extensions.iter();
    extensions.filter(|(name, _)| name.starts_with("http") && name != "httpstatus")
}

/// The error that a guest returned, its text bounded.
pub(crate) fn guest_error(error: GuestError) -> StepError {
    let (kind, message) = match error {
        GuestError::Invalid(message) => (ErrorKind::Invalid, message),
        GuestError::Unavailable(message) => (ErrorKind::Unavailable, message),
        GuestError::Failed(message) => (ErrorKind::Failed, message),
    };
    StepError::new(kind, bounded(message))
}

/// Characters of a guest's error.
const MESSAGE: usize = 4096;

fn bounded(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE) {
        message.truncate(end);
    }
    message
}

/// Names that an extension must not have, since they are attributes of their own.
const ATTRIBUTES: [&str; 8] = [
    "id",
    "source",
    "type",
    "specversion",
    "subject",
    "time",
    "datacontenttype",
    "data",
];

fn proper(event: EventResult, input: &Event) -> Result<Event, StepError> {
    let expected = event.extensions.len().min(Event::MAX_EXTENSIONS);
    let mut extensions: Vec<(String, String)> = Vec::with_capacity(expected);
    for (name, value) in event.extensions {
        if !Event::is_extension_name(&name) {
            return Err(returned(&format!(
                "the extension name '{}': names consist of lower-case letters and digits, 64 at most",
                shown(&name)
            )));
        }
        if ATTRIBUTES.contains(&name.as_str()) {
            return Err(returned(&format!(
                "an extension named '{name}', which is an attribute of its own"
            )));
        }
        // Those come from the host alone; a step may only say which status the reply has.
        if name.starts_with("http") && name != "httpstatus" {
            continue;
        }
        text(&name, &value)?;
        if extensions.len() >= Event::MAX_EXTENSIONS {
            return Err(Exceeded::Extensions(Event::MAX_EXTENSIONS).into());
        }
        extensions.push((name, value));
    }
    if let Some(name) = twice(&extensions) {
        return Err(returned(&format!("the extension '{name}' twice")));
    }
    let or_input = |value: String, of_input: &String| {
        if value.is_empty() {
            of_input.clone()
        } else {
            value
        }
    };
    let event = Event {
        id: or_input(event.id, &input.id),
        source: or_input(event.source, &input.source),
        r#type: or_input(event.type_, &input.r#type),
        subject: event.subject,
        time: event.time,
        datacontenttype: event.datacontenttype,
        extensions,
        data: Bytes::from(event.data),
    };
    text("id", &event.id)?;
    text("source", &event.source)?;
    text("type", &event.r#type)?;
    for (name, value) in [
        ("subject", &event.subject),
        ("time", &event.time),
        ("datacontenttype", &event.datacontenttype),
    ] {
        text(name, value.as_deref().unwrap_or_default())?;
    }
    Ok(event)
}

/// A name that two extensions have.
fn twice(extensions: &[(String, String)]) -> Option<&str> {
    /// So many are compared with each other in less time than a set is made.
    const FEW: usize = 16;
    let mut names = extensions.iter().map(|(name, _)| name.as_str()).enumerate();
    if extensions.len() <= FEW {
        let found = names.find(|(at, name)| {
            let others = extensions.iter().take(*at);
            others.into_iter().any(|(other, _)| other == name)
        });
        return found.map(|(_, name)| name);
    }
    let mut seen = HashSet::with_capacity(extensions.len());
    names.map(|(_, name)| name).find(|name| !seen.insert(*name))
}

/// CloudEvents forbids control characters, and they would forge headers.
fn text(name: &str, value: &str) -> Result<(), StepError> {
    if value.chars().any(char::is_control) {
        return Err(returned(&format!(
            "control characters in the attribute '{name}'"
        )));
    }
    Ok(())
}

fn returned(what: &str) -> StepError {
    StepError::new(
        ErrorKind::Failed,
        format!("the guest returned an event with {what}"),
    )
}

fn shown(name: &str) -> String {
    name.chars()
        .take(80)
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use stepwell_test_hits::hits;

    use super::*;

    fn input() -> Event {
        Event {
            id: "1".into(),
            source: "/s".into(),
            r#type: "t".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            extensions: Vec::new(),
            data: Bytes::new(),
        }
    }

    fn event(extensions: &[(&str, &str)]) -> EventResult {
        EventResult {
            id: String::new(),
            source: String::new(),
            type_: "new".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            extensions: extensions
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            data: b"12345".to_vec(),
        }
    }

    #[test]
    fn empty_attributes_are_those_of_the_input() {
        let events = take(vec![event(&[("traceid", "x")])], &input(), 1000).unwrap();
        assert_eq!(events[0].id, "1");
        assert_eq!(events[0].source, "/s");
        assert_eq!(events[0].r#type, "new");
        assert_eq!(events[0].extension("traceid"), Some("x"));
        assert_eq!(events[0].data.as_ref(), b"12345");
    }

    #[test]
    fn of_the_hosts_extensions_only_the_status_is_taken() {
        let events = take(
            vec![event(&[
                ("httpmethod", "POST"),
                ("httpstatus", "201"),
                ("httpparamx", "1"),
            ])],
            &input(),
            1000,
        )
        .unwrap();
        assert_eq!(
            events[0].extensions,
            [("httpstatus".to_owned(), "201".to_owned())]
        );
    }

    #[test]
    fn what_the_host_says_of_the_request_goes_on() {
        let mut input = input();
        for (name, value) in [("httpparamset", "a"), ("httpstatus", "500"), ("mine", "b")] {
            input.set_extension(name, value.to_owned());
        }
        let forged = event(&[("httpparamset", "forged")]);
        let events = take(vec![forged], &input, 1000).unwrap();
        assert_eq!(
            events[0].extensions,
            [("httpparamset".to_owned(), "a".to_owned())]
        );
    }

    #[test]
    fn improper_events_are_the_guests_fault() {
        for extensions in [
            &[("Bad", "x")][..],
            &[("", "x")],
            &[("id", "x")],
            &[("data", "x")],
            &[("a", "line\r\nset-cookie: x")],
            &[("a", "1"), ("a", "2")],
        ] {
            let error = take(vec![event(extensions)], &input(), 1000).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Failed, "{extensions:?}");
        }
        let forged = EventResult {
            datacontenttype: Some("text/plain\r\nx: y".into()),
            ..event(&[])
        };
        assert_eq!(
            take(vec![forged], &input(), 1000).unwrap_err().kind,
            ErrorKind::Failed
        );
    }

    #[test]
    fn extensions_are_so_many_and_each_is_there_once() {
        let of = |count: usize| {
            let mut many = event(&[("httppath", "/forged"); 3]);
            let names = (0..count).map(|i| (format!("x{i}"), String::new()));
            many.extensions.extend(names);
            many
        };
        let most = Event::MAX_EXTENSIONS;
        let mut input = input();
        input.set_extension("httppath", "/a");
        let taken = take(vec![of(most)], &input, 1 << 20).unwrap();
        assert_eq!(taken[0].extensions.len(), most + 1);
        let before = hits("extensions");
        let error = take(vec![of(most + 1)], &input, 1 << 20).unwrap_err();
        assert!(hits("extensions") > before);
        assert_eq!(error.kind, ErrorKind::Limit);
        assert!(
            error.message.contains("more than 256 extensions"),
            "{error}"
        );
        for count in [2, 16, 17, 200] {
            let mut again = of(count);
            again.extensions.push(("x1".into(), String::new()));
            let error = take(vec![again], &input, 1 << 20).unwrap_err();
            assert!(error.message.contains("'x1' twice"), "{count}: {error}");
        }
    }

    #[test]
    fn what_the_host_says_of_the_request_does_not_multiply_for_ever() {
        let mut input = input();
        input.set_extension("httpquery", "q".repeat(60_000));
        assert!(take(vec![event(&[])], &input, 1 << 20).is_ok());
        let many = (0..200).map(|_| event(&[])).collect();
        assert!(take(many, &input, 1 << 20).is_ok());
        let many = (0..300).map(|_| event(&[])).collect();
        let error = take(many, &input, 1 << 20).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit);
        assert!(error.message.contains("16MiB"), "{error}");
    }

    #[test]
    fn the_output_of_all_events_together_is_limited() {
        let size = take(vec![event(&[])], &input(), 1000).unwrap()[0].size() as u64;
        assert!(take(vec![event(&[]), event(&[])], &input(), size * 2).is_ok());
        let error = take(vec![event(&[]), event(&[])], &input(), size * 2 - 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Limit);
        assert!(error.message.contains("limits.output"), "{error}");
    }

    #[test]
    fn a_guests_error_text_is_bounded() {
        let error = guest_error(GuestError::Invalid("é".repeat(10_000)));
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(error.message.chars().count(), MESSAGE);
    }
}
