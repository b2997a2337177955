//! Hostile and broken checkpoints, built by hand. The well-formed ones are in `tests/checkpoints`.

mod archive;
mod damage;
mod pickle;
mod views;

use super::PytorchFile;
use crate::WeightsError;

/// A builder of pickles.
#[derive(Clone)]
struct PickleBuilder(Vec<u8>);

impl PickleBuilder {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&u32::try_from(text.len()).unwrap().to_le_bytes()).raw(text.as_bytes())
    }

    fn int(self, value: i64) -> Self {
        self.raw(&[0x8a, 8]).raw(&value.to_le_bytes())
    }

    fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.raw(b"("), |pickle, value| pickle.int(*value)).raw(b"t")
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A storage by its class, key and length.
    fn storage(self, class: &str, key: &str, len: i64) -> Self {
        self.raw(b"(").text("storage").global("torch", class).text(key).text("cpu").int(len).raw(b"tQ")
    }

    /// A float32 view of the storage `0`, which has `len` elements.
    fn tensor(self, len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        let storage = self.global("torch._utils", "_rebuild_tensor_v2").raw(b"(").storage("FloatStorage", "0", len);
        storage.int(offset).ints(shape).ints(strides).raw(b"\x89}tR")
    }

    fn stop(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// The pickle of `{"w": tensor}`; the tensor is a view of storage `0`.
fn one_tensor(len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    PickleBuilder::new().raw(b"}").text("w").tensor(len, offset, shape, strides).raw(b"s").stop()
}

/// The bytes of the floats 0, 1, 2, …
fn floats(count: u8) -> Vec<u8> {
    (0..count).flat_map(|value| f32::from(value).to_le_bytes()).collect()
}

/// One entry of a zip file, and its defects.
#[derive(Clone)]
struct TestEntry {
    name: String,
    data: Vec<u8>,
    flags: u16,
    method: u16,
    /// Added to the entry's offset in the directory.
    shift: i64,
    /// Added to the data's size in the directory.
    grow: i64,
    /// Whether sizes and offset have 64 bits.
    wide: bool,
}

/// An entry without defects.
fn plain_entry(name: &str, data: &[u8]) -> TestEntry {
    TestEntry { name: name.into(), data: data.into(), flags: 0, method: 0, shift: 0, grow: 0, wide: false }
}

/// A zip file of `entries`.
fn zip(entries: &[TestEntry]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let TestEntry { name, data, flags, method, shift, grow, wide } = entry;
        let offset = u64::try_from(i64::try_from(file.len()).unwrap() + shift).unwrap();
        let size = u64::try_from(i64::try_from(data.len()).unwrap() + grow).unwrap();
        let name_len = u16::try_from(name.len()).unwrap().to_le_bytes();
        let fixed = [&[0; 2][..], &flags.to_le_bytes(), &method.to_le_bytes(), &[0; 8]].concat();
        file.extend([&b"PK\x03\x04"[..], &fixed, &[0; 8], &name_len, &5u16.to_le_bytes(), name.as_bytes()].concat());
        file.extend(b"FB\x01\0Z"); // Padding as PyTorch's.
        file.extend(data);
        let narrow = |value: u64| if *wide { u32::MAX } else { u32::try_from(value).unwrap() }.to_le_bytes();
        let extra = [&[1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &offset.to_le_bytes()].concat();
        let extra = if *wide { &extra[..] } else { &[] };
        let extra_len = u16::try_from(extra.len()).unwrap().to_le_bytes();
        directory
            .extend([&b"PK\x01\x02\0\0"[..], &fixed, &narrow(size), &narrow(size), &name_len, &extra_len].concat());
        directory.extend([&[0; 10][..], &narrow(offset), name.as_bytes(), extra].concat());
    }
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let [start, size] = [file.len(), directory.len()].map(|len| u32::try_from(len).unwrap().to_le_bytes());
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &start, &[0; 2]].concat());
    file
}

/// A checkpoint with `pickle` and the storage `0`.
fn checkpoint(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip(&[plain_entry("a/data.pkl", pickle), plain_entry("a/byteorder", b"little"), plain_entry("a/data/0", storage)])
}

/// The error of the checkpoint with `pickle` and six floats.
fn error_of(pickle: &[u8]) -> WeightsError {
    PytorchFile::parse(&checkpoint(pickle, &floats(6))).unwrap_err()
}

#[track_caller]
fn assert_says(error: &WeightsError, part: &str) {
    let text = error.to_string();
    assert!(text.contains(part), "expected `{part}` in: {text}");
}
