use std::time::Duration;

use stepwell_core::{BindingKind, Grants, Isolation, Limits, Name, Problem};
use stepwell_document::{At, Key, Node, Position, Problems, Value, parse_yaml};

use super::grants::GrantPlace;
use super::isolation::read_isolation;
use super::json::as_yaml;
use super::limits::read_limits;
use super::step::read_step;
use super::trigger::read_trigger;
use super::{NodeSpec, PipelineSpec, StepSpec};
use crate::{Retry, TriggerSpec};

/// The version of the format that this host reads.
const FORMAT: i64 = 1;

/// Bytes of the longest document.
const MAX_DOCUMENT: usize = 256 << 10;
const MAX_STEPS: usize = 100;
const MAX_TRIGGERS: usize = 100;
const MAX_DESCRIPTION: usize = 4096;

/// Mistakes that are reported of one document; more help nobody.
const MAX_PROBLEMS: usize = 100;

/// A document as far as it could be read, and everything that is wrong with it so far.
///
/// What is readable is kept whatever else is wrong, so that one pass over the host's state finds the rest.
pub struct Draft {
    root: Node,
    problems: Vec<Problem>,
    name: Option<Name>,
    description: Option<String>,
    /// Each with its JSON pointer.
    pub(crate) triggers: Vec<(String, TriggerSpec)>,
    pub(crate) steps: Vec<StepDraft>,
}

/// One step as far as it could be read.
pub(crate) struct StepDraft {
    pub(crate) path: String,
    pub(crate) id: Name,
    pub(crate) id_path: String,
    pub(crate) node: Option<NodeSpec>,
    pub(crate) config: Vec<(String, String)>,
    pub(crate) grants: Grants,
    pub(crate) grant_places: Vec<GrantPlace>,
    /// Kinds with at least one grant, readable or not.
    pub(crate) grant_kinds: Vec<BindingKind>,
    pub(crate) limits: Limits,
    pub(crate) isolation: Isolation,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<Retry>,
}

impl Draft {
    /// Reads a document in YAML or JSON.
    pub fn parse(text: &str) -> Self {
        if text.len() > MAX_DOCUMENT {
            let message = format!("the document is longer than {} KiB", MAX_DOCUMENT >> 10);
            return Self::unreadable(Problem {
                path: String::new(),
                line: None,
                column: None,
                message,
                hint: None,
            });
        }
        match parse_yaml(&as_yaml(text)) {
            Ok(root) => Self::read(root),
            Err(problem) => Self::unreadable(problem),
        }
    }

    /// Reads a document that the catalog kept.
    pub fn from_json(document: &serde_json::Value) -> Self {
        Self::read(node_of(document))
    }

    /// The pipeline's name, if it could be read.
    pub fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// What starts the pipeline, as far as it could be read.
    pub fn triggers(&self) -> impl Iterator<Item = &TriggerSpec> {
        self.triggers.iter().map(|(_, trigger)| trigger)
    }

    /// The plugins that the document names, each once: what validation must know of.
    pub fn plugins(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for step in &self.steps {
            if let Some(NodeSpec::Plugin(reference)) = &step.node
                && !names.contains(&reference.name)
            {
                names.push(reference.name.clone());
            }
        }
        names
    }

    /// The bindings that the steps want to be granted, as far as they could be read.
    pub fn bindings(&self) -> impl Iterator<Item = (BindingKind, &str)> {
        let places = self.steps.iter().flat_map(|step| &step.grant_places);
        places.map(|place| (place.kind, place.binding.as_str()))
    }

    /// The document without positions, in its own order.
    pub fn document(&self) -> serde_json::Value {
        self.root.to_json()
    }

    /// Reports a mistake at a JSON pointer.
    pub fn problem(&mut self, path: &str, message: impl Into<String>, hint: Option<String>) {
        let position = position(&self.root, path);
        self.problems.push(Problem {
            path: path.to_owned(),
            line: Some(position.line),
            column: Some(position.column),
            message: message.into(),
            hint,
        });
    }

