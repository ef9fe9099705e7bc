use std::ops::Range;

use stepwell_core::Problem;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::node::{Key, Node, Position, Value};

/// Reads a TOML document.
///
/// # Errors
/// Everything in it that is not TOML, each with its place.
pub fn parse_toml(text: &str) -> Result<Node, Vec<Problem>> {
    let lines = Lines::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let at = lines.position(error.span().unwrap_or_default());
            problem(at, format!("not TOML: {}", error.message()))
        })
        .collect();
    let node = table(
        root.get_ref(),
        lines.position(root.span()),
        &lines,
        &mut problems,
    );
    if problems.is_empty() {
        Ok(node)
    } else {
        Err(problems)
    }
}

fn table(
    table: &DeTable<'_>,
    position: Position,
    lines: &Lines<'_>,
    problems: &mut Vec<Problem>,
) -> Node {
    let mut entries: Vec<(Key, Node)> = table
        .iter()
        .map(|(name, node)| {
            let key = Key {
                name: name.get_ref().to_string(),
                position: lines.position(name.span()),
            };
            (key, value(node, lines, problems))
        })
        .collect();
    entries.sort_by_key(|(key, _)| (key.position.line, key.position.column));
    Node {
        value: Value::Mapping(entries),
        position,
    }
}

// Recursion is bounded: the parser itself refuses documents nested deeper than 80 levels.
fn value(node: &Spanned<DeValue<'_>>, lines: &Lines<'_>, problems: &mut Vec<Problem>) -> Node {
    let position = lines.position(node.span());
    let value = match node.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                problems.push(problem(position, format!("{digits} does not fit 64 bits")));
                Value::Null
            }
        },
        DeValue::Float(digits) => digits.as_str().parse().map_or(Value::Null, Value::Float),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => Value::Sequence(
            items
                .iter()
                .map(|item| self::value(item, lines, problems))
                .collect(),
        ),
        DeValue::Table(inner) => return table(inner, position, lines, problems),
    };
    Node { value, position }
}

/// Byte offsets to lines and columns.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { text, starts }
    }

    fn position(&self, span: Range<usize>) -> Position {
        let line = self
            .starts
            .partition_point(|start| *start <= span.start)
            .max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self
            .text
            .get(start..span.start)
            .map_or(0, |before| before.chars().count());
        Position {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column + 1).unwrap_or(u32::MAX),
        }
    }
}

fn problem(at: Position, message: String) -> Problem {
    Problem {
        path: String::new(),
        line: Some(at.line),
        column: Some(at.column),
        message,
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_positions() {
        let text = "[server]\nlisten = \"a\"\nport = 0x10\n\n[bindings.sql.results]\nurl = { env = \"X\" }\n";
        let node = parse_toml(text).unwrap();
        assert_eq!(
            node.to_json(),
            serde_json::json!({
                "server": {"listen": "a", "port": 16},
                "bindings": {"sql": {"results": {"url": {"env": "X"}}}},
            })
        );
        let listen = node.get("server").unwrap().get("listen").unwrap();
        assert_eq!(
            listen.position,
            Position {
                line: 2,
                column: 10
            }
        );
    }

    #[test]
    fn every_syntax_error_is_reported() {
        let problems = parse_toml("a = \nb = [\"x\"\nc = 99999999999999999999\n").unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.line == Some(1)),
            "{problems:?}"
        );
        assert!(problems.len() >= 2, "{problems:?}");
    }
}
