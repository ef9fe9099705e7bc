use std::borrow::Cow;
use std::collections::HashMap;

use saphyr::Scalar;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use stepwell_core::Problem;

use crate::at::shorten;
use crate::node::{Key, Node, Position, Value};

/// No document that a person writes nests deeper, and none of the walks over the tree may run out of stack.
const MAX_DEPTH: usize = 64;

/// Values in one document; a hostile one must not grow memory without bound.
const MAX_NODES: usize = 100_000;

/// Reads one YAML document (JSON is YAML too).
///
/// Anchors, aliases and tags are refused: they make small documents large and say nothing that a pipeline or a configuration needs.
///
/// # Errors
/// The first thing that is not YAML, or not accepted, with its place.
pub fn parse_yaml(text: &str) -> Result<Node, Problem> {
    let mut builder = Builder::default();
    for step in Parser::new_from_str(text) {
        let (event, span) = step.map_err(|error| {
            problem(
                position(error.marker()),
                format!("not YAML: {}", error.info()),
            )
        })?;
        builder.event(event, position(&span.start))?;
    }
    Ok(builder.root.unwrap_or(Node {
        value: Value::Null,
        position: Position { line: 1, column: 1 },
    }))
}

/// A collection that has begun and not ended.
enum Open {
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
        /// The keys so far with their lines, once they are more than [`FEW`].
        seen: HashMap<String, u32>,
    },
}

/// So many keys are looked through in no time, one by one.
const FEW: usize = 16;

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<(Open, Position)>,
    nodes: usize,
    documents: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(problem(
                        at,
                        "a second document begins here: write one a file",
                    ));
                }
                Ok(())
            }
            Event::Alias(_) => Err(problem(at, "aliases (*name) are not accepted")),
            Event::Scalar(text, style, anchor, tag) => {
                plain(at, anchor, tag.is_some())?;
                self.scalar(text, style, at)
            }
            Event::SequenceStart(anchor, tag) => {
                plain(at, anchor, tag.is_some())?;
                self.begin(Open::Sequence(Vec::new()), at)
            }
            Event::MappingStart(anchor, tag) => {
                plain(at, anchor, tag.is_some())?;
                let entries = Vec::new();
                let (key, seen) = (None, HashMap::new());
                self.begin(Open::Mapping { entries, key, seen }, at)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::Sequence(items), start)) => self.add(Value::Sequence(items), start),
                Some((Open::Mapping { entries, .. }, start)) => {
                    self.add(Value::Mapping(entries), start)
                }
                None => Err(problem(at, "not YAML: a collection ends that never began")),
            },
        }
    }

    fn begin(&mut self, open: Open, at: Position) -> Result<(), Problem> {
        if let Some((Open::Mapping { key: None, .. }, _)) = self.open.last() {
            return Err(problem(at, "a key must be a text"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(problem(
                at,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.open.push((open, at));
        Ok(())
    }

    fn scalar(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        at: Position,
    ) -> Result<(), Problem> {
        if let Some((
            Open::Mapping {
                entries,
                key: key @ None,
                seen,
            },
            _,
        )) = self.open.last_mut()
        {
            if let Some(line) = line_of(&text, entries, seen) {
                return Err(problem(
                    at,
                    format!(
                        "the key '{}' is there already, at line {line}",
                        shorten(&text)
                    ),
                ));
            }
            let name = text.into_owned();
            if !seen.is_empty() {
                seen.insert(name.clone(), at.line);
            }
            *key = Some(Key { name, position: at });
            return Ok(());
        }
        let raw = text.clone().into_owned();
        let value = match Scalar::parse_from_cow_and_metadata(text, style, None) {
            Some(Scalar::Null) => Value::Null,
            Some(Scalar::Boolean(value)) => Value::Boolean(value),
            Some(Scalar::Integer(value)) => Value::Integer(value),
            Some(Scalar::FloatingPoint(value)) if value.is_finite() => Value::Float(*value),
            Some(Scalar::String(value)) => Value::String(value.into_owned()),
            Some(Scalar::FloatingPoint(_)) | None => Value::String(raw),
        };
        self.add(value, at)
    }

    fn add(&mut self, value: Value, position: Position) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(problem(position, format!("more than {MAX_NODES} values")));
        }
        let node = Node { value, position };
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((Open::Sequence(items), _)) => items.push(node),
            Some((Open::Mapping { entries, key, .. }, _)) => {
                let key = key
                    .take()
                    .ok_or_else(|| problem(position, "a key must be a text"))?;
                entries.push((key, node));
            }
        }
        Ok(())
    }
}

/// Where a mapping has this key already.
fn line_of(key: &str, entries: &[(Key, Node)], seen: &mut HashMap<String, u32>) -> Option<u32> {
    if entries.len() <= FEW {
        let first = entries.iter().find(|(first, _)| first.name == key);
        return first.map(|(first, _)| first.position.line);
    }
    if seen.is_empty() {
        let keys = entries.iter().map(|(key, _)| key);
        seen.extend(keys.map(|key| (key.name.clone(), key.position.line)));
    }
    seen.get(key).copied()
}

fn plain(at: Position, anchor: usize, tagged: bool) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(problem(at, "anchors (&name) are not accepted"));
    }
    if tagged {
        return Err(problem(at, "tags (!name) are not accepted"));
    }
    Ok(())
}

