//! Images drawn for tests.

use std::io::{Cursor, Write};

use ghostserve_manifest::InputSpec;
use image::{ImageFormat, Rgb, RgbImage};

/// A committed 4:2:0 photograph-like JPEG of 96x80 pixels.
pub(crate) const JPEG: &[u8] = include_bytes!("../goldens/images/jpeg-420.jpg");

/// A file of `image` in the given format.
pub(crate) fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A smooth image in the given format; different for different seeds.
pub(crate) fn drawn_image(width: u32, height: u32, seed: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        let wave = |k: u32| ((x * (k + seed % 7) / 3 + y * (3 + seed % 5) + seed * 31 * k) % 256) as u8;
        Rgb([wave(1), wave(2), wave(3)])
    });
    encode(&image, format)
}

/// A smooth PNG image of 48x40 pixels.
pub(crate) fn png(seed: u32) -> Vec<u8> {
    drawn_image(48, 40, seed, ImageFormat::Png)
}

/// A PNG file of a few bytes that declares a size and has no pixels.
pub(crate) fn png_header(width: u32, height: u32) -> Vec<u8> {
    png_file(width, height, 6, b"IDAT".to_vec())
}

/// A PNG file of 8 bits a sample. `data` is the IDAT chunk: its name and its content.
fn png_file(width: u32, height: u32, colour_type: u8, data: Vec<u8>) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, colour_type, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [header, data, b"IEND".to_vec()] {
        file.extend(png_chunk(&chunk));
    }
    file
}

/// A PNG chunk with its length and checksum. `chunk` is its name and its content.
fn png_chunk(chunk: &[u8]) -> Vec<u8> {
    [&(chunk.len() as u32 - 4).to_be_bytes()[..], chunk, &crc32fast::hash(chunk).to_be_bytes()].concat()
}

/// A black 8-bit RGB image, as short as a PNG file can be.
pub(crate) fn png_of_zeros(width: u32, height: u32) -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(b"IDAT".to_vec(), flate2::Compression::best());
    let row = vec![0; 1 + 3 * width as usize];
    (0..height).for_each(|_| packed.write_all(&row).unwrap());
    png_file(width, height, 2, packed.finish().unwrap())
}

/// A PNG of one pixel whose colour profile unpacks to a quarter of a gigabyte of zeros.
pub(crate) fn png_profile_bomb() -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(b"iCCPx\0\0".to_vec(), flate2::Compression::best());
    (0..256).for_each(|_| packed.write_all(&[0; 1 << 20]).unwrap());
    let profile = packed.finish().unwrap();
    let mut file = drawn_image(1, 1, 0, ImageFormat::Png);
    // Directly after the header: eight bytes of signature, twenty-five of IHDR.
    file.splice(33..33, png_chunk(&profile));
    file
}

/// The input of a model: a square crop with ImageNet's mean and standard deviation.
pub(crate) fn input_spec(source: Option<usize>, resize: usize, crop: usize) -> InputSpec {
    InputSpec { crop: [crop; 2], source, resize: resize.into(), ..InputSpec::imagenet() }
}
