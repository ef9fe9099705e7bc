//! What requests name: checked here, so that handlers only see valid names, versions and queries.

use std::fmt::Display;
use std::num::IntErrorKind;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::Method;
use axum::http::request::Parts;
use semver::Version;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use stepwell_core::Name;
use utoipa::IntoParams;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::router::Api;
use crate::{ApiError, ErrorCode, Page};

/// Characters of a version, which is a key of the catalog.
const LONGEST_VERSION: usize = 128;

/// A namespace.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct InNamespace {
    /// The tenant; `default` always exists.
    #[param(rename = "ns", value_type = String, example = "default")]
    pub(crate) namespace: Name,
}

/// A plugin or pipeline of a namespace.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct Named {
    /// The tenant; `default` always exists.
    #[param(rename = "ns", value_type = String, example = "default")]
    pub(crate) namespace: Name,
    /// `[a-z][a-z0-9-]{0,62}`.
    #[param(value_type = String, pattern = "^[a-z][a-z0-9-]{0,62}$", example = "digit-reader")]
    pub(crate) name: Name,
}

/// A version of a plugin.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct Versioned {
    /// The tenant; `default` always exists.
    #[param(rename = "ns", value_type = String, example = "default")]
    pub(crate) namespace: Name,
    /// `[a-z][a-z0-9-]{0,62}`.
    #[param(value_type = String, pattern = "^[a-z][a-z0-9-]{0,62}$", example = "digit-reader")]
    pub(crate) name: Name,
    /// SemVer, complete, at most 128 characters.
    #[param(value_type = String, pattern = "^(0|[1-9][0-9]{0,8})[.](0|[1-9][0-9]{0,8})[.](0|[1-9][0-9]{0,8})(-[a-z]{1,9})?$", example = "1.0.0")]
    pub(crate) version: Version,
}

/// A revision of a pipeline.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct Revisioned {
    /// The tenant; `default` always exists.
    #[param(rename = "ns", value_type = String, example = "default")]
    pub(crate) namespace: Name,
    /// `[a-z][a-z0-9-]{0,62}`.
    #[param(value_type = String, pattern = "^[a-z][a-z0-9-]{0,62}$", example = "digit-reader")]
    pub(crate) name: Name,
    /// From 1.
    #[param(rename = "n")]
    pub(crate) revision: u64,
}

/// A model of the host's registry.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct ModelNamed {
    /// The model.
    pub(crate) name: String,
}

/// A namespace itself, whether or not it is there.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct NamespaceNamed {
    /// `[a-z][a-z0-9-]{0,62}`.
    #[param(rename = "ns", value_type = String)]
    pub(crate) name: Name,
}

/// A token.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct TokenNamed {
    /// What it was listed with; not its value.
    pub(crate) id: String,
}

/// The part of a list that is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// At most this many items, 1–500; 100 if it is not given. A part of large items has fewer.
    #[serde(default, deserialize_with = "given")]
    #[param(schema_with = any_count)]
    limit: Option<Limit>,
    /// The `next_cursor` of the part before.
    #[serde(default, deserialize_with = "given")]
    cursor: Option<String>,
}

/// The most items of one part of a list.
const MOST: u32 = 500;

impl PageQuery {
    pub(crate) fn page(self) -> Page {
        Page {
            limit: limit(self.limit),
            cursor: self.cursor,
        }
    }
}

pub(crate) fn limit(wanted: Option<Limit>) -> u32 {
    wanted.map_or(100, |limit| limit.0).clamp(1, MOST)
}

/// How many items are wanted: any number, since too many are as good as the most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit(u32);

impl FromStr for Limit {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u32>() {
            Err(error) if digits && *error.kind() == IntErrorKind::PosOverflow => {
                Ok(Self(u32::MAX))
            }
            parsed => parsed.map(Self),
        }
    }
}

/// A whole number without a bound, in the description.
pub(crate) fn any_count() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .build()
}

/// Reads a parameter; an empty one (`?level=&limit=3`) is as good as none.
pub(crate) fn given<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(D::Error::custom)
}

/// A request's query; unknown parameters are refused, since a mistyped `dry_run` would do what it was meant to prevent.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Api>> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Self(query))
            .map_err(|rejection| {
                let detail = rejection.body_text();
                ApiError::new(ErrorCode::BadRequest, lower_first(&detail))
            })
    }
}

