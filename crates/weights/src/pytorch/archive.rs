//! The zip container that `torch.save` writes, as names and borrowed slices.
//!
//! PyTorch stores its entries as they are (it reads them through a memory map), so that nothing has to be unpacked here:
//! this module reads the directory, checks it against the file, and hands out slices. It knows nothing about pickles and
//! tensors. What has two readings (duplicate names, overlapping entries, two directories that disagree) is refused: a
//! scanner in front of the server and the server must not see different files. Checksums are not checked: PyTorch can be
//! told not to write them, and a model folder has a digest of the whole file.

use std::collections::HashMap;

use super::{bad, shown};
use crate::WeightsError;

/// More entries than any checkpoint has tensors.
pub(super) const MAX_ENTRIES: u64 = 65_536;

const END: [u8; 4] = *b"PK\x05\x06";
const END_LEN: usize = 22;
const LOCATOR: [u8; 4] = *b"PK\x06\x07";
const LOCATOR_LEN: usize = 20;
const END64: [u8; 4] = *b"PK\x06\x06";
const END64_LEN: usize = 56;
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const ENTRY_LEN: usize = 46;
const LOCAL: [u8; 4] = *b"PK\x03\x04";
const LOCAL_LEN: usize = 30;

/// Encrypted (bit 0), strongly encrypted (6), masked headers (13).
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// The extra field with the sizes and offsets that do not fit 32 bits.
const ZIP64: u16 = 1;

/// The entries of a zip file; compressed ones without data.
#[derive(Debug)]
pub(super) struct Archive<'a>(HashMap<&'a str, Option<&'a [u8]>>);

impl<'a> Archive<'a> {
    /// Reads the directory of `file`.
    ///
    /// # Errors
    /// [`WeightsError::Format`]: not a zip file, cut off, encrypted, ambiguous, or more than
    /// [`MAX_ENTRIES`] entries.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, WeightsError> {
        let directory = Directory::find(file)?;
        let mut rest = Fields(directory.bytes);
        let mut entries = HashMap::new();
        let mut spans = Vec::new();
        for _ in 0..directory.entries {
            let entry = Entry::parse(&mut rest)?;
            let (data, span) = entry.data(file)?;
            if entries.insert(entry.name, (entry.method == 0).then_some(data)).is_some() {
                return Err(bad(format!("zip entry `{}`: expected one of that name, found two", shown(entry.name))));
            }
            spans.push((span, entry.name));
        }
        if !rest.0.is_empty() {
            return Err(bad(format!("expected {} entries in the zip directory, found more", directory.entries)));
        }
        spans.sort_unstable();
        let mut free = 0;
        for ((start, end), name) in spans {
            if start < free {
                return Err(bad(format!(
                    "zip entry `{}`: expected bytes of its own, found it inside another entry",
                    shown(name)
                )));
            }
            free = end;
        }
        if free > directory.start {
            return Err(bad("expected the zip directory after the entries, found it inside one"));
        }
        Ok(Self(entries))
    }

    /// Whether all entries are stored as they are. PyTorch stores those of a checkpoint; it compresses only the code of
    /// TorchScript, for which there is a better message.
    ///
    /// # Errors
    /// [`WeightsError::Format`] with the name of one that is compressed.
    pub(super) fn check_stored(&self) -> Result<(), WeightsError> {
        let compressed = self.0.iter().filter(|(_, data)| data.is_none()).map(|(name, _)| *name).min();
        compressed.map_or(Ok(()), |name| {
            Err(bad(format!(
                "zip entry `{}`: expected it stored as it is, found it compressed: \
                 write the file with torch.save, not with a zip program",
                shown(name)
            )))
        })
    }

    /// The bytes of the entry `name`.
    pub(super) fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.0.get(name).copied().flatten()
    }

    /// The names of all entries, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().copied()
    }
}

/// Where the central directory is.
struct Directory<'a> {
    start: usize,
    bytes: &'a [u8],
    entries: u64,
}

impl<'a> Directory<'a> {
    /// PyTorch writes no comment, so that the end record is the last thing in the file. In front of it are the 64-bit
    /// record and its locator, always in files of PyTorch, only when needed in those of others.
    fn find(file: &'a [u8]) -> Result<Self, WeightsError> {
        let cut = || bad("expected a zip directory at the end, found none: is the file cut off?");
        let end = file.len().checked_sub(END_LEN).ok_or_else(cut)?;
        let mut fields = Fields(&file[end..]);
        if fields.array::<4>()? != END {
            return Err(cut());
        }
        let (disk, first_disk) = (fields.u16()?, fields.u16()?);
        let (here, entries) = (fields.u16()?, fields.u16()?);
        let (size, start) = (fields.u32()?, fields.u32()?);
        if fields.u16()? != 0 {
            return Err(cut());
        }
        if disk != first_disk || (disk != 0 && disk != u16::MAX) || here != entries {
            return Err(bad("expected a zip file in one piece, found part of several"));
        }
        let mut found = (u64::from(entries), u64::from(size), u64::from(start));
        let mut stop = end;
        if let Some(locator) = end.checked_sub(LOCATOR_LEN)
            && file[locator..end].starts_with(&LOCATOR)
        {
            let wide = Self::wide(file, locator)?;
            let agrees = |narrow: u64, limit: u64, wide: u64| narrow == limit || narrow == wide;
            if !agrees(found.0, u16::MAX.into(), wide.0)
                || !agrees(found.1, u32::MAX.into(), wide.1)
                || !agrees(found.2, u32::MAX.into(), wide.2)
            {
                return Err(bad("expected one zip directory, found two that disagree"));
            }
            found = wide;
            stop = locator - END64_LEN;
        }
        let (entries, size, start) = found;
        if entries > MAX_ENTRIES {
            return Err(bad(format!("expected at most {MAX_ENTRIES} zip entries, found {entries}")));
        }
        let outside = || bad("expected the zip directory to end where its end record starts, found it elsewhere");
        if start.checked_add(size) != u64::try_from(stop).ok() {
            return Err(outside());
        }
        let start = usize::try_from(start).map_err(|_| outside())?;
        Ok(Self { start, bytes: file.get(start..stop).ok_or_else(outside)?, entries })
    }

