//! Says which digit an 8×8 scan shows: a model decides, and the nearest known scans speak for or against it.

use serde::{Deserialize, Serialize};
use stepwell_sdk::models::{self, Tensor};
use stepwell_sdk::vectors::{self, Query};
use stepwell_sdk::{Error, OrError, config};

const PIXELS: usize = 64;

/// What `decode-image` gives.
#[derive(Deserialize)]
struct Scan {
    pixels: Vec<f32>,
}

#[derive(Serialize)]
struct Answer {
    digit: u8,
    confidence: f32,
    /// One for each digit.
    probabilities: Vec<f32>,
    /// The part of the neighbours that show the same digit; null when the index has none.
    agreement: Option<f32>,
    neighbours: Vec<Neighbour>,
    pixels: Vec<f32>,
}

#[derive(Serialize)]
struct Neighbour {
    id: String,
    score: f32,
    #[serde(flatten)]
    known: Known,
}

/// What a scan in the index says about itself; see `index-scans`.
#[derive(Deserialize, Serialize)]
struct Known {
    label: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scan: Option<String>,
}

#[stepwell_sdk::step]
fn classify(scan: Scan) -> Result<Answer, Error> {
    let pixels = scan.pixels;
    if pixels.len() != PIXELS || pixels.iter().any(|pixel| !(0.0..=1.0).contains(pixel)) {
        return Err(Error::invalid("a scan has 64 pixels from 0 to 1"));
    }
    let outputs = models::infer("digits", vec![Tensor::new("image", [1, 8, 8], &pixels)?])?;
    let probabilities: Vec<f32> = outputs.get("probabilities")?.values()?;
    let embedding: Vec<f32> = outputs.get("embedding")?.values()?;
    let (digit, confidence) = (0..)
        .zip(probabilities.iter().copied())
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .or_failed("the model gave no probabilities")?;

    let query = Query::near(embedding)
        .top(config::get_or("neighbours", 5)?)
        .with_metadata();
    let neighbours = vectors::index("scans")
        .query(query)?
        .into_iter()
        .map(neighbour)
        .collect::<Result<Vec<_>, _>>()?;
    let agreeing = neighbours
        .iter()
        .filter(|neighbour| neighbour.known.label == digit)
        .count();
    let agreement = (!neighbours.is_empty()).then(|| agreeing as f32 / neighbours.len() as f32);
    Ok(Answer {
        digit,
        confidence,
        probabilities,
        agreement,
        neighbours,
        pixels,
    })
}

fn neighbour(found: vectors::Match) -> Result<Neighbour, vectors::Error> {
    let known = found.metadata()?;
    Ok(Neighbour {
        id: found.id,
        score: found.score,
        known,
    })
}

#[cfg(test)]
mod tests;
