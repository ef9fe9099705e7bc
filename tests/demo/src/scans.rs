use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Pixels along a side.
pub(crate) const SIDE: usize = 8;
/// The intensity of ink; paper is 0.
pub(crate) const INK: u8 = 16;

/// A handwritten digit, 8×8 pixels row by row.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) id: u32,
    pub(crate) label: u8,
    pub(crate) pixels: Vec<u8>,
}

impl Scan {
    /// What a held-out scan is called where it is sent.
    pub(crate) fn name(&self) -> String {
        format!("heldout-{}", self.id)
    }
}

/// Reads `id,label,p0,…,p63` after a line of headings.
pub(crate) fn read(file: &Path) -> Result<Vec<Scan>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let scan = |(row, line): (usize, &str)| {
        parse(line).with_context(|| format!("{}:{}", file.display(), row + 1))
    };
    text.lines().enumerate().skip(1).map(scan).collect()
}

fn parse(line: &str) -> Result<Scan> {
    let mut fields = line.split(',');
    let id = fields.next().context("no id")?.parse()?;
    let label = fields.next().context("no label")?.parse()?;
    let pixels = fields.map(str::parse).collect::<Result<Vec<u8>, _>>()?;
    ensure!(label <= 9, "the label is {label}");
    ensure!(
        pixels.len() == SIDE * SIDE && pixels.iter().all(|pixel| *pixel <= INK),
        "no 64 pixels from 0 to {INK}"
    );
    Ok(Scan { id, label, pixels })
}
