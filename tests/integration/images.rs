//! Images made for a test.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

/// A committed 4:2:0 photograph-like JPEG of 96x80 pixels.
pub(crate) const JPEG: &[u8] = include_bytes!("../goldens/images/jpeg-420.jpg");

/// A smooth picture in the given format; different for different seeds.
pub(crate) fn picture(width: u32, height: u32, seed: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        let wave = |k: u32| ((x * (k + seed % 7) / 3 + y * (3 + seed % 5) + seed * 31 * k) % 256) as u8;
        Rgb([wave(1), wave(2), wave(3)])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(crate) fn png(seed: u32) -> Vec<u8> {
    picture(48, 40, seed, ImageFormat::Png)
}

/// A PNG file of a few bytes that declares a size and has no pixels.
pub(crate) fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 6, 0, 0, 0]);
    for chunk in [header, b"IDAT".to_vec(), b"IEND".to_vec()] {
        file.extend((chunk.len() as u32 - 4).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
