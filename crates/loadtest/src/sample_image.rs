//! The picture that is sent when no other is given: the same bytes on every machine.

/// Width and height, pixels.
const SIDE: usize = 96;

/// A PNG file of coloured waves, 96x96 RGB pixels, about 28 kB. Its data is stored, not compressed, so that no
/// compressor is needed to make it.
pub(super) fn png() -> Vec<u8> {
    let mut rows = Vec::with_capacity(SIDE * (1 + 3 * SIDE));
    for y in 0..SIDE {
        // Every row says how it is filtered: not at all.
        rows.push(0);
        for x in 0..SIDE {
            let wave = |k: usize| ((x * (k + 2) + y * (5 - k) + x * y * k / 16) % 256) as u8;
            rows.extend([wave(1), wave(2), wave(3)]);
        }
    }
    let side = (SIDE as u32).to_be_bytes();
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();

    // zlib: two bytes of header, one stored block (it fits: 27,744 of at most 65,535 bytes), a checksum.
    let length = rows.len() as u16;
    let mut data = vec![0x78, 0x01, 1];
    data.extend(length.to_le_bytes());
    data.extend((!length).to_le_bytes());
    data.extend(&rows);
    data.extend(adler32(&rows).to_be_bytes());

    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        file.extend((content.len() as u32).to_be_bytes());
        let chunk = [&kind[..], content].concat();
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn a_decoder_reads_it() {
        let image = image::load_from_memory_with_format(&super::png(), image::ImageFormat::Png).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (96, 96));
        assert_eq!(image.get_pixel(3, 1).0, [3 * 3 + 4, 4 * 3 + 3, 5 * 3 + 2]);
    }
}
