//! NumPy's npz: a zip archive without compression, with an npy file for each array.

use super::{AnswerTensor, ElementType, write_row};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
/// The first of January 1980, the earliest date of the format: the same answer always has the same bytes.
const DATE: u16 = 0x21;
/// Zip's version 2.0.
const VERSION: u16 = 20;

/// An archive of arrays whose first dimension is the images; `texts` are more files in it, by name.
pub(in crate::server) fn npz(texts: &[(&str, Vec<u8>)], tensors: &[AnswerTensor<'_>], dtype: ElementType) -> Vec<u8> {
    let data: usize = tensors.iter().map(|tensor| tensor.bytes(dtype) + 512).sum();
    let mut archive = ZipArchive { out: Vec::with_capacity(data + 4096), entries: Vec::new() };
    for tensor in tensors {
        archive.add(&format!("{}.npy", tensor.name), |out| {
            out.extend_from_slice(&npy_header(&tensor.stacked(), dtype));
            for row in &tensor.rows {
                write_row(row, tensor.format(dtype), |bytes| out.extend_from_slice(bytes));
            }
        });
    }
    for (name, text) in texts {
        archive.add(name, |out| out.extend_from_slice(text));
    }
    archive.finish()
}

/// The header of an npy file, format 1.0, padded so that the data begin at a multiple of 64 bytes.
fn npy_header(shape: &[usize], dtype: ElementType) -> Vec<u8> {
    let descr = match dtype {
        ElementType::F32 => "<f4",
        ElementType::F16 => "<f2",
    };
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}").into_bytes();
    let fixed = 10;
    dict.resize((fixed + dict.len() + 1).next_multiple_of(64) - fixed - 1, b' ');
    dict.push(b'\n');
    let length = (dict.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], &dict].concat()
}

struct ZipArchive {
    out: Vec<u8>,
    entries: Vec<ZipEntry>,
}

struct ZipEntry {
    name: String,
    offset: u32,
    crc: u32,
    size: u32,
}

impl ZipEntry {
    /// The fields that local and central headers share.
    fn common(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(26);
        // Flags (names in UTF-8), stored, time, date.
        for half in [VERSION, 1 << 11, 0, 0, DATE] {
            bytes.extend_from_slice(&half.to_le_bytes());
        }
        for word in [self.crc, self.size, self.size] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        // The lengths of the name, and of the extra field, which is absent.
        bytes.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes
    }
}

impl ZipArchive {
    /// Adds a file. Its checksum and size are filled in after its data. Answers are limited far below the 4 GiB of
    /// this format.
    fn add(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let mut entry = ZipEntry { name: name.to_owned(), offset: self.out.len() as u32, crc: 0, size: 0 };
        self.out.extend_from_slice(&LOCAL.to_le_bytes());
        let head = self.out.len();
        self.out.extend_from_slice(&entry.common());
        self.out.extend_from_slice(name.as_bytes());
        let start = self.out.len();
        write(&mut self.out);
        entry.size = (self.out.len() - start) as u32;
        entry.crc = crc32fast::hash(&self.out[start..]);
        let common = entry.common();
        self.out[head..head + common.len()].copy_from_slice(&common);
        self.entries.push(entry);
    }

    fn finish(mut self) -> Vec<u8> {
        let start = self.out.len() as u32;
        for entry in &self.entries {
            self.out.extend_from_slice(&CENTRAL.to_le_bytes());
            self.out.extend_from_slice(&VERSION.to_le_bytes());
            self.out.extend_from_slice(&entry.common());
            // No comment, the first disk, no attributes.
            self.out.extend_from_slice(&[0; 10]);
            self.out.extend_from_slice(&entry.offset.to_le_bytes());
            self.out.extend_from_slice(entry.name.as_bytes());
        }
        let size = self.out.len() as u32 - start;
        let count = self.entries.len() as u16;
        self.out.extend_from_slice(&END.to_le_bytes());
        self.out.extend_from_slice(&[0; 4]);
        for n in [count, count] {
            self.out.extend_from_slice(&n.to_le_bytes());
        }
        for n in [size, start] {
            self.out.extend_from_slice(&n.to_le_bytes());
        }
        self.out.extend_from_slice(&[0; 2]);
        self.out
    }
}
