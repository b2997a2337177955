//! Checks a TIFF's first directory before the decoder opens the file.
//!
//! The decoder trusts the directory. It allocates a row of a tile by the declared width and samples, with no limit.
//! It allocates 32 bytes for every value of a tag that it reads. It decodes the same bytes once for every strip that
//! points at them. So a small file could end the process or keep a thread busy for hours. This check rejects such
//! files. The decoder still judges the files that pass: they may be unsupported or damaged.
//!
//! The check reads tags as the decoder does (crate `tiff` 0.11): entries of an unknown type are ignored, and of two
//! entries with one tag the later one counts. Only the first directory is decoded, so other directories are not read.
//!
//! This check does not bound the time for data that unpacks to nothing, and for bytes after a Deflate strip: the
//! decoder ignores the strip's byte count and reads on. The limit on a decoder's processor time bounds both.

use std::collections::BTreeMap;

/// Limits on a file. The caller checks the width and height of the image itself.
pub(super) struct TiffLimits {
    pub(super) max_side: u32,
    pub(super) max_pixels: u64,
}

/// Facts that the first directory of a file declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TiffHeader {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Sum over all samples, including those that are not colours.
    pub(super) bits_per_pixel: u32,
    /// Number of bytes that all strips or tiles unpack to, as far as they are decoded: with the padding at the right
    /// of tiles.
    pub(super) unpacked_bytes: u64,
}

/// Maximum number of values of one tag. The decoder holds 32 bytes for each value while it reads the tag. Every tile
/// of 16x16 pixels has one value.
const MAX_VALUES: u64 = 1 << 18;

/// Maximum number of values of all tags that the decoder reads.
const MAX_TOTAL_VALUES: u64 = 1_000_000;

/// Maximum number of samples of a pixel. The decoder uses four and skips others.
const MAX_SAMPLES: u64 = 8;

/// Side of a tile, in pixels, that is accepted even if only smaller images are accepted: tiles are padded.
const COMMON_TILE: u64 = 1024;

/// Maximum number of bytes of one strip or tile of fax data. Rows can be made so that decoding takes the square of
/// their length, and the decoder's limit on processor time is checked once per 8 KiB. A dense page at 600 dpi has 200
/// KiB.
const MAX_FAX_BYTES: u64 = 512 << 10;