    /// The specification, if nothing is wrong.
    ///
    /// # Errors
    /// Every mistake, by line and column.
    pub fn finish(self) -> Result<PipelineSpec, Vec<Problem>> {
        let name = match self.name {
            Some(name) if self.problems.is_empty() => name,
            _ => return Err(sorted(self.problems)),
        };
        let steps = self.steps.into_iter().filter_map(StepDraft::finish);
        Ok(PipelineSpec {
            name,
            description: self.description,
            triggers: self
                .triggers
                .into_iter()
                .map(|(_, trigger)| trigger)
                .collect(),
            steps: steps.collect(),
        })
    }

    fn unreadable(problem: Problem) -> Self {
        Self {
            root: Node {
                value: Value::Null,
                position: Position { line: 1, column: 1 },
            },
            problems: vec![problem],
            name: None,
            description: None,
            triggers: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn read(root: Node) -> Self {
        let problems = Problems::default();
        let mut draft = Self {
            name: None,
            description: None,
            triggers: Vec::new(),
            steps: Vec::new(),
            problems: Vec::new(),
            root,
        };
        // The readers borrow the tree, the draft owns it.
        let parts = read_root(&At::root(&draft.root, &problems));
        if let Some(parts) = parts {
            draft.name = parts.name;
            draft.description = parts.description;
            draft.triggers = parts.triggers;
            draft.steps = parts.steps;
        }
        draft.problems = problems.into_sorted();
        draft.check_repeats();
        draft
    }

    /// Ids and routes that the document has twice.
    fn check_repeats(&mut self) {
        let mut found = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(first) = self
                .steps
                .iter()
                .take(index)
                .find(|other| other.id == step.id)
            {
                let line = position(&self.root, &first.id_path).line;
                found.push((
                    step.id_path.clone(),
                    format!("the step id '{}' is there already, at line {line}", step.id),
                ));
            }
        }
        for (index, (path, trigger)) in self.triggers.iter().enumerate() {
            let earlier = self.triggers.iter().take(index);
            match trigger {
                TriggerSpec::Http(http) => {
                    let clash = earlier.filter_map(|(path, trigger)| match trigger {
                        TriggerSpec::Http(other) if other.clashes_with(http) => Some(path),
                        _ => None,
                    });
                    if let Some(first) = clash.take(1).next() {
                        let line = position(&self.root, first).line;
                        let message = format!(
                            "the route {} is there already, at line {line}",
                            http.shown()
                        );
                        found.push((format!("{path}/http/path"), message));
                    }
                }
                TriggerSpec::Kafka(kafka) => {
                    let mut others =
                        self.triggers
                            .iter()
                            .filter_map(|(path, trigger)| match trigger {
                                TriggerSpec::Kafka(other) => Some((path, other)),
                                TriggerSpec::Http(_) => None,
                            });
                    if let Some((other, _)) = others
                        .clone()
                        .take_while(|(other, _)| *other != path)
                        .find(|(_, other)| other.shares_with(kafka))
                    {
                        let line = position(&self.root, other).line;
                        let message = format!(
                            "the group '{}' reads this topic already, at line {line}",
                            kafka.group
                        );
                        found.push((format!("{path}/kafka/topics"), message));
                    }
                    if others.any(|(other, spec)| {
                        other != path && spec.topics.contains(&kafka.dead_letter)
                    }) {
                        let message = format!(
                            "the dead-letter topic '{}' is a source topic of another trigger: a record that fails would come back for ever",
                            kafka.dead_letter
                        );
                        found.push((format!("{path}/kafka"), message));
                    }
                }
            }
        }
        for (path, message) in found {
            self.problem(&path, message, None);
        }
    }
}

impl StepDraft {
    fn finish(self) -> Option<StepSpec> {
        Some(StepSpec {
            id: self.id,
            node: self.node?,
            config: self.config,
            grants: self.grants,
            limits: self.limits,
            isolation: self.isolation,
            timeout: self.timeout,
            retry: self.retry,
        })
    }
}

struct Parts {
    name: Option<Name>,
    description: Option<String>,
    triggers: Vec<(String, TriggerSpec)>,
    steps: Vec<StepDraft>,
}

fn read_root(at: &At<'_>) -> Option<Parts> {
    let mut map = at.mapping()?;
    if let Some(at) = map.required("stepwell")
        && !matches!(at.node().value, Value::Integer(FORMAT))
    {
        at.problem_with_hint(
            "this is no version of the format that this host reads",
            format!("write {FORMAT}"),
        );
    }
    let name = map.required("name").and_then(|at| at.name());
    let description_at = map.optional("description");
    let description = description_at.as_ref().and_then(|at| at.string());
    if let Some(at) = description_at
        && description.is_some_and(|text| text.len() > MAX_DESCRIPTION)
    {
        at.problem(format!(
            "a description is at most {MAX_DESCRIPTION} bytes long"
        ));
    }
    let triggers = map.optional("triggers").map(|at| read_triggers(&at));
    let defaults = map
        .optional("defaults")
        .map(|at| read_defaults(&at))
        .unwrap_or_default();
    let steps = map.required("steps").map(|at| read_steps(&at, defaults));
    map.finish();
    Some(Parts {
        name,
        description: description.map(ToOwned::to_owned),
        triggers: triggers.unwrap_or_default(),
        steps: steps.unwrap_or_default(),
    })
}

/// What a plugin step has where it does not say otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Defaults {
    pub(super) limits: Limits,
    pub(super) isolation: Isolation,
}

