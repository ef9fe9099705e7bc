use std::cell::RefCell;
use std::time::Duration;

use stepwell_core::{Name, Problem, parse_duration, parse_size};

use crate::node::{Key, Node, Position, Value};

/// Everything that is wrong with a document, in the order it was found.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Adds one.
    pub fn push(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// All of them, by line and column.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }
}

/// A value of a document with its path, and where to report what is wrong with it.
///
/// Reading methods answer `None` after they have reported the problem, so a reader goes on and finds the next one.
#[derive(Clone)]
pub struct At<'a> {
    node: &'a Node,
    path: String,
    problems: &'a Problems,
}

impl<'a> At<'a> {
    /// The root of a document.
    pub fn root(node: &'a Node, problems: &'a Problems) -> Self {
        Self {
            node,
            path: String::new(),
            problems,
        }
    }

    /// The value itself.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// JSON Pointer of the value.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the value starts.
    pub fn position(&self) -> Position {
        self.node.position
    }

    /// Reports a problem with this value.
    pub fn problem(&self, message: impl Into<String>) {
        self.report(message.into(), None);
    }

    /// Reports a problem with this value and how to mend it.
    pub fn problem_with_hint(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.report(message.into(), Some(hint.into()));
    }

    fn report(&self, message: String, hint: Option<String>) {
        self.problems.push(Problem {
            path: self.path.clone(),
            line: Some(self.node.position.line),
            column: Some(self.node.position.column),
            message,
            hint,
        });
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.problem(format!("expected {what}, found {}", self.node.value.kind()));
        None
    }

    /// Whether the value is null.
    pub fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    /// A text.
    pub fn string(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Boolean(_) | Value::Integer(_) | Value::Float(_) => {
                self.problem_with_hint(
                    format!("expected a text, found {}", self.node.value.kind()),
                    "put it in quotes",
                );
                None
            }
            _ => self.expected("a text"),
        }
    }

    /// A whole number within bounds.
    pub fn integer(&self, min: i64, max: i64) -> Option<i64> {
        match &self.node.value {
            Value::Integer(number) if (min..=max).contains(number) => Some(*number),
            Value::Integer(number) => {
                self.problem(format!("{number} is not between {min} and {max}"));
                None
            }
            _ => self.expected("a whole number"),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        match &self.node.value {
            Value::Boolean(value) => Some(*value),
            _ => self.expected("true or false"),
        }
    }

    /// A duration with its unit.
    pub fn duration(&self) -> Option<Duration> {
        self.unit(parse_duration)
    }

    /// A size with its unit, in bytes.
    pub fn size(&self) -> Option<u64> {
        self.unit(parse_size)
    }

    fn unit<T>(&self, parse: fn(&str) -> Result<T, stepwell_core::InvalidUnit>) -> Option<T> {
        let parsed = match &self.node.value {
            Value::String(text) => parse(text),
            // A bare number: the parser's own words say which unit it may have meant.
            Value::Integer(number) => parse(&number.to_string()),
            Value::Float(number) => parse(&number.to_string()),
            _ => return self.expected("a number with its unit"),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(error.to_string(), error.hint);
                None
            }
        }
    }

    /// A name: `[a-z][a-z0-9-]{0,62}`.
    pub fn name(&self) -> Option<Name> {
        let text = self.string()?;
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let hint = Name::suggest(text).map(|name| format!("perhaps {name}"));
                self.report(format!("{error}"), hint);
                None
            }
        }
    }

    /// One of these words.
    pub fn one_of(&self, words: &[&'static str]) -> Option<&'static str> {
        let text = self.string()?;
        let found = words.iter().find(|word| **word == text).copied();
        if found.is_none() {
            self.report(
                format!("'{}' is not one of {}", shorten(text), words.join(", ")),
                nearest(text, words.iter().copied()).map(|word| format!("perhaps {word}")),
            );
        }
        found
    }

    /// The items of a list.
    pub fn sequence(&self) -> Option<Vec<Self>> {
        match &self.node.value {
            Value::Sequence(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, node)| self.child(&index.to_string(), node))
                    .collect(),
            ),
            _ => self.expected("a list"),
        }
    }

    /// A mapping whose keys are fixed: read each, then [`MapReader::finish`].
    pub fn mapping(&self) -> Option<MapReader<'a>> {
        match &self.node.value {
            Value::Mapping(entries) => Some(MapReader {
                at: self.clone(),
                entries,
                known: Vec::new(),
            }),
            _ => self.expected("a mapping"),
        }
    }

    /// The entries of a mapping whose keys are free.
    pub fn entries(&self) -> Option<Vec<(&'a Key, Self)>> {
        match &self.node.value {
            Value::Mapping(entries) => Some(
                entries
                    .iter()
                    .map(|(key, node)| (key, self.child(&key.name, node)))
                    .collect(),
            ),
            _ => self.expected("a mapping"),
        }
    }

    /// Reports a problem with a key of this mapping, at the key.
    pub fn key_problem(&self, key: &Key, message: impl Into<String>, hint: Option<String>) {
        self.problems.push(Problem {
            path: join(&self.path, &key.name),
            line: Some(key.position.line),
            column: Some(key.position.column),
            message: message.into(),
            hint,
        });
    }

    fn child(&self, segment: &str, node: &'a Node) -> Self {
        Self {
            node,
            path: join(&self.path, segment),
            problems: self.problems,
        }
    }
}

