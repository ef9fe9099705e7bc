//! What a guest's HTTP handles hold of the host's memory: counted as the guest's own, and no word of a request too long.

use std::any::Any;
use std::collections::HashSet;
use std::ptr;

use http::{HeaderMap, HeaderName, HeaderValue};
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceTable};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi_http::p2::types::{HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, p2, p3};

use crate::link::WASI;
use crate::link_03::WASI_03;
use crate::outbound::BODY_CHUNK;
use crate::store::StoreState;

/// Bytes of a method or an authority. A path has its bound in the library that parses it, 64 KiB.
const WORD: usize = 8 << 10;

/// Bytes that may wait in a body that a guest makes.
pub(crate) const BODY: usize = 2 * BODY_CHUNK;

/// What one value costs beside its bytes, and one name.
const EACH_VALUE: usize = size_of::<HeaderValue>();
const EACH_NAME: usize = size_of::<HeaderName>();

/// Takes the place of those functions of `wasi:http/types` that make a guest's handles grow. `$request` is what the version calls
/// the request that a guest makes.
macro_rules! take_place {
    ($linker:expr, $wasi:ident, $version:expr, $request:literal, $Request:ty, $HostRequest:ident) => {{
        use $wasi::bindings::http::types::{
            Host as _, HostFields, Method, $HostRequest as HostRequest,
        };
        let mut types: LinkerInstance<'_, S> =
            $linker.instance(&format!("wasi:http/types@{}", $version))?;
        types.func_wrap(
            "[static]fields.from-list",
            |mut store: StoreContextMut<'_, S>, (entries,): (Vec<(String, Vec<u8>)>,)| {
                let base = store.data_mut().base();
                let entry = |(name, value): &(String, Vec<u8>)| of_name(name) + of_value(value);
                base.hold(entries.iter().map(entry).sum())?;
                let mut view = base.http();
                Ok((match HostFields::from_list(&mut view, entries) {
                    Ok(done) => Ok(done),
                    Err(error) => Err(view.convert_header_error(error)?),
                },))
            },
        )?;
        types.func_wrap(
            "[method]fields.append",
            |mut store: StoreContextMut<'_, S>,
             (fields, name, value): (Resource<FieldMap>, String, Vec<u8>)| {
                let base = store.data_mut().base();
                base.hold(of_name(&name) + of_value(&value))?;
                let mut view = base.http();
                Ok((match HostFields::append(&mut view, fields, name, value) {
                    Ok(done) => Ok(done),
                    Err(error) => Err(view.convert_header_error(error)?),
                },))
            },
        )?;
        types.func_wrap(
            "[method]fields.set",
            |mut store: StoreContextMut<'_, S>,
             (fields, name, values): (Resource<FieldMap>, String, Vec<Vec<u8>>)| {
                let base = store.data_mut().base();
                let of_values: usize = values.iter().map(|value| of_value(value)).sum();
                base.hold(of_name(&name) + of_values)?;
                let mut view = base.http();
                Ok((match HostFields::set(&mut view, fields, name, values) {
                    Ok(done) => Ok(done),
                    Err(error) => Err(view.convert_header_error(error)?),
                },))
            },
        )?;
        types.func_wrap(
            "[method]fields.clone",
            |mut store: StoreContextMut<'_, S>, (fields,): (Resource<FieldMap>,)| {
                let base = store.data_mut().base();
                // The first change makes it a copy.
                let size = of_map(base.table.get(&fields)?);
                base.hold(size)?;
                Ok((HostFields::clone(&mut base.http(), fields)?,))
            },
        )?;
        types.func_wrap(
            concat!("[method]", $request, ".set-method"),
            |mut store: StoreContextMut<'_, S>, (request, method): (Resource<$Request>, Method)| {
                let base = store.data_mut().base();
                if let Method::Other(word) = &method {
                    if word.len() > WORD {
                        return Ok((Err(()),));
                    }
                    base.hold(word.len())?;
                }
                Ok((HostRequest::set_method(&mut base.http(), request, method)?,))
            },
        )?;
        types.func_wrap(
            concat!("[method]", $request, ".set-authority"),
            |mut store: StoreContextMut<'_, S>,
             (request, authority): (Resource<$Request>, Option<String>)| {
                let base = store.data_mut().base();
                let size = authority.as_ref().map_or(0, String::len);
                if size > WORD {
                    return Ok((Err(()),));
                }
                base.hold(size)?;
                Ok((HostRequest::set_authority(
                    &mut base.http(),
                    request,
                    authority,
                )?,))
            },
        )?;
        types.func_wrap(
            concat!("[method]", $request, ".set-path-with-query"),
            |mut store: StoreContextMut<'_, S>,
             (request, path): (Resource<$Request>, Option<String>)| {
                let base = store.data_mut().base();
                let size = path.as_ref().map_or(0, String::len);
                // A longer one is refused there.
                base.hold(size.min(64 << 10))?;
                Ok((HostRequest::set_path_with_query(
                    &mut base.http(),
                    request,
                    path,
                )?,))
            },
        )?;
    }};
}

