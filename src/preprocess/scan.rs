//! Scans a file's structure before a decoder reads it, to bound what the decoders of the `image` crate do not bound.

use std::borrow::Cow;

use super::vp8l::{alpha_prefix_groups, prefix_groups};

/// Counts the scans of a JPEG file, stopping once there are more than `limit`.
///
/// Segments are skipped by their length, so a thumbnail in the metadata is not counted. In a scan's entropy-coded
/// data, a data byte `FF` is followed by `00`.
pub(super) fn count_jpeg_scans(bytes: &[u8], limit: usize) -> usize {
    let mut scans = 0;
    let mut rest = bytes;
    while scans <= limit {
        // The next marker is an FF that is not followed by stuffing, a restart marker or a fill byte.
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

/// Maximum number of chunks of a PNG file. Encoders write pixels in chunks of 8 KiB and more. A file with millions of
/// empty chunks is made to be slow.
const MAX_PNG_CHUNKS: usize = 1 << 16;

/// The kinds of chunks that are needed to decode an image and turn it upright.
const PNG_CHUNKS: [&[u8; 4]; 6] = [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"];

/// Maximum length of an Exif chunk, in bytes. A longer one holds more than the camera's orientation.
const MAX_EXIF_BYTES: usize = 1 << 20;

/// Iterates over the chunks of a PNG file: the kind, and the whole chunk with its length and checksum. The last chunk
/// may be cut off.
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

/// Checks the number of chunks of a PNG file.
pub(super) fn check_png_chunks(file: &[u8]) -> Result<(), &'static str> {
    match png_chunks(file).nth(MAX_PNG_CHUNKS) {
        Some(_) => Err("it has more than 65536 chunks; save it again"),
        None => Ok(()),
    }
}

/// Removes the chunks of a PNG file that its still image does not need: texts and colour profiles, which a decoder
/// unpacks while it reads the header, frames of animations, and chunks without content. Files without such chunks are
/// not copied.
pub(super) fn strip_png(file: &[u8]) -> Cow<'_, [u8]> {
    let keep = |(kind, chunk): &(&[u8; 4], &[u8])| match *kind {
        b"eXIf" => chunk.len() <= MAX_EXIF_BYTES,
        b"IDAT" => chunk.len() > 12,
        kind => PNG_CHUNKS.contains(&kind),
    };
    if png_chunks(file).all(|chunk| keep(&chunk)) {
        return Cow::Borrowed(file);
    }
    let mut stripped = Vec::with_capacity(file.len());
    stripped.extend_from_slice(file.get(..8).unwrap_or_default());
    for (_, chunk) in png_chunks(file).filter(keep) {
        stripped.extend_from_slice(chunk);
    }
    Cow::Owned(stripped)
}

/// Returns width and height of a GIF's first frame; `None` if there is no frame.
pub(super) fn gif_first_frame(file: &[u8]) -> Option<(u32, u32)> {
    let flags = *file.get(10)?;
    let table = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut rest = file.get(13 + table..)?;
    loop {
        match rest {
            [b',', _, _, _, _, a, b, c, d, ..] => {
                let side = |low: &u8, high: &u8| u32::from(u16::from_le_bytes([*low, *high]));
                return Some((side(a, b), side(c, d)));
            }
            // An extension is a list of blocks, each after its length, up to an empty block.
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

/// Returns the largest width and height that any part of a WebP file declares: the canvas, the still image, every
/// animation frame. The decoder allocates by the sizes of these parts, which may differ from the canvas.
pub(super) fn webp_extent(file: &[u8]) -> (u32, u32) {
    let mut extent = (0, 0);
    for chunk in webp_chunks(file.get(12..).unwrap_or_default()) {
        let inner = match chunk.kind {
            b"ANMF" => webp_chunks(chunk.data.get(16..).unwrap_or_default()).take(FRAME_CHUNKS).collect(),
            _ => Vec::new(),
        };
        for (width, height) in std::iter::once(chunk).chain(inner).filter_map(|chunk| chunk.size()) {
            extent = (extent.0.max(width), extent.1.max(height));
        }
    }
    extent
}

/// Number of sub-chunks of an animation frame that the decoder reads: an alpha plane and an image.
const FRAME_CHUNKS: usize = 2;

/// Maximum number of groups of prefix codes of a lossless image. Encoders make at most 2,600. Each group takes up to
/// 68 KB in the decoder.
const MAX_PREFIX_GROUPS: u32 = 4096;

/// Checks for parts of a WebP file on which the decoder would use up memory: chunks of metadata, for which it
/// allocates the declared length, and lossless images, for which it builds all codes before the first pixel. Only the
/// parts that the decoder reads are checked: the first image and the first alpha plane, and those of the first frame.
/// So the time is linear in the length of the file.
///
/// # Errors
/// The file has such a part; the text names it.
pub(super) fn check_webp(file: &[u8]) -> Result<(), &'static str> {
    let (mut canvas_size, mut frame_size) = ((0, 0), None);
    let (mut has_image, mut has_alpha) = (false, false);
    let mut parts: Vec<WebpChunk<'_>> = Vec::new();
    for chunk in webp_chunks(file.get(12..).unwrap_or_default()) {
        let WebpChunk { kind, declared, data, body } = chunk;
        if declared > body.len() && matches!(kind, b"EXIF" | b"ICCP" | b"XMP ") {
            return Err("a chunk of its metadata is longer than the file");
        }
        match kind {
            b"VP8X" => canvas_size = data.get(4..10).map(canvas).unwrap_or_default(),
            b"ANMF" if frame_size.is_none() => {
                frame_size = Some(data.get(6..12).map(canvas).unwrap_or_default());
                // The decoder reads the frame's chunks to the end of the file, whatever the frame's length is.
                parts.extend(webp_chunks(body.get(16..).unwrap_or_default()).take(FRAME_CHUNKS));
            }
            b"VP8L" if !std::mem::replace(&mut has_image, true) => parts.push(chunk),
            b"ALPH" if !std::mem::replace(&mut has_alpha, true) => parts.push(chunk),
            _ => {}
        }
    }
    let groups = |part: &WebpChunk<'_>| match part.kind {
        b"VP8L" => prefix_groups(part.data),
        // The two lowest bits tell whether the plane is compressed as a lossless image is. Its size is the canvas's
        // or the frame's.
        b"ALPH" if part.data.first().is_some_and(|flags| flags & 3 == 1) => {
            let sizes = std::iter::once(canvas_size).chain(frame_size);
            sizes.filter_map(|(width, height)| alpha_prefix_groups(&part.data[1..], width, height)).max()
        }
        _ => None,
    };
    // A stream that cannot be read here cannot be decoded either; its decoder reports the error.
    match parts.iter().filter_map(groups).any(|groups| groups > MAX_PREFIX_GROUPS) {
        true => Err("its lossless picture has more than 4096 groups of prefix codes; save it again"),
        false => Ok(()),
    }
}

/// A chunk of a WebP file.
#[derive(Clone, Copy)]
struct WebpChunk<'a> {
    kind: &'a [u8; 4],
    /// Length that the header declares, in bytes.
    declared: usize,
    /// The chunk's content, as far as the file holds it.
    data: &'a [u8],
    /// All bytes after the chunk's header, to the end of the file.
    body: &'a [u8],
}

fn webp_chunks(mut rest: &[u8]) -> impl Iterator<Item = WebpChunk<'_>> {
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, body) = after.split_first_chunk::<4>()?;
        let declared = u32::from_le_bytes(*length) as usize;
        // Chunks are padded to an even length.
        rest = body.get(declared.saturating_add(declared % 2)..).unwrap_or_default();
        Some(WebpChunk { kind, declared, data: &body[..declared.min(body.len())], body })
    })
}

