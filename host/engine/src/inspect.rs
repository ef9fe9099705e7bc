mod header;
mod refused;
mod world;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use stepwell_core::ByteSize;
use wasmparser::component_types::{ComponentAnyTypeId, ComponentEntityType, ResourceId};
use wasmparser::types::TypesRef;
use wasmparser::{
    Chunk, Encoding, KnownCustom, Parser, Payload, ValidPayload, Validator, WasmFeatures,
};

use crate::command::CommandWorld;
use crate::config::Flavor;
use crate::instances::Instances;
use crate::interfaces::Interfaces;
use crate::streamed::Streamed;

use self::header::{header, truncated};
pub use self::refused::Refused;
pub use self::world::World;
pub(crate) use self::world::target;
use self::world::{REBUILD_03, command_world, is_candidate, is_wasi_03, world};

/// What is to be known of a component before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// What it is made for.
    pub world: World,
    /// Names of what it imports, in its own order.
    pub imports: Vec<String>,
    /// Names of what it exports, in its own order.
    pub exports: Vec<String>,
    /// Its name, if its metadata has one.
    pub name: Option<String>,
    /// Its version, if its metadata has one.
    pub version: Option<String>,
}

/// Components within components that are looked into.
const NESTING: usize = 100;

/// Imports, and exports, that a component may have, and bytes of their names together. They are kept and listed as they are.
const NAMES: usize = 1_000;
const NAMES_BYTES: usize = 256 << 10;

/// Bytes of a name or version in the metadata.
const METADATA: usize = 256;

/// Refuses an upload that is too large or not even the beginning of a component, at no cost.
pub(crate) fn glance(bytes: &[u8], max: u64) -> Result<(), Refused> {
    if bytes.len() as u64 > max {
        return Err(Refused::new(
            "too-large",
            format!(
                "the component has {}, and the host accepts {}",
                ByteSize(bytes.len() as u64),
                ByteSize(max)
            ),
            "build it in release mode with strip = true and opt-level = \"s\", or raise limits.component",
        ));
    }
    header(bytes)
}

/// Checks an upload without compiling it. There are uploads that make this take minutes, gigabytes and more stack than there is:
/// where they are not trusted, only a process of its own does it.
pub(crate) fn inspect(bytes: &[u8], interfaces: &Interfaces) -> Result<Inspection, Refused> {
    header(bytes)?;
    let found = parse(bytes, features())?;
    check_names(&found)?;
    check_streams(&found)?;
    check_imports(&found, interfaces)?;
    let world = world(&found.exports)?;
    check_http_imports(&world, &found)?;
    Ok(Inspection {
        world,
        imports: found
            .imports
            .into_iter()
            .map(|import| import.name)
            .collect(),
        exports: found.exports,
        name: found.name,
        version: found.version,
    })
}

/// Instances of components with code that an async component may consist of. Each may wait on a stack of its own.
pub(crate) const ASYNC_INSTANCES: u32 = 8;

/// What is not async has one stack for each call.
const LEAN: (Flavor, u32) = (Flavor::Lean, 1);

/// Which engine runs the component, and how many stacks each instance may take there: the concurrent one if it has anything async in it or imports WASI 0.3. As [`inspect`], it is done
/// in a process of its own.
pub(crate) fn flavor(bytes: &[u8]) -> Result<(Flavor, u32), Refused> {
    let found = match parse(bytes, features().difference(ASYNC)) {
        Ok(found) if found.imports.iter().any(|import| is_wasi_03(&import.name)) => found,
        Ok(_) => return Ok(LEAN),
        Err(_) => match parse(bytes, features()) {
            Ok(found) => found,
            // The compiler says what is wrong with one that is not valid at all.
            Err(_) => return Ok(LEAN),
        },
    };
    check_streams(&found)?;
    if found.instances > u64::from(ASYNC_INSTANCES) {
        return Err(Refused::new(
            "too-large",
            format!(
                "the component is async and consists of more than {ASYNC_INSTANCES} instances of components; this limit is the host's own and has no setting"
            ),
            "compose fewer components into one, and let a pipeline have the others as steps",
        ));
    }
    let stacks = u32::try_from(found.instances).unwrap_or(ASYNC_INSTANCES);
    Ok((Flavor::Concurrent, stacks.max(1)))
}

