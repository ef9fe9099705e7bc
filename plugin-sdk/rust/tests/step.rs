//! The attribute's forms, and that steps really talk to the fakes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use serde::{Deserialize, Serialize};
use serde_json::json;
use stepwell_sdk::log::Level;
use stepwell_sdk::models::{self, Tensor};
use stepwell_sdk::sql::{self, Rows, TransactionOptions, Value, params};
use stepwell_sdk::testing::{Answer, Host, event};
use stepwell_sdk::vectors::{self, Change, Metric, Query, Selection, Vector};
use stepwell_sdk::{Error, Event, OrError, config, keyvalue, log};

#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Number {
    value: i64,
}

mod one {
    use super::*;
    #[stepwell_sdk::step]
    fn double(input: Number) -> Result<Number, Error> {
        let value = input
            .value
            .checked_mul(2)
            .or_invalid("the number is too large")?;
        Ok(Number { value })
    }

    #[test]
    fn data_goes_in_and_out_and_the_attributes_stay() {
        let input = event()
            .with_subject("s")
            .with_extension("partitionkey", "k")
            .with_text(r#"{"value": 21}"#);
        let output = double_events(input.clone()).unwrap();
        let expected = input.with_json(&Number { value: 42 }).unwrap();
        assert_eq!(output, [expected]);
    }

    #[test]
    fn data_that_does_not_fit_is_the_events_fault() {
        for data in [
            "",
            "{}",
            r#"{"value": "x"}"#,
            &format!(r#"{{"value": {}}}"#, i64::MAX),
        ] {
            let result = double_events(event().with_text(data));
            assert!(
                matches!(result, Err(Error::Invalid(_))),
                "{data}: {result:?}"
            );
        }
    }
}

mod optional {
    use super::*;
    #[stepwell_sdk::step]
    fn positive(input: Number) -> stepwell_sdk::Result<Option<Number>> {
        Ok((input.value > 0).then_some(input))
    }

    #[test]
    fn none_filters() {
        let send = |value| positive_events(event().with_json(&Number { value }).unwrap()).unwrap();
        assert_eq!(send(1).len(), 1);
        assert_eq!(send(1)[0].id, "test");
        assert!(send(-1).is_empty());
    }
}

mod many {
    use super::*;
    #[stepwell_sdk::step]
    fn split(input: Event) -> Result<Vec<Number>, Error> {
        Ok(input
            .json::<Vec<i64>>()?
            .into_iter()
            .map(|value| Number { value })
            .collect())
    }

    #[test]
    fn each_event_has_an_id_of_its_own() {
        let events = split_events(event().with_text("[5, 6]")).unwrap();
        let ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids, ["test/0", "test/1"]);
        assert_eq!(events[1].json::<Number>().unwrap(), Number { value: 6 });
    }
}

mod raw {
    use super::*;
    #[stepwell_sdk::step]
    fn twice(input: Event) -> Result<Vec<Event>, std::num::ParseIntError> {
        let number: i64 = String::from_utf8_lossy(&input.data).parse()?;
        Ok(vec![
            input.clone().with_id("a").with_text(number.to_string()),
            input.with_id("b"),
        ])
    }