impl FromRequestParts<Arc<Api>> for InNamespace {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            namespace: path.namespace(api).await?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            namespace: path.namespace(api).await?,
            name: path.name("name")?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for Versioned {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        path.check_version()?;
        Ok(Self {
            namespace: path.namespace(api).await?,
            name: path.name("name")?,
            version: path.parsed("version", ErrorCode::InvalidVersion, |text| {
                let hint = suggest_version(text).map(|version| format!("perhaps {version}"));
                (
                    format!("'{text}' is not a version: write all three numbers, as in 1.0.0"),
                    hint,
                )
            })?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for Revisioned {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            namespace: path.namespace(api).await?,
            name: path.name("name")?,
            revision: path.parsed("n", ErrorCode::NotFound, |text| {
                (
                    format!("'{text}' is not a revision: they count from 1"),
                    None,
                )
            })?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for ModelNamed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            name: path.text("name")?.to_owned(),
        })
    }
}

impl FromRequestParts<Arc<Api>> for NamespaceNamed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            name: path.name("ns")?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for TokenNamed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let path = PathParts::read(parts, api).await?;
        Ok(Self {
            id: path.text("id")?.to_owned(),
        })
    }
}

struct PathParts {
    params: RawPathParams,
    /// Whether the request makes what it names: then a name that cannot be is a mistake, and otherwise nothing has it.
    makes: bool,
}

impl PathParts {
    async fn read(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, api)
            .await
            .map_err(|rejection| {
                ApiError::new(ErrorCode::BadRequest, lower_first(&rejection.body_text()))
            })?;
        Ok(Self {
            params,
            makes: parts.method == Method::PUT,
        })
    }

    fn text(&self, key: &str) -> Result<&str, ApiError> {
        self.params
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .ok_or_else(|| ApiError::internal(format!("the route has no parameter {key}")))
    }

    async fn namespace(&self, api: &Api) -> Result<Name, ApiError> {
        let text = self.text("ns")?;
        let namespace = text.parse().map_err(|_| {
            ApiError::not_found(format!("namespace '{}'", shown(text)))
                .with_hint("", "names are lower-case letters, digits and hyphens")
        })?;
        if api.management.has_namespace(&namespace).await? {
            Ok(namespace)
        } else {
            let hint = format!("an operator makes it with 'stepwell namespace set {namespace}'");
            Err(ApiError::not_found(format!("namespace '{namespace}'")).with_hint("", hint))
        }
    }

    fn name(&self, key: &str) -> Result<Name, ApiError> {
        self.parsed(key, ErrorCode::InvalidName, |text| {
            let hint = Name::suggest(text).map(|name| format!("perhaps {name}"));
            (
                format!(
                    "'{text}' is not a name: a lower-case letter, then up to 62 lower-case letters, digits and hyphens"
                ),
                hint,
            )
        })
    }

    /// Refuses a version that is too long to be stored, or shown in a table.
    fn check_version(&self) -> Result<(), ApiError> {
        let length = self.text("version")?.len();
        if self.makes && length > LONGEST_VERSION {
            let detail =
                format!("the version has {length} characters; {LONGEST_VERSION} are the most");
            return Err(ApiError::new(ErrorCode::InvalidVersion, detail));
        }
        Ok(())
    }

    fn parsed<T: FromStr>(
        &self,
        key: &str,
        code: ErrorCode,
        explain: impl FnOnce(&str) -> (String, Option<String>),
    ) -> Result<T, ApiError> {
        let text = self.text(key)?;
        text.parse().map_err(|_| {
            let (detail, hint) = explain(&shown(text));
            let code = if self.makes {
                code
            } else {
                ErrorCode::NotFound
            };
            let error = ApiError::new(code, detail);
            match hint {
                Some(hint) => error.with_hint("", hint),
                None => error,
            }
        })
    }
}

/// The complete version that an incomplete one may have meant.
fn suggest_version(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches(['v', 'V']);
    ["", ".0", ".0.0"]
        .iter()
        .find_map(|rest| Version::parse(&format!("{text}{rest}")).ok())
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_suggested() {
        assert_eq!(suggest_version("v1.2").unwrap().to_string(), "1.2.0");
        assert_eq!(suggest_version("1").unwrap().to_string(), "1.0.0");
        assert_eq!(suggest_version("latest"), None);
        assert_eq!(suggest_version("1.2.3.4"), None);
    }
}
