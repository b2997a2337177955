//! The zip container that `torch.save` writes, as names and borrowed slices.
//!
//! PyTorch stores its entries uncompressed (it reads them through a memory map), so nothing has to be unpacked. This
//! module reads the central directory, checks it against the file, and returns slices. It does not know pickles or
//! tensors. Ambiguous archives (duplicate names, overlapping entries, two directories that disagree) are refused: a
//! scanner in front of the server and the server must not see different files. Checksums are not verified: PyTorch has
//! an option not to write them, and a model folder has a digest of the whole file.

use std::collections::HashMap;

use super::{bad, shown};
use crate::WeightsError;

/// Largest number of entries. No checkpoint has this many tensors.
pub(super) const MAX_ENTRIES: u64 = 65_536;

// Signatures and lengths (bytes) of the records that a zip file consists of.
const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
const END_LEN: usize = 22;
const LOCATOR_SIGNATURE: [u8; 4] = *b"PK\x06\x07";
const LOCATOR_LEN: usize = 20;
const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
const END64_LEN: usize = 56;
const ENTRY_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
const ENTRY_LEN: usize = 46;
const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
const LOCAL_LEN: usize = 30;

/// Flags of encryption: encrypted (bit 0), strongly encrypted (bit 6), masked headers (bit 13).
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// Id of the extra field with the sizes and offsets that do not fit 32 bits.
const ZIP64_EXTRA: u16 = 1;

/// The entries of a zip file by name. Compressed entries have no data.
#[derive(Debug)]
pub(super) struct ZipArchive<'a>(HashMap<&'a str, Option<&'a [u8]>>);

impl<'a> ZipArchive<'a> {
    /// Reads the central directory of `file`.
    ///
    /// # Errors
    /// [`WeightsError::Format`]: not a zip file, cut off, encrypted, ambiguous, or more than [`MAX_ENTRIES`] entries.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, WeightsError> {
        let directory = CentralDirectory::find(file)?;
        let mut records = ByteReader(directory.bytes);
        let mut entries = HashMap::new();
        let mut spans = Vec::new();
        for _ in 0..directory.entries {
            let entry = ZipEntry::parse(&mut records)?;
            let (data, span) = entry.data(file)?;
            if entries.insert(entry.name, (entry.method == 0).then_some(data)).is_some() {
                return Err(bad(format!("zip entry `{}`: expected one of that name, found two", shown(entry.name))));
            }
            spans.push((span, entry.name));
        }
        if !records.0.is_empty() {
            return Err(bad(format!("expected {} entries in the zip directory, found more", directory.entries)));
        }
        spans.sort_unstable();
        let mut previous_end = 0;
        for ((start, end), name) in spans {
            if start < previous_end {
                return Err(bad(format!(
                    "zip entry `{}`: expected bytes of its own, found it inside another entry",
                    shown(name)
                )));
            }
            previous_end = end;
        }
        if previous_end > directory.start {
            return Err(bad("expected the zip directory after the entries, found it inside one"));
        }
        Ok(Self(entries))
    }

    /// Checks that no entry is compressed. PyTorch stores the entries of a checkpoint uncompressed. It compresses only
    /// the code of TorchScript, for which the caller has a better message.
    ///
    /// # Errors
    /// [`WeightsError::Format`] with the name of a compressed entry.
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

    /// The bytes of the entry `name`; `None` if it is missing or compressed.
    pub(super) fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.0.get(name).copied().flatten()
    }

    /// The names of all entries, in arbitrary order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().copied()
    }
}

/// The central directory of a zip file.
struct CentralDirectory<'a> {
    /// Position in the file.
    start: usize,
    /// Its records.
    bytes: &'a [u8],
    /// Number of records.
    entries: u64,
}

/// The numbers of an end record, widened to 64 bits.
struct EndRecord {
    /// Number of entries.
    entries: u64,
    /// Bytes of the central directory.
    size: u64,
    /// Position of the central directory in the file.
    start: u64,
}