    /// Entries, size and start from the 64-bit record, which has to lie right before its locator.
    fn wide(file: &[u8], locator: usize) -> Result<(u64, u64, u64), WeightsError> {
        let wrong = || bad("expected the 64-bit zip record before its locator, found something else");
        let record = locator.checked_sub(END64_LEN).ok_or_else(wrong)?;
        let mut fields = Fields(&file[locator + LOCATOR.len()..]);
        fields.skip(4)?;
        if Some(fields.u64()?) != u64::try_from(record).ok() {
            return Err(wrong());
        }
        let mut fields = Fields(&file[record..locator]);
        if fields.array::<4>()? != END64 || fields.u64()? != (END64_LEN - 12) as u64 {
            return Err(wrong());
        }
        fields.skip(12)?; // Versions and disk numbers.
        if fields.u64()? != fields.u64()? {
            return Err(bad("expected a zip file in one piece, found part of several"));
        }
        let mut fields = Fields(&file[record + 32..locator]);
        Ok((fields.u64()?, fields.u64()?, fields.u64()?))
    }
}

/// One record of the central directory.
struct Entry<'a> {
    name: &'a str,
    /// 0: stored.
    method: u16,
    /// Bytes in the file.
    packed: u64,
    offset: u64,
}

impl<'a> Entry<'a> {
    fn parse(rest: &mut Fields<'a>) -> Result<Self, WeightsError> {
        let mut fields = Fields(rest.take(ENTRY_LEN)?);
        if fields.array::<4>()? != ENTRY {
            return Err(bad("expected a record in the zip directory, found something else"));
        }
        fields.skip(4)?; // Versions.
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.skip(8)?; // Time, date, checksum.
        let (packed, size) = (fields.u32()?, fields.u32()?);
        let lengths = [fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
        fields.skip(8)?; // Disk, attributes.
        let offset = fields.u32()?;
        let name = rest.take(lengths[0])?;
        let extra = rest.take(lengths[1])?;
        rest.skip(lengths[2])?;

        let name =
            str::from_utf8(name).map_err(|_| bad("expected the name of a zip entry in UTF-8, found other bytes"))?;
        if flags & ENCRYPTED != 0 {
            return Err(bad(format!("zip entry `{}`: expected plain data, found it encrypted", shown(name))));
        }
        let mut wide = Fields(zip64(extra)?);
        let mut widen = |narrow: u32| if narrow == u32::MAX { wide.u64() } else { Ok(narrow.into()) };
        let (size, packed) = (widen(size)?, widen(packed)?); // In this order in the extra field.
        let offset = widen(offset)?;
        if method == 0 && packed != size {
            return Err(bad(format!("zip entry `{}`: expected one size of stored data, found two", shown(name))));
        }
        Ok(Self { name, method, packed, offset })
    }

    /// The data, and the range of the file from the entry's own header to its last byte.
    fn data(&self, file: &'a [u8]) -> Result<(&'a [u8], (usize, usize)), WeightsError> {
        let Self { name, packed: size, offset, .. } = self;
        let outside = || {
            bad(format!("zip entry `{}`: expected it inside the file, found it at {offset}, {size} bytes", shown(name)))
        };
        let start = usize::try_from(*offset).map_err(|_| outside())?;
        let size = usize::try_from(*size).map_err(|_| outside())?;
        let mut fields = Fields(file.get(start..).ok_or_else(outside)?);
        let whole = fields.0.len();
        let mut header = Fields(fields.take(LOCAL_LEN).map_err(|_| outside())?);
        let other = || {
            bad(format!("zip entry `{}`: expected its header to agree with the directory, found another", shown(name)))
        };
        if header.array::<4>()? != LOCAL {
            return Err(other());
        }
        header.skip(2)?; // Version.
        let (flags, method) = (header.u16()?, header.u16()?);
        header.skip(16)?; // Time, date, checksum, sizes: PyTorch leaves them to the directory.
        let (name_len, extra_len) = (usize::from(header.u16()?), usize::from(header.u16()?));
        let same = fields.take(name_len).map_err(|_| outside())? == name.as_bytes();
        if flags & ENCRYPTED != 0 || method != self.method || !same {
            return Err(other());
        }
        fields.skip(extra_len).map_err(|_| outside())?; // The padding that aligns the data.
        let data = fields.take(size).map_err(|_| outside())?;
        Ok((data, (start, start + (whole - fields.0.len()))))
    }
}

/// The 64-bit values in an entry's extra fields; empty without any.
fn zip64(extra: &[u8]) -> Result<&[u8], WeightsError> {
    let mut rest = Fields(extra);
    while !rest.0.is_empty() {
        let (id, len) = (rest.u16()?, rest.u16()?);
        let value = rest.take(len.into())?;
        if id == ZIP64 {
            return Ok(value);
        }
    }
    Ok(&[])
}

/// Little-endian numbers, taken off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], WeightsError> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| bad("expected more bytes in a zip record, found its end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, len: usize) -> Result<(), WeightsError> {
        self.take(len).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, WeightsError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, WeightsError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WeightsError> {
        self.array().map(u64::from_le_bytes)
    }
}
