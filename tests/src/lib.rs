//! What end-to-end tests share: a real host as its own process, driven through what it shows to the outside.
#![allow(
    clippy::indexing_slicing,
    reason = "a JSON value indexed by a key that it lacks is null"
)]

mod host;

pub use host::{Config, Host, Reply, cli, guest, repository, send, stepwell};

/// A small PGM picture of one scan, eight pixels a side, sixteen shades.
pub fn pgm(pixels: &[u8]) -> Vec<u8> {
    let mut picture = b"P5\n8 8\n16\n".to_vec();
    picture.extend_from_slice(pixels);
    picture
}

/// One scan of `tests/models/digits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Its row in the original data set.
    pub id: String,
    /// The digit that it shows.
    pub label: u8,
    /// 64 shades from 0 to 16.
    pub pixels: Vec<u8>,
}

/// The scans of `train` or `heldout`.
pub fn scans(split: &str) -> anyhow::Result<Vec<Scan>> {
    let path = repository().join(format!("tests/models/digits/{split}.csv"));
    let text = std::fs::read_to_string(path)?;
    text.lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',');
            let id = fields.next().unwrap_or_default().to_owned();
            let label = fields.next().unwrap_or_default().parse()?;
            let pixels = fields.map(str::parse).collect::<Result<Vec<u8>, _>>()?;
            Ok(Scan { id, label, pixels })
        })
        .collect()
}
