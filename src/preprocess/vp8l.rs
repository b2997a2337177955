//! Counts the groups of prefix codes that a lossless WebP stream (VP8L) declares, without decoding its pixels.
//!
//! A stream's entropy image names a group of five prefix codes for each block of the image. It may name up to 65,536
//! groups, however small the image is. The decoder (image-webp 0.2.4) builds all of them, each in up to 68 KB: 9 MB
//! of file take 4.6 GB. The limits on width and height do not detect that. So the groups are counted here before the
//! decoder runs, and the caller rejects a file that has more groups than it accepts. libwebp's encoder makes at most
//! 2600.
//!
//! The groups' own codes and the image follow in the stream and are not read. Only the transforms and the entropy
//! image are read, which are small images coded with one group each. Their pixels are not stored: copies and hits in
//! the colour cache repeat earlier pixels or are zero, so the largest group number is that of a literal pixel.
//!
//! The bits are read exactly as image-webp reads them, including two cases in which it is lenient. Codes that need no
//! bits are still read after the end of the data, where everything else fails. [`PrefixCode::from_lengths`] describes
//! the other case.

/// Number of bits of a prefix code that the first table decodes.
const TABLE_BITS: usize = 10;

/// Number of bits that are left for a second table: a code has at most 15 bits.
const LINK_BITS: usize = 5;

/// The order in which the lengths of the code that codes lengths are stored.
const LENGTH_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Symbols of the green code: values, then lengths of copies, then entries of the colour cache.
const GREEN_VALUES: u16 = 256;
const COPY_LENGTHS: u16 = 24;
const COPY_DISTANCES: u16 = 40;

/// Returns the number of groups, 1 to 65,536, that the payload of a `VP8L` chunk declares.
///
/// Returns `None` if the payload is broken or ends before the number is known. No file that image-webp decodes gives
/// `None`, so it is safe to reject the file then. It is also safe to go on: the decoder then fails before it builds
/// these groups.
///
/// `chunk` must be all bytes that the decoder can read: up to the size in the chunk's header or the end of the file,
/// whichever comes first. The decoder does not stop at the end of an animation frame that encloses the chunk.
pub(super) fn prefix_groups(chunk: &[u8]) -> Option<u32> {
    let ([signature, fields @ ..], stream) = chunk.split_first_chunk::<5>()?;
    // From the lowest bit: width and height, each less one in 14 bits; whether alpha is used; three bits of version.
    let fields = u32::from_le_bytes(*fields);
    if *signature != 0x2F || fields >> 29 != 0 {
        return None;
    }
    count_groups(stream, (fields & 0x3FFF) + 1, (fields >> 14 & 0x3FFF) + 1)
}

/// Does the same as [`prefix_groups`] for an `ALPH` chunk with lossless compression. `stream` is its payload after
/// the first byte.
///
/// The stream does not contain its size. The decoder uses the frame's size in an animation, else the canvas's.
pub(super) fn alpha_prefix_groups(stream: &[u8], width: u32, height: u32) -> Option<u32> {
    // The decoder uses the lower 16 bits.
    count_groups(stream, width & 0xFFFF, height & 0xFFFF)
}

