//! Three answers, drawn: the surest one, the least sure of the right ones, and one that is wrong.

use crate::report::{Answer, Answered, Neighbour, say};
use crate::scans::{INK, SIDE, Scan};

/// From paper to ink; each pixel is two characters wide.
const SHADES: [&str; 5] = ["  ", "░░", "▒▒", "▓▓", "██"];
const GAP: &str = "   ";
/// Neighbours that fit beside the scan on 80 columns.
const DRAWN: usize = 3;

pub(crate) fn print(scans: &[Scan], answered: &Answered) {
    let all = || scans.iter().zip(&answered.answers);
    let is_right = |(scan, answer): &(&Scan, &Answer)| scan.label == answer.digit;
    let by_confidence =
        |a: &(&Scan, &Answer), b: &(&Scan, &Answer)| a.1.confidence.total_cmp(&b.1.confidence);
    let examples = [
        (
            "the surest answer",
            all().filter(is_right).max_by(by_confidence),
        ),
        (
            "the least sure of the right ones",
            all().filter(is_right).min_by(by_confidence),
        ),
        (
            "the least sure of the wrong ones",
            all().filter(|pair| !is_right(pair)).min_by(by_confidence),
        ),
    ];
    for (title, example) in examples {
        if let Some((scan, answer)) = example {
            show(title, scan, answer);
        }
    }
}

fn show(title: &str, scan: &Scan, answer: &Answer) {
    let confidence = answer.confidence * 100.0;
    say!(
        "\n{title}: {} shows {}, the answer is {} ({confidence:.1} %)",
        scan.name(),
        scan.label,
        answer.digit
    );
    let mut drawings = vec![draw(&scan.pixels)];
    let mut captions = vec![format!("shows {}", scan.label)];
    for neighbour in answer.neighbours.iter().take(DRAWN) {
        drawings.push(draw(&pixels(neighbour)));
        captions.push(format!("like {}: {:.3}", neighbour.label, neighbour.score));
    }
    for row in 0..SIDE {
        let line: Vec<&str> = drawings
            .iter()
            .filter_map(|drawing| drawing.get(row).map(String::as_str))
            .collect();
        say!("  {}", line.join(GAP));
    }
    let captions: Vec<String> = captions
        .iter()
        .map(|caption| format!("{caption:16}"))
        .collect();
    let others = answer.neighbours.iter().skip(DRAWN);
    let others: Vec<String> = others
        .map(|neighbour| format!("{}: {:.3}", neighbour.label, neighbour.score))
        .collect();
    say!("  {}", captions.join(GAP).trim_end());
    if !others.is_empty() {
        say!("  {:16}{GAP}then {}", "", others.join(", "));
    }
}

fn draw(pixels: &[u8]) -> Vec<String> {
    let darkest = SHADES.len() - 1;
    let shade = |pixel: &u8| {
        let step = (usize::from(*pixel) * darkest).div_ceil(usize::from(INK));
        SHADES.get(step).copied().unwrap_or("??")
    };
    pixels
        .chunks(SIDE)
        .map(|row| row.iter().map(shade).collect())
        .collect()
}

fn pixels(neighbour: &Neighbour) -> Vec<u8> {
    let radix = u32::from(INK) + 1;
    neighbour
        .scan
        .chars()
        .filter_map(|pixel| u8::try_from(pixel.to_digit(radix)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_drawn_from_light_to_dark() {
        let drawn = draw(&[0, 1, 4, 5, 8, 12, 13, 16]);
        assert_eq!(drawn, ["  ░░░░▒▒▒▒▓▓████"]);
    }

    #[test]
    fn a_neighbours_text_is_its_pixels() {
        let neighbour = Neighbour {
            id: "train-0".into(),
            score: 1.0,
            label: 0,
            scan: "09ag".into(),
        };
        assert_eq!(pixels(&neighbour), [0, 9, 10, 16]);
    }
}