impl WebpChunk<'_> {
    /// Returns the width and height that the chunk declares.
    fn size(&self) -> Option<(u32, u32)> {
        match self.kind {
            b"VP8X" => self.data.get(4..10).map(canvas),
            b"ANMF" => self.data.get(6..12).map(canvas),
            // Lossy: 14 bits each, after a frame tag of three bytes and a start code.
            b"VP8 " => self.data.get(6..10).map(|b| {
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
                (side(b[0], b[1]), side(b[2], b[3]))
            }),
            // Lossless: 14 bits each, less one, after a signature byte.
            b"VP8L" => self.data.get(1..5).map(|b| {
                let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            }),
            _ => None,
        }
    }
}

/// Reads two 24-bit sizes, each less one.
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
        assert_eq!(count_jpeg_scans(&file, 100), 2);
        // Counting stops just past the limit, however long the file is.
        assert_eq!(count_jpeg_scans(&scan.repeat(1000), 10), 11);
        // No truncation causes a panic.
        (0..file.len()).for_each(|end| assert!(count_jpeg_scans(&file[..end], 100) <= 2));
    }

    #[test]
    fn frames_in_frames_do_not_use_up_the_stack() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        file.extend(b"ANMF\xff\xff\xff\xff................".repeat(400_000));
        assert!(webp_extent(&file).0 > 0);
        let _ = check_webp(&file);
    }

    #[test]
    fn the_size_of_a_webp_is_that_of_its_largest_part() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        file.extend(b"VP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0");
        assert_eq!(webp_extent(&file), (16, 16));
        let size = 9999u32 | (4999 << 14);
        file.extend(b"VP8L\x05\0\0\0\x2f");
        file.extend(size.to_le_bytes());
        assert_eq!(webp_extent(&file), (10_000, 5_000));
        (0..file.len()).for_each(|end| assert!(webp_extent(&file[..end]).0 <= 10_000));
    }

    #[test]
    fn a_chunk_of_metadata_longer_than_the_file_is_rejected() {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x0f\0\0\x0f\0\0".to_vec();
        file.extend(b"EXIF\x04\0\0\0abcd");
        assert_eq!((webp_extent(&file), check_webp(&file)), ((16, 16), Ok(())));
        file.truncate(file.len() - 1);
        assert!(check_webp(&file).is_err());
    }

    /// Each frame looks like the beginning of a lossless image that reaches to the end of the file.
    #[test]
    fn a_webp_of_many_frames_is_read_once() {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0".to_vec();
        let mut frame = b"ANMF\x2a\0\0\0\0\0\0\0\0\0\xff\x3f\0\xff\x0b\0\0\0\0\0".to_vec();
        frame.extend(b"VP8L\xff\xff\xff\x7f\x2f\xff\xff\xff\x02\x11\x88\x88\x08\x55\x55\x55\x55\x55");
        file.extend(frame.repeat(40_000));
        let start = std::time::Instant::now();
        let _ = (webp_extent(&file), check_webp(&file));
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    }

    fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &[0; 4]].concat()
    }

    #[test]
    fn only_chunks_that_the_image_does_not_need_are_removed_from_a_png() {
        let signature = b"\x89PNG\r\n\x1a\n".to_vec();
        let [header, data, end] = [png_chunk(b"IHDR", &[0; 13]), png_chunk(b"IDAT", b"x"), png_chunk(b"IEND", b"")];
        let plain = [&signature[..], &header, &data, &end].concat();
        assert!(matches!(strip_png(&plain), Cow::Borrowed(file) if file == plain));
        let (text, empty) = (png_chunk(b"zTXt", b"text"), png_chunk(b"IDAT", b""));
        let more = [&signature[..], &header, &text, &empty, &data, &text, &empty, &end].concat();
        assert_eq!(strip_png(&more), plain);
        // A file that is cut off stays cut off.
        for length in 0..more.len() {
            assert!(strip_png(&more[..length]).len() <= plain.len());
        }
        assert!(check_png_chunks(&[&signature[..], &empty.repeat(MAX_PNG_CHUNKS + 1)].concat()).is_err());
        assert!(check_png_chunks(&more).is_ok());
    }

    #[test]
    fn the_first_frame_of_a_gif_is_found_after_extensions() {
        let mut file = b"GIF89a\x10\0\x10\0\x80\0\0".to_vec();
        file.extend([9; 6]);
        file.extend(b"!\xfe\x03abc\x02de\0");
        file.extend(b",\0\0\0\0\x07\0\x05\x01");
        assert_eq!(gif_first_frame(&file), Some((7, 261)));
        (0..file.len()).for_each(|end| assert_eq!(gif_first_frame(&file[..end]), None));
    }
}
