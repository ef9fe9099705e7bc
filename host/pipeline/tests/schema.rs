#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]
//! The published JSON Schema, and that it takes what the reader takes.

use std::collections::BTreeSet;

use serde_json::Value;
use stepwell_pipeline::{Draft, json_schema};

const PUBLISHED: &str = "../../docs/pipeline.schema.json";

/// `UPDATE=1` writes it anew.
#[test]
fn the_published_schema_is_the_readers_own() {
    let schema = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PUBLISHED, &schema).unwrap();
    }
    let published = std::fs::read_to_string(PUBLISHED).unwrap();
    assert_eq!(published, schema, "write it anew with UPDATE=1");
}

#[test]
fn the_schema_takes_good_documents() {
    let others = [
        "{stepwell: 1, name: p, defaults: {isolation: fresh}, steps: [{id: a, plugin: b@1, isolation: reuse}, {id: c, plugin: b@1, isolation: {reuse: {max_calls: 5, idle: 1m, concurrency: 2}}}]}",
        "{stepwell: 1, name: p, steps: [{id: a, model: digits@2, inputs: {x: /a/~1b}, outputs: {y: z}, retry: {attempts: 2}}]}",
        "{stepwell: 1, name: p, triggers: [{http: {path: '/{*rest}'}}], steps: [{id: a, plugin: hello@latest}]}",
        "{stepwell: 1, name: p, triggers: [{http: {path: /a, auth: token}}, {http: {path: /b, auth: {jwt: {issuer: i, audience: a, jwks: 'https://i.example/k@1'}}}}], steps: [{id: a, plugin: hello@latest}]}",
        "{stepwell: 1, name: p, triggers: [{kafka: {topics: [a], group: g, retry: {max_age: 1h}}}], steps: [{id: a, plugin: b@1.2.3-rc.1, grants: {sql: {x: {actions: [read]}}}}]}",
        "{stepwell: 1, name: p, steps: [{id: a, plugin: b@1, grants: {http: ['https://*.example.com:8443', 'http://[2001:db8::1]:8080']}}]}",
    ];
    for text in [include_str!("digit-reader.yaml")]
        .into_iter()
        .chain(others)
    {
        let draft = Draft::parse(text);
        let document = draft.document();
        draft.finish().expect(text);
        check(&document).expect(text);
    }
}

#[test]
fn the_schema_refuses_typos_and_wrong_types() {
    let good = include_str!("digit-reader.yaml");
    for (part, typo) in [
        ("stepwell: 1", "stepwell: 2"),
        ("name: digit-reader", "name: Digit"),
        ("description:", "descripton:"),
        ("triggers:", "trigger:"),
        ("http:  {", "htp:  {"),
        ("method: POST", "method: post"),
        ("max_body: 1MiB", "max_body: 1048576"),
        ("timeout: 2s", "timeout: 2"),
        ("topics: [digits]", "topics: digits"),
        ("group: digit-reader, ", ""),
        ("order: key", "order: keys"),
        ("cpu: 100ms", "cpu: 100"),
        ("memory: 64MiB", "memory: 64MB"),
        ("plugin: decode-image@1 ", "plugin: decode-image "),
        ("plugin: decode-image@1 ", "plugn: decode-image@1 "),
        ("neighbours: \"5\"", "neighbours: 5"),
        ("[infer]", "[infr]"),
        ("vectors:  {", "vector:  {"),
        ("attempts: 3", "attempts: 0"),
        ("errors: [unavailable]", "errors: [invalid]"),
        ("binding: main-redis, ", "bindng: main-redis, "),
        ("actions: [read, write], ", ""),
    ] {
        let text = good.replacen(part, typo, 1);
        assert_ne!(text, good, "{part}");
        let draft = Draft::parse(&text);
        assert!(check(&draft.document()).is_err(), "the schema takes {typo}");
        assert!(draft.finish().is_err(), "the reader takes {typo}");
    }
}

fn check(document: &Value) -> Result<(), String> {
    let schema = json_schema();
    valid(document, &schema, &schema).map_err(|at| at.trim_start_matches(": ").to_owned())
}

/// The part of JSON Schema that ours uses; an unknown keyword is a failure, so nothing is taken by oversight.
fn valid(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let text = value.as_str().unwrap_or_default();
    let length = text.chars().count() as u64;
    let items = value.as_array().map_or(0, Vec::len) as u64;
    for (keyword, wanted) in schema.as_object().unwrap() {
        let number = wanted.as_u64().unwrap_or_default();
        let good = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                return valid(value, root.pointer(pointer).unwrap(), root);
            }
            "type" => match wanted.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                other => panic!("type {other}"),
            },
            "const" => value == wanted,
            "enum" => wanted.as_array().unwrap().contains(value),
            "pattern" => matches(wanted.as_str().unwrap(), text),
            "maxLength" => length <= number,
            "minItems" => items >= number,
            "maxItems" => items <= number,
            "minimum" => value
                .as_i64()
                .is_none_or(|value| value >= wanted.as_i64().unwrap()),
            "maximum" => value
                .as_i64()
                .is_none_or(|value| value <= wanted.as_i64().unwrap()),
            "uniqueItems" => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items
                    .iter()
                    .enumerate()
                    .all(|(at, item)| !items[..at].contains(item))
            }
            "required" => wanted
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "properties" => {
                for (key, schema) in wanted.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        valid(value, schema, root).map_err(|at| format!("{key}.{at}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (key, value) in value.as_object().into_iter().flatten() {
                    if known.is_some_and(|known| known.contains_key(key)) {
                        continue;
                    }
                    if wanted == &Value::Bool(false) {
                        return Err(format!("{key}: unknown"));
                    }
                    valid(value, wanted, root).map_err(|at| format!("{key}.{at}"))?;
                }
                true
            }
            "maxProperties" => value
                .as_object()
                .is_none_or(|keys| keys.len() as u64 <= number),
            "propertyNames" => {
                for key in value.as_object().unwrap().keys() {
                    valid(&Value::String(key.clone()), wanted, root)?;
                }
                true
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    valid(item, wanted, root)?;
                }
                true
            }
            "oneOf" => {
                let fits = wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|schema| valid(value, schema, root).is_ok());
                fits.count() == 1
            }
            other => panic!("keyword {other}"),
        };
        if !good {
            return Err(format!(": {keyword} {wanted} does not hold for {value}"));
        }
    }
    Ok(())
}