/// A tag's number, and its name for messages.
#[derive(Clone, Copy)]
struct TiffTag(u16, &'static str);

mod tag {
    use super::TiffTag;

    pub(super) const WIDTH: TiffTag = TiffTag(256, "ImageWidth");
    pub(super) const HEIGHT: TiffTag = TiffTag(257, "ImageLength");
    pub(super) const BITS_PER_SAMPLE: TiffTag = TiffTag(258, "BitsPerSample");
    pub(super) const COMPRESSION: TiffTag = TiffTag(259, "Compression");
    const PHOTOMETRIC: TiffTag = TiffTag(262, "PhotometricInterpretation");
    pub(super) const STRIP_OFFSETS: TiffTag = TiffTag(273, "StripOffsets");
    const ORIENTATION: TiffTag = TiffTag(274, "Orientation");
    pub(super) const SAMPLES_PER_PIXEL: TiffTag = TiffTag(277, "SamplesPerPixel");
    pub(super) const ROWS_PER_STRIP: TiffTag = TiffTag(278, "RowsPerStrip");
    pub(super) const STRIP_BYTE_COUNTS: TiffTag = TiffTag(279, "StripByteCounts");
    pub(super) const PLANAR_CONFIGURATION: TiffTag = TiffTag(284, "PlanarConfiguration");
    const PREDICTOR: TiffTag = TiffTag(317, "Predictor");
    pub(super) const TILE_WIDTH: TiffTag = TiffTag(322, "TileWidth");
    pub(super) const TILE_LENGTH: TiffTag = TiffTag(323, "TileLength");
    pub(super) const TILE_OFFSETS: TiffTag = TiffTag(324, "TileOffsets");
    pub(super) const TILE_BYTE_COUNTS: TiffTag = TiffTag(325, "TileByteCounts");
    pub(super) const EXTRA_SAMPLES: TiffTag = TiffTag(338, "ExtraSamples");
    pub(super) const SAMPLE_FORMAT: TiffTag = TiffTag(339, "SampleFormat");
    const CHROMA_SUBSAMPLING: TiffTag = TiffTag(530, "YCbCrSubSampling");

    /// Tags that the decoder reads when it opens a file. It does not read other tags, so colour profiles and others
    /// may have any length. (For JPEG data it reads one more tag; such files are rejected.)
    #[rustfmt::skip]
    pub(super) const READ: [TiffTag; 19] = [
        WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL,
        ROWS_PER_STRIP, STRIP_BYTE_COUNTS, PLANAR_CONFIGURATION, PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS,
        TILE_BYTE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT, CHROMA_SUBSAMPLING,
    ];
}

mod compression {
    pub(super) const NONE: u16 = 1;
    pub(super) const FAX4: u16 = 4;
    pub(super) const LZW: u16 = 5;
    pub(super) const DEFLATE: u16 = 8;
    pub(super) const PACK_BITS: u16 = 0x8005;
    /// Deflate, by its unofficial number from before it got an official one.
    pub(super) const OLD_DEFLATE: u16 = 0x80B2;
}

/// Compares a file with `limits`, and checks what the decoder does not check.
///
/// # Errors
/// The defect, for the client: the end of a sentence about the file.
pub(super) fn check(file: &[u8], limits: &TiffLimits) -> Result<TiffHeader, String> {
    let directory = TiffDirectory::read(file)?;
    let (width, height) = (directory.side(tag::WIDTH)?, directory.side(tag::HEIGHT)?);
    let compression = directory.number(tag::COMPRESSION)?.unwrap_or(compression::NONE.into());
    let compression = supported_compression(compression)?;
    let samples = directory.number(tag::SAMPLES_PER_PIXEL)?.unwrap_or(1);
    if !(1..=MAX_SAMPLES).contains(&samples) {
        return Err(format!("its pixels have {samples} samples; 1 to {MAX_SAMPLES} are accepted"));
    }
    for tag in [tag::EXTRA_SAMPLES, tag::SAMPLE_FORMAT] {
        directory.check_count(tag)?;
    }
    let bits = directory.bits_per_sample(samples)?;
    let bits_per_pixel: u64 = bits.iter().sum();
    // In a planar file, the samples of a pixel are in different strips or tiles.
    let planar = directory.number(tag::PLANAR_CONFIGURATION)? == Some(2);
    let (planes, bits_in_chunk) = if planar { (samples, bits[0]) } else { (1, bits_per_pixel) };

    let [strip_counts, strips, tile_counts, tiles] =
        [tag::STRIP_BYTE_COUNTS, tag::STRIP_OFFSETS, tag::TILE_BYTE_COUNTS, tag::TILE_OFFSETS]
            .map(|tag| directory.get(tag));
    let (width_64, height_64) = (u64::from(width), u64::from(height));
    let (chunk_name, offsets, counts, chunk_width, chunk_height) = match (strip_counts, strips, tile_counts, tiles) {
        (Some(counts), Some(offsets), None, None) => {
            let rows = directory.number(tag::ROWS_PER_STRIP)?.unwrap_or(height_64);
            ("strips", offsets, counts, width_64, rows)
        }
        (None, None, Some(counts), Some(offsets)) => {
            let side = |tag| directory.side(tag).map(u64::from);
            let (width, height) = (side(tag::TILE_WIDTH)?, side(tag::TILE_LENGTH)?);
            check_tile(width, height, limits)?;
            ("tiles", offsets, counts, width, height)
        }
        _ => return Err("its tags for strips or tiles are incomplete, or it has both".to_owned()),
    };
    if chunk_height == 0 {
        return Err("its RowsPerStrip tag is 0".to_owned());
    }
    let (across, down) = (width_64.div_ceil(chunk_width), height_64.div_ceil(chunk_height));
    let needed = across.saturating_mul(down).saturating_mul(planes);
    if offsets.count != needed || counts.count != needed {
        let (offsets, counts) = (offsets.count, counts.count);
        return Err(format!("it needs {needed} {chunk_name} but has {offsets} offsets and {counts} byte counts"));
    }
    check_chunks(file, chunk_name, compression, directory.numbers(offsets)?, directory.numbers(counts)?)?;

    let row_bytes = chunk_width.saturating_mul(bits_in_chunk).div_ceil(8);
    let unpacked_bytes = row_bytes.saturating_mul(across).saturating_mul(height_64).saturating_mul(planes);
    // There are at most eight samples of at most 64 bits.
    Ok(TiffHeader { width, height, bits_per_pixel: bits_per_pixel as u32, unpacked_bytes })
}

/// Checks a file's compression. The decoder was built with the accepted ones and with JPEG. JPEG data is not accepted
/// because it declares an image size of its own.
fn supported_compression(number: u64) -> Result<u16, String> {
    use compression::{DEFLATE, FAX4, LZW, NONE, OLD_DEFLATE, PACK_BITS};
    let name = match number {
        2 => " (CCITT run lengths)",
        3 => " (fax, group 3)",
        6 | 7 => " (JPEG)",
        34_712 => " (JPEG 2000)",
        34_925 => " (LZMA)",
        50_000 => " (Zstandard)",
        50_001 => " (WebP)",
        _ => "",
    };
    let accepted = [NONE, FAX4, LZW, DEFLATE, OLD_DEFLATE, PACK_BITS];
    accepted.into_iter().find(|&c| u64::from(c) == number).ok_or_else(|| {
        format!("its compression {number}{name} is not supported; use LZW, Deflate, PackBits or no compression")
    })
}

fn check_tile(width: u64, height: u64, limits: &TiffLimits) -> Result<(), String> {
    // Tiles are padded; the format requires a multiple of 16.
    let max_side = u64::from(limits.max_side).next_multiple_of(16).max(COMMON_TILE);
    let padding = u64::from(limits.max_side) * 30 + 15 * 15;
    let max_pixels = limits.max_pixels.saturating_add(padding).max(COMMON_TILE * COMMON_TILE);
    if width.max(height) > max_side || width * height > max_pixels {
        return Err(format!(
            "its tiles are {width}x{height} pixels; at most {max_side} a side and {max_pixels} in all are accepted"
        ));
    }
    Ok(())
}

/// Checks the positions of the strips or tiles in the file.
fn check_chunks(
    file: &[u8],
    chunk_name: &str,
    compression: u16,
    offsets: impl Iterator<Item = u64>,
    counts: impl Iterator<Item = u64>,
) -> Result<(), String> {
    let length = file.len() as u64;
    // Deflate data marks its own end. The decoder unpacks it whatever the byte count is, even 0.
    let deflate = matches!(compression, compression::DEFLATE | compression::OLD_DEFLATE);
    let mut chunks: Vec<(u64, u64)> = Vec::new();
    for (offset, count) in offsets.zip(counts) {
        if offset > length || offset == length && count > 0 {
            return Err(format!("its {chunk_name} are not all inside the file, which may have been cut off"));
        }
        let count = if deflate { count.max(1) } else { count };
        // The last chunk may end after the file: some writers count padding that they do not write.
        let end = offset.saturating_add(count).min(length);
        if compression == compression::FAX4 && end - offset > MAX_FAX_BYTES {
            return Err(format!(
                "its {chunk_name} of fax data are too long; use more {chunk_name} of at most {MAX_FAX_BYTES} bytes"
            ));
        }
        if end > offset {
            chunks.push((offset, end));
        }
    }
    chunks.sort_unstable();
    if chunks.windows(2).any(|pair| pair[1].0 < pair[0].1) {
        return Err(format!("its {chunk_name} share bytes of the file"));
    }
    Ok(())
}

/// An entry of a directory. Its values are inside the file.
#[derive(Clone, Copy)]
struct TiffEntry {
    tag: TiffTag,
    kind: u64,
    count: u64,
    /// Offset of the first value in the file.
    offset: u64,
}

/// The entries that the decoder reads.
struct TiffDirectory<'a> {
    reader: TiffReader<'a>,
    entries: BTreeMap<u16, TiffEntry>,
}