impl<'a> CentralDirectory<'a> {
    /// Finds the directory through the end record, which must be the last thing in the file: PyTorch writes no archive
    /// comment. The 64-bit record and its locator lie in front of the end record: always in PyTorch's files, in others
    /// only when they are needed.
    fn find(file: &'a [u8]) -> Result<Self, WeightsError> {
        let cut = || bad("expected a zip directory at the end, found none: is the file cut off?");
        let end = file.len().checked_sub(END_LEN).ok_or_else(cut)?;
        let mut fields = ByteReader(&file[end..]);
        if fields.array::<4>()? != END_SIGNATURE {
            return Err(cut());
        }
        let (disk, first_disk) = (fields.u16()?, fields.u16()?);
        let (disk_entries, entries) = (fields.u16()?, fields.u16()?);
        let (size, start) = (fields.u32()?, fields.u32()?);
        if fields.u16()? != 0 {
            return Err(cut());
        }
        if disk != first_disk || (disk != 0 && disk != u16::MAX) || disk_entries != entries {
            return Err(bad("expected a zip file in one piece, found part of several"));
        }
        let mut record = EndRecord { entries: entries.into(), size: size.into(), start: start.into() };
        let mut directory_end = end;
        if let Some(locator) = end.checked_sub(LOCATOR_LEN)
            && file[locator..end].starts_with(&LOCATOR_SIGNATURE)
        {
            let wide = EndRecord::parse_64_bit(file, locator)?;
            // A narrow field at its maximum refers to the 64-bit record.
            let agrees = |narrow: u64, limit: u64, wide: u64| narrow == limit || narrow == wide;
            if !agrees(record.entries, u16::MAX.into(), wide.entries)
                || !agrees(record.size, u32::MAX.into(), wide.size)
                || !agrees(record.start, u32::MAX.into(), wide.start)
            {
                return Err(bad("expected one zip directory, found two that disagree"));
            }
            record = wide;
            directory_end = locator - END64_LEN;
        }
        let EndRecord { entries, size, start } = record;
        if entries > MAX_ENTRIES {
            return Err(bad(format!("expected at most {MAX_ENTRIES} zip entries, found {entries}")));
        }
        let outside = || bad("expected the zip directory to end where its end record starts, found it elsewhere");
        if start.checked_add(size) != u64::try_from(directory_end).ok() {
            return Err(outside());
        }
        let start = usize::try_from(start).map_err(|_| outside())?;
        Ok(Self { start, bytes: file.get(start..directory_end).ok_or_else(outside)?, entries })
    }
}

impl EndRecord {
    /// Reads the 64-bit record, which must lie right before its locator at the position `locator`.
    fn parse_64_bit(file: &[u8], locator: usize) -> Result<Self, WeightsError> {
        let wrong = || bad("expected the 64-bit zip record before its locator, found something else");
        let record = locator.checked_sub(END64_LEN).ok_or_else(wrong)?;
        let mut fields = ByteReader(&file[locator + LOCATOR_SIGNATURE.len()..]);
        fields.skip(4)?;
        if Some(fields.u64()?) != u64::try_from(record).ok() {
            return Err(wrong());
        }
        let mut fields = ByteReader(&file[record..locator]);
        if fields.array::<4>()? != END64_SIGNATURE || fields.u64()? != (END64_LEN - 12) as u64 {
            return Err(wrong());
        }
        fields.skip(12)?; // Versions and disk numbers.
        if fields.u64()? != fields.u64()? {
            return Err(bad("expected a zip file in one piece, found part of several"));
        }
        let mut fields = ByteReader(&file[record + 32..locator]);
        Ok(Self { entries: fields.u64()?, size: fields.u64()?, start: fields.u64()? })
    }
}

/// One record of the central directory.
struct ZipEntry<'a> {
    name: &'a str,
    /// Compression method; 0 is stored.
    method: u16,
    /// Bytes of the data as it lies in the file.
    stored_size: u64,
    /// Position of the entry's own header in the file.
    offset: u64,
}

