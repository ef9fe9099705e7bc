//! Scans as pictures that a camera or a drawing program might have made: PNG with dark ink on white paper, PGM with light
//! ink on black, several sizes of each.

use std::fs;

use anyhow::{Context as _, Result};

use crate::place::Place;
use crate::report::Answered;
use crate::scans::{INK, SIDE, Scan};

const SMALLEST: usize = 3;
const SIZES: usize = 8;
/// Most bytes of a stored block of DEFLATE.
const STORED: usize = 0xffff;

pub(crate) struct Picture {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// The picture of the scan at `position` of those that are sent.
pub(crate) fn of(position: usize, scan: &Scan) -> Picture {
    let scale = SMALLEST + position / 2 % SIZES;
    if position.is_multiple_of(2) {
        png(scan, scale)
    } else {
        pgm(scan, scale)
    }
}

/// Writes the most clearly drawn picture of each digit, as PNG and as PGM, to try the host with.
pub(crate) fn write_samples(place: &Place, scans: &[Scan], answered: &Answered) -> Result<()> {
    let directory = place.samples();
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    for digit in 0..=9 {
        let of_digit = scans
            .iter()
            .zip(&answered.answers)
            .filter(|(scan, answer)| [scan.label, answer.digit] == [digit; 2]);
        let clearest = of_digit.max_by(|a, b| a.1.confidence.total_cmp(&b.1.confidence));
        let (scan, _) = clearest.with_context(|| format!("no {digit} was read right"))?;
        fs::write(directory.join(format!("{digit}.png")), png(scan, 24).bytes)?;
        fs::write(directory.join(format!("{digit}.pgm")), pgm(scan, 12).bytes)?;
    }
    Ok(())
}

fn pgm(scan: &Scan, scale: usize) -> Picture {
    let side = SIDE * scale;
    let mut bytes = format!("P5\n{side} {side}\n255\n").into_bytes();
    for row in rows(scan, scale) {
        bytes.extend(row);
    }
    Picture {
        media_type: "image/x-portable-graymap",
        bytes,
    }
}

/// Gray, 8 bits, in stored blocks: pictures this small need no compression.
fn png(scan: &Scan, scale: usize) -> Picture {
    let side = (SIDE * scale) as u32;
    let mut header = [side.to_be_bytes(), side.to_be_bytes()].concat();
    header.extend([8, 0, 0, 0, 0]);
    let mut lines = Vec::new();
    for row in rows(scan, scale) {
        lines.push(0); // no filter
        lines.extend(row.iter().map(|light| 255 - light));
    }
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut bytes, *b"IHDR", &header);
    chunk(&mut bytes, *b"IDAT", &zlib(&lines));
    chunk(&mut bytes, *b"IEND", &[]);
    Picture {
        media_type: "image/png",
        bytes,
    }
}

/// Rows of brightness from 0 (paper) to 255 (ink), each pixel `scale` times as wide and high.
fn rows(scan: &Scan, scale: usize) -> impl Iterator<Item = Vec<u8>> {
    scan.pixels.chunks(SIDE).flat_map(move |row| {
        let light = |pixel: &u8| (u32::from(*pixel) * 255 / u32::from(INK)) as u8;
        let wide: Vec<u8> = row
            .iter()
            .flat_map(|pixel| std::iter::repeat_n(light(pixel), scale))
            .collect();
        std::iter::repeat_n(wide, scale)
    })
}

fn chunk(png: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    png.extend((data.len() as u32).to_be_bytes());
    png.extend(kind);
    png.extend(data);
    png.extend(crc32(kind.iter().chain(data)).to_be_bytes());
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = data.chunks(STORED).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standards() {
        assert_eq!(crc32(b"123456789".iter()), 0xcbf4_3926);
        // A stored block of nine bytes, and Adler-32 of "Wikipedia".
        let stream = zlib(b"Wikipedia");
        assert_eq!(stream[..7], [0x78, 0x01, 1, 9, 0, 0xf6, 0xff]);
        assert_eq!(stream[16..], 0x11e6_0398_u32.to_be_bytes());
    }

    #[test]
    fn pictures_are_as_large_as_they_say() {
        let scan = Scan {
            id: 1,
            label: 0,
            pixels: (0..64).map(|pixel| pixel % 17).collect(),
        };
        let pgm = pgm(&scan, 3).bytes;
        assert!(pgm.starts_with(b"P5\n24 24\n255\n"));
        assert_eq!(pgm.len(), 13 + 24 * 24);
        assert_eq!((pgm[13], pgm[16]), (0, 15));
        let png = png(&scan, 24).bytes;
        assert_eq!(png[16..24], [0, 0, 0, 192, 0, 0, 0, 192]);
        assert_eq!(png.len(), 8 + 25 + 12 + 6 + 5 + 192 * 193 + 12);
    }
}
