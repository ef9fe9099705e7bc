//! Reads a picture of a handwritten digit, PNG or PGM of at most 4096×4096, as an 8×8 scan.
//!
//! The picture is centred in a square and averaged over 8×8 areas. Ink is 1 and background 0: a picture
//! whose border is light on average is inverted. What is transparent counts as white.

use serde_json::json;
use stepwell_sdk::{Error, Event, OrError};

/// Width, height, and the brightness from 0 to 1 of the pixel at x, y.
type Picture = (usize, usize, Box<dyn Fn(usize, usize) -> f64>);

#[stepwell_sdk::step]
fn decode(event: Event) -> Result<Event, Error> {
    let (width, height, light) = match event.data.as_slice() {
        data @ [0x89, b'P', b'N', b'G', ..] => png(data)?,
        [b'P', kind @ (b'2' | b'5'), data @ ..] => pgm(data, *kind == b'5')?,
        _ => return Err(Error::invalid("the data is neither PNG nor PGM")),
    };
    let border = (0..width).flat_map(|x| [light(x, 0), light(x, height - 1)]);
    let border = border.chain((0..height).flat_map(|y| [light(0, y), light(width - 1, y)]));
    let inverted = border.sum::<f64>() > (width + height) as f64;

    let side = width.max(height);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let ink = |x: usize, y: usize| match (x.wrapping_sub(left), y.wrapping_sub(top)) {
        (x, y) if x >= width || y >= height => 0.0,
        (x, y) if inverted => 1.0 - light(x, y),
        (x, y) => light(x, y),
    };
    let span = |cell: usize| cell * side / 8..((cell + 1) * side).div_ceil(8);
    let average = |cell: usize| {
        let (rows, columns) = (span(cell / 8), span(cell % 8));
        let row = |y: usize| columns.clone().map(|x| ink(x, y)).sum::<f64>();
        (rows.clone().map(row).sum::<f64>() / (rows.len() * columns.len()) as f64) as f32
    };
    let pixels: Vec<f32> = (0..64).map(average).collect();
    let scan = json!({"pixels": pixels, "width": width, "height": height, "inverted": inverted});
    event.with_json(&scan)
}

fn checked((width, height): (u32, u32)) -> Result<(usize, usize), Error> {
    if (1..=4096).contains(&width) && (1..=4096).contains(&height) {
        return Ok((width as usize, height as usize));
    }
    let size = format!("{width}x{height} pixels, 1x1 to 4096x4096 fit");
    Err(Error::invalid(size))
}

fn png(data: &[u8]) -> Result<Picture, Error> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(data));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().or_invalid("PNG")?;
    let (width, height) = checked(reader.info().size())?;
    let size = reader.output_buffer_size().filter(|n| *n <= 32 << 20);
    let mut buffer = vec![0; size.or_invalid("the PNG unpacks to over 32 MiB")?];
    reader.next_frame(&mut buffer).or_invalid("PNG")?;
    let samples = reader.output_color_type().0.samples(); // one or three colours, perhaps alpha
    let light = move |x: usize, y: usize| {
        let pixel = buffer.chunks_exact(samples).nth(y * width + x);
        let (colours, alpha) = pixel.unwrap_or_default().split_at((samples - 1) | 1);
        let gray = colours.iter().map(|c| f64::from(*c)).sum::<f64>() / colours.len() as f64;
        let alpha = alpha.first().map_or(1.0, |alpha| f64::from(*alpha) / 255.0);
        1.0 - (1.0 - gray / 255.0) * alpha
    };
    Ok((width, height, Box::new(light)))
}

fn pgm(mut data: &[u8], binary: bool) -> Result<Picture, Error> {
    let (width, height) = checked((number(&mut data)?, number(&mut data)?))?;
    let max = number(&mut data)?;
    let mut pixels = data.get(1..).unwrap_or_default().to_vec();
    if !binary {
        let mut pixel = |_| number(&mut data).map(|pixel| pixel.try_into().unwrap_or(u8::MAX));
        let wanted = (0..width * height).map(&mut pixel);
        pixels = wanted.collect::<Result<_, _>>()?;
    }
    pixels.truncate(width * height);
    let fits = |pixel: &u8| u32::from(*pixel) <= max;
    if !(1..=255).contains(&max) || pixels.len() < width * height || !pixels.iter().all(fits) {
        return Err(Error::invalid("PGM: pixels are missing or too light"));
    }
    let max = f64::from(max);
    let light = move |x, y| f64::from(*pixels.get(y * width + x).unwrap_or(&0)) / max;
    Ok((width, height, Box::new(light)))
}

/// Takes a number off the front, and the white space and comments before it.
fn number(data: &mut &[u8]) -> Result<u32, Error> {
    *data = data.trim_ascii_start();
    while data.starts_with(b"#") {
        let line = data.iter().take_while(|byte| **byte != b'\n').count();
        *data = data.split_at(line).1.trim_ascii_start();
    }
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = str::from_utf8(data.split_off(..digits).unwrap_or_default()).unwrap_or_default();
    text.parse().or_invalid("PGM: no number where one belongs")
}

#[cfg(test)]
mod tests;
