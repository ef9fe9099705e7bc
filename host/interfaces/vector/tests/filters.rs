//! Malformed and hostile filters. (What well-formed ones find is in `contract.rs`, for every backend.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use stepwell_vector::{Filter, VectorError};

#[test]
fn malformed_filters_say_what_is_wrong() {
    for (text, wanted) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        (r#"{"a": 1} x"#, "not JSON"),
        ("null", "a filter is a JSON object, not null"),
        ("[]", "not a list"),
        (r#""genre""#, "not a string"),
        (r#"{"": 1}"#, "name is empty"),
        (r#"{"$eq": 1}"#, "'$eq' cannot stand in place of a field"),
        (r#"{"$not": [{"a": 1}]}"#, "'$not' cannot stand"),
        (
            r#"{"$and": []}"#,
            "$and takes a list of at least one filter",
        ),
        (r#"{"$or": {"a": 1}}"#, "$or takes a list"),
        (r#"{"$and": [{}]}"#, "a filter in $and is empty"),
        (r#"{"$and": [1]}"#, "not a number"),
        (r#"{"a": null}"#, "field 'a' is compared with"),
        (r#"{"a": [1]}"#, "not a list"),
        (r#"{"a": {}}"#, "field 'a' has no operator"),
        (r#"{"a": {"b": 1}}"#, "field 'a': 'b' is not an operator"),
        (r#"{"a": {"$regex": "x"}}"#, "'$regex' is not an operator"),
        (
            r#"{"a": {"$and": [{"b": 1}]}}"#,
            "'$and' is not an operator",
        ),
        (
            r#"{"a": {"$eq": null}}"#,
            "$eq takes a string, a number or a boolean, not null",
        ),
        (r#"{"a": {"$ne": ["x"]}}"#, "not a list"),
        (
            r#"{"a": {"$gt": "2020"}}"#,
            "$gt takes a number, not a string",
        ),
        (r#"{"a": {"$lte": true}}"#, "not a boolean"),
        (r#"{"a": {"$in": "x"}}"#, "$in takes a list, not a string"),
        (
            r#"{"a": {"$in": []}}"#,
            "$in takes a list of at least one value",
        ),
        (r#"{"a": {"$nin": [true]}}"#, "no boolean in it"),
        (r#"{"a": {"$in": [["x"]]}}"#, "no list in it"),
        (
            r#"{"a": {"$exists": 1}}"#,
            "$exists takes true or false, not a number",
        ),
        (r#"{"a": 1e999}"#, "not JSON"),
    ] {
        match Filter::parse(text) {
            Err(VectorError::InvalidInput(message)) => {
                assert!(message.contains(wanted), "{text}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn hostile_filters_are_bounded() {
    let deep = format!("{}{{\"a\":1}}{}", "{\"$and\":[".repeat(40), "]}".repeat(40));
    let deeper = format!("{}{}", "{\"$or\":[".repeat(20_000), "]}".repeat(20_000));
    let wide = format!("{{\"$or\":[{}]}}", vec!["{\"a\":1}"; 200].join(","));
    let long = format!(
        "{{\"a\":{{\"$in\":[{}]}}}}",
        vec!["\"xxxxxxxx\""; 30_000].join(",")
    );
    for (text, what) in [
        (deep, "levels"),
        (deeper, "JSON"),
        (wide, "operators"),
        (long, "bytes"),
    ] {
        let message = Filter::parse(&text).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    let odd = format!("{{\"{}\\u0000\\n\": null}}", "k".repeat(10_000));
    let message = Filter::parse(&odd).unwrap_err().to_string();
    assert!(message.len() < 300 && !message.contains('\n'), "{message}");
}

#[test]
fn long_lists_are_looked_up_fast() {
    let numbers: Vec<String> = (0..30_000).map(|number| (number * 2).to_string()).collect();
    let filter = Filter::parse(&format!("{{\"n\":{{\"$in\":[{}]}}}}", numbers.join(","))).unwrap();
    let metadata = |number: i64| serde_json::Map::from_iter([("n".to_owned(), number.into())]);
    let start = std::time::Instant::now();
    for number in 0..60_000 {
        assert_eq!(filter.holds(Some(&metadata(number))), number % 2 == 0);
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(!filter.is_empty() && !filter.holds(None));
    let zero = Filter::parse(r#"{"n": {"$in": [-0.0]}}"#).unwrap();
    assert!(zero.holds(Some(&metadata(0))));
}