/// Unknown keys of one mapping that are reported one by one; what each may have meant takes a while to find out.
const MAX_UNKNOWN: usize = 50;

/// Reads a mapping key by key; what nobody asked for is reported at the end.
#[must_use = "call finish to report unknown keys"]
pub struct MapReader<'a> {
    at: At<'a>,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'a> MapReader<'a> {
    /// The value of a key that may be left out (`null` counts as left out).
    pub fn optional(&mut self, key: &'static str) -> Option<At<'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries
            .iter()
            .find(|(name, node)| name.name == key && node.value != Value::Null)
            .map(|(_, node)| self.at.child(key, node))
    }

    /// The value of a key that must be there; its absence is reported.
    pub fn required(&mut self, key: &'static str) -> Option<At<'a>> {
        let found = self.optional(key);
        if found.is_none() {
            self.at.problem(format!("'{key}' is missing"));
        }
        found
    }

    /// Reports a key that exists elsewhere or later, with the reason, and so not as unknown.
    pub fn refuse(&mut self, key: &'static str, message: &str) {
        self.known.push(key);
        if let Some((found, _)) = self.entries.iter().find(|(name, _)| name.name == key) {
            self.at.key_problem(found, message, None);
        }
    }

    /// Whether the key is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.name == key)
    }

    /// The mapping itself.
    pub fn at(&self) -> &At<'a> {
        &self.at
    }

    /// Reports every key that was not asked for, with the nearest one that is known.
    pub fn finish(self) {
        self.report_unknown();
    }

    /// What [`MapReader::finish`] does, for a reader that is kept.
    pub fn report_unknown(&self) {
        let keys = self.entries.iter().map(|(key, _)| key);
        let mut unknown = keys.filter(|key| !self.known.contains(&key.name.as_str()));
        for key in unknown.by_ref().take(MAX_UNKNOWN) {
            let hint = nearest(&key.name, self.known.iter().copied()).map_or_else(
                || format!("known here: {}", self.known.join(", ")),
                |known| format!("perhaps {known}"),
            );
            self.at.key_problem(
                key,
                format!("unknown key '{}'", shorten(&key.name)),
                Some(hint),
            );
        }
        let more = unknown.count();
        if more > 0 {
            self.at.problem(format!("{more} more keys are unknown"));
        }
    }
}

/// The word that differs least from `text`, if any is near.
pub fn nearest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let text: String = text.chars().take(80).collect();
    words
        .into_iter()
        .map(|word| (distance(&text, word), word))
        .filter(|(distance, word)| *distance <= 1 + word.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Levenshtein distance, ignoring case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut next = vec![i + 1];
        for (y, pair) in b.iter().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or(0);
            let substituted = diagonal + usize::from(x != *y);
            next.push(substituted.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn join(path: &str, segment: &str) -> String {
    format!("{path}/{}", segment.replace('~', "~0").replace('/', "~1"))
}

pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_yaml;

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let text = "name: 9\nsize: 64\ntimout: 1s\nwhen: maybe\nid: A_b\n";
        let node = parse_yaml(text).unwrap();
        let problems = Problems::default();
        let mut map = At::root(&node, &problems).mapping().unwrap();
        assert!(map.required("name").and_then(|at| at.string()).is_none());
        assert!(map.required("size").and_then(|at| at.size()).is_none());
        assert!(map.optional("timeout").is_none());
        assert!(map.required("when").and_then(|at| at.boolean()).is_none());
        assert!(map.required("id").and_then(|at| at.name()).is_none());
        assert!(map.required("gone").is_none());
        map.finish();
        let shown: Vec<String> = problems
            .into_sorted()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            [
                "1:1: 'gone' is missing",
                "1:7: /name: expected a text, found a whole number (put it in quotes)",
                "2:7: /size: '64' has no unit: a size is a whole number and KiB, MiB or GiB (perhaps 64MiB)",
                "3:1: /timout: unknown key 'timout' (perhaps timeout)",
                "4:7: /when: expected true or false, found a text",
                "5:5: /id: 'A_b' is not a name: a lower-case letter, then up to 62 lower-case letters, digits and hyphens (perhaps a-b)",
            ]
        );
    }

    #[test]
    fn of_many_unknown_keys_some_are_named() {
        let text: String = (0..60).map(|i| format!("k{i}: 1\n")).collect();
        let node = parse_yaml(&text).unwrap();
        let problems = Problems::default();
        At::root(&node, &problems).mapping().unwrap().finish();
        let shown: Vec<String> = problems
            .into_sorted()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown.len(), MAX_UNKNOWN + 1);
        assert!(
            shown.contains(&"1:1: 10 more keys are unknown".to_owned()),
            "{shown:?}"
        );
    }

    #[test]
    fn the_nearest_word() {
        assert_eq!(nearest("pugin", ["plugin", "model"]), Some("plugin"));
        assert_eq!(nearest("zebra", ["plugin", "model"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