/// Whether an anchored pattern matches; it knows the part of regular expressions that our schema uses.
fn matches(pattern: &str, text: &str) -> bool {
    let inner = pattern
        .strip_prefix('^')
        .and_then(|rest| rest.strip_suffix('$'));
    let pattern: Vec<char> = inner.expect("an anchored pattern").chars().collect();
    let mut parser = Parser { pattern, at: 0 };
    let expression = parser.alternatives();
    assert_eq!(parser.at, parser.pattern.len(), "read to its end");
    let text: Vec<char> = text.chars().collect();
    expression
        .ends(&text, BTreeSet::from([0]))
        .contains(&text.len())
}

enum Expression {
    /// Characters from and to, or all others.
    Class(Vec<(char, char)>, bool),
    Sequence(Vec<Expression>),
    Alternatives(Vec<Expression>),
    Repeated(Box<Expression>, usize, usize),
}

impl Expression {
    /// Where a match may end that begins at one of `starts`.
    fn ends(&self, text: &[char], starts: BTreeSet<usize>) -> BTreeSet<usize> {
        match self {
            Self::Class(ranges, negated) => starts
                .into_iter()
                .filter(|at| {
                    text.get(*at).is_some_and(|c| {
                        ranges.iter().any(|(from, to)| (from..=to).contains(&c)) != *negated
                    })
                })
                .map(|at| at + 1)
                .collect(),
            Self::Sequence(parts) => parts
                .iter()
                .fold(starts, |starts, part| part.ends(text, starts)),
            Self::Alternatives(parts) => parts
                .iter()
                .flat_map(|part| part.ends(text, starts.clone()))
                .collect(),
            Self::Repeated(part, min, max) => {
                let mut found = BTreeSet::new();
                let mut current = starts;
                for count in 0..=*max {
                    if count >= *min {
                        found.extend(&current);
                    }
                    current = part.ends(text, current);
                    if current.is_empty() {
                        break;
                    }
                }
                found
            }
        }
    }
}

struct Parser {
    pattern: Vec<char>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> char {
        self.at += 1;
        self.pattern[self.at - 1]
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.pattern.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    fn alternatives(&mut self) -> Expression {
        let mut parts = vec![self.sequence()];
        while self.eat('|') {
            parts.push(self.sequence());
        }
        Expression::Alternatives(parts)
    }

    fn sequence(&mut self) -> Expression {
        let mut parts = Vec::new();
        while self
            .pattern
            .get(self.at)
            .is_some_and(|c| !"|)".contains(*c))
        {
            let part = self.one();
            let (min, max) = if self.eat('*') {
                (0, 99_999)
            } else if self.eat('+') {
                (1, 99_999)
            } else if self.eat('?') {
                (0, 1)
            } else if self.eat('{') {
                (self.number(','), self.number('}'))
            } else {
                (1, 1)
            };
            parts.push(Expression::Repeated(Box::new(part), min, max));
        }
        Expression::Sequence(parts)
    }

    fn one(&mut self) -> Expression {
        match self.next() {
            '(' => {
                let inner = self.alternatives();
                assert!(self.eat(')'));
                inner
            }
            '[' => {
                let negated = self.eat('^');
                let mut ranges = Vec::new();
                while !self.eat(']') {
                    let from = self.next();
                    let is_range = self.pattern[self.at] == '-' && self.pattern[self.at + 1] != ']';
                    let to = if is_range && self.eat('-') {
                        self.next()
                    } else {
                        from
                    };
                    ranges.push((from, to));
                }
                Expression::Class(ranges, negated)
            }
            '\\' => {
                let escaped = self.next();
                Expression::Class(vec![(escaped, escaped)], false)
            }
            '.' => panic!("no dots"),
            plain => Expression::Class(vec![(plain, plain)], false),
        }
    }

    fn number(&mut self, end: char) -> usize {
        let mut digits = String::new();
        while !self.eat(end) {
            digits.push(self.next());
        }
        digits.parse().unwrap()
    }
}

#[test]
fn patterns_match_as_they_should() {
    for (pattern, good, bad) in [
        (
            "^[a-z][a-z0-9-]{0,3}$",
            ["a", "a-9", "abcd"],
            ["", "abcde", "9a"],
        ),
        (
            "^(/([^~]|~[01])*)?$",
            ["", "/a/b", "/~0~1"],
            ["a", "/~", "/~2"],
        ),
        (
            "^[0-9]+(us|ms|s|m|h)$",
            ["1s", "20ms", "3m"],
            ["s", "1", "1d"],
        ),
        (
            "^a\\.b(-[x.]+)?$",
            ["a.b", "a.b-x", "a.b-x.x"],
            ["acb", "a.b-", "a.bx"],
        ),
    ] {
        assert!(good.iter().all(|text| matches(pattern, text)), "{pattern}");
        assert!(!bad.iter().any(|text| matches(pattern, text)), "{pattern}");
    }
}