fn read_defaults(at: &At<'_>) -> Defaults {
    let Some(mut map) = at.mapping() else {
        return Defaults::default();
    };
    let limits = read_limits(map.optional("limits"), Limits::default());
    let isolation = read_isolation(map.optional("isolation"), Isolation::default());
    map.finish();
    Defaults { limits, isolation }
}

fn read_triggers(at: &At<'_>) -> Vec<(String, TriggerSpec)> {
    let items = at.sequence().unwrap_or_default();
    if items.len() > MAX_TRIGGERS {
        at.problem(format!("more than {MAX_TRIGGERS} triggers"));
        return Vec::new();
    }
    items
        .iter()
        .filter_map(|at| Some((at.path().to_owned(), read_trigger(at)?)))
        .collect()
}

fn read_steps(at: &At<'_>, defaults: Defaults) -> Vec<StepDraft> {
    let Some(items) = at.sequence() else {
        return Vec::new();
    };
    if items.is_empty() {
        at.problem("a pipeline has at least one step");
    }
    if items.len() > MAX_STEPS {
        at.problem(format!("more than {MAX_STEPS} steps"));
        return Vec::new();
    }
    items
        .iter()
        .enumerate()
        .filter_map(|(index, at)| read_step(index, at, defaults))
        .collect()
}

/// Where the value at a JSON pointer stands, or the nearest value around it.
fn position(root: &Node, path: &str) -> Position {
    let mut node = root;
    for segment in path.split('/').skip(1) {
        let name = segment.replace("~1", "/").replace("~0", "~");
        let next = match &node.value {
            Value::Sequence(items) => name
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index)),
            _ => node.get(&name),
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    node.position
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| (problem.line, problem.column));
    if problems.len() > MAX_PROBLEMS {
        let more = problems.len() - MAX_PROBLEMS;
        problems.truncate(MAX_PROBLEMS);
        problems.push(Problem {
            path: String::new(),
            line: None,
            column: None,
            message: format!("and {more} more"),
            hint: None,
        });
    }
    problems
}

/// A tree without positions; the catalog's documents were read with them once.
fn node_of(value: &serde_json::Value) -> Node {
    let position = Position { line: 1, column: 1 };
    let value = match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Boolean(*value),
        serde_json::Value::Number(number) => number.as_i64().map_or_else(
            || Value::Float(number.as_f64().unwrap_or_default()),
            Value::Integer,
        ),
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(items) => Value::Sequence(items.iter().map(node_of).collect()),
        serde_json::Value::Object(entries) => Value::Mapping(
            entries
                .iter()
                .map(|(name, value)| {
                    let name = name.clone();
                    (Key { name, position }, node_of(value))
                })
                .collect(),
        ),
    };
    Node { value, position }
}
