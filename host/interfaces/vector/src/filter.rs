use std::collections::HashSet;

use serde_json::Value;

use crate::client::{Metadata, VectorError};

const MAX_TEXT: usize = 256 << 10;
const MAX_OPERATORS: usize = 256;
const MAX_DEPTH: usize = 32;

/// A condition on metadata in Pinecone's filter language: checked when it is made, then cheap to evaluate.
#[derive(Clone, Debug)]
pub struct Filter {
    condition: Condition,
    operators: usize,
    json: Value,
}

#[derive(Clone, Debug)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Field(String, Test),
}

/// What is asked of one field. Only `Exists(false)` holds for a field that is missing.
#[derive(Clone, Debug)]
enum Test {
    Equal(Scalar),
    NotEqual(Scalar),
    Greater(f64),
    GreaterOrEqual(f64),
    Less(f64),
    LessOrEqual(f64),
    In(Choices),
    NotIn(Choices),
    Exists(bool),
}

#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Text(String),
    Number(f64),
    Bool(bool),
}

/// The operand of `$in`: lookups stay fast however long a guest makes the list.
#[derive(Clone, Debug, Default)]
struct Choices {
    texts: HashSet<String>,
    /// Sorted.
    numbers: Vec<f64>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// [`VectorError::InvalidInput`] with the place and the mistake, [`VectorError::TooLarge`].
    pub fn parse(text: &str) -> Result<Self, VectorError> {
        if text.len() > MAX_TEXT {
            return Err(VectorError::TooLarge(format!(
                "a filter has at most {MAX_TEXT} bytes, this one has {}",
                text.len()
            )));
        }
        let json = serde_json::from_str(text)
            .map_err(|error| invalid(format!("the filter is not JSON: {error}")))?;
        Self::from_json(json)
    }

    /// Reads a filter that is JSON already.
    ///
    /// # Errors
    /// As [`Filter::parse`].
    pub fn from_json(json: Value) -> Result<Self, VectorError> {
        let mut reader = Reader { operators: 0 };
        let condition = reader.condition(&json, 0)?;
        Ok(Self {
            condition,
            operators: reader.operators,
            json,
        })
    }

    /// Whether it holds for this metadata.
    pub fn holds(&self, metadata: Option<&Metadata>) -> bool {
        self.condition.holds(metadata)
    }

    /// Whether it has no condition, so that it always holds.
    pub fn is_empty(&self) -> bool {
        self.operators == 0
    }

    /// How many operators it has: what evaluating it costs.
    pub(crate) fn operators(&self) -> usize {
        self.operators
    }

    /// The filter as it was written.
    pub fn as_json(&self) -> &Value {
        &self.json
    }
}

struct Reader {
    operators: usize,
}

impl Reader {
    fn condition(&mut self, json: &Value, depth: usize) -> Result<Condition, VectorError> {
        if depth > MAX_DEPTH {
            return Err(VectorError::TooLarge(format!(
                "a filter is at most {MAX_DEPTH} levels deep"
            )));
        }
        let Value::Object(members) = json else {
            return Err(invalid(format!(
                "a filter is a JSON object, not {}",
                kind(json)
            )));
        };
        let mut all = Vec::with_capacity(members.len().min(MAX_OPERATORS));
        for (key, operand) in members {
            match key.as_str() {
                "$and" => all.push(Condition::All(self.conditions(key, operand, depth)?)),
                "$or" => all.push(Condition::Any(self.conditions(key, operand, depth)?)),
                _ if key.starts_with('$') => {
                    return Err(invalid(format!(
                        "'{}' cannot stand in place of a field: only $and and $or can",
                        shown(key)
                    )));
                }
                "" => return Err(invalid("a field's name is empty".into())),
                field => self.field(field, operand, &mut all)?,
            }
        }
        Ok(match (all.len(), all.pop()) {
            (1, Some(only)) => only,
            (_, last) => {
                all.extend(last);
                Condition::All(all)
            }
        })
    }

    fn conditions(
        &mut self,
        operator: &str,
        operand: &Value,
        depth: usize,
    ) -> Result<Vec<Condition>, VectorError> {
        match operand {
            Value::Array(items) if !items.is_empty() => items
                .iter()
                .map(|item| {
                    self.count()?;
                    if item.as_object().is_some_and(serde_json::Map::is_empty) {
                        return Err(invalid(format!("a filter in {operator} is empty")));
                    }
                    self.condition(item, depth + 1)
                })
                .collect(),
            _ => Err(invalid(format!(
                "{operator} takes a list of at least one filter"
            ))),
        }
    }

