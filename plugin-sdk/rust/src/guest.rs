//! The interfaces inside a component: thin translations of the generated bindings.

pub(crate) mod config;
pub(crate) mod keyvalue;
pub(crate) mod log;
pub(crate) mod models;
pub(crate) mod sql;
pub(crate) mod vectors;

use crate::{Error, Event};

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    rust_2018_idioms,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod bindings {
    // One world with everything; the component keeps only the imports that are called.
    wit_bindgen::generate!({
        inline: r#"
            package stepwell:sdk;
            world plugin {
                import stepwell:model/inference@0.1.0;
                import stepwell:vector/index@0.1.0;
                import stepwell:sql/database@0.1.0;
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
                import wasi:keyvalue/batch@0.2.0-draft2;
                import wasi:config/store@0.2.0-rc.1;
                import wasi:logging/logging@0.1.0-draft;
                export stepwell:pipeline/handler@0.1.0;
            }
        "#,
        path: [
            "wit/pipeline",
            "wit/model",
            "wit/vector",
            "wit/sql",
            "wit/keyvalue/0.2.0-draft2",
            "wit/config",
            "wit/logging",
        ],
        world: "stepwell:sdk/plugin",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "__export_step",
        default_bindings_module: "::stepwell_sdk::__private::bindings",
    });
}

pub use bindings::exports::stepwell::pipeline::handler::{
    Error as WitError, Event as WitEvent, Guest,
};

/// Runs the step on one event.
pub fn process(
    input: WitEvent,
    step: fn(Event) -> Result<Vec<Event>, Error>,
) -> Result<Vec<WitEvent>, WitError> {
    match step(input.into()) {
        Ok(events) => Ok(events.into_iter().map(WitEvent::from).collect()),
        Err(Error::Invalid(message)) => Err(WitError::Invalid(message)),
        Err(Error::Unavailable(message)) => Err(WitError::Unavailable(message)),
        Err(Error::Failed(message)) => Err(WitError::Failed(message)),
    }
}

impl From<WitEvent> for Event {
    fn from(event: WitEvent) -> Self {
        Self {
            id: event.id,
            source: event.source,
            r#type: event.type_,
            subject: event.subject,
            time: event.time,
            datacontenttype: event.datacontenttype,
            extensions: event.extensions,
            data: event.data,
        }
    }
}

impl From<Event> for WitEvent {
    fn from(event: Event) -> Self {
        Self {
            id: event.id,
            source: event.source,
            type_: event.r#type,
            subject: event.subject,
            time: event.time,
            datacontenttype: event.datacontenttype,
            extensions: event.extensions,
            data: event.data,
        }
    }
}