/// For a linker that has `wasi:http/types` of WASI 0.2.
pub(crate) fn count<S: StoreState>(linker: &mut Linker<S>) -> Result<()> {
    linker.allow_shadowing(true);
    take_place!(
        linker,
        p2,
        WASI,
        "outgoing-request",
        HostOutgoingRequest,
        HostOutgoingRequest
    );
    count_bodies(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What is written to a body of WASI 0.2 waits in the host until somebody reads it, which may be never. Those of 0.3 take nothing
/// until they are read.
fn count_bodies<S: StoreState>(linker: &mut Linker<S>) -> Result<()> {
    use p2::bindings::http::types::{
        HostOutgoingRequest as OfRequest, HostOutgoingResponse as OfResponse,
    };
    let mut types = linker.instance(&format!("wasi:http/types@{WASI}"))?;
    types.func_wrap(
        "[method]outgoing-request.body",
        |mut store: StoreContextMut<'_, S>, (request,): (Resource<HostOutgoingRequest>,)| {
            let base = store.data_mut().base();
            base.hold_body()?;
            Ok((OfRequest::body(&mut base.http(), request)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-response.body",
        |mut store: StoreContextMut<'_, S>, (response,): (Resource<HostOutgoingResponse>,)| {
            let base = store.data_mut().base();
            base.hold_body()?;
            Ok((OfResponse::body(&mut base.http(), response)?,))
        },
    )
}

/// For a linker that has `wasi:http/types` of WASI 0.3.
pub(crate) fn count_03<S: StoreState>(linker: &mut Linker<S>) -> Result<()> {
    linker.allow_shadowing(true);
    take_place!(linker, p3, WASI_03, "request", p3::Request, HostRequest);
    linker.allow_shadowing(false);
    Ok(())
}

fn of_name(name: &str) -> usize {
    name.len() + EACH_NAME
}

fn of_value(value: &[u8]) -> usize {
    value.len() + EACH_VALUE
}

fn of_map(map: &HeaderMap) -> usize {
    let names = map.keys().map(|name| of_name(name.as_str()));
    let values = map.values().map(|value| of_value(value.as_bytes()));
    names.chain(values).sum()
}

/// What all handles of a table hold; headers that several share count once, and one body does not count.
pub(crate) fn of_table(table: &mut ResourceTable) -> usize {
    let (mut seen, mut bodies) = (HashSet::new(), 0_usize);
    let words: usize = table
        .iter_mut()
        .map(|entry| {
            bodies += usize::from(has_body(entry));
            of_entry(entry, &mut seen)
        })
        .sum();
    words + bodies.saturating_sub(1) * BODY
}

/// Whether it has the end of a body from which nobody reads yet.
fn has_body(entry: &dyn Any) -> bool {
    let of_request = entry.downcast_ref::<HostOutgoingRequest>();
    let of_response = entry.downcast_ref::<HostOutgoingResponse>();
    of_request.is_some_and(|request| request.body.is_some())
        || of_response.is_some_and(|response| response.body.is_some())
}

fn of_entry(entry: &dyn Any, seen: &mut HashSet<*const HeaderMap>) -> usize {
    let mut map = |map: &FieldMap| {
        let map: &HeaderMap = map;
        if seen.insert(ptr::from_ref(map)) {
            of_map(map)
        } else {
            0
        }
    };
    let word = |word: &Option<String>| word.as_ref().map_or(0, String::len);
    if let Some(fields) = entry.downcast_ref() {
        return map(fields);
    }
    if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        let method = match &request.method {
            p2::bindings::http::types::Method::Other(method) => method.len(),
            _ => 0,
        };
        let words = word(&request.authority) + word(&request.path_with_query);
        return map(&request.headers) + method + words;
    }
    if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        return map(&response.headers);
    }
    if let Some(request) = entry.downcast_ref::<p3::Request>() {
        let authority = request.authority.as_ref().map_or(0, |it| it.as_str().len());
        let path = request.path_with_query.as_ref();
        let words = authority + path.map_or(0, |it| it.as_str().len());
        return map(&request.headers) + request.method.as_str().len() + words;
    }
    if let Some(response) = entry.downcast_ref::<p3::Response>() {
        return map(&response.headers);
    }
    0
}