fn count_groups(stream: &[u8], mut width: u32, height: u32) -> Option<u32> {
    let mut bits = BitReader::new(stream);
    let mut transforms = [false; 4];
    while bits.read(1)? == 1 {
        let transform = bits.read(2)?;
        if std::mem::replace(transforms.get_mut(transform as usize)?, true) {
            return None;
        }
        match transform {
            // Prediction and colour have one pixel per block.
            0 | 1 => {
                let size = bits.read(3)? + 2;
                largest_group(&mut bits, blocks(width, size), blocks(height, size))?;
            }
            // Subtraction of green has no data.
            2 => {}
            // Palette. In a small palette, several indices share a pixel.
            _ => {
                let colours = bits.read(8)? + 1;
                largest_group(&mut bits, colours, 1)?;
                let shared = match colours {
                    1..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = blocks(width, shared);
            }
        }
    }
    cache_size(&mut bits)?;
    if bits.read(1)? == 0 {
        return Some(1);
    }
    let size = bits.read(3)? + 2;
    Some(1 + largest_group(&mut bits, blocks(width, size), blocks(height, size))?)
}

/// Returns the number of blocks of `1 << bits` pixels that cover `side` pixels.
fn blocks(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// Reads the number of entries of the colour cache; 0 if there is no cache.
fn cache_size(bits: &mut BitReader<'_>) -> Option<u16> {
    if bits.read(1)? == 0 {
        return Some(0);
    }
    let size = bits.read(4)?;
    (1..=11).contains(&size).then_some(1 << size)
}

/// Reads an image that is coded with one group and returns its largest group number. A group number is a pixel's red
/// and green.
///
/// The time depends on the pixels that need bits. An image that needs no bits takes no time.
fn largest_group(bits: &mut BitReader<'_>, width: u32, height: u32) -> Option<u32> {
    let cache = cache_size(bits)?;
    let green = PrefixCode::read(bits, GREEN_VALUES + COPY_LENGTHS + cache)?;
    let red = PrefixCode::read(bits, 256)?;
    let blue = PrefixCode::read(bits, 256)?;
    let alpha = PrefixCode::read(bits, 256)?;
    let distance = PrefixCode::read(bits, COPY_DISTANCES)?;

    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Some(0);
    }
    match (green.only(), red.only(), blue.only(), alpha.only()) {
        (Some(green), Some(red), Some(_), Some(_)) if green < GREEN_VALUES => return Some(group_number(red, green)),
        // All pixels are hits in an empty cache.
        (Some(green), ..) if green >= GREEN_VALUES + COPY_LENGTHS => return Some(0),
        _ => {}
    }
    let mut largest = 0;
    let mut at = 0;
    while at < pixels {
        let symbol = green.symbol(bits)?;
        if symbol < GREEN_VALUES {
            let number = group_number(red.symbol(bits)?, symbol);
            blue.symbol(bits)?;
            alpha.symbol(bits)?;
            largest = largest.max(number);
            at += 1;
        } else if symbol < GREEN_VALUES + COPY_LENGTHS {
            let length = u64::from(copy_extent(bits, symbol - GREEN_VALUES)?);
            let prefix = distance.symbol(bits)?;
            copy_extent(bits, prefix)?;
            // The decoder also rejects a copy from before the first pixel. The count does not depend on it.
            if at == 0 || length > pixels - at {
                return None;
            }
            at += length;
        } else {
            at += 1;
        }
    }
    Some(largest)
}

fn group_number(red: u16, green: u16) -> u32 {
    u32::from(red) << 8 | u32::from(green)
}

/// Reads the length or the distance of a copy: a symbol gives the magnitude, bits give the rest.
fn copy_extent(bits: &mut BitReader<'_>, prefix: u16) -> Option<u32> {
    let prefix = u32::from(prefix);
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some(((2 + (prefix & 1)) << extra) + bits.read(extra)? + 1)
}

/// Reads bits from the lowest of each byte.
struct BitReader<'a> {
    rest: &'a [u8],
    /// The next bits. Above the first `count` bits there may be bits of `rest`; reading them again sets the same bits.
    buffer: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, buffer: 0, count: 0 }
    }

    /// Returns at least the next 18 bits, with zeros after the end of the data. No read takes more bits at once.
    #[inline(always)]
    fn ahead(&mut self) -> u64 {
        if self.count < 18 {
            self.fill();
        }
        self.buffer
    }

    fn fill(&mut self) {
        if let Some(word) = self.rest.first_chunk() {
            self.buffer |= u64::from_le_bytes(*word) << self.count;
            self.rest = self.rest.get((63 - self.count as usize) / 8..).unwrap_or_default();
            self.count |= 56;
        } else {
            while self.count < 56
                && let Some((&byte, rest)) = self.rest.split_first()
            {
                self.buffer |= u64::from(byte) << self.count;
                self.count += 8;
                self.rest = rest;
            }
        }
    }

    /// Takes bits that [`BitReader::ahead`] has returned, if there are as many.
    #[inline(always)]
    fn skip(&mut self, count: u32) -> Option<()> {
        self.count = self.count.checked_sub(count)?;
        self.buffer >>= count;
        Some(())
    }

    /// Takes up to 18 bits.
    fn read(&mut self, count: u32) -> Option<u32> {
        let value = self.ahead() & ((1 << count) - 1);
        self.skip(count)?;
        Some(value as u32)
    }
}

