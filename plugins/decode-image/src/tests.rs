use serde_json::Value;
use stepwell_sdk::testing::event;
use stepwell_sdk::{Error, Event};

use super::decode;

fn picture(data: impl Into<Vec<u8>>) -> Event {
    event().with_data("application/octet-stream", data)
}

fn read(data: impl Into<Vec<u8>>) -> Value {
    decode(picture(data)).unwrap().json().unwrap()
}

fn refusal(data: impl Into<Vec<u8>>) -> String {
    match decode(picture(data)) {
        Err(Error::Invalid(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn pixels(data: impl Into<Vec<u8>>) -> Vec<f64> {
    serde_json::from_value(read(data)["pixels"].clone()).unwrap()
}

fn png(width: u32, height: u32, color: png::ColorType, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(color);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
    out
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.01),
        "{a:?}\n{b:?}"
    );
}

/// Intensities of a scan from 0 to 16, as the digits set has them.
fn scan() -> Vec<u8> {
    let ink = |at: usize| {
        if matches!(at % 8, 0 | 7) {
            0
        } else {
            at * 5 % 17
        }
    };
    (0..64).map(|at| ink(at) as u8).collect()
}

fn p2(width: usize, height: usize, max: u16, pixels: &[u8]) -> String {
    let pixels: Vec<_> = pixels.iter().map(ToString::to_string).collect();
    format!(
        "P2\n# made by hand\n{width} {height}\n{max}\n{}\n",
        pixels.join(" ")
    )
}

#[test]
fn scans_of_the_digits_set_keep_their_values_exactly() {
    let expected: Vec<f64> = scan()
        .iter()
        .map(|pixel| f64::from(*pixel) / 16.0)
        .collect();
    assert_eq!(pixels(p2(8, 8, 16, &scan())), expected);
    let binary = [b"P5 8 8 16\n".as_slice(), &scan()].concat();
    assert_eq!(pixels(binary.clone()), expected);
    assert_eq!(
        pixels([binary.as_slice(), b"\nP5 and so on"].concat()),
        expected
    );
    let answer = read(p2(8, 8, 16, &scan()));
    assert_eq!(
        (&answer["width"], &answer["height"], &answer["inverted"]),
        (&8.into(), &8.into(), &false.into())
    );
}

#[test]
fn every_real_scan_is_light_on_dark_and_survives() {
    let mut seen = 0;
    for file in ["train.csv", "heldout.csv"] {
        let path = format!("../../tests/models/digits/{file}");
        let text = std::fs::read_to_string(path).unwrap();
        for line in text.lines().skip(1) {
            let values: Vec<u8> = line
                .split(',')
                .skip(2)
                .map(|value| value.parse().unwrap())
                .collect();
            let expected: Vec<f64> = values
                .iter()
                .map(|value| f64::from(*value) / 16.0)
                .collect();
            assert_eq!(pixels(p2(8, 8, 16, &values)), expected, "{line}");
            seen += 1;
        }
    }
    assert!(seen > 1_700, "{seen}");
}

#[test]
fn large_pictures_are_averaged() {
    let large: Vec<u8> = (0..160 * 160)
        .map(|at| scan()[at / 160 / 20 * 8 + at % 160 / 20] * 15)
        .collect();
    let expected: Vec<f64> = scan()
        .iter()
        .map(|pixel| f64::from(*pixel) * 15.0 / 255.0)
        .collect();
    close(
        &pixels(png(160, 160, png::ColorType::Grayscale, &large)),
        &expected,
    );
    // Not every size is a multiple of eight: a uniform picture stays uniform inside.
    let gray = pixels(png(27, 27, png::ColorType::Grayscale, &[100; 27 * 27]));
    close(&gray, &[100.0 / 255.0; 64]);
}

#[test]
fn dark_on_light_is_inverted() {
    let light: Vec<u8> = scan().iter().map(|pixel| 16 - pixel).collect();
    let expected: Vec<f64> = scan()
        .iter()
        .map(|pixel| f64::from(*pixel) / 16.0)
        .collect();
    close(&pixels(p2(8, 8, 16, &light)), &expected);
    assert_eq!(read(p2(8, 8, 16, &light))["inverted"], true);
}

#[test]
fn narrow_pictures_are_centred() {
    // A white bar, 2 wide and 8 high: the left half of it alone says nothing about the background.
    let bar = pixels(p2(4, 8, 1, &[0, 1, 1, 0].repeat(8)));
    let expected: Vec<f64> = (0..64)
        .map(|at| if at % 8 == 3 || at % 8 == 4 { 1.0 } else { 0.0 })
        .collect();
    assert_eq!(bar, expected);
    let point = pixels(p2(1, 1, 1, &[0]));
    assert_eq!(point, [0.0; 64]);
}

#[test]
fn colours_count_by_brightness_and_transparency_is_white() {
    // Black ink on nothing, as a drawing canvas saves it.
    let canvas: Vec<u8> = scan()
        .iter()
        .flat_map(|pixel| [0, 0, 0, pixel * 15])
        .collect();
    let expected: Vec<f64> = scan()
        .iter()
        .map(|pixel| f64::from(*pixel) * 15.0 / 255.0)
        .collect();
    close(&pixels(png(8, 8, png::ColorType::Rgba, &canvas)), &expected);
    let rgb: Vec<u8> = scan()
        .iter()
        .flat_map(|pixel| [pixel * 15, 0, pixel * 15])
        .collect();
    let expected: Vec<f64> = expected.iter().map(|value| value * 2.0 / 3.0).collect();
    close(&pixels(png(8, 8, png::ColorType::Rgb, &rgb)), &expected);
    let gray: Vec<u8> = scan()
        .iter()
        .flat_map(|pixel| [255 - pixel * 15, 255])
        .collect();
    let expected: Vec<f64> = scan()
        .iter()
        .map(|pixel| f64::from(*pixel) * 15.0 / 255.0)
        .collect();
    close(
        &pixels(png(8, 8, png::ColorType::GrayscaleAlpha, &gray)),
        &expected,
    );
}

#[test]
fn the_largest_picture_is_read_and_a_larger_one_refused_before_it_is_unpacked() {
    let black = vec![0; 4096 * 4096];
    assert_eq!(
        pixels(png(4096, 4096, png::ColorType::Grayscale, &black)),
        [0.0; 64]
    );
    assert!(refusal(p2(4097, 1, 1, &[])).contains("4097x1"));
    assert!(refusal("P5 4294967295 4294967295 1\n").contains("4294967295x"));
    assert!(refusal(png(4097, 1, png::ColorType::Grayscale, &[0; 4097])).contains("4097x1"));
    let mut lying = png(1, 1, png::ColorType::Grayscale, &[0]);
    lying[16..24].copy_from_slice(&[0xff; 8]);
    refusal(lying);
    let colours = vec![0; 4096 * 4096 * 3];
    assert!(refusal(png(4096, 4096, png::ColorType::Rgb, &colours)).contains("32 MiB"));
}

#[test]
fn what_is_no_picture_is_the_events_fault() {
    let whole = png(8, 8, png::ColorType::Grayscale, &scan());
    for data in [
        b"".to_vec(),
        b"GIF89a".to_vec(),
        b"P".to_vec(),
        b"P3 1 1 1 0 0 0".to_vec(),
        b"P2".to_vec(),
        b"P2 # no end".to_vec(),
        b"P2 1 1 1".to_vec(),
        b"P2 1 1 1 x".to_vec(),
        b"P2 2 1 1 0".to_vec(),
        b"P2 1 1 1 2".to_vec(),
        b"P2 1 1 0 0".to_vec(),
        b"P2 1 1 256 0".to_vec(),
        b"P2 0 1 1".to_vec(),
        b"P2 -1 1 1".to_vec(),
        b"P5 1 1 1".to_vec(),
        b"P5 2 1 1\n\x01".to_vec(),
        b"P5 1 1 1\n\x02".to_vec(),
        b"P2 99999999999999999999 1 1 0".to_vec(),
        whole[..8].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [&whole[..40], &[0xff; 10], &whole[50..]].concat(),
    ] {
        assert!(!refusal(data.clone()).is_empty(), "{data:?}");
    }
}