impl<'a> TiffDirectory<'a> {
    /// Reads the first directory of a file.
    fn read(file: &'a [u8]) -> Result<Self, String> {
        let big_endian = match file {
            [b'I', b'I', 42, 0, ..] => false,
            [b'M', b'M', 0, 42, ..] => true,
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => {
                return Err("it is a BigTIFF; use plain TIFF".to_owned());
            }
            _ => return Err("it does not begin like a TIFF file".to_owned()),
        };
        let reader = TiffReader { file, big_endian };
        let mut directory = Self { reader, entries: BTreeMap::new() };
        let cut_off = || "its directory is not inside the file, which may have been cut off".to_owned();
        let begin = reader.number(4, 4).ok_or_else(cut_off)?;
        let mut total = 0;
        for index in 0..reader.number(begin, 2).ok_or_else(cut_off)? {
            let start = begin + 2 + 12 * index;
            let field = |offset, size| reader.number(start + offset, size).ok_or_else(cut_off);
            let (number, kind, count, value) = (field(0, 2)?, field(2, 2)?, field(4, 4)?, field(8, 4)?);
            let Some(size) = value_size(kind) else { continue };
            // Up to four bytes are in the entry itself, more are elsewhere in the file.
            let offset = if size * count <= 4 { start + 8 } else { value };
            if offset + size * count > file.len() as u64 {
                return Err(format!(
                    "the values of its tag {number} are not all inside the file, which may have been cut off"
                ));
            }
            let Some(tag) = tag::READ.into_iter().find(|tag| u64::from(tag.0) == number) else { continue };
            total += count;
            if count > MAX_VALUES || total > MAX_TOTAL_VALUES {
                return Err(format!("its {} tag has {count} values, or its tags have too many together", tag.1));
            }
            directory.entries.insert(tag.0, TiffEntry { tag, kind, count, offset });
        }
        Ok(directory)
    }

