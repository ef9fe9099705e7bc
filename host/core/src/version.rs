use std::fmt;
use std::str::FromStr;

use semver::Version;

use crate::{InvalidName, Name};

/// What follows the `@` in `name@…`: an exact version, or one of the ways to ask for the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionSelector {
    /// `@1.2.3` or `@1.2.3-rc.1`: exactly this one.
    Exact(Version),
    /// `@1.2`: the highest patch of this minor version that is no pre-release.
    Minor(u64, u64),
    /// `@1`: the highest of this major version that is no pre-release.
    Major(u64),
    /// `@latest`: the highest that is no pre-release.
    Latest,
}

impl VersionSelector {
    /// The highest version that this selects.
    pub fn pick<'a>(&self, versions: impl IntoIterator<Item = &'a Version>) -> Option<&'a Version> {
        versions
            .into_iter()
            .filter(|version| match self {
                Self::Exact(exact) => *version == exact,
                Self::Minor(major, minor) => {
                    version.pre.is_empty() && version.major == *major && version.minor == *minor
                }
                Self::Major(major) => version.pre.is_empty() && version.major == *major,
                Self::Latest => version.pre.is_empty(),
            })
            .max()
    }
}

impl FromStr for VersionSelector {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(version) = Version::parse(text) {
            return Ok(Self::Exact(version));
        }
        let number = |part: &str| {
            let canonical = !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_digit())
                && (part == "0" || !part.starts_with('0'));
            canonical.then(|| part.parse::<u64>().ok()).flatten()
        };
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(major), None, None) => number(major).map(Self::Major),
            (Some(major), Some(minor), None) => number(major)
                .zip(number(minor))
                .map(|(major, minor)| Self::Minor(major, minor)),
            _ => None,
        }
        .ok_or_else(|| InvalidReference::Version(text.chars().take(100).collect()))
    }
}

impl fmt::Display for VersionSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(version) => version.fmt(f),
            Self::Minor(major, minor) => write!(f, "{major}.{minor}"),
            Self::Major(major) => major.fmt(f),
            Self::Latest => f.write_str("latest"),
        }
    }
}

/// `name@version` as a pipeline document asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginRef {
    /// The plugin.
    pub name: Name,
    /// Which of its versions.
    pub version: VersionSelector,
}

/// A text that is no `name@version`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// There is no `@`.
    #[error("'{0}' names no version: write {0}@1, {0}@1.2, {0}@1.2.3 or {0}@latest")]
    NoVersion(String),
    /// The part before the `@` is no name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The part after the `@` is no version.
    #[error("'{0}' is not a version: write 1.2.3, 1.2, 1 or latest")]
    Version(String),
}

impl FromStr for PluginRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let (name, version) = text
            .split_once('@')
            .ok_or_else(|| InvalidReference::NoVersion(text.chars().take(100).collect()))?;
        Ok(Self {
            name: name.parse()?,
            version: version.parse()?,
        })
    }
}

impl fmt::Display for PluginRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(selector: &str) -> Option<String> {
        let versions: Vec<Version> = ["0.9.0", "1.0.0", "1.2.0", "1.2.3", "1.10.0", "2.0.0-rc.1"]
            .iter()
            .map(|text| Version::parse(text).unwrap())
            .collect();
        selector
            .parse::<VersionSelector>()
            .unwrap()
            .pick(&versions)
            .map(ToString::to_string)
    }

    #[test]
    fn selectors_pick_the_highest_that_is_no_pre_release() {
        assert_eq!(pick("latest").unwrap(), "1.10.0");
        assert_eq!(pick("1").unwrap(), "1.10.0");
        assert_eq!(pick("1.2").unwrap(), "1.2.3");
        assert_eq!(pick("0").unwrap(), "0.9.0");
        assert_eq!(pick("2.0.0-rc.1").unwrap(), "2.0.0-rc.1");
        assert_eq!(pick("2"), None);
        assert_eq!(pick("1.2.4"), None);
    }

    #[test]
    fn references() {
        assert_eq!(
            "a-b@1.2".parse::<PluginRef>().unwrap().to_string(),
            "a-b@1.2"
        );
        for bad in ["a", "a@", "a@x", "a@01", "a@1.2.3.4", "A@1", "@1", "a@^1"] {
            assert!(bad.parse::<PluginRef>().is_err(), "{bad}");
        }
    }
}
