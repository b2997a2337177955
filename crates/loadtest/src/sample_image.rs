//! The built-in image, sent if no other image is given: the same bytes on every machine.

/// Width and height, pixels.
const SIDE: usize = 96;

/// Encodes a PNG file of coloured waves: 96x96 RGB pixels, about 28 kB. Its data is stored uncompressed, so that no
/// compressor is needed.
pub(super) fn png() -> Vec<u8> {
    let mut rows = Vec::with_capacity(SIDE * (1 + 3 * SIDE));
    for y in 0..SIDE {
        // Filter type of the row: none.
        rows.push(0);
        for x in 0..SIDE {
            let wave = |k: usize| ((x * (k + 2) + y * (5 - k) + x * y * k / 16) % 256) as u8;
            rows.extend([wave(1), wave(2), wave(3)]);
        }
    }
    let side = (SIDE as u32).to_be_bytes();
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();

    // zlib: two header bytes, one stored block (27,744 of at most 65,535 bytes), a checksum.
    let length = rows.len() as u16;
    let mut data = vec![0x78, 0x01, 1];
    data.extend(length.to_le_bytes());
    data.extend((!length).to_le_bytes());
    data.extend(&rows);
    data.extend(adler32(&rows).to_be_bytes());

    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (chunk_type, content) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        file.extend((content.len() as u32).to_be_bytes());
        let chunk = [&chunk_type[..], content].concat();
        file.extend(&chunk);
        file.extend(crc32fast::hash(&chunk).to_be_bytes());
    }
    file
}

/// Adler-32, the checksum of zlib streams (RFC 1950).
fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn a_decoder_reads_the_image() {
        let image = image::load_from_memory_with_format(&super::png(), image::ImageFormat::Png).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (96, 96));
        assert_eq!(image.get_pixel(3, 1).0, [3 * 3 + 4, 4 * 3 + 3, 5 * 3 + 2]);
    }

    #[test]
    fn the_bytes_do_not_change() {
        let file = super::png();
        assert_eq!((file.len(), super::adler32(&file)), (27_812, 0x5B78_9756));
    }
}
