use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use stepwell_sdk::sql::{Error as SqlError, Failure, Value};
use stepwell_sdk::testing::{Answer, Host, event};
use stepwell_sdk::{Error, Event};

use super::{CREATE, INSERT, record};

fn failure(sqlstate: &str) -> Failure {
    Failure {
        sqlstate: sqlstate.to_owned(),
        message: "said the database".to_owned(),
    }
}

/// A host with a database that starts without the table and keeps its primary key.
fn host() -> Host {
    let rows = RefCell::new(None::<BTreeSet<String>>);
    Host::new()
        .keyvalue("cache")
        .sql("results", move |statement, row| {
            let mut rows = rows.borrow_mut();
            match (statement, rows.as_mut()) {
                (CREATE, _) => {
                    *rows = Some(BTreeSet::new());
                    Ok(Answer::Changed(0))
                }
                (INSERT, None) => Err(SqlError::Invalid(failure("42P01"))),
                (INSERT, Some(rows)) => Ok(Answer::Changed(
                    rows.insert(format!("{:?}", &row[..2])).into(),
                )),
                _ => panic!("unexpected statement: {statement}"),
            }
        })
}

fn answer(id: &str, digit: u8) -> Event {
    let data =
        json!({"digit": digit, "confidence": 0.9, "pixels": [0.0, 0.5, 1.0], "neighbours": []});
    event().with_id(id).with_json(&data).unwrap()
}

fn reply(host: &Host, event: Event) -> Json {
    host.call(|| record(event)).unwrap().json().unwrap()
}

#[test]
fn the_answer_goes_on_with_what_is_remembered() {
    let host = host();
    let first = reply(&host, answer("1", 7));
    assert_eq!(first["seen"], 1);
    assert_eq!(first["previous"], Json::Null);
    assert_eq!(first["digit"], 7);
    assert_eq!(first["neighbours"], json!([]));
    let second = reply(&host, answer("2", 4));
    assert_eq!(second["seen"], 2);
    assert_eq!(second["previous"], json!({"digit": 7, "confidence": 0.9}));
    assert_eq!(host.value("cache", "seen:0080ff").unwrap(), b"2");
}

#[test]
fn the_table_is_made_once_and_only_when_it_is_missing() {
    let host = host();
    reply(&host, answer("1", 7));
    reply(&host, answer("2", 7));
    assert_eq!(host.statements("results"), [INSERT, CREATE, INSERT, INSERT]);
}

#[test]
fn an_event_that_comes_again_does_not_count() {
    let host = host();
    reply(&host, answer("1", 7));
    let again = reply(&host, answer("1", 7));
    assert_eq!(again["seen"], 1);
    let elsewhere = Event {
        source: "/other".into(),
        ..answer("1", 7)
    };
    assert_eq!(reply(&host, elsewhere)["seen"], 2);
}

#[test]
fn the_row_holds_the_set_and_the_time() {
    let host = Host::new()
        .keyvalue("cache")
        .sql("results", |statement, row| {
            assert_eq!(statement, INSERT);
            let expected: [Value; 6] = [
                "/test".into(),
                "1".into(),
                "heldout".into(),
                7.into(),
                0.9.into(),
                "2026-03-01T12:00:00Z".into(),
            ];
            assert_eq!(row, expected);
            Ok(Answer::Changed(1))
        });
    let mut event = answer("1", 7).with_extension("httpparamset", "heldout");
    event.time = Some("2026-03-01T12:00:00Z".to_owned());
    reply(&host, event);
}

#[test]
fn somebody_else_may_create_the_table_at_the_same_time() {
    for error in [
        SqlError::Constraint(failure("23505")),
        SqlError::Invalid(failure("42P07")),
    ] {
        let asked = RefCell::new(0);
        let host = Host::new()
            .keyvalue("cache")
            .sql("results", move |statement, _| {
                *asked.borrow_mut() += 1;
                match (statement, *asked.borrow()) {
                    (INSERT, 1) => Err(SqlError::Invalid(failure("42P01"))),
                    (CREATE, 2) => Err(error.clone()),
                    _ => Ok(Answer::Changed(1)),
                }
            });
        assert_eq!(reply(&host, answer("1", 7))["seen"], 1);
    }
}

#[test]
fn troubles_say_whose_they_are() {
    let with = |error: SqlError| {
        let host = Host::new()
            .keyvalue("cache")
            .sql("results", move |_, _| Err(error.clone()));
        host.call(|| record(answer("1", 7))).unwrap_err()
    };
    assert!(matches!(
        with(SqlError::Unavailable("down".into())),
        Error::Unavailable(_)
    ));
    assert!(matches!(
        with(SqlError::Invalid(failure("42601"))),
        Error::Failed(_)
    ));
    let no_store = Host::new().sql("results", |_, _| Ok(Answer::Changed(1)));
    assert!(matches!(
        no_store.call(|| record(answer("1", 7))),
        Err(Error::Failed(_))
    ));
    let no_answer = host().call(|| record(event().with_text("{}")));
    assert!(matches!(no_answer, Err(Error::Invalid(_))));
}
