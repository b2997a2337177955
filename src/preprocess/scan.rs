//! Walks over a file's structure before a decoder does: what the decoders of the `image` crate do not bound themselves.

use std::borrow::Cow;

use super::vp8l::{alpha_prefix_groups, prefix_groups};

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

/// Chunks of a PNG file. Encoders write pixels in chunks of 8 KiB and more; a file of millions of empty ones is made to be slow.
const MAX_PNG_CHUNKS: usize = 1 << 16;

/// The chunks that decoding a picture, and turning it upright, takes.
const PNG_CHUNKS: [&[u8; 4]; 6] = [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"];

/// An Exif block that is larger does not only say how the camera was held.
const MAX_EXIF: usize = 1 << 20;

/// The chunks of a PNG file: kind, and the whole chunk with length and checksum. The last may be cut off.
fn png_chunks(file: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = file.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let kind = after.first_chunk::<4>()?;
        let length = (u32::from_be_bytes(*length) as usize).saturating_add(12).min(rest.len());
        let (chunk, next) = rest.split_at(length);
        rest = next;
        Some((kind, chunk))
    })
}

/// Checks the structure of a PNG file.
pub(super) fn png_walk(file: &[u8]) -> Result<(), &'static str> {
    match png_chunks(file).nth(MAX_PNG_CHUNKS) {
        Some(_) => Err("it has more than 65536 chunks; save it again"),
        None => Ok(()),
    }
}

/// A PNG file without what a picture does not need: texts and colour profiles, which a decoder unpacks while it reads the header,
/// frames of animations, and chunks without content. Files that have none of it are not copied.
pub(super) fn png_picture(file: &[u8]) -> Cow<'_, [u8]> {
    let keep = |(kind, chunk): &(&[u8; 4], &[u8])| match *kind {
        b"eXIf" => chunk.len() <= MAX_EXIF,
        b"IDAT" => chunk.len() > 12,
        kind => PNG_CHUNKS.contains(&kind),
    };
    if png_chunks(file).all(|chunk| keep(&chunk)) {
        return Cow::Borrowed(file);
    }
    let mut picture = Vec::with_capacity(file.len());
    picture.extend_from_slice(file.get(..8).unwrap_or_default());
    for (_, chunk) in png_chunks(file).filter(keep) {
        picture.extend_from_slice(chunk);
    }
    Cow::Owned(picture)
}

/// Width and height of a GIF's first frame; `None` if there is none.
pub(super) fn gif_frame(file: &[u8]) -> Option<(u32, u32)> {
    let flags = *file.get(10)?;
    let table = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut rest = file.get(13 + table..)?;
    loop {
        match rest {
            [b',', _, _, _, _, a, b, c, d, ..] => {
                let side = |low: &u8, high: &u8| u32::from(u16::from_le_bytes([*low, *high]));
                return Some((side(a, b), side(c, d)));
            }
            // An extension: blocks, each with its length before it, to an empty one.
            [b'!', _, blocks @ ..] => {
                rest = blocks;
                loop {
                    let (length, after) = rest.split_first()?;
                    rest = after.get(usize::from(*length)..)?;
                    if *length == 0 {
                        break;
                    }
                }
            }
            _ => return None,
        }
    }
}

/// The largest width and height that any part of a WebP file declares: the canvas, the still image, every animation
/// frame. The decoder allocates by the parts' own sizes, which need not agree with the canvas.
///
/// # Errors
/// The file has a chunk that is made to use up memory; says which.
pub(super) fn webp_extent(file: &[u8]) -> Result<(u32, u32), &'static str> {
    let mut extent = (0, 0);
    webp_chunks(file.get(12..).unwrap_or_default(), &[(0, 0)], &mut extent)?;
    Ok(extent)
}

/// Groups of prefix codes of a lossless picture. Encoders make at most 2,600; each takes up to 68 KB in the decoder.
const MAX_PREFIX_GROUPS: u32 = 4096;

/// Sub-chunks of an animation frame that the decoder reads: an alpha plane and a picture. It reads them to the end of the file,
/// whatever length the frame has.
const FRAME_CHUNKS: usize = 2;