/// An entry of a code's table: the meaning of some bits.
#[derive(Clone, Copy)]
enum CodeEntry {
    /// No code starts with these bits.
    Empty,
    Symbol {
        length: u8,
        symbol: u16,
    },
    /// The bits after the first [`TABLE_BITS`] are an index into the second table of this number.
    Link(u16),
}

/// A prefix code as a table whose index is the next bits. Second tables for longer codes follow the first table.
struct PrefixCode {
    entries: Vec<CodeEntry>,
    mask: usize,
}

impl PrefixCode {
    /// Reads the description of a code over `symbols` symbols.
    fn read(bits: &mut BitReader<'_>, symbols: u16) -> Option<Self> {
        if bits.read(1)? == 1 {
            let has_two_symbols = bits.read(1)? == 1;
            let width = if bits.read(1)? == 1 { 8 } else { 1 };
            let first = bits.read(width)? as u16;
            let second = if has_two_symbols { bits.read(8)? as u16 } else { first };
            return (first.max(second) < symbols).then(|| match has_two_symbols {
                true => Self::two(first, second),
                false => Self::single(first),
            });
        }
        let mut lengths = [0; LENGTH_ORDER.len()];
        let count = 4 + bits.read(4)? as usize;
        for &at in LENGTH_ORDER.iter().take(count) {
            lengths[at] = bits.read(3)? as u8;
        }
        let code = Self::from_lengths(&lengths)?;
        Self::from_lengths(&lengths_coded_with(&code, bits, symbols)?)
    }

    /// A code with one symbol, which needs no bits.
    fn single(symbol: u16) -> Self {
        Self { entries: vec![CodeEntry::Symbol { length: 0, symbol }], mask: 0 }
    }

    /// A code with two symbols, of one bit each.
    fn two(zero: u16, one: u16) -> Self {
        Self { entries: [zero, one].map(|symbol| CodeEntry::Symbol { length: 1, symbol }).into(), mask: 1 }
    }

    /// Builds the canonical code with these lengths, at most 15; 0 for a symbol that does not occur. Rejects a code
    /// that is not complete.
    ///
    /// image-webp checks completeness in 16 bits, and so accepts a few codes that are overfull. To read them in the
    /// same way, this function wraps where image-webp wraps and fills the table in the same order: a short code
    /// replaces earlier entries, a long code must not.
    fn from_lengths(lengths: &[u8]) -> Option<Self> {
        let mut histogram = [0u16; TABLE_BITS + LINK_BITS + 1];
        for &length in lengths.iter().filter(|&&length| length != 0) {
            *histogram.get_mut(usize::from(length))? += 1;
        }
        let longest = histogram.iter().rposition(|&count| count != 0)?;
        if histogram.iter().sum::<u16>() == 1 {
            return Some(Self::single(lengths.iter().position(|&length| length != 0)? as u16));
        }
        let mut next = [0u16; TABLE_BITS + LINK_BITS + 1];
        let mut code = 0u16;
        for (next, &count) in next.iter_mut().zip(&histogram).take(longest + 1).skip(1) {
            *next = code;
            code = code.wrapping_add(count) << 1;
        }
        if code != 2 << longest {
            return None;
        }

        let size = 1 << longest.min(TABLE_BITS);
        let mut entries = vec![CodeEntry::Empty; size];
        for (symbol, &length) in lengths.iter().enumerate().filter(|&(_, &length)| length != 0) {
            let entry = CodeEntry::Symbol { length, symbol: symbol as u16 };
            let length = usize::from(length);
            let code = usize::from(next[length].reverse_bits() >> (16 - length));
            next[length] = next[length].wrapping_add(1);
            if length <= TABLE_BITS {
                entries.iter_mut().take(size).skip(code).step_by(1 << length).for_each(|slot| *slot = entry);
                continue;
            }
            let start = match entries[code & (size - 1)] {
                CodeEntry::Symbol { .. } => return None,
                CodeEntry::Link(number) => second_table(number),
                CodeEntry::Empty => {
                    let start = entries.len();
                    entries[code & (size - 1)] = CodeEntry::Link(((start - size) >> LINK_BITS) as u16);
                    entries.resize(start + (1 << LINK_BITS), CodeEntry::Empty);
                    start
                }
            };
            let table = entries.iter_mut().skip(start).take(1 << LINK_BITS);
            for slot in table.skip(code >> TABLE_BITS).step_by(1 << (length - TABLE_BITS)) {
                if !matches!(slot, CodeEntry::Empty) {
                    return None;
                }
                *slot = entry;
            }
        }
        Some(Self { entries, mask: size - 1 })
    }

