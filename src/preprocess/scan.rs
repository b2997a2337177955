//! Walks over a file's structure before a decoder does: what the decoders of the `image` crate do not bound themselves.

/// Counts the scans of a JPEG file, stopping once there are more than `limit`.
///
/// Segments are stepped over by their length, so that a thumbnail in the metadata is not counted; inside a scan's
/// entropy-coded data an `FF` that means `FF` is followed by `00`.
pub(super) fn jpeg_scans(bytes: &[u8], limit: usize) -> usize {
    let mut scans = 0;
    let mut rest = bytes;
    while scans <= limit {
        // To the next marker: an FF that is followed by neither stuffing nor a restart marker nor fill.
        let Some(at) = rest.iter().position(|&b| b == 0xFF) else { break };
        let Some(&marker) = rest.get(at + 1) else { break };
        match marker {
            0xFF => rest = &rest[at + 1..],
            0x00 | 0x01 | 0xD0..=0xD8 => rest = &rest[at + 2..],
            0xD9 => break,
            _ => {
                scans += usize::from(marker == 0xDA);
                let Some(length) = rest.get(at + 2..at + 4) else { break };
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                rest = rest.get(at + 2 + length.max(2)..).unwrap_or_default();
            }
        }
    }
    scans
}

/// The largest width and height that any part of a WebP file declares: the canvas, the still image, every animation
/// frame. The decoder allocates by the parts' own sizes, which need not agree with the canvas.
pub(super) fn webp_extent(bytes: &[u8]) -> (u32, u32) {
    let mut extent = (0, 0);
    webp_chunks(bytes.get(12..).unwrap_or_default(), true, &mut extent);
    extent
}

/// `outer`: not inside an animation frame. Frames hold images, not frames; whoever nests them wants the stack to end.
fn webp_chunks(mut rest: &[u8], outer: bool, extent: &mut (u32, u32)) {
    while let Some((header, body)) = rest.split_at_checked(8) {
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let chunk = &body[..size.min(body.len())];
        let found = match &header[..4] {
            b"VP8X" => chunk.get(4..10).map(canvas),
            b"ANMF" if outer => {
                webp_chunks(chunk.get(16..).unwrap_or_default(), false, extent);
                chunk.get(6..12).map(canvas)
            }
            // Lossy: after a three-byte frame tag and a start code, 14 bits each.
            b"VP8 " => chunk.get(6..10).map(|b| {
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
                (side(b[0], b[1]), side(b[2], b[3]))
            }),
            // Lossless: after a signature byte, 14 bits each, less one.
            b"VP8L" => chunk.get(1..5).map(|b| {
                let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            }),
            _ => None,
        };
        let (width, height) = found.unwrap_or_default();
        *extent = (extent.0.max(width), extent.1.max(height));
        // Chunks are padded to an even length.
        rest = body.get(size.saturating_add(size % 2)..).unwrap_or_default();
    }
}

/// Two 24-bit sizes, each less one.
fn canvas(b: &[u8]) -> (u32, u32) {
    let side = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], 0]) + 1;
    (side(&b[..3]), side(&b[3..6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_counted_and_thumbnails_are_not() {
        let scan = [0xFF, 0xDA, 0, 4, 1, 2, 0x11, 0xFF, 0x00, 0x22, 0xFF, 0xD0, 0x33];
        let thumbnail = [0xFF, 0xE1, 0, 6, 0xFF, 0xDA, 0xFF, 0xDA];
        let mut file = vec![0xFF, 0xD8];
        file.extend(thumbnail);
        file.extend(scan);
        file.extend(scan);
        file.extend([0xFF, 0xD9]);
        assert_eq!(jpeg_scans(&file, 100), 2);
        // It stops counting just past the limit, however long the file.
        assert_eq!(jpeg_scans(&scan.repeat(1000), 10), 11);
        // Every truncation is walked without a panic.
        (0..file.len()).for_each(|end| assert!(jpeg_scans(&file[..end], 100) <= 2));
    }

    #[test]
    fn frames_in_frames_do_not_use_up_the_stack() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        file.extend(b"ANMF\xff\xff\xff\xff................".repeat(400_000));
        assert!(webp_extent(&file).0 > 0);
    }

    #[test]
    fn the_largest_part_of_a_webp_counts() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        file.extend(b"VP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0");
        assert_eq!(webp_extent(&file), (16, 16));
        let size = 9999u32 | (4999 << 14);
        file.extend(b"VP8L\x05\0\0\0\x2f");
        file.extend(size.to_le_bytes());
        assert_eq!(webp_extent(&file), (10_000, 5_000));
        (0..file.len()).for_each(|end| assert!(webp_extent(&file[..end]).0 <= 10_000));
    }
}