/// Whether these are the bytes of a program rather than of a plugin: a component that exports `wasi:cli/run`. Toolchains that know
/// programs only leave that export beside the one of an HTTP function, which then counts.
///
/// # Errors
/// [`Refused`]: they are no component.
pub fn is_command(bytes: &[u8]) -> Result<bool, Refused> {
    header(bytes)?;
    let exports = parse(bytes, features())?.exports;
    let is_plugin = exports.iter().any(|export| target(export).is_some());
    Ok(!is_plugin && command_world(&exports).is_some())
}

/// The world of a command; none: it is none.
pub(crate) fn command(bytes: &[u8]) -> Result<Option<CommandWorld>, Refused> {
    header(bytes)?;
    Ok(command_world(&parse(bytes, features())?.exports))
}

struct Found {
    imports: Vec<Import>,
    exports: Vec<String>,
    name: Option<String>,
    version: Option<String>,
    instances: u64,
    /// Whether it writes flags to streams or futures.
    streams_flags: bool,
}

struct Import {
    name: String,
    /// Whether it is made of types alone, which need nobody to provide them.
    types_only: bool,
}

/// What async components are made of: what the concurrent engine has and the lean one has not.
const ASYNC: WasmFeatures = WasmFeatures::CM_ASYNC;

/// What uploads may use; both engines have wasmtime's own default.
fn features() -> WasmFeatures {
    WasmFeatures::default() | ASYNC
}