impl<'a> ZipEntry<'a> {
    /// Takes one record off the front of `records`.
    fn parse(records: &mut ByteReader<'a>) -> Result<Self, WeightsError> {
        let mut fields = ByteReader(records.take(ENTRY_LEN)?);
        if fields.array::<4>()? != ENTRY_SIGNATURE {
            return Err(bad("expected a record in the zip directory, found something else"));
        }
        fields.skip(4)?; // Versions.
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.skip(8)?; // Time, date, checksum.
        let (stored_size, size) = (fields.u32()?, fields.u32()?);
        let [name_len, extra_len, comment_len] = [fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
        fields.skip(8)?; // Disk, attributes.
        let offset = fields.u32()?;
        let name = records.take(name_len)?;
        let extra = records.take(extra_len)?;
        records.skip(comment_len)?;

        let name =
            str::from_utf8(name).map_err(|_| bad("expected the name of a zip entry in UTF-8, found other bytes"))?;
        if flags & ENCRYPTED != 0 {
            return Err(bad(format!("zip entry `{}`: expected plain data, found it encrypted", shown(name))));
        }
        let mut wide = ByteReader(zip64_extra(extra)?);
        let mut widen = |narrow: u32| if narrow == u32::MAX { wide.u64() } else { Ok(narrow.into()) };
        let (size, stored_size) = (widen(size)?, widen(stored_size)?); // In this order in the extra field.
        let offset = widen(offset)?;
        if method == 0 && stored_size != size {
            return Err(bad(format!("zip entry `{}`: expected one size of stored data, found two", shown(name))));
        }
        Ok(Self { name, method, stored_size, offset })
    }

    /// The data, and the range of the file from the entry's own header to its last byte.
    fn data(&self, file: &'a [u8]) -> Result<(&'a [u8], (usize, usize)), WeightsError> {
        let Self { name, stored_size: size, offset, .. } = self;
        let outside = || {
            bad(format!("zip entry `{}`: expected it inside the file, found it at {offset}, {size} bytes", shown(name)))
        };
        let start = usize::try_from(*offset).map_err(|_| outside())?;
        let size = usize::try_from(*size).map_err(|_| outside())?;
        let mut rest = ByteReader(file.get(start..).ok_or_else(outside)?);
        let rest_len = rest.0.len();
        let mut header = ByteReader(rest.take(LOCAL_LEN).map_err(|_| outside())?);
        let disagrees = || {
            bad(format!("zip entry `{}`: expected its header to agree with the directory, found another", shown(name)))
        };
        if header.array::<4>()? != LOCAL_SIGNATURE {
            return Err(disagrees());
        }
        header.skip(2)?; // Version.
        let (flags, method) = (header.u16()?, header.u16()?);
        header.skip(16)?; // Time, date, checksum, sizes: PyTorch writes them into the directory only.
        let (name_len, extra_len) = (usize::from(header.u16()?), usize::from(header.u16()?));
        let same_name = rest.take(name_len).map_err(|_| outside())? == name.as_bytes();
        if flags & ENCRYPTED != 0 || method != self.method || !same_name {
            return Err(disagrees());
        }
        rest.skip(extra_len).map_err(|_| outside())?; // The padding that aligns the data.
        let data = rest.take(size).map_err(|_| outside())?;
        Ok((data, (start, start + (rest_len - rest.0.len()))))
    }
}

/// The 64-bit values among an entry's extra fields; empty if there are none.
fn zip64_extra(extra: &[u8]) -> Result<&[u8], WeightsError> {
    let mut rest = ByteReader(extra);
    while !rest.0.is_empty() {
        let (id, len) = (rest.u16()?, rest.u16()?);
        let value = rest.take(len.into())?;
        if id == ZIP64_EXTRA {
            return Ok(value);
        }
    }
    Ok(&[])
}

/// Reads little-endian numbers off the front of a slice.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
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
