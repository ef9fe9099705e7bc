//! What a component is made for: found out from its exports.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::command::CommandWorld;
use crate::interfaces::split;

use super::{Refused, shown};

/// The export that makes a component a step.
pub(crate) const HANDLER: &str = "stepwell:pipeline/handler@0.1.0";
/// The export that makes a component an HTTP function of WASI 0.2, without its version.
const INCOMING: &str = "wasi:http/incoming-handler";
/// The export that makes a component an HTTP function of WASI 0.3, without its version.
const SERVICE: &str = "wasi:http/handler";

/// What a component is made for: found out from its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum World {
    /// `stepwell:pipeline/step@0.1.0`.
    Step,
    /// `wasi:http/proxy`, in the release that the component was built against, such as `0.2.3`.
    Http(String),
    /// `wasi:http/service`, likewise, such as `0.3.0`.
    Service(String),
}

impl World {
    /// Whether it answers HTTP requests itself.
    pub fn is_function(&self) -> bool {
        matches!(self, Self::Http(_) | Self::Service(_))
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step => f.write_str("stepwell:pipeline/step@0.1.0"),
            Self::Http(version) => write!(f, "wasi:http/proxy@{version}"),
            Self::Service(version) => write!(f, "wasi:http/service@{version}"),
        }
    }
}

impl Serialize for World {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for World {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match split(&text) {
            ("stepwell:pipeline/step", _) => Ok(Self::Step),
            ("wasi:http/proxy", Some(version)) => Ok(Self::Http(version.to_owned())),
            ("wasi:http/service", Some(version)) => Ok(Self::Service(version.to_owned())),
            _ => Err(de::Error::custom(format!("'{text}' is no world"))),
        }
    }
}

pub(super) fn command_world(exports: &[String]) -> Option<CommandWorld> {
    let exports = |release: &str| {
        exports.iter().any(|export| {
            let (path, version) = split(export);
            let fits = |version: &str| version.starts_with(release) && !version.contains('-');
            path == "wasi:cli/run" && version.is_some_and(fits)
        })
    };
    // Toolchains that know no target of 0.3 yet leave a 0.2 export beside it.
    if exports("0.3.") {
        Some(CommandWorld::V03)
    } else if exports("0.2.") {
        Some(CommandWorld::V02)
    } else {
        None
    }
}

/// What the export makes of its component, if anything.
pub(crate) fn target(export: &str) -> Option<World> {
    if export == HANDLER {
        return Some(World::Step);
    }
    let (path, version) = split(export);
    let version = version.filter(|version| !version.contains('-'))?;
    match path {
        INCOMING if version.starts_with("0.2.") => Some(World::Http(version.to_owned())),
        SERVICE if version.starts_with("0.3.") => Some(World::Service(version.to_owned())),
        _ => None,
    }
}

pub(super) fn is_wasi_03(name: &str) -> bool {
    let (path, version) = split(name);
    path.starts_with("wasi:") && version.is_some_and(|version| version.starts_with("0.3."))
}

/// Whether it is of one of the pre-releases of WASI 0.3, which differ from each other and from the release.
pub(super) fn is_candidate(name: &str) -> bool {
    is_wasi_03(name) && name.contains("-rc-")
}

pub(super) const REBUILD_03: &str = "release candidates of WASI 0.3 differ from the release: rebuild the component for 0.3.0 itself (in Rust, crate wasip3 0.7 or newer)";

pub(super) const ACCEPTED: &str = "accepted are stepwell:pipeline/step@0.1.0 (exports stepwell:pipeline/handler@0.1.0), wasi:http/proxy@0.2 (exports wasi:http/incoming-handler@0.2.x) and wasi:http/service@0.3.0 (exports wasi:http/handler@0.3.0)";

/// The world that these exports make, or why they make none.
pub(super) fn world(exports: &[String]) -> Result<World, Refused> {
    if let Some(world) = exports.iter().find_map(|export| target(export)) {
        return Ok(world);
    }
    let mut hint = ACCEPTED;
    let message = exports
        .iter()
        .find_map(|export| match split(export) {
            ("stepwell:pipeline/batch-handler", _) => {
                Some(format!("the component targets the world batch-step (it exports {export}), which this host does not run yet"))
            }
            ("stepwell:pipeline/handler", version) => Some(format!(
                "the component was built for version {} of stepwell:pipeline, and the host runs 0.1.0",
                shown(version.unwrap_or("(none)"))
            )),
            (SERVICE | INCOMING, version) => {
                if is_candidate(export) {
                    hint = REBUILD_03;
                }
                Some(format!(
                    "the component targets wasi:http {}, and the host runs 0.2 and 0.3.0",
                    shown(version.unwrap_or("without a version"))
                ))
            }
            ("wasi:cli/run", _) => {
                Some("the component is a command (it exports wasi:cli/run), not a step or an HTTP function; `stepwell run-component` runs it".to_owned())
            }
            _ => None,
        })
        .unwrap_or_else(|| match exports {
            [] => "the component exports nothing, so it targets no known world".to_owned(),
            some => {
                let list: Vec<String> = some.iter().take(20).map(|name| shown(name)).collect();
                format!("the component targets no known world: it exports {}", list.join(", "))
            }
        });
    Err(Refused::new("unknown-world", message, hint))
}