    fn get(&self, tag: TiffTag) -> Option<&TiffEntry> {
        self.entries.get(&tag.0)
    }

    /// Returns the only value of a tag.
    fn number(&self, tag: TiffTag) -> Result<Option<u64>, String> {
        let Some(entry) = self.get(tag) else { return Ok(None) };
        let mut numbers = self.numbers(entry)?;
        match (numbers.next(), numbers.next()) {
            (Some(number), None) => Ok(Some(number)),
            _ => Err(format!("its {} tag has {} values, not one", tag.1, entry.count)),
        }
    }

    /// Returns a width or a height, which must not be missing.
    fn side(&self, tag: TiffTag) -> Result<u32, String> {
        match self.number(tag)?.map(u32::try_from) {
            None => Err(format!("it has no {} tag", tag.1)),
            Some(Ok(side @ 1..)) => Ok(side),
            Some(_) => Err(format!("its {} tag is 0 or too large", tag.1)),
        }
    }

    fn check_count(&self, tag: TiffTag) -> Result<(), String> {
        let count = self.get(tag).map_or(0, |entry| entry.count);
        if count > MAX_SAMPLES {
            return Err(format!("its {} tag has {count} values; at most {MAX_SAMPLES} are accepted", tag.1));
        }
        Ok(())
    }

    /// Returns the number of bits of each sample. There is at least one sample.
    fn bits_per_sample(&self, samples: u64) -> Result<Vec<u64>, String> {
        self.check_count(tag::BITS_PER_SAMPLE)?;
        let mut bits = match self.get(tag::BITS_PER_SAMPLE) {
            Some(entry) => self.numbers(entry)?.collect(),
            None => vec![1],
        };
        if let [all] = bits[..] {
            bits = vec![all; samples as usize];
        }
        if bits.len() as u64 != samples {
            return Err(format!("its pixels have {samples} samples, and its BitsPerSample tag {} values", bits.len()));
        }
        match bits.iter().find(|bits| !(1..=64).contains(*bits)) {
            Some(bits) => Err(format!("its samples have {bits} bits; 1 to 64 are possible")),
            None => Ok(bits),
        }
    }

    /// Returns the values of an entry, which must be whole numbers.
    fn numbers(&self, entry: &TiffEntry) -> Result<impl Iterator<Item = u64>, String> {
        let (reader, TiffEntry { tag, kind, count, offset }) = (self.reader, *entry);
        match value_size(kind) {
            Some(size) if matches!(kind, 1 | 3 | 4 | 7 | 13 | 16 | 18) => {
                Ok((0..count).map_while(move |index| reader.number(offset + index * size, size)))
            }
            _ => Err(format!("its {} tag is of type {kind}, which is no whole number", tag.1)),
        }
    }
}