    #[test]
    fn events_go_on_as_they_are_and_other_errors_fail() {
        let events = twice_events(event().with_text("7")).unwrap();
        assert_eq!((events[0].id.as_str(), events[1].id.as_str()), ("a", "b"));
        assert!(matches!(
            twice_events(event().with_text("x")),
            Err(Error::Failed(_))
        ));
    }
}

#[test]
fn without_a_host_or_a_grant_everything_is_refused() {
    let attempt = || -> Vec<Error> {
        vec![
            config::require::<String>("x").unwrap_err().into(),
            models::infer("m", vec![]).unwrap_err().into(),
            vectors::index("v").fetch(&[]).unwrap_err().into(),
            keyvalue::open("k").unwrap_err().into(),
            sql::open("s").unwrap_err().into(),
        ]
    };
    let outside = attempt();
    assert!(
        outside
            .iter()
            .all(|error| error.message().contains("testing::Host::call")),
        "{outside:?}"
    );
    let refused = Host::new().call(attempt);
    assert!(
        refused
            .iter()
            .all(|error| !error.message().contains("testing")),
        "{refused:?}"
    );
    assert!(
        refused[1..]
            .iter()
            .all(|error| error.message().contains("grant")),
        "{refused:?}"
    );
}

#[test]
fn configuration() {
    let host = Host::new().config("n", "5").config("bad", "x");
    host.call(|| {
        assert_eq!(config::require::<u8>("n").unwrap(), 5);
        assert_eq!(config::get_or("none", 7u8).unwrap(), 7);
        assert_eq!(config::all().unwrap().len(), 2);
        let error = config::get_or("bad", 1u8).unwrap_err().to_string();
        assert!(error.contains("'bad' is 'x'"), "{error}");
    });
}

#[test]
fn key_values_outlive_calls() {
    let host = Host::new().keyvalue("store");
    let open = || keyvalue::open("store").unwrap();
    host.call(|| {
        open().set_json("n", &Number { value: 1 }).unwrap();
        assert_eq!(open().increment("hits", 2).unwrap(), 2);
        open()
            .update("list", |old| {
                [old.unwrap_or_default(), b"a".to_vec()].concat()
            })
            .unwrap();
    });
    host.call(|| {
        let store = open();
        assert_eq!(
            store.get_json::<Number>("n").unwrap(),
            Some(Number { value: 1 })
        );
        assert!(matches!(
            store.get_json::<String>("n"),
            Err(keyvalue::Error::Json(_))
        ));
        assert_eq!(store.increment("hits", -5).unwrap(), -3);
        assert!(matches!(
            store.increment("n", 1),
            Err(keyvalue::Error::Other(_))
        ));
        assert_eq!(
            store
                .update("list", |old| [old.unwrap(), b"b".to_vec()].concat())
                .unwrap(),
            b"ab"
        );
        store.set_many(&[("x", b"1"), ("y", b"2")]).unwrap();
        assert_eq!(
            store.get_many(&["y", "z"]).unwrap(),
            [Some(b"2".to_vec()), None]
        );
        store.delete_many(&["x", "y"]).unwrap();
        store.delete("n").unwrap();
        assert!(!store.exists("n").unwrap());
        assert_eq!(store.keys(None).unwrap().keys, ["hits", "list"]);
    });
    assert_eq!(host.value("store", "list").unwrap(), b"ab");
}

#[test]
fn models_answer_and_wanted_outputs_are_picked() {
    let host = Host::new().model("double", |inputs| {
        let values: Vec<f32> = inputs[0].values()?;
        let doubled: Vec<f32> = values.iter().map(|value| value * 2.0).collect();
        Ok(vec![
            Tensor::new("y", [doubled.len() as i64], &doubled)?,
            Tensor::new("n", [1], &[1i64])?,
        ])
    });
    host.call(|| {
        let x = Tensor::new("x", [2], &[1.0f32, 2.0]).unwrap();
        let outputs = models::infer("double", vec![x.clone()]).unwrap();
        assert_eq!(
            outputs.get("y").unwrap().values::<f32>().unwrap(),
            [2.0, 4.0]
        );
        let only = |name: &str| models::Options {
            outputs: vec![name.to_owned()],
            ..models::Options::default()
        };
        let outputs = models::infer_with("double", vec![x.clone()], &only("n")).unwrap();
        assert_eq!(outputs.into_inner().len(), 1);
        assert!(models::infer_with("double", vec![x], &only("z")).is_err());
        assert_eq!(models::describe("double").unwrap().name, "double");
    });
}

#[test]
fn vectors_are_searched_exactly() {
    let host = Host::new()
        .vectors("v", 2, Metric::Cosine)
        .vectors("far", 2, Metric::Euclidean);
    host.call(|| {
        let index = vectors::index("v");
        let vector = |id: &str, x: f32, y: f32, label: u8| {
            Vector::new(id, [x, y])
                .metadata(&json!({"label": label}))
                .unwrap()
        };
        let three = vec![
            vector("a", 1.0, 0.0, 1),
            vector("b", 1.0, 1.0, 2),
            vector("c", 0.0, 2.0, 1),
        ];
        assert_eq!(index.upsert(three.clone()).unwrap(), 3);
        let ids = |query: Query| -> Vec<String> {
            index
                .query(query)
                .unwrap()
                .into_iter()
                .map(|found| found.id)
                .collect()
        };
        assert_eq!(ids(Query::near([1.0, 0.1]).top(2)), ["a", "b"]);
        assert_eq!(
            ids(Query::like("c").filter(json!({"label": 1}))),
            ["c", "a"]
        );
        assert!(ids(Query::like("none")).is_empty());
        let found = index
            .query(Query::near([0.0, 1.0]).top(1).with_metadata().with_values())
            .unwrap();
        assert_eq!(found[0].values.as_deref(), Some([0.0, 2.0].as_slice()));
        assert_eq!(
            found[0].metadata::<serde_json::Value>().unwrap()["label"],
            1
        );
        assert!((found[0].score - 1.0).abs() < 1e-6);

        for wrong in [vec![1.0], vec![f32::NAN, 1.0], vec![0.0, 0.0]] {
            assert!(matches!(
                index.upsert(vec![Vector::new("x", wrong)]),
                Err(vectors::Error::InvalidInput(_))
            ));
        }
        assert!(index.query(Query::near([1.0, 0.0]).top(0)).is_err());

        let change = Change {
            id: "a".into(),
            metadata: Some(json!({"set": "train"})),
            ..Change::default()
        };
        index.update(change).unwrap();
        let a = index.fetch(&["a", "none"]).unwrap();
        assert_eq!(a[0].metadata, Some(json!({"label": 1, "set": "train"})));
        index
            .delete(Selection::Filter(json!({"label": 1})))
            .unwrap();
        assert_eq!(index.list(None, None).unwrap().ids, ["b"]);
        assert_eq!(
            index.describe().unwrap().namespaces,
            [("__default__".to_owned(), 1)]
        );
        let other = index.clone().namespace("other");
        assert!(other.list(None, None).unwrap().ids.is_empty());
        let far = vectors::index("far");
        far.upsert(three).unwrap();
        assert_eq!(
            far.query(Query::near([0.0, 1.0]).top(1)).unwrap()[0].score,
            1.0
        );
    });
    assert!(host.vector("v", "b").is_some());
    assert!(host.vector("v", "a").is_none());
}

#[test]
fn databases_see_statements_and_transactions_roll_back_when_dropped() {
    let host = Host::new().sql("db", |statement, params| match statement {
        "SELECT 1" => Ok(Rows::new(&["one"], vec![params.to_vec(), vec![Value::Int(2)]]).into()),
        "FAIL" => Err(sql::Error::Unavailable("gone".into())),
        _ => Ok(Answer::Changed(3)),
    });
    let result = host.call(|| -> Result<(), Error> {
        let db = sql::open("db")?;
        assert_eq!(
            db.query("SELECT 1", params![1])?
                .first()
                .unwrap()
                .get::<i64>("one")?,
            1
        );
        assert_eq!(db.execute("UPDATE", params![])?, 3);
        db.begin(TransactionOptions::default())?.commit()?;
        let transaction = db.begin(TransactionOptions::default())?;
        transaction.execute("FAIL", params![])?;
        transaction.commit()?;
        Ok(())
    });
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    assert_eq!(
        host.statements("db"),
        [
            "SELECT 1", "UPDATE", "BEGIN", "COMMIT", "BEGIN", "FAIL", "ROLLBACK"
        ]
    );
}

#[test]
fn logs_are_captured() {
    let host = Host::new();
    host.call(|| log::warn!("{} left", 3));
    let logs = host.logs();
    assert_eq!(
        (logs[0].level, logs[0].message.as_str()),
        (Level::Warn, "3 left")
    );
    assert_eq!(logs[0].context, "step");
}
