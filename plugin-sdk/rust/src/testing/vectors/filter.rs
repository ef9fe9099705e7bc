use serde_json::Value;

use crate::vectors::Error;

/// Whether metadata satisfies a filter.
pub(super) fn holds(filter: &Value, metadata: &Value) -> Result<bool, Error> {
    let Value::Object(clauses) = filter else {
        return Err(refused("a filter is a JSON object", filter));
    };
    let mut all = true;
    for (field, condition) in clauses {
        all &= match (field.as_str(), condition) {
            ("$and" | "$or", Value::Array(filters)) => {
                let results = filters
                    .iter()
                    .map(|filter| holds(filter, metadata))
                    .collect::<Result<Vec<_>, _>>()?;
                if field == "$and" {
                    results.iter().all(|held| *held)
                } else {
                    results.iter().any(|held| *held)
                }
            }
            (operator, _) if operator.starts_with('$') => {
                return Err(refused("unknown operator", filter));
            }
            (field, Value::Object(operators)) => {
                let mut all = true;
                for (operator, wanted) in operators {
                    all &= compare(operator, metadata.get(field), wanted)?;
                }
                all
            }
            (field, wanted) => compare("$eq", metadata.get(field), wanted)?,
        };
    }
    Ok(all)
}

fn compare(operator: &str, found: Option<&Value>, wanted: &Value) -> Result<bool, Error> {
    if operator == "$exists" {
        return match wanted {
            Value::Bool(wanted) => Ok(found.is_some() == *wanted),
            _ => Err(refused("$exists is true or false", wanted)),
        };
    }
    let Some(found) = found else {
        return Ok(false);
    };
    let elements = match found {
        Value::Array(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    let any = |wanted: &Value| elements.iter().any(|element| same(element, wanted));
    let ordered = |test: fn(&f64, &f64) -> bool| match (found.as_f64(), wanted.as_f64()) {
        (_, None) => Err(refused("a comparison is with a number", wanted)),
        (Some(found), Some(wanted)) => Ok(test(&found, &wanted)),
        (None, _) => Ok(false),
    };
    let list = || match wanted {
        Value::Array(list) => Ok(list.iter().any(any)),
        _ => Err(refused("$in and $nin take a list", wanted)),
    };
    match operator {
        "$eq" => Ok(any(wanted)),
        "$ne" => Ok(!any(wanted)),
        "$gt" => ordered(f64::gt),
        "$gte" => ordered(f64::ge),
        "$lt" => ordered(f64::lt),
        "$lte" => ordered(f64::le),
        "$in" => list(),
        "$nin" => list().map(|held| !held),
        _ => Err(refused("unknown operator", &Value::from(operator))),
    }
}

/// Numbers are equal by value: 7 and 7.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn refused(reason: &str, what: &Value) -> Error {
    Error::InvalidInput(format!("{reason}: {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operators() {
        let metadata = json!({"digit": 7, "set": "train", "tags": ["a", "b"], "ok": true});
        for (filter, expected) in [
            (json!({}), true),
            (json!({"digit": 7.0}), true),
            (json!({"digit": {"$gt": 6, "$lte": 7}}), true),
            (json!({"digit": {"$lt": 7}}), false),
            (json!({"set": {"$gte": 1}}), false),
            (json!({"set": {"$ne": "train"}}), false),
            (json!({"other": {"$ne": "train"}}), false),
            (json!({"other": {"$exists": false}}), true),
            (json!({"tags": "b"}), true),
            (json!({"tags": {"$in": ["x", "a"]}}), true),
            (json!({"tags": {"$nin": ["x", "a"]}}), false),
            (json!({"$or": [{"digit": 1}, {"ok": true}]}), true),
            (json!({"$and": [{"digit": 7}, {"ok": false}]}), false),
        ] {
            assert_eq!(holds(&filter, &metadata).unwrap(), expected, "{filter}");
        }
    }

    #[test]
    fn malformed_filters() {
        for filter in [
            json!([]),
            json!({"$not": []}),
            json!({"digit": {"$like": 1}}),
            json!({"digit": {"$in": 1}}),
            json!({"digit": {"$gt": "a"}}),
            json!({"digit": {"$exists": 1}}),
        ] {
            assert!(
                matches!(
                    holds(&filter, &json!({"digit": 1})),
                    Err(Error::InvalidInput(_))
                ),
                "{filter}"
            );
        }
    }
}
