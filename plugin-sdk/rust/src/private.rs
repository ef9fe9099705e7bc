//! What the code written by `#[step]` calls. Nothing here is meant to be called by hand.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Event};

#[cfg(target_family = "wasm")]
pub use crate::guest::{Guest, WitError, WitEvent, bindings, process};

/// What a step may take: an [`Event`], or any type that is read from the event's JSON.
#[diagnostic::on_unimplemented(
    message = "a step cannot take `{Self}`",
    note = "take `stepwell_sdk::Event`, or a type with `#[derive(serde::Deserialize)]`"
)]
pub trait Input: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the event does not fit.
    fn from_event(event: Event) -> Result<Self, Error>;
}

impl Input for Event {
    fn from_event(event: Event) -> Result<Self, Error> {
        Ok(event)
    }
}

impl<T: DeserializeOwned> Input for T {
    fn from_event(event: Event) -> Result<Self, Error> {
        event.json()
    }
}

/// What a step may give: an [`Event`], or any type that can be JSON.
#[diagnostic::on_unimplemented(
    message = "a step cannot give `{Self}`",
    note = "give `stepwell_sdk::Event`, or a type with `#[derive(serde::Serialize)]`; `Option<…>` of it or `Vec<…>` of it, written out in the signature"
)]
pub trait Output: Sized {
    /// Whether this is the data of an event rather than an event.
    #[doc(hidden)]
    const IS_DATA: bool;

    /// Writes it; data goes into `attributes`, an event without data.
    ///
    /// # Errors
    /// [`Error::Failed`] if it cannot be JSON.
    fn into_event(self, attributes: Event) -> Result<Event, Error>;
}

impl Output for Event {
    const IS_DATA: bool = false;

    fn into_event(self, _: Event) -> Result<Event, Error> {
        Ok(self)
    }
}

impl<T: Serialize> Output for T {
    const IS_DATA: bool = true;

    fn into_event(self, attributes: Event) -> Result<Event, Error> {
        attributes.with_json(&self)
    }
}

/// The step's input, and the attributes that its output will need.
pub fn split<I: Input, O: Output>(event: Event) -> Result<(I, Event), Error> {
    let attributes = if O::IS_DATA {
        Event {
            id: event.id.clone(),
            source: event.source.clone(),
            r#type: event.r#type.clone(),
            subject: event.subject.clone(),
            time: event.time.clone(),
            datacontenttype: None,
            extensions: event.extensions.clone(),
            data: Vec::new(),
        }
    } else {
        Event::default()
    };
    Ok((I::from_event(event)?, attributes))
}

/// `Result<T, _>`.
pub fn one<O: Output>(output: O, attributes: Event) -> Result<Vec<Event>, Error> {
    Ok(vec![output.into_event(attributes)?])
}

/// `Result<Option<T>, _>`.
pub fn optional<O: Output>(output: Option<O>, attributes: Event) -> Result<Vec<Event>, Error> {
    output.map_or_else(|| Ok(Vec::new()), |output| one(output, attributes))
}

/// `Result<Vec<T>, _>`.
pub fn many<O: Output>(outputs: Vec<O>, attributes: Event) -> Result<Vec<Event>, Error> {
    outputs
        .into_iter()
        .enumerate()
        .map(|(index, output)| {
            let id = format!("{}/{index}", attributes.id);
            output.into_event(attributes.clone().with_id(id))
        })
        .collect()
}