    fn field(
        &mut self,
        field: &str,
        operand: &Value,
        all: &mut Vec<Condition>,
    ) -> Result<(), VectorError> {
        match operand {
            Value::Object(tests) => {
                if tests.is_empty() {
                    return Err(invalid(format!("field '{}' has no operator", shown(field))));
                }
                for (operator, operand) in tests {
                    self.count()?;
                    let test = test(operator, operand)
                        .map_err(|what| invalid(format!("field '{}': {what}", shown(field))))?;
                    all.push(Condition::Field(field.to_owned(), test));
                }
            }
            literal => {
                self.count()?;
                let value = scalar(literal).ok_or_else(|| {
                    invalid(format!(
                        "field '{}' is compared with a string, a number, a boolean or an object of operators, not {}",
                        shown(field),
                        kind(literal)
                    ))
                })?;
                all.push(Condition::Field(field.to_owned(), Test::Equal(value)));
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), VectorError> {
        self.operators += 1;
        if self.operators > MAX_OPERATORS {
            return Err(VectorError::TooLarge(format!(
                "a filter has at most {MAX_OPERATORS} operators"
            )));
        }
        Ok(())
    }
}

fn test(operator: &str, operand: &Value) -> Result<Test, String> {
    let one = || {
        scalar(operand).ok_or_else(|| {
            format!(
                "{operator} takes a string, a number or a boolean, not {}",
                kind(operand)
            )
        })
    };
    let number = || {
        operand
            .as_f64()
            .ok_or_else(|| format!("{operator} takes a number, not {}", kind(operand)))
    };
    Ok(match operator {
        "$eq" => Test::Equal(one()?),
        "$ne" => Test::NotEqual(one()?),
        "$gt" => Test::Greater(number()?),
        "$gte" => Test::GreaterOrEqual(number()?),
        "$lt" => Test::Less(number()?),
        "$lte" => Test::LessOrEqual(number()?),
        "$in" => Test::In(choices(operator, operand)?),
        "$nin" => Test::NotIn(choices(operator, operand)?),
        "$exists" => Test::Exists(
            operand
                .as_bool()
                .ok_or_else(|| format!("$exists takes true or false, not {}", kind(operand)))?,
        ),
        _ => {
            return Err(format!(
                "'{}' is not an operator: there are $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin and $exists",
                shown(operator)
            ));
        }
    })
}

fn choices(operator: &str, operand: &Value) -> Result<Choices, String> {
    let Value::Array(items) = operand else {
        return Err(format!("{operator} takes a list, not {}", kind(operand)));
    };
    if items.is_empty() {
        return Err(format!("{operator} takes a list of at least one value"));
    }
    let mut choices = Choices::default();
    for item in items {
        match scalar(item) {
            Some(Scalar::Text(text)) => {
                choices.texts.insert(text);
            }
            Some(Scalar::Number(number)) => choices.numbers.push(number),
            _ => {
                return Err(format!(
                    "{operator} takes a list of strings and numbers, with no {} in it",
                    kind(item)
                        .trim_start_matches("a ")
                        .trim_start_matches("an ")
                ));
            }
        }
    }
    choices.numbers.sort_by(f64::total_cmp);
    Ok(choices)
}

fn scalar(json: &Value) -> Option<Scalar> {
    match json {
        Value::String(text) => Some(Scalar::Text(text.clone())),
        // `+ 0.0` makes the two zeros one, for the sorted lookup.
        Value::Number(number) => number.as_f64().map(|number| Scalar::Number(number + 0.0)),
        Value::Bool(flag) => Some(Scalar::Bool(*flag)),
        _ => None,
    }
}

impl Condition {
    fn holds(&self, metadata: Option<&Metadata>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|condition| condition.holds(metadata)),
            Self::Any(any) => any.iter().any(|condition| condition.holds(metadata)),
            Self::Field(field, test) => {
                match metadata.and_then(|metadata| metadata.get(field.as_str())) {
                    None => matches!(test, Test::Exists(false)),
                    Some(value) => test.holds(value),
                }
            }
        }
    }
}

impl Test {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Equal(wanted) => any_element(value, |element| wanted.is(element)),
            Self::NotEqual(unwanted) => !any_element(value, |element| unwanted.is(element)),
            Self::Greater(limit) => value.as_f64().is_some_and(|number| number > *limit),
            Self::GreaterOrEqual(limit) => value.as_f64().is_some_and(|number| number >= *limit),
            Self::Less(limit) => value.as_f64().is_some_and(|number| number < *limit),
            Self::LessOrEqual(limit) => value.as_f64().is_some_and(|number| number <= *limit),
            Self::In(choices) => any_element(value, |element| choices.have(element)),
            Self::NotIn(choices) => !any_element(value, |element| choices.have(element)),
            Self::Exists(wanted) => *wanted,
        }
    }
}

impl Scalar {
    fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text(wanted), Value::String(text)) => wanted == text,
            (Self::Number(wanted), Value::Number(number)) => number.as_f64() == Some(*wanted),
            (Self::Bool(wanted), Value::Bool(flag)) => wanted == flag,
            _ => false,
        }
    }
}

impl Choices {
    fn have(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.texts.contains(text),
            Value::Number(number) => number.as_f64().is_some_and(|number| {
                self.numbers
                    .binary_search_by(|choice| choice.total_cmp(&(number + 0.0)))
                    .is_ok()
            }),
            _ => false,
        }
    }
}

fn any_element(value: &Value, test: impl Fn(&Value) -> bool) -> bool {
    match value {
        Value::Array(elements) => elements.iter().any(test),
        single => test(single),
    }
}

fn invalid(message: String) -> VectorError {
    VectorError::InvalidInput(message)
}

fn kind(json: &Value) -> &'static str {
    match json {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