fn position(marker: &Marker) -> Position {
    Position {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(marker.col())
            .unwrap_or(u32::MAX)
            .saturating_add(1),
    }
}

fn problem(at: Position, message: impl Into<String>) -> Problem {
    Problem {
        path: String::new(),
        line: Some(at.line),
        column: Some(at.column),
        message: message.into(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_positions() {
        let node = parse_yaml("name: a\nlist:\n  - 1\n  - {x: true, y: \"2\"}\n").unwrap();
        assert_eq!(
            node.to_json(),
            serde_json::json!({"name": "a", "list": [1, {"x": true, "y": "2"}]})
        );
        let list = node.get("list").unwrap();
        let Value::Sequence(items) = &list.value else {
            panic!("a list")
        };
        assert_eq!(items[1].position, Position { line: 4, column: 5 });
        assert_eq!(
            items[1].get("y").unwrap().position,
            Position {
                line: 4,
                column: 18
            }
        );
    }

    #[test]
    fn json_is_yaml() {
        let node = parse_yaml(r#"{"a": [1, 2.5, null], "b": {"c": "d"}}"#).unwrap();
        assert_eq!(
            node.to_json(),
            serde_json::json!({"a": [1, 2.5, null], "b": {"c": "d"}})
        );
    }

    #[test]
    fn what_is_not_accepted_says_where() {
        for (text, line, part) in [
            ("a: 1\na: 2\n", 2, "there already, at line 1"),
            ("a: &x 1\nb: *x\n", 1, "anchors"),
            ("a: !!str 1\n", 1, "tags"),
            ("a: 1\n---\nb: 2\n", 2, "second document"),
            ("a: [1\n", 2, "not YAML"),
            ("? [a]\n: 1\n", 1, "a key must be a text"),
        ] {
            let problem = parse_yaml(text).unwrap_err();
            assert!(problem.message.contains(part), "{text:?}: {problem}");
            assert_eq!(problem.line, Some(line), "{text:?}: {problem}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_found_among_many() {
        let keys: String = (0..40).map(|i| format!("k{i}: 1\n")).collect();
        assert!(parse_yaml(&keys).is_ok());
        for again in [0, 15, 16, 17, 39] {
            let problem = parse_yaml(&format!("{keys}k{again}: 2\n")).unwrap_err();
            let line = format!("there already, at line {}", again + 1);
            assert!(problem.message.contains(&line), "{problem}");
            assert_eq!(problem.line, Some(41));
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = "[".repeat(100_000);
        assert!(parse_yaml(&text).is_err());
    }
}
