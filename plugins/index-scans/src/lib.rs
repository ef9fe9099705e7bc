//! Puts labelled scans into the vector index that `classify-digit` searches, up to 200 at once.
//!
//! An entry's values are the model's embedding of the scan; its metadata are the label and the scan itself, one character for each
//! pixel from `0` to `g` (16).

use serde::{Deserialize, Serialize};
use serde_json::json;
use stepwell_sdk::models::{self, Options, Tensor};
use stepwell_sdk::vectors::{self, Vector};
use stepwell_sdk::{Error, log};

const PIXELS: usize = 64;
const DARKEST: u8 = 16;
const MOST: usize = 200;

#[derive(Deserialize)]
struct Batch {
    scans: Vec<Scan>,
}

#[derive(Deserialize)]
struct Scan {
    id: String,
    label: u8,
    /// 8×8 intensities from 0 to 16.
    pixels: Vec<u8>,
}

#[derive(Serialize)]
struct Indexed {
    indexed: u32,
}

#[stepwell_sdk::step]
fn index(batch: Batch) -> Result<Indexed, Error> {
    let scans = batch.scans;
    if !(1..=MOST).contains(&scans.len()) {
        return Err(Error::invalid(format!(
            "there are {} scans, 1 to {MOST} are possible",
            scans.len()
        )));
    }
    if let Some(wrong) = scans.iter().find(|scan| !scan.is_valid()) {
        return Err(Error::invalid(format!(
            "scan '{}' has no label from 0 to 9 or no {PIXELS} pixels from 0 to {DARKEST}",
            wrong.id
        )));
    }

    let pixels: Vec<f32> = scans
        .iter()
        .flat_map(|scan| &scan.pixels)
        .map(|pixel| f32::from(*pixel) / f32::from(DARKEST))
        .collect();
    let images = Tensor::new("image", [scans.len() as i64, 8, 8], &pixels)?;
    let options = Options {
        outputs: vec!["embedding".to_owned()],
        ..Options::default()
    };
    let outputs = models::infer_with("digits", vec![images], &options)?;
    let embeddings: Vec<f32> = outputs.get("embedding")?.values()?;
    let size = embeddings.len() / scans.len();
    if size == 0 || embeddings.len() != size * scans.len() {
        return Err(Error::failed(format!(
            "the model gave {} values for {} scans",
            embeddings.len(),
            scans.len()
        )));
    }

    let vectors = scans
        .iter()
        .zip(embeddings.chunks_exact(size))
        .map(|(scan, embedding)| {
            let metadata = json!({"label": scan.label, "scan": scan.text()});
            Vector::new(&scan.id, embedding).metadata(&metadata)
        })
        .collect::<Result<_, _>>()?;
    let indexed = vectors::index("scans").upsert(vectors)?;
    log::info!("indexed {indexed} scans");
    Ok(Indexed { indexed })
}

impl Scan {
    fn is_valid(&self) -> bool {
        self.label <= 9
            && self.pixels.len() == PIXELS
            && self.pixels.iter().all(|pixel| *pixel <= DARKEST)
    }

    fn text(&self) -> String {
        let digit = |pixel: &u8| char::from_digit(u32::from(*pixel), u32::from(DARKEST) + 1);
        self.pixels.iter().filter_map(digit).collect()
    }
}

#[cfg(test)]
mod tests;