    /// Returns the only symbol of a code that needs no bits.
    fn only(&self) -> Option<u16> {
        match self.entries[..] {
            [CodeEntry::Symbol { symbol, .. }] => Some(symbol),
            _ => None,
        }
    }

    #[inline(always)]
    fn symbol(&self, bits: &mut BitReader<'_>) -> Option<u16> {
        let ahead = bits.ahead() as usize;
        let mut entry = self.entries.get(ahead & self.mask);
        if let Some(&CodeEntry::Link(number)) = entry {
            entry = self.entries.get(second_table(number) + (ahead >> TABLE_BITS & ((1 << LINK_BITS) - 1)));
        }
        let Some(&CodeEntry::Symbol { length, symbol }) = entry else { return None };
        bits.skip(u32::from(length))?;
        Some(symbol)
    }
}

/// Returns the index at which a second table starts.
#[inline(always)]
fn second_table(number: u16) -> usize {
    (1 << TABLE_BITS) + (usize::from(number) << LINK_BITS)
}

/// Reads the lengths of a code's symbols, which are coded with `code`.
fn lengths_coded_with(code: &PrefixCode, bits: &mut BitReader<'_>, symbols: u16) -> Option<Vec<u8>> {
    let symbols = usize::from(symbols);
    let mut tokens = symbols;
    if bits.read(1)? == 1 {
        let width = 2 + 2 * bits.read(3)?;
        tokens = 2 + bits.read(width)? as usize;
        if tokens > symbols {
            return None;
        }
    }
    let mut lengths = Vec::with_capacity(symbols);
    let mut previous = 8;
    while lengths.len() < symbols && tokens > 0 {
        tokens -= 1;
        let token = code.symbol(bits)?;
        let (width, min_repeats, length) = match token {
            0 => (0, 1, 0),
            1..=15 => {
                previous = token as u8;
                (0, 1, previous)
            }
            16 => (2, 3, previous),
            17 => (3, 3, 0),
            _ => (7, 11, 0),
        };
        let end = lengths.len() + min_repeats + bits.read(width)? as usize;
        if end > symbols {
            return None;
        }
        lengths.resize(end, length);
    }
    lengths.resize(symbols, 0);
    Some(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct BitWriter {
        bytes: Vec<u8>,
        count: u32,
    }

    impl BitWriter {
        /// Starts the payload of a `VP8L` chunk, up to the transforms.
        fn lossless(width: u32, height: u32) -> Self {
            Self::default().put(0x2F, 8).put(width - 1, 14).put(height - 1, 14).put(0, 4)
        }

        fn put(mut self, value: u32, count: u32) -> Self {
            for bit in 0..count {
                if self.count.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                if let Some(last) = self.bytes.last_mut() {
                    *last |= ((value >> bit & 1) as u8) << (self.count % 8);
                }
                self.count += 1;
            }
            self
        }

        fn zeros(self, bytes: usize) -> Self {
            (0..bytes).fold(self, |w, _| w.put(0, 8))
        }

        /// Writes the highest bit first, as prefix codes are stored.
        fn code(self, code: u32, length: u32) -> Self {
            self.put(code.reverse_bits() >> (32 - length), length)
        }

        fn transform(self, which: u32) -> Self {
            self.put(1, 1).put(which, 2)
        }

        fn cache(self, bits: u32) -> Self {
            if bits == 0 { self.put(0, 1) } else { self.put(1, 1).put(bits, 4) }
        }

        /// Writes no more transforms, no cache, and the start of an entropy image with blocks of four pixels, up to
        /// its cache.
        fn entropy_image(self) -> Self {
            self.put(0, 1).cache(0).put(1, 1).put(0, 3)
        }

        /// Writes codes of one symbol each.
        fn singles<const N: usize>(self, symbols: [u32; N]) -> Self {
            symbols.into_iter().fold(self, |w, symbol| w.put(0b101, 3).put(symbol, 8))
        }

        /// Writes a code of two symbols.
        fn two(self, zero: u32, one: u32) -> Self {
            self.put(0b111, 3).put(zero, 8).put(one, 8)
        }

        /// Writes the code that codes lengths. These symbols, in ascending order, have codes of `length` bits.
        fn code_of_lengths(self, symbols: &[usize], length: u32) -> Self {
            let header = self.put(0, 1).put(15, 4);
            LENGTH_ORDER.iter().fold(header, |w, at| w.put(if symbols.contains(at) { length } else { 0 }, 3))
        }

        /// Writes a code with these lengths, for all symbols.
        fn lengths(self, lengths: &[u32]) -> Self {
            let header = self.code_of_lengths(&std::array::from_fn::<_, 16, _>(|at| at), 4).put(0, 1);
            lengths.iter().fold(header, |w, &length| w.code(length, 4))
        }

        fn groups(&self) -> Option<u32> {
            prefix_groups(&self.bytes)
        }

        /// Checks that this stream gives the number of groups, and that no truncation of it does or causes a panic.
        fn check(&self, groups: u32) {
            assert_eq!(self.groups(), Some(groups));
            assert!((0..self.bytes.len()).all(|end| prefix_groups(&self.bytes[..end]).is_none()));
        }
    }

    /// Returns the lengths of a green code without a cache.
    fn green(lengths: &[(usize, u32)]) -> [u32; 280] {
        let mut all = [0; 280];
        lengths.iter().for_each(|&(symbol, length)| all[symbol] = length);
        all
    }

    #[test]
    fn without_an_entropy_image_there_is_one_group() {
        BitWriter::lossless(640, 480).put(0, 1).cache(0).put(0, 1).check(1);
        BitWriter::lossless(640, 480).put(0, 1).cache(11).put(0, 1).check(1);
        assert_eq!(BitWriter::lossless(640, 480).put(0, 1).cache(12).put(0, 1).groups(), None);
        assert_eq!(BitWriter::lossless(640, 480).put(0, 1).put(1, 1).put(0, 4).put(0, 1).groups(), None);
    }

    #[test]
    fn signature_and_version_are_checked() {
        let good = BitWriter::lossless(1, 1).zeros(1).bytes;
        assert_eq!(prefix_groups(&good), Some(1));
        let changed = |at: usize, bits: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= bits;
            prefix_groups(&bytes)
        };
        assert_eq!((changed(0, 1), changed(4, 0x20), changed(4, 0x80)), (None, None, None));
        // The flag for alpha has no effect.
        assert_eq!(changed(4, 0x10), Some(1));
    }

    #[test]
    fn groups_are_counted_by_the_largest_pixel() {
        // One block that needs no bits.
        BitWriter::lossless(4, 4).entropy_image().cache(0).singles([0, 0, 0, 0, 0]).check(1);
        BitWriter::lossless(4, 4).entropy_image().cache(0).singles([255, 255, 0, 0, 0]).check(65_536);
        // Three blocks of groups 0, 299 and 200. Blue and alpha have no effect.
        let image = BitWriter::lossless(9, 3).entropy_image().cache(0);
        let image = image.lengths(&green(&[(0, 1), (43, 2), (200, 2)])).two(0, 1).singles([255, 255, 0]);
        image.put(0, 2).code(0b10, 2).put(1, 1).code(0b11, 2).put(0, 1).check(300);
        // Two blocks, the second of the last group.
        let image = BitWriter::lossless(4, 8).entropy_image().cache(0).two(0, 255).two(0, 255).singles([0, 0, 0]);
        image.put(0b1100, 4).check(65_536);
    }

    #[test]
    fn copies_and_hits_in_the_cache_repeat_pixels() {
        // 800 blocks. The code has the literal 7, a copy of 769 to 1024 with 8 bits for the rest, and a cache hit.
        let mut lengths = green(&[(7, 1), (256 + 19, 2)]).to_vec();
        lengths.extend([2, 0]);
        let image =
            BitWriter::lossless(3200, 4).entropy_image().cache(1).lengths(&lengths).singles([1, 0, 0]).two(38, 39);
        // A literal, a hit, a copy of 797, and a hit for the last block.
        let copied = |extent: u32| image.clone().code(0b0, 1).code(0b11, 2).code(0b10, 2).put(extent - 769, 8);
        copied(797).put(1, 1).put(0x3_FFFF, 18).code(0b11, 2).check(264);
        copied(798).put(0, 1).put(0, 18).check(264);
        // A copy past the last pixel, and a copy before any pixel.
        assert_eq!(copied(799).zeros(9).groups(), None);
        assert_eq!(image.clone().code(0b10, 2).zeros(9).groups(), None);
    }

    #[test]
    fn long_codes_are_read() {
        // Lengths 1, 2, .. 14, 15, 15: the code of symbol n is n ones and a zero; the last code is 15 ones.
        let lengths: Vec<u32> = (1..=15).chain([15]).chain([0; 264]).collect();
        for symbol in 0..16 {
            let image = BitWriter::lossless(1, 1).entropy_image().cache(0).lengths(&lengths).singles([3, 0, 0, 0]);
            image.put((1 << symbol) - 1, (symbol + 1).min(15)).check(3 * 256 + symbol + 1);
        }
    }

    #[test]
    fn lengths_may_be_repeated_and_end_early() {
        // Their codes are 000 to 111 in this order.
        let start =
            BitWriter::lossless(1, 1).entropy_image().cache(0).code_of_lengths(&[0, 1, 8, 9, 10, 16, 17, 18], 3);
        // 256 symbols of 8 bits, the length that the first token repeats: 42 tokens of 6 and one of 4 are 43 tokens.
        let image = (0..42).fold(start.clone().put(1, 1).put(3, 3).put(43 - 2, 8), |w, _| w.code(0b101, 3).put(3, 2));
        image.code(0b101, 3).put(1, 2).singles([0, 0, 0, 0]).code(0xA5, 8).check(0xA5 + 1);
        // 130 zeros, 3 zeros, 1, a zero, 1: five tokens.
        let image = start.clone().put(1, 1).put(0, 3).put(5 - 2, 2).code(0b111, 3).put(130 - 11, 7);
        let image = image.code(0b110, 3).put(0, 3).code(0b001, 3).code(0b000, 3).code(0b001, 3);
        image.singles([0, 0, 0, 0]).put(1, 1).check(135 + 1);
        // More zeros than there are symbols, then more tokens.
        let image = (0..3).fold(start.clone().put(0, 1), |w, _| w.code(0b111, 3).put(127, 7));
        assert_eq!(image.zeros(99).groups(), None);
        assert_eq!(start.put(1, 1).put(4, 3).put(281 - 2, 10).zeros(99).groups(), None);
    }

    #[test]
    fn codes_must_be_complete() {
        let image = |lengths: &[u32], pixel: u32| {
            let all: Vec<u32> = lengths.iter().copied().chain([0; 280]).take(280).collect();
            let image = BitWriter::lossless(1, 1).entropy_image().cache(0).lengths(&all).singles([0, 0, 0, 0]);
            image.put(pixel, 1).zeros(9).groups()
        };
        assert_eq!(image(&[], 0), None);
        assert_eq!(image(&[0, 0, 0, 9], 1), Some(4));
        assert_eq!(image(&[1, 1], 1), Some(2));
        assert_eq!(image(&[1, 2], 0), None);
        assert_eq!(image(&[1, 1, 1], 0), None);
        assert_eq!(image(&[8; 256], 0), Some(1));
        assert_eq!(image(&[8; 257], 0), None);
        assert_eq!(image(&[15; 280], 0), None);
        // A complete code from 15 bits to 1, and two more of 1: image-webp's sum wraps, and the last ones win.
        let overfull: Vec<u32> = [15].into_iter().chain((1..=15).rev()).chain([1, 1]).collect();
        assert_eq!((image(&overfull, 0), image(&overfull, 1)), (Some(17 + 1), Some(16 + 1)));
        // In the reverse order, long codes would replace short ones.
        let overfull: Vec<u32> = overfull.into_iter().rev().collect();
        assert_eq!((image(&overfull, 0), image(&overfull, 1)), (None, None));
    }

    #[test]
    fn symbols_beyond_the_alphabet_are_rejected() {
        let image = BitWriter::lossless(1, 1).entropy_image().cache(0).singles([0, 0, 0, 0]);
        image.clone().singles([39]).check(1);
        image.clone().two(38, 39).check(1);
        assert_eq!(image.clone().singles([40]).groups(), None);
        assert_eq!(image.clone().two(0, 40).groups(), None);
    }

    #[test]
    fn transforms_are_skipped() {
        // Prediction, blocks of 4 pixels: 16 × 2 of one bit each.
        let image = BitWriter::lossless(64, 8).transform(0).put(0, 3).cache(0).two(0, 1).singles([1, 2, 3, 0]);
        // A palette of 4 colours, one bit each: four indices share a pixel.
        let image = image.put(0xDEAD_BEEF, 32).transform(3).put(3, 8).cache(0).two(2, 3).singles([1, 2, 3, 0]);
        // Colour, blocks of 8 pixels: 2 × 1.
        let image = image.put(0b0110, 4).transform(2).transform(1).put(1, 3).cache(0).two(2, 3).singles([1, 2, 3, 0]);
        let image = image.put(0b10, 2);
        // An entropy image of 4 × 2.
        let whole = image.clone().entropy_image().cache(0).two(5, 6).singles([1, 0, 0, 0]);
        whole.clone().put(0, 8).check(262);
        whole.put(0x80, 8).check(263);
        // No transform may be repeated.
        for again in 0..4 {
            assert_eq!(image.clone().transform(again).zeros(99).groups(), None);
        }
    }

    #[test]
    fn small_palettes_share_pixels() {
        // The number of blocks of four in one row of 256 pixels.
        for (colours, blocks) in [(2, 8), (3, 16), (4, 16), (5, 32), (16, 32), (17, 64), (256, 64)] {
            let start = BitWriter::lossless(256, 1).transform(3).put(colours - 1, 8).cache(0).singles([0; 5]);
            let start = start.entropy_image().cache(0).two(0, 1).singles([0, 0, 0, 0]);
            let image = (1..blocks).fold(start, |w, _| w.put(0, 1));
            assert_eq!((image.clone().put(1, 1).groups(), image.put(0b10, 2).groups()), (Some(2), Some(1)));
        }
    }

    #[test]
    fn the_size_of_alpha_is_given_by_the_caller() {
        let stream = BitWriter::default().entropy_image().cache(0).two(0, 1).singles([0, 0, 0, 0]).put(0x80, 8).bytes;
        assert_eq!(alpha_prefix_groups(&stream, 16, 5), Some(2));
        assert_eq!(alpha_prefix_groups(&stream, 15, 4), Some(1));
        assert_eq!(alpha_prefix_groups(&stream, 1 << 16 | 16, 5), Some(2));
        assert_eq!(alpha_prefix_groups(&stream, 16, 400), None);
        assert_eq!(alpha_prefix_groups(&stream, 0, 0), Some(1));
        assert_eq!(alpha_prefix_groups(&[], 16, 5), None);
    }

    #[test]
    fn an_image_that_needs_no_bits_takes_no_time() {
        let image = BitWriter::lossless(1 << 14, 1 << 14).entropy_image();
        let single = image.clone().cache(0).singles([4, 1, 0, 0, 0]);
        let hits: Vec<u32> = [0; 281].into_iter().chain([1]).collect();
        let hits = image.cache(1).lengths(&hits).two(0, 1).singles([0, 0, 0]);
        for _ in 0..1000 {
            assert_eq!((single.groups(), hits.groups()), (Some(261), Some(1)));
        }
    }

    #[test]
    fn random_bytes_do_not_panic() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut successes = 0;
        for round in 0..20_000 {
            let mut bytes: Vec<u8> = (0..round % 400 + 6).map(|_| random()).collect();
            (bytes[0], bytes[4]) = (0x2F, bytes[4] & 0x1F);
            let groups = prefix_groups(&bytes);
            assert!(groups.is_none_or(|groups| (1..=65_536).contains(&groups)));
            successes += usize::from(groups.is_some());
            alpha_prefix_groups(&bytes[5..], u32::from(bytes[1]), u32::from(bytes[2]));
        }
        assert!(successes > 1000, "{successes}");
    }
}