/// Returns the size of a value in bytes by its type's number: the 12 types of the format, directories, and the
/// decoder's three types of BigTIFF.
fn value_size(kind: u64) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16..=18 => Some(8),
        _ => None,
    }
}

/// Reads numbers from a file in its byte order.
#[derive(Clone, Copy)]
struct TiffReader<'a> {
    file: &'a [u8],
    big_endian: bool,
}

impl TiffReader<'_> {
    /// Reads an unsigned number of up to eight bytes.
    fn number(&self, offset: u64, size: u64) -> Option<u64> {
        let (begin, end) = (usize::try_from(offset).ok()?, usize::try_from(offset.checked_add(size)?).ok()?);
        let bytes = self.file.get(begin..end)?;
        let append = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, append) } else { bytes.iter().rev().fold(0, append) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: TiffLimits = TiffLimits { max_side: 2000, max_pixels: 2_000_000 };

    /// Builds a file: 16 bytes of pixels after the header, then the directory, then long values.
    #[derive(Clone)]
    struct TiffFile {
        big_endian: bool,
        /// Tag, type, values.
        entries: Vec<(u16, u16, Vec<u32>)>,
        /// Bytes at the end of the file.
        end: Vec<u8>,
    }

    impl TiffFile {
        /// 4x4 pixels of 8-bit grey in two strips.
        fn strips() -> Self {
            let entries = [
                (256, 3, vec![4]),
                (257, 3, vec![4]),
                (258, 3, vec![8]),
                (259, 3, vec![1]),
                (262, 3, vec![1]),
                (273, 4, vec![8, 16]),
                (277, 3, vec![1]),
                (278, 3, vec![2]),
                (279, 4, vec![8, 8]),
            ];
            Self { big_endian: false, entries: entries.into(), end: Vec::new() }
        }

        /// The same pixels in two tiles.
        fn tiles() -> Self {
            let file = Self::strips().without(273).without(278).without(279);
            file.with(322, 3, [16]).with(323, 3, [2]).with(324, 4, [8, 16]).with(325, 4, [8, 8])
        }

        fn with(mut self, tag: u16, kind: u16, values: impl Into<Vec<u32>>) -> Self {
            match self.entries.iter_mut().find(|entry| entry.0 == tag) {
                Some(entry) => *entry = (tag, kind, values.into()),
                None => self.entries.push((tag, kind, values.into())),
            }
            self
        }

        fn without(mut self, tag: u16) -> Self {
            self.entries.retain(|entry| entry.0 != tag);
            self
        }

        fn number(&self, number: u32, size: u64) -> Vec<u8> {
            let size = size as usize;
            if self.big_endian {
                u64::from(number).to_be_bytes()[8 - size..].to_vec()
            } else {
                u64::from(number).to_le_bytes()[..size].to_vec()
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let mut file = if self.big_endian { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
            file.extend(self.number(24, 4));
            file.extend([7; 16]);
            file.extend(self.number(self.entries.len() as u32, 2));
            let mut long_values = Vec::new();
            let long_offset = 24 + 2 + 12 * self.entries.len() + 4;
            for (tag, kind, values) in &self.entries {
                file.extend(self.number(u32::from(*tag), 2));
                file.extend(self.number(u32::from(*kind), 2));
                file.extend(self.number(values.len() as u32, 4));
                let size = value_size(u64::from(*kind)).unwrap_or(4);
                let mut bytes: Vec<u8> = values.iter().flat_map(|&value| self.number(value, size)).collect();
                if bytes.len() > 4 {
                    file.extend(self.number((long_offset + long_values.len()) as u32, 4));
                    long_values.append(&mut bytes);
                } else {
                    bytes.resize(4, 0);
                    file.append(&mut bytes);
                }
            }
            file.extend([0; 4]);
            file.append(&mut long_values);
            file.extend(&self.end);
            file
        }

        fn check(&self) -> Result<TiffHeader, String> {
            check(&self.bytes(), &LIMITS)
        }

        #[track_caller]
        fn passes(&self) -> TiffHeader {
            self.check().unwrap()
        }

        #[track_caller]
        fn fails(&self, reason: &str) {
            let found = self.check().unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }

    #[test]
    fn the_declared_facts_are_returned() {
        let grey = TiffHeader { width: 4, height: 4, bits_per_pixel: 8, unpacked_bytes: 16 };
        for big_endian in [false, true] {
            assert_eq!(TiffFile { big_endian, ..TiffFile::strips() }.passes(), grey);
            assert_eq!(
                TiffFile { big_endian, ..TiffFile::tiles() }.passes(),
                TiffHeader { unpacked_bytes: 64, ..grey }
            );
        }
        // One number of bits applies to all samples; a bit map has none.
        let rgb = TiffFile::strips().with(277, 3, [3]);
        assert_eq!(rgb.passes().bits_per_pixel, 24);
        assert_eq!(rgb.clone().with(258, 3, [8, 8, 16]).passes().bits_per_pixel, 32);
        assert_eq!(rgb.passes().unpacked_bytes, 48);
        let bits = TiffFile::strips().without(258).without(259).without(277);
        let header = bits.passes();
        assert_eq!((header.bits_per_pixel, header.unpacked_bytes), (1, 4));
        // Each plane has its own strips.
        let planes = TiffFile::strips().with(277, 3, [2]).with(284, 3, [2]).with(278, 3, [4]);
        assert_eq!((planes.passes().bits_per_pixel, planes.passes().unpacked_bytes), (16, 32));
        // Any whole-number type is accepted, and a missing RowsPerStrip means one strip.
        let one = TiffFile::strips().without(278).with(273, 16, [8]).with(279, 1, [16]);
        assert_eq!(one.passes(), grey);
        assert_eq!(one.with(278, 4, [u32::MAX]).passes(), grey);
    }

    #[test]
    fn other_files_are_rejected() {
        let good = TiffFile::strips().bytes();
        for (begin, reason) in
            [(*b"II+\0", "BigTIFF"), (*b"MM\0+", "BigTIFF"), (*b"\x89PNG", "begin"), (*b"II\0*", "begin")]
        {
            let file = [&begin[..], &good[4..]].concat();
            assert!(check(&file, &LIMITS).unwrap_err().contains(reason));
        }
        assert!(check(&[], &LIMITS).is_err());
        for tag in [256, 257] {
            TiffFile::strips().without(tag).fails("it has no Image");
            TiffFile::strips().with(tag, 3, [0]).fails("is 0 or too large");
            TiffFile::strips().with(tag, 3, [4, 4]).fails("2 values, not one");
            TiffFile::strips().with(tag, 3, []).fails("0 values, not one");
            TiffFile::strips().with(tag, 11, [4]).fails("type 11");
        }
    }

    #[test]
    fn values_must_be_inside_the_file() {
        let mut file = TiffFile::strips();
        file.entries.push((65_000, 12, vec![0; 10]));
        file.passes();
        let bytes = file.bytes();
        assert!(check(&bytes[..bytes.len() - 1], &LIMITS).unwrap_err().contains("tag 65000"));
        // An entry of an unknown type has no values to check.
        file.entries.push((65_001, 99, vec![u32::MAX; 1000]));
        let bytes = file.bytes();
        let length = bytes.len() - 4000;
        check(&bytes[..length], &LIMITS).unwrap();
    }

    #[test]
    fn tags_that_the_decoder_reads_must_have_few_values() {
        let long = || vec![1; MAX_VALUES as usize + 1];
        TiffFile::strips().with(274, 1, long()).fails("its Orientation tag has 262145 values");
        TiffFile::strips().with(274, 1, &long()[1..]).passes();
        // Other tags may have any length: profiles, for example.
        TiffFile::strips().with(34_675, 7, long().repeat(8)).with(700, 1, long()).with(65_000, 4, long()).passes();
        // Duplicates count.
        let mut file = TiffFile::strips();
        for _ in 0..3 {
            file.entries.push((274, 1, long().split_off(1)));
        }
        file.passes();
        file.entries.push((262, 1, long().split_off(1)));
        file.fails("too many together");
    }

    #[test]
    fn the_last_of_several_entries_counts() {
        let mut file = TiffFile::strips();
        file.entries.push((259, 3, vec![7]));
        file.fails("compression 7 (JPEG)");
        file.entries.push((259, 3, vec![5]));
        file.passes();
        // An entry of an unknown type is ignored.
        file.entries.push((259, 99, vec![7]));
        file.passes();
    }

    #[test]
    fn pixels_must_have_few_samples_of_few_bits() {
        let samples = |n: u32| TiffFile::strips().with(277, 4, [n]);
        assert_eq!(samples(8).passes().bits_per_pixel, 64);
        samples(9).fails("9 samples");
        samples(65_535).fails("65535 samples");
        samples(0).fails("0 samples");
        samples(3).with(258, 3, [8, 8]).fails("3 samples, and its BitsPerSample tag 2 values");
        for tag in [258, 338, 339] {
            samples(8).with(tag, 3, [8; 8]).passes();
            samples(8).with(tag, 3, [8; 9]).fails("9 values; at most 8");
        }
        for bits in [0, 65, 65_535] {
            samples(1).with(258, 3, [bits]).fails("bits; 1 to 64");
        }
        samples(1).with(258, 3, []).fails("BitsPerSample tag 0 values");
    }

    #[test]
    fn compressions_of_the_decoder_except_jpeg_are_accepted() {
        for number in [1, 4, 5, 8, 32_773, 32_946] {
            TiffFile::strips().with(259, 3, [number]).passes();
        }
        for number in [0, 2, 3, 6, 7, 34_925, 50_000, 50_001, 65_535, 65_537] {
            TiffFile::strips().with(259, 4, [number]).fails("is not supported");
        }
    }

    #[test]
    fn tiles_must_not_be_much_larger_than_images() {
        let tile = |width, height| {
            TiffFile::tiles().with(324, 4, [8]).with(325, 4, [16]).with(322, 4, [width]).with(323, 4, [height])
        };
        tile(16, 16).passes();
        tile(2000, 1000).passes();
        tile(2016, 4).fails("at most 2000 a side");
        tile(4, u32::MAX).fails("at most 2000 a side");
        tile(u32::MAX, u32::MAX).fails("at most 2000 a side");
        tile(2000, 1100).fails("2060225 in all");
        tile(0, 16).fails("TileWidth tag is 0");
        tile(16, 0).fails("TileLength tag is 0");
        TiffFile::tiles().without(322).fails("no TileWidth");
        // Small images may be in tiles of the usual size, even if no larger images are accepted.
        let small = TiffLimits { max_side: 100, max_pixels: 1000 };
        check(&tile(1024, 1024).bytes(), &small).unwrap();
        assert!(check(&tile(1025, 16).bytes(), &small).is_err());
    }

    #[test]
    fn the_number_of_strips_or_tiles_must_match() {
        for file in [TiffFile::strips().with(278, 3, [3]), TiffFile::tiles().with(323, 3, [3])] {
            file.passes();
        }
        TiffFile::strips().with(278, 3, [4]).fails("it needs 1 strips but has 2 offsets and 2 byte counts");
        TiffFile::strips().with(279, 4, [8]).fails("2 offsets and 1 byte counts");
        TiffFile::tiles().with(323, 3, [1]).fails("it needs 4 tiles but has 2 offsets");
        TiffFile::tiles().with(322, 3, [3]).fails("it needs 4 tiles but has 2 offsets");
        TiffFile::strips().with(278, 3, [0]).fails("RowsPerStrip tag is 0");
        // No overflow occurs with 2^32 - 1 rows in as many strips, of two planes.
        let many = TiffFile::strips().with(257, 4, [u32::MAX]).with(278, 3, [1]).with(277, 3, [2]).with(284, 3, [2]);
        many.fails("it needs 8589934590 strips");
        let many = TiffFile::tiles().with(257, 4, [u32::MAX]).with(256, 4, [u32::MAX]);
        many.with(322, 3, [1]).with(323, 3, [1]).fails("tiles but has 2 offsets");
        TiffFile::strips().with(324, 4, [8, 16]).fails("or it has both");
        TiffFile::strips().without(279).fails("incomplete");
        TiffFile::tiles().without(324).fails("incomplete");
        TiffFile::strips().with(273, 2, [8, 16]).fails("StripOffsets tag is of type 2");
        TiffFile::strips().with(279, 5, [8, 16]).fails("StripByteCounts tag is of type 5");
    }

    #[test]
    fn strips_must_not_share_bytes() {
        let strips =
            |offsets: [u32; 2], counts: [u32; 2]| TiffFile::strips().with(273, 4, offsets).with(279, 4, counts);
        strips([8, 16], [8, 8]).passes();
        strips([16, 8], [8, 8]).passes();
        strips([8, 8], [8, 8]).fails("its strips share bytes of the file");
        strips([8, 15], [8, 8]).fails("share");
        strips([16, 8], [8, 9]).fails("share");
        strips([8, 10], [16, 1]).fails("share");
        TiffFile::tiles().with(324, 4, [8, 9]).fails("its tiles share bytes of the file");
        // Empty strips share nothing, wherever they are. Deflate data is read whatever its length is.
        strips([0, 0], [0, 0]).passes();
        strips([8, 8], [0, 8]).passes();
        strips([8, 9], [0, 0]).with(259, 3, [8]).passes();
        for deflate in [8, 32_946] {
            strips([8, 8], [0, 0]).with(259, 3, [deflate]).fails("share");
        }
    }

    #[test]
    fn strips_must_be_inside_the_file() {
        let strips =
            |offsets: [u32; 2], counts: [u32; 2]| TiffFile::strips().with(273, 4, offsets).with(279, 4, counts);
        let length = strips([8, 16], [8, 8]).bytes().len() as u32;
        // The byte count of the last strip may be too large, as some writers make it.
        strips([8, 16], [8, u32::MAX]).passes();
        strips([8, length - 1], [8, 8]).passes();
        strips([8, length], [8, 0]).passes();
        strips([8, length], [8, 8]).fails("its strips are not all inside the file");
        strips([8, length + 1], [8, 0]).fails("not all inside the file");
        strips([u32::MAX, 8], [u32::MAX, 8]).fails("not all inside the file");
        strips([8, 16], [u32::MAX, u32::MAX]).fails("share");
        let tile = TiffFile::tiles().with(324, 4, [8, u32::MAX]);
        tile.fails("its tiles are not all inside the file");
    }

    #[test]
    fn fax_data_must_be_in_short_strips() {
        let fax = |bytes: u32| {
            let end = vec![0; MAX_FAX_BYTES as usize + 8];
            TiffFile { end, ..TiffFile::strips() }.with(259, 3, [4]).without(278).with(273, 4, [8]).with(
                279,
                4,
                [bytes],
            )
        };
        fax(MAX_FAX_BYTES as u32).passes();
        fax(MAX_FAX_BYTES as u32 + 1).fails("its strips of fax data are too long");
        fax(MAX_FAX_BYTES as u32 + 1).with(259, 3, [5]).passes();
        // Only bytes inside the file count.
        TiffFile::strips().with(259, 3, [4]).with(279, 4, [8, u32::MAX]).passes();
    }

    #[test]
    fn damaged_files_do_not_cause_a_panic() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = move |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % below
        };
        for file in [TiffFile::strips(), TiffFile::tiles(), TiffFile { big_endian: true, ..TiffFile::tiles() }] {
            let good = file.with(258, 3, [8; 3]).with(277, 3, [3]).with(274, 5, [1, 1]).bytes();
            check(&good, &LIMITS).unwrap();
            // The directory ends with the offset of the next one; values follow it.
            (0..good.len() - 4).for_each(|end| assert!(check(&good[..end], &LIMITS).is_err(), "{end}"));
            let mut rejected = 0;
            for _ in 0..20_000 {
                let mut bad = good.clone();
                for _ in 0..=next(4) {
                    let value = [0, 1, 0x7F, 0x80, 0xFF, next(256) as u8][next(6)];
                    bad[next(good.len())] = value;
                }
                rejected += u32::from(check(&bad, &LIMITS).is_err());
            }
            assert!((2_000..18_000).contains(&rejected), "{rejected}");
        }
    }
}
