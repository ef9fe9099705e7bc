//! The filter language, evaluated straight from its JSON: slow, and with nothing in common with the host's evaluator.

use serde_json::{Map, Value};

/// Whether the filter holds.
///
/// # Errors
/// The filter is malformed. It is read as far as it is evaluated, so call [`check`] first.
pub(crate) fn holds(filter: &Value, metadata: &Map<String, Value>) -> Result<bool, String> {
    let mut result = true;
    for (key, operand) in filter.as_object().ok_or("a filter must be an object")? {
        let part = match key.as_str() {
            "$and" => every(operand, metadata)?.iter().all(|it| *it),
            "$or" => every(operand, metadata)?.iter().any(|it| *it),
            other if other.starts_with('$') => {
                return Err(format!("{other} is not a valid operator"));
            }
            field => field_holds(metadata.get(field), operand)?,
        };
        result &= part;
    }
    Ok(result)
}

/// Whether the filter is well formed.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(filter: &Value) -> Result<(), String> {
    // Nothing above stops early, so evaluating against anything reads all of it.
    holds(filter, &Map::new()).map(|_| ())
}

fn every(operand: &Value, metadata: &Map<String, Value>) -> Result<Vec<bool>, String> {
    let filters = operand.as_array().filter(|list| !list.is_empty());
    filters
        .ok_or("$and and $or must be followed by a non-empty list")?
        .iter()
        .map(|filter| holds(filter, metadata))
        .collect()
}

fn field_holds(value: Option<&Value>, operand: &Value) -> Result<bool, String> {
    let Some(operators) = operand.as_object() else {
        return operator_holds("$eq", value, operand);
    };
    if operators.is_empty() {
        return Err("a field must be followed by an operator".into());
    }
    let mut result = true;
    for (operator, operand) in operators {
        result &= operator_holds(operator, value, operand)?;
    }
    Ok(result)
}

fn operator_holds(operator: &str, value: Option<&Value>, operand: &Value) -> Result<bool, String> {
    let wrong = || format!("{operator} has an operand of a wrong type");
    match operator {
        "$exists" => Ok(operand.as_bool().ok_or_else(wrong)? == value.is_some()),
        "$eq" | "$ne" => {
            if !(operand.is_string() || operand.is_number() || operand.is_boolean()) {
                return Err(wrong());
            }
            let Some(value) = value else { return Ok(false) };
            Ok((operator == "$eq") == elements(value).iter().any(|it| same(it, operand)))
        }
        "$in" | "$nin" => {
            let choices = operand
                .as_array()
                .filter(|list| !list.is_empty())
                .ok_or_else(wrong)?;
            if !choices.iter().all(|it| it.is_string() || it.is_number()) {
                return Err(wrong());
            }
            let Some(value) = value else { return Ok(false) };
            let found = elements(value)
                .iter()
                .any(|it| choices.iter().any(|choice| same(it, choice)));
            Ok((operator == "$in") == found)
        }
        "$gt" | "$gte" | "$lt" | "$lte" => {
            let limit = operand.as_f64().ok_or_else(wrong)?;
            let Some(number) = value.and_then(Value::as_f64) else {
                return Ok(false);
            };
            Ok(match operator {
                "$gt" => number > limit,
                "$gte" => number >= limit,
                "$lt" => number < limit,
                _ => number <= limit,
            })
        }
        _ => Err(format!("{operator} is not a valid operator")),
    }
}

fn elements(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        single => vec![single],
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
