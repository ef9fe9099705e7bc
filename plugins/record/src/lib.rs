//! Remembers what was answered: a row for each event in the database `results`; and for each picture, in
//! the key-value store `cache`, how often it was seen and what was answered last.
//!
//! An event that comes again, as after a failure, makes no second row and does not count.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stepwell_sdk::sql::{self, Connection, params};
use stepwell_sdk::{Error, Event, keyvalue};

const CREATE: &str = "CREATE TABLE IF NOT EXISTS results (
    source TEXT NOT NULL, id TEXT NOT NULL, digit_set TEXT, digit INTEGER NOT NULL,
    confidence DOUBLE PRECISION NOT NULL, seen_at TEXT, PRIMARY KEY (source, id))";
const INSERT: &str = "INSERT INTO results (source, id, digit_set, digit, confidence, seen_at)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
const UNDEFINED_TABLE: &str = "42P01";
const DUPLICATE_TABLE: &str = "42P07";

/// What `classify-digit` gives, as far as it matters here.
#[derive(Deserialize)]
struct Scan {
    pixels: Vec<f32>,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Deserialize, Serialize)]
struct Answer {
    digit: u8,
    confidence: f64,
}

#[stepwell_sdk::step]
fn record(event: Event) -> Result<Event, Error> {
    let Scan { pixels, answer } = event.json()?;
    let is_new = insert(&event, &answer)?;

    let cache = keyvalue::open("cache")?;
    let picture = name(&pixels);
    let seen = cache.increment(&format!("seen:{picture}"), is_new.into())?;
    let key = format!("answer:{picture}");
    let previous: Option<Answer> = cache.get_json(&key)?;
    if is_new {
        cache.set_json(&key, &answer)?;
    }

    let mut reply: Map<String, Value> = event.json()?;
    reply.insert("seen".to_owned(), json!(seen));
    reply.insert("previous".to_owned(), json!(previous));
    event.with_json(&reply)
}

/// Writes the event's row, unless it has one.
fn insert(event: &Event, answer: &Answer) -> Result<bool, Error> {
    let results = sql::open("results")?;
    let (set, time) = (event.param("set"), event.time.as_deref());
    let (digit, confidence) = (answer.digit, answer.confidence);
    let row = params![&event.source, &event.id, set, digit, confidence, time];
    let rows = match results.execute(INSERT, row.clone()) {
        Err(sql::Error::Invalid(failure)) if failure.sqlstate == UNDEFINED_TABLE => {
            create(&results)?;
            results.execute(INSERT, row)?
        }
        done => done?,
    };
    Ok(rows > 0)
}

/// Two steps at once may both find no table; PostgreSQL then refuses one of them.
fn create(results: &Connection) -> Result<(), sql::Error> {
    match results.execute(CREATE, params![]) {
        Err(sql::Error::Constraint(_)) => Ok(()),
        Err(sql::Error::Invalid(failure)) if failure.sqlstate == DUPLICATE_TABLE => Ok(()),
        done => done.map(drop),
    }
}

/// Pictures whose pixels are the same to one part in 255 have the same name.
fn name(pixels: &[f32]) -> String {
    let byte = |pixel: &f32| format!("{:02x}", (pixel * 255.0).round() as u8);
    pixels.iter().map(byte).collect()
}

#[cfg(test)]
mod tests;