/// Reads and validates everything but the bodies of functions: those are the compiler's business, and a fraction of the time.
fn parse(bytes: &[u8], features: WasmFeatures) -> Result<Found, Refused> {
    let mut validator = Validator::new_with_features(features);
    let mut parser = Parser::new(0);
    let mut outer = Vec::new();
    let mut rest = bytes;
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let (mut name, mut version) = (None, None);
    let mut instances = Instances::default();
    let mut streamed = Streamed::default();
    loop {
        // A component may end with what is in it. Where nothing is left, nothing can be wrong but that there is too little.
        let parsed = parser.parse(rest, rest.is_empty()).map_err(|error| {
            if rest.is_empty() {
                truncated(bytes.len())
            } else {
                invalid(&error)
            }
        });
        let (consumed, payload) = match parsed? {
            Chunk::NeedMoreData(_) => return Err(truncated(bytes.len())),
            Chunk::Parsed { consumed, payload } => (consumed, payload),
        };
        rest = rest.get(consumed..).unwrap_or_default();
        if outer.is_empty() {
            match &payload {
                Payload::Version { encoding, .. } if *encoding != Encoding::Component => {
                    return Err(invalid(&"it is not a component"));
                }
                Payload::ComponentImportSection(section) => {
                    for import in section.clone() {
                        imports.push(
                            import
                                .map_err(|error| invalid(&error))?
                                .name
                                .name
                                .to_owned(),
                        );
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section.clone() {
                        exports.push(
                            export
                                .map_err(|error| invalid(&error))?
                                .name
                                .name
                                .to_owned(),
                        );
                    }
                }
                Payload::CustomSection(section) => match section.as_known() {
                    KnownCustom::ComponentName(names) => {
                        for part in names.into_iter().flatten() {
                            if let wasmparser::ComponentName::Component { name: text, .. } = part {
                                name = metadata(text);
                            }
                        }
                    }
                    _ if section.name() == "version" => {
                        version = std::str::from_utf8(section.data()).ok().and_then(metadata);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        let valid = validator
            .payload(&payload)
            .map_err(|error| invalid(&error))?;
        instances.read(&payload).map_err(|error| invalid(&error))?;
        streamed
            .read(&payload, validator.types(0))
            .map_err(|error| invalid(&error))?;
        match valid {
            ValidPayload::Ok | ValidPayload::Func(..) => {}
            ValidPayload::Parser(inner) => {
                if outer.len() >= NESTING {
                    return Err(invalid(&format!(
                        "components are nested more than {NESTING} deep"
                    )));
                }
                outer.push(std::mem::replace(&mut parser, inner));
            }
            ValidPayload::End(types) => match outer.pop() {
                Some(next) => parser = next,
                None => {
                    return Ok(Found {
                        imports: imports_of(types.as_ref(), imports),
                        exports,
                        name,
                        version,
                        instances: instances.of_the_whole(),
                        streams_flags: streamed.has_flags(),
                    });
                }
            },
        }
    }
}

fn metadata(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= METADATA && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

fn invalid(error: &dyn fmt::Display) -> Refused {
    let text: String = error.to_string().chars().take(500).collect();
    Refused::new(
        "invalid-component",
        format!("the upload is not a valid component: {text}"),
        "rebuild it, and check it with wasm-tools validate",
    )
}

/// Imports, with whether each is made of types alone. A resource is one that somebody must provide, unless an earlier import
/// brings it and it is only named again here: `wasi:http/handler` has the requests of `wasi:http/types`, whether or not its
/// function is called.
fn imports_of(types: TypesRef<'_>, names: Vec<String>) -> Vec<Import> {
    let mut known = HashSet::new();
    let mut imports = Vec::with_capacity(names.len());
    for name in names {
        let item = types.component_item_for_import(&name).map(|item| item.ty);
        let parts: Option<Vec<ComponentEntityType>> = match item {
            Some(ComponentEntityType::Instance(id)) => types
                .get(id)
                .map(|instance| instance.exports.values().map(|item| item.ty).collect()),
            item => item.map(|ty| vec![ty]),
        };
        let parts = parts.as_deref();
        let needs_nobody = |part: &ComponentEntityType| match resource_of(part) {
            Some(resource) => known.contains(&resource),
            None => matches!(part, ComponentEntityType::Type { .. }),
        };
        let types_only = parts.is_some_and(|parts| parts.iter().all(needs_nobody));
        known.extend(parts.unwrap_or_default().iter().filter_map(resource_of));
        imports.push(Import { name, types_only });
    }
    imports
}

fn resource_of(part: &ComponentEntityType) -> Option<ResourceId> {
    match part {
        ComponentEntityType::Type {
            referenced: ComponentAnyTypeId::Resource(resource),
            ..
        } => Some(resource.resource()),
        _ => None,
    }
}

fn check_names(found: &Found) -> Result<(), Refused> {
    let imports = found.imports.iter().map(|import| &import.name);
    let bytes: usize = imports.chain(&found.exports).map(String::len).sum();
    if found.imports.len() > NAMES || found.exports.len() > NAMES || bytes > NAMES_BYTES {
        return Err(Refused::new(
            "too-large",
            format!(
                "the component has {} imports and {} exports, with names of {} together; at most {NAMES} of each and {} are accepted; this limit is the host's own and has no setting",
                found.imports.len(),
                found.exports.len(),
                ByteSize(bytes as u64),
                ByteSize(NAMES_BYTES as u64)
            ),
            "export what its world asks for alone",
        ));
    }
    Ok(())
}

fn check_streams(found: &Found) -> Result<(), Refused> {
    if !found.streams_flags {
        return Ok(());
    }
    Err(Refused::new(
        "invalid-component",
        "the component writes flags, or values that have flags in them, to a stream or a future; the host does not copy these from guest to guest",
        "write an integer, or a record of booleans, instead of the flags",
    ))
}

/// Names every import that nobody provides, with the nearest one that somebody does.
fn check_imports(found: &Found, interfaces: &Interfaces) -> Result<(), Refused> {
    let unknown: Vec<&str> = found
        .imports
        .iter()
        .filter(|import| !import.types_only && !interfaces.provides(&import.name))
        .map(|import| import.name.as_str())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let candidate = unknown.iter().any(|name| is_candidate(name));
    let list: Vec<String> = unknown
        .iter()
        .take(50)
        .map(|name| match interfaces.nearest(name) {
            Some(near) => format!("{} (the host has {near})", shown(name)),
            None => format!("{} (the host has nothing like it)", shown(name)),
        })
        .collect();
    let more = match unknown.len().saturating_sub(list.len()) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let hint = if candidate {
        REBUILD_03
    } else {
        "build the component against the host's WIT packages (`stepwell new` has them), or compose it with a component that provides these"
    };
    Err(Refused::new(
        "unknown-import",
        format!(
            "the component imports what the host does not provide: {}{more}",
            list.join(", ")
        ),
        hint,
    ))
}

/// An HTTP function knows nothing of pipelines, so it may import WASI alone.
fn check_http_imports(world: &World, found: &Found) -> Result<(), Refused> {
    if *world == World::Step {
        return Ok(());
    }
    let foreign: Vec<String> = found
        .imports
        .iter()
        .filter(|import| !import.types_only && !import.name.starts_with("wasi:"))
        .take(50)
        .map(|import| shown(&import.name))
        .collect();
    if foreign.is_empty() {
        return Ok(());
    }
    Err(Refused::new(
        "unknown-import",
        format!(
            "an HTTP function may import wasi:* only, and this one imports {}",
            foreign.join(", ")
        ),
        "make it a step (world stepwell:pipeline/step@0.1.0) if it needs the host's own interfaces",
    ))
}

fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
