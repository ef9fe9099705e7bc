//! What is in the models directory: `NAME/INTEGER/saved_model.pb`, TensorFlow Serving's layout.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The name of a model: of its directory. Letters, digits, `_`, `-` and `.`, at most 128, not starting with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(String);

impl ModelName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no name of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not the name of a model: it is a directory's name of letters, digits, _, - and ."
)]
pub struct InvalidModelName(String);

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, InvalidModelName> {
        let valid = text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && (text.bytes()).all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidModelName(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which version a binding serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelVersion {
    /// The highest that loads; a new one takes over once it is loaded.
    #[default]
    Latest,
    /// This one.
    Exact(u64),
}

/// A text that is no version of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the version of a model: write \"latest\" or a whole number such as \"1\"")]
pub struct InvalidModelVersion(String);

impl FromStr for ModelVersion {
    type Err = InvalidModelVersion;

    fn from_str(text: &str) -> Result<Self, InvalidModelVersion> {
        match text {
            "latest" => Ok(Self::Latest),
            _ => whole_number(text)
                .map(Self::Exact)
                .ok_or_else(|| InvalidModelVersion(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Exact(version) => version.fmt(f),
        }
    }
}

/// A version that was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) directory: PathBuf,
    /// Changes when files in it change.
    pub(crate) fingerprint: u64,
}

/// All models and versions in the directory. What has no place in the layout is passed over.
pub(crate) fn scan(directory: &Path) -> io::Result<BTreeMap<ModelName, BTreeMap<u64, Found>>> {
    let mut models = BTreeMap::new();
    for (name, path) in directories(directory)? {
        let Ok(name) = name.parse::<ModelName>() else {
            continue;
        };
        // A model that vanishes while it is looked at has no versions.
        let versions = directories(&path)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, directory)| {
                let fingerprint = fingerprint(&directory);
                Some((
                    whole_number(&name)?,
                    Found {
                        directory,
                        fingerprint,
                    },
                ))
            })
            .collect();
        models.insert(name, versions);
    }
    Ok(models)
}

fn directories(parent: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned);
        // Links are followed: operators link to where models are kept.
        if let (Some(name), true) = (name, path.is_dir()) {
            found.push((name, path));
        }
    }
    Ok(found)
}

fn whole_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Of the sizes and times of the graph and the variables, as far as they can be read.
fn fingerprint(version: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let variables = fs::read_dir(version.join("variables"));
    let mut files: Vec<PathBuf> = variables
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .take(10_000)
        .collect();
    files.push(version.join("saved_model.pb"));
    files.sort();
    for file in files {
        file.hash(&mut hasher);
        if let Ok(metadata) = fs::metadata(&file) {
            (metadata.len(), metadata.modified().ok()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_read_and_the_rest_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        for path in [
            "digits/1",
            "digits/12",
            "digits/notes",
            "half_plus_two/00000003",
            ".hidden/1",
            "empty",
        ] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        fs::write(directory.path().join("README"), b"").unwrap();
        fs::write(directory.path().join("digits/7"), b"").unwrap();
        let found: Vec<(String, Vec<u64>)> = scan(directory.path())
            .unwrap()
            .into_iter()
            .map(|(name, versions)| (name.to_string(), versions.into_keys().collect()))
            .collect();
        assert_eq!(
            found,
            [
                ("digits".into(), vec![1, 12]),
                ("empty".into(), vec![]),
                ("half_plus_two".into(), vec![3])
            ]
        );
        assert!(scan(&directory.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_changed_file_changes_the_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let before = fingerprint(directory.path());
        fs::write(directory.path().join("saved_model.pb"), b"x").unwrap();
        assert_ne!(before, fingerprint(directory.path()));
    }

    #[test]
    fn names_and_versions() {
        for bad in ["", "a/b", "..", ".a", "a b", "-a", "é"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
        assert!("half_plus_two.v2-x".parse::<ModelName>().is_ok());
        assert_eq!("latest".parse(), Ok(ModelVersion::Latest));
        assert_eq!("3".parse(), Ok(ModelVersion::Exact(3)));
        for bad in ["", "v1", "1.0", "-1", "+1", "99999999999999999999"] {
            assert!(bad.parse::<ModelVersion>().is_err(), "{bad}");
        }
    }
}