/// `around`: the sizes of what the chunks are in, the canvas first; an alpha plane has one of them. Frames hold images, not frames;
/// whoever nests them wants the stack to end.
fn webp_chunks(mut rest: &[u8], around: &[(u32, u32)], extent: &mut (u32, u32)) -> Result<(), &'static str> {
    let mut canvas_size = around[0];
    let in_frame = around.len() > 1;
    let mut left = if in_frame { FRAME_CHUNKS } else { usize::MAX };
    while let Some((header, body)) = rest.split_at_checked(8).filter(|_| left > 0) {
        left -= 1;
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let chunk = &body[..size.min(body.len())];
        // The decoder allocates what a chunk of metadata declares before it reads it.
        if size > body.len() && matches!(&header[..4], b"EXIF" | b"ICCP" | b"XMP ") {
            return Err("a chunk of its metadata is longer than the file");
        }
        let mut groups = Some(1);
        let found = match &header[..4] {
            b"VP8X" => chunk.get(4..10).map(canvas),
            b"ANMF" if !in_frame => {
                let size = chunk.get(6..12).map(canvas).unwrap_or_default();
                webp_chunks(body.get(16..).unwrap_or_default(), &[canvas_size, size], extent)?;
                Some(size)
            }
            // Lossy: after a three-byte frame tag and a start code, 14 bits each.
            b"VP8 " => chunk.get(6..10).map(|b| {
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
                (side(b[0], b[1]), side(b[2], b[3]))
            }),
            // Lossless: after a signature byte, 14 bits each, less one.
            b"VP8L" => {
                groups = prefix_groups(chunk);
                chunk.get(1..5).map(|b| {
                    let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
                })
            }
            // Compressed as a lossless picture is, if the two lowest bits say so.
            b"ALPH" if chunk.first().is_some_and(|flags| flags & 3 == 1) => {
                let stream = chunk.get(1..).unwrap_or_default();
                let sizes = std::iter::once(&canvas_size).chain(around);
                groups = sizes.filter_map(|(width, height)| alpha_prefix_groups(stream, *width, *height)).max();
                None
            }
            _ => None,
        };
        // A stream that cannot be read so far cannot be decoded either; its decoder says what is wrong.
        if groups.is_some_and(|groups| groups > MAX_PREFIX_GROUPS) {
            return Err("its lossless picture has more than 4096 groups of prefix codes; save it again");
        }
        if let Some((width, height)) = found {
            if header[..4] == *b"VP8X" {
                canvas_size = (width, height);
            }
            *extent = (extent.0.max(width), extent.1.max(height));
        }
        // Chunks are padded to an even length.
        rest = body.get(size.saturating_add(size % 2)..).unwrap_or_default();
    }
    Ok(())
}

/// Two 24-bit sizes, each less one.
fn canvas(b: &[u8]) -> (u32, u32) {
    let side = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], 0]) + 1;
    (side(&b[..3]), side(&b[3..6]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
        assert!(webp_extent(&file).unwrap().0 > 0);
    }

    #[test]
    fn the_largest_part_of_a_webp_counts() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        file.extend(b"VP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0");
        assert_eq!(webp_extent(&file), Ok((16, 16)));
        let size = 9999u32 | (4999 << 14);
        file.extend(b"VP8L\x05\0\0\0\x2f");
        file.extend(size.to_le_bytes());
        assert_eq!(webp_extent(&file), Ok((10_000, 5_000)));
        (0..file.len()).for_each(|end| assert!(webp_extent(&file[..end]).unwrap().0 <= 10_000));
    }

    #[test]
    fn a_chunk_of_metadata_longer_than_the_file_is_refused() {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x0f\0\0\x0f\0\0".to_vec();
        file.extend(b"EXIF\x04\0\0\0abcd");
        assert_eq!(webp_extent(&file), Ok((16, 16)));
        file.truncate(file.len() - 1);
        assert!(webp_extent(&file).is_err());
    }

    fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &[0; 4]].concat()
    }

    #[test]
    fn a_png_loses_what_is_no_picture_and_only_that() {
        let signature = b"\x89PNG\r\n\x1a\n".to_vec();
        let [header, data, end] = [png_chunk(b"IHDR", &[0; 13]), png_chunk(b"IDAT", b"x"), png_chunk(b"IEND", b"")];
        let plain = [&signature[..], &header, &data, &end].concat();
        assert!(matches!(png_picture(&plain), Cow::Borrowed(file) if file == plain));
        let (text, empty) = (png_chunk(b"zTXt", b"text"), png_chunk(b"IDAT", b""));
        let more = [&signature[..], &header, &text, &empty, &data, &text, &empty, &end].concat();
        assert_eq!(png_picture(&more), plain);
        // What is cut off stays cut off.
        for length in 0..more.len() {
            assert!(png_picture(&more[..length]).len() <= plain.len());
        }
        assert!(png_walk(&[&signature[..], &empty.repeat(MAX_PNG_CHUNKS + 1)].concat()).is_err());
        assert!(png_walk(&more).is_ok());
    }

    #[test]
    fn the_first_frame_of_a_gif_is_found_behind_extensions() {
        let mut file = b"GIF89a\x10\0\x10\0\x80\0\0".to_vec();
        file.extend([9; 6]);
        file.extend(b"!\xfe\x03abc\x02de\0");
        file.extend(b",\0\0\0\0\x07\0\x05\x01");
        assert_eq!(gif_frame(&file), Some((7, 261)));
        (0..file.len()).for_each(|end| assert_eq!(gif_frame(&file[..end]), None));
    }
}
