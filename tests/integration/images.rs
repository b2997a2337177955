//! Images made for a test.

use std::io::{Cursor, Write};

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

/// A black picture of 8-bit RGB, as short as a PNG can be.
pub(crate) fn png_of_zeros(width: u32, height: u32) -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(b"IDAT".to_vec(), flate2::Compression::best());
    let row = vec![0; 1 + 3 * width as usize];
    (0..height).for_each(|_| packed.write_all(&row).unwrap());
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [header, packed.finish().unwrap(), b"IEND".to_vec()] {
        file.extend((chunk.len() as u32 - 4).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

/// A PNG of one pixel whose colour profile unpacks to a quarter of a gigabyte of zeros.
pub(crate) fn png_profile_bomb() -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(b"iCCPx\0\0".to_vec(), flate2::Compression::best());
    (0..256).for_each(|_| packed.write_all(&[0; 1 << 20]).unwrap());
    let profile = packed.finish().unwrap();
    let mut file = picture(1, 1, 0, ImageFormat::Png);
    // Right behind the header: eight bytes of signature, twenty-five of IHDR.
    let chunk = [&(profile.len() as u32 - 4).to_be_bytes()[..], &profile, &crc32(&profile).to_be_bytes()].concat();
    file.splice(33..33, chunk);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
