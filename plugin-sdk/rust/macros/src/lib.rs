//! The attribute macro of `stepwell-sdk`; use it as `#[stepwell_sdk::step]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, FnArg, GenericArgument, ItemFn, PathArguments, Result, ReturnType, Type};

/// Makes a function the step of this component.
///
/// The signature says what goes in and what comes out:
///
/// | argument | the step gets |
/// |---|---|
/// | `Event` | the event as it is |
/// | any other type | the event's `data`, read as JSON (`serde::Deserialize`); what does not fit is `Error::Invalid` |
///
/// | return type | the step gives |
/// |---|---|
/// | `Result<T, E>` | one event |
/// | `Result<Option<T>, E>` | one event, or none: the run ends here, as filtered |
/// | `Result<Vec<T>, E>` | as many events as the vector has; what follows runs once for each, in order |
///
/// `T` is `Event`, or any other `serde::Serialize` type: then the event that came in goes on with this value as its JSON `data`
/// (and, for `Vec<T>`, with `/0`, `/1`, … after its id, so that each is identified). To answer with one JSON array, return
/// a struct around it or a `serde_json::Value`. `E` is `stepwell_sdk::Error` or whatever turns into it.
///
/// Beside the function itself, which stays callable as it is, the attribute writes `NAME_events(Event) -> Result<Vec<Event>, Error>`:
/// the step as the host sees it, for tests.
#[proc_macro_attribute]
pub fn step(
    attribute: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    expand(attribute.into(), item.into())
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

/// How many events a return type stands for.
enum Shape {
    One,
    Optional,
    Many,
}

fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(
            attribute.span(),
            "#[stepwell_sdk::step] takes no arguments",
        ));
    }
    let function: ItemFn = syn::parse2(item)?;
    let input = input_type(&function)?;
    let (shape, output) = output_type(&function)?;

    let name = &function.sig.ident;
    let events = format_ident!("{name}_events");
    let collect = match shape {
        Shape::One => quote!(::stepwell_sdk::__private::one),
        Shape::Optional => quote!(::stepwell_sdk::__private::optional),
        Shape::Many => quote!(::stepwell_sdk::__private::many),
    };
    Ok(quote! {
        #function

        /// The step as the host sees it.
        #[allow(dead_code, reason = "used by the export and by tests")]
        fn #events(
            event: ::stepwell_sdk::Event,
        ) -> ::core::result::Result<::std::vec::Vec<::stepwell_sdk::Event>, ::stepwell_sdk::Error> {
            let (input, attributes) = ::stepwell_sdk::__private::split::<#input, #output>(event)?;
            #collect(#name(input)?, attributes)
        }

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the component's exported functions")]
        const _: () = {
            struct Step;
            impl ::stepwell_sdk::__private::Guest for Step {
                fn process(
                    input: ::stepwell_sdk::__private::WitEvent,
                ) -> ::core::result::Result<
                    ::std::vec::Vec<::stepwell_sdk::__private::WitEvent>,
                    ::stepwell_sdk::__private::WitError,
                > {
                    ::stepwell_sdk::__private::process(input, #events)
                }
            }
            ::stepwell_sdk::__private::bindings::__export_step!(Step with_types_in ::stepwell_sdk::__private::bindings);
        };
    })
}

fn input_type(function: &ItemFn) -> Result<&Type> {
    let signature = &function.sig;
    if let Some(keyword) = &signature.asyncness {
        return Err(Error::new(
            keyword.span(),
            "a step is no async function: calls to the host simply return when they are done",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(
            signature.generics.span(),
            "a step has no generic parameters: name its types",
        ));
    }
    let mut arguments = signature.inputs.iter();
    match (arguments.next(), arguments.next()) {
        (Some(FnArg::Typed(argument)), None) => match &*argument.ty {
            Type::Reference(reference) => Err(Error::new(
                reference.span(),
                "a step takes its input by value: write `Event` or your own type, without `&`",
            )),
            ty => Ok(ty),
        },
        _ => Err(Error::new(
            signature.inputs.span(),
            "a step takes one argument: an `Event`, or a type that is read from the event's JSON",
        )),
    }
}

fn output_type(function: &ItemFn) -> Result<(Shape, &Type)> {
    let ReturnType::Type(_, ty) = &function.sig.output else {
        return Err(Error::new(
            function.sig.span(),
            "a step returns a result, such as `Result<Event, Error>`",
        ));
    };
    let Some(value) = first_argument(ty, "Result") else {
        return Err(Error::new(
            ty.span(),
            "a step returns a result, such as `Result<Event, Error>`, written out as `Result<…>`",
        ));
    };
    if let Some(inner) = first_argument(value, "Option") {
        return Ok((Shape::Optional, inner));
    }
    if let Some(inner) = first_argument(value, "Vec") {
        return Ok((Shape::Many, inner));
    }
    Ok((Shape::One, value))
}

/// `T` of `NAME<T, …>`, whatever path leads to `NAME`.
fn first_argument<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    if last.ident != name {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap_err().to_string()
    }

    fn expanded(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap().to_string()
    }

    #[test]
    fn the_return_type_decides_how_many_events_there_are() {
        let one = expanded(quote!(
            fn f(e: Event) -> Result<Event, Error> {
                Ok(e)
            }
        ));
        assert!(one.contains("__private :: one"));
        let optional = expanded(quote!(
            fn f(e: In) -> std::result::Result<Option<Out>, Error> {
                Ok(None)
            }
        ));
        assert!(optional.contains("__private :: optional"));
        assert!(optional.contains("split :: < In , Out >"));
        let many = expanded(quote!(
            fn f(e: Event) -> stepwell_sdk::Result<Vec<Event>> {
                Ok(vec![e])
            }
        ));
        assert!(many.contains("__private :: many"));
    }

    #[test]
    fn the_function_stays_and_the_event_form_is_beside_it() {
        let text = expanded(quote!(
            fn score(e: Event) -> Result<Event, Error> {
                Ok(e)
            }
        ));
        assert!(text.contains("fn score (e : Event)") || text.contains("fn score (e : Event )"));
        assert!(text.contains("fn score_events"));
    }

    #[test]
    fn what_is_no_step_is_refused_with_the_reason() {
        let cases = [
            (
                quote!(
                    async fn f(e: Event) -> Result<Event, Error> {
                        Ok(e)
                    }
                ),
                "no async",
            ),
            (
                quote!(
                    fn f<T>(e: T) -> Result<Event, Error> {
                        loop {}
                    }
                ),
                "generic",
            ),
            (
                quote!(
                    fn f(e: &Event) -> Result<Event, Error> {
                        loop {}
                    }
                ),
                "by value",
            ),
            (
                quote!(
                    fn f() -> Result<Event, Error> {
                        loop {}
                    }
                ),
                "one argument",
            ),
            (
                quote!(
                    fn f(a: Event, b: u8) -> Result<Event, Error> {
                        loop {}
                    }
                ),
                "one argument",
            ),
            (
                quote!(
                    fn f(&self) -> Result<Event, Error> {
                        loop {}
                    }
                ),
                "one argument",
            ),
            (
                quote!(
                    fn f(e: Event) {}
                ),
                "returns a result",
            ),
            (
                quote!(
                    fn f(e: Event) -> Event {
                        e
                    }
                ),
                "returns a result",
            ),
        ];
        for (item, expected) in cases {
            let message = message(item.clone());
            assert!(message.contains(expected), "{item}: {message}");
        }
        let attribute = expand(
            quote!(batch),
            quote!(
                fn f() {}
            ),
        )
        .unwrap_err();
        assert!(attribute.to_string().contains("takes no arguments"));
    }
}
