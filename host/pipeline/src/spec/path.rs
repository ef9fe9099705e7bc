use std::fmt;
use std::str::FromStr;

/// Paths that no pipeline may take: they belong to the host's own protocols, now or later.
const RESERVED: [&str; 8] = [
    "/v2",
    "/v1/models",
    "/langserve",
    "/runs",
    "/threads",
    "/assistants",
    "/monitoring",
    "/pinecone",
];

const MAX_LENGTH: usize = 1024;

/// The path of an HTTP trigger: literal segments, `{param}` segments, and perhaps a last `{*rest}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Param(String),
    Rest(String),
}

/// A text that is no path pattern, or one that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidPath {
    message: String,
    /// What to write.
    pub hint: Option<String>,
}

impl PathPattern {
    /// Whether the pattern ends in `{*rest}`.
    pub fn has_rest(&self) -> bool {
        matches!(self.0.last(), Some(Segment::Rest(_)))
    }

    /// The names of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Param(name) | Segment::Rest(name) => Some(name.as_str()),
        })
    }

    fn render(&self, show: impl Fn(&Segment) -> String) -> String {
        let segments: Vec<String> = self.0.iter().map(show).collect();
        format!("/{}", segments.join("/"))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(|segment| match segment {
            Segment::Literal(text) => text.clone(),
            Segment::Param(name) => format!("{{{name}}}"),
            Segment::Rest(name) => format!("{{*{name}}}"),
        }))
    }
}

impl FromStr for PathPattern {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let shown: String = text.chars().take(100).collect();
        if text.len() > MAX_LENGTH {
            return Err(invalid(format!(
                "a path is at most {MAX_LENGTH} bytes long"
            )));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(hinted(
                format!("'{shown}' does not start with '/'"),
                format!("perhaps /{shown}"),
            ));
        };
        if rest.starts_with('@') {
            return Err(invalid(
                "paths that start with '/@' belong to namespaces".to_owned(),
            ));
        }
        if let Some(prefix) = RESERVED.iter().find(|prefix| is_under(text, prefix)) {
            return Err(invalid(format!(
                "'{prefix}' and what is under it are reserved for the host"
            )));
        }
        if rest.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let last = parts.len() - 1;
        let mut segments = Vec::with_capacity(parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            if part.is_empty() && index == last {
                let without = shown.trim_end_matches('/');
                return Err(hinted(
                    format!("'{shown}' ends in '/'"),
                    format!("perhaps {}", if without.is_empty() { "/" } else { without }),
                ));
            }
            let segment = segment(part)?;
            match &segment {
                Segment::Rest(_) if index != last => {
                    return Err(invalid(format!("'{part}' must be the last segment")));
                }
                Segment::Param(name) | Segment::Rest(name) => {
                    let used = Self(segments);
                    if used.params().any(|other| other == name) {
                        return Err(invalid(format!("the parameter '{name}' is there twice")));
                    }
                    segments = used.0;
                }
                Segment::Literal(_) => {}
            }
            segments.push(segment);
        }
        Ok(Self(segments))
    }
}

fn is_under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn segment(part: &str) -> Result<Segment, InvalidPath> {
    if part.is_empty() {
        return Err(invalid("a path has no empty segment ('//')".to_owned()));
    }
    if part == "." || part == ".." {
        return Err(invalid(format!(
            "'{part}' is no segment of a path: clients resolve it away"
        )));
    }
    if let Some(inner) = part
        .strip_prefix('{')
        .and_then(|part| part.strip_suffix('}'))
    {
        let (name, rest) = inner
            .strip_prefix('*')
            .map_or((inner, false), |name| (name, true));
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() || name.len() > 50 || !name.chars().all(legal) {
            let kept: String = name
                .to_ascii_lowercase()
                .chars()
                .filter(|c| legal(*c))
                .take(50)
                .collect();
            let star = if rest { "*" } else { "" };
            return Err(InvalidPath {
                message: format!(
                    "'{part}' is no parameter: its name is up to 50 lower-case letters and digits"
                ),
                hint: (!kept.is_empty()).then(|| format!("perhaps {{{star}{kept}}}")),
            });
        }
        let name = name.to_owned();
        return Ok(if rest {
            Segment::Rest(name)
        } else {
            Segment::Param(name)
        });
    }
    if part.contains(['{', '}']) {
        return Err(invalid(format!(
            "'{part}' mixes text and a parameter: a parameter is a whole segment"
        )));
    }
    if part.contains('%') {
        return Err(invalid(format!(
            "'{part}' is percent-encoded: use a parameter for what needs encoding"
        )));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@".contains(c);
    if let Some(bad) = part.chars().find(|c| !legal(*c)) {
        return Err(invalid(format!(
            "{bad:?} may not stand in a path: use a parameter for what needs encoding"
        )));
    }
    Ok(Segment::Literal(part.to_owned()))
}

fn invalid(message: String) -> InvalidPath {
    InvalidPath {
        message,
        hint: None,
    }
}

fn hinted(message: String, hint: String) -> InvalidPath {
    InvalidPath {
        message,
        hint: Some(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_patterns_read_back() {
        for text in [
            "/",
            "/digits/{set}",
            "/v1/model",
            "/v2x/{a}/{b9}",
            "/a.b-c~d/x@y:z",
            "/files/{*rest}",
        ] {
            let pattern: PathPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
            assert_eq!(pattern.has_rest(), text.contains('*'));
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for (text, part) in [
            ("", "does not start"),
            ("digits", "does not start"),
            ("/a//b", "empty segment"),
            ("//a", "empty segment"),
            ("/a/", "ends in '/'"),
            ("/a/../b", "resolve it away"),
            ("/a/{B}", "is no parameter"),
            ("/a/{}", "is no parameter"),
            ("/a/{x_y}", "is no parameter"),
            ("/{x}/{x}", "there twice"),
            ("/{x}/{*x}", "there twice"),
            ("/{*rest}/a", "must be the last"),
            ("/a/{x}.json", "whole segment"),
            ("/a%20b", "percent-encoded"),
            ("/a b", "' ' may not stand"),
            ("/é", "may not stand"),
            ("/a?b=c", "'?' may not stand"),
            ("/@other/x", "belong to namespaces"),
            ("/v2", "'/v2' and what is under it"),
            ("/v2/models", "reserved"),
            ("/v1/models/x", "reserved"),
            ("/runs/{id}", "reserved"),
        ] {
            let error = text.parse::<PathPattern>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert_eq!(
            "/a/{x_Y}".parse::<PathPattern>().unwrap_err().hint.unwrap(),
            "perhaps {xy}"
        );
        assert!(
            format!("/{}", "a".repeat(2000))
                .parse::<PathPattern>()
                .is_err()
        );
    }
}
