//! Zip files that are ambiguous or unreadable.

use super::*;
use crate::TensorSource;

fn two_entries() -> Vec<TestEntry> {
    vec![plain_entry("a/data.pkl", &one_tensor(6, 0, &[6], &[1])), plain_entry("a/data/0", &floats(6))]
}

fn error_of_zip(entries: &[TestEntry]) -> WeightsError {
    PytorchFile::parse(&zip(entries)).unwrap_err()
}

/// The error after a change of the second entry.
fn error_after(change: impl FnOnce(&mut TestEntry)) -> WeightsError {
    let mut entries = two_entries();
    change(&mut entries[1]);
    error_of_zip(&entries)
}

#[test]
fn stored_entries_are_read_with_32_and_64_bit_sizes() {
    for wide in [false, true] {
        let mut entries = two_entries();
        entries[1].wide = wide;
        let bytes = zip(&entries);
        let file = PytorchFile::parse(&bytes).unwrap();
        assert_eq!(file.read("w", &[6]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }
}

#[test]
fn compressed_and_encrypted_entries_are_refused() {
    assert_says(
        &error_after(|entry| entry.method = 8),
        "zip entry `a/data/0`: expected it stored as it is, found it compressed",
    );
    for flags in [1, 1 << 6, 1 << 13] {
        assert_says(
            &error_after(|entry| entry.flags = flags),
            "zip entry `a/data/0`: expected plain data, found it encrypted",
        );
    }
}

#[test]
fn entries_outside_the_file_or_inside_each_other_are_refused() {
    assert_says(&error_after(|entry| entry.grow = 1 << 20), "expected it inside the file");
    assert_says(&error_after(|entry| entry.shift = 1 << 20), "expected it inside the file");
    assert_says(&error_after(|entry| entry.shift = 1), "expected its header to agree with the directory");
    assert_says(&error_after(|entry| entry.grow = 10), "expected the zip directory after the entries");
    for huge in [i64::MAX - 1000, 1 << 40] {
        let wide = |entry: &mut TestEntry| (entry.wide, entry.grow) = (true, huge);
        assert_says(&error_after(wide), "expected it inside the file");
    }
    let mut inside = two_entries();
    inside[0].grow = 20;
    assert_says(&error_of_zip(&inside), "zip entry `a/data/0`: expected bytes of its own");
}

#[test]
fn names_are_unique_and_equal_in_the_directory_and_the_entry() {
    let mut duplicate = two_entries();
    duplicate.push(duplicate[1].clone());
    assert_says(&error_of_zip(&duplicate), "zip entry `a/data/0`: expected one of that name, found two");
    let mut bytes = zip(&two_entries());
    let name = bytes.windows(8).position(|window| window == b"a/data/0").unwrap();
    bytes[name] = b'b';
    assert_says(&PytorchFile::parse(&bytes).unwrap_err(), "expected its header to agree with the directory");
}

#[test]
fn the_directory_is_complete_and_at_the_end() {
    let bytes = zip(&two_entries());
    let error_with_tail = |tail: &[u8]| PytorchFile::parse(&[&bytes, tail].concat()).unwrap_err();
    assert_says(&error_with_tail(b"x"), "is the file cut off?");
    assert_says(&PytorchFile::parse(&bytes[..bytes.len() - 1]).unwrap_err(), "is the file cut off?");
    let end = bytes.len() - 22;
    for (at, value, part) in [
        (4, 1, "in one piece"),
        (8, 1, "in one piece"),
        (12, 1, "to end where its end record starts"),
        (19, 1, "to end where its end record starts"),
    ] {
        let mut bytes = bytes.clone();
        bytes[end + at] = value;
        assert_says(&PytorchFile::parse(&bytes).unwrap_err(), part);
    }
}

#[test]
fn a_64_bit_directory_must_agree_with_the_other() {
    let bytes = zip(&two_entries());
    let end = bytes.len() - 22;
    let start = u32::from_le_bytes(*bytes[end + 16..].first_chunk().unwrap());
    let with = |entries: u64, size: u64, record: u64| {
        let count = entries.to_le_bytes();
        let [size, start, record] = [size, start.into(), record].map(u64::to_le_bytes);
        let record64 = [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 12], &count, &count, &size, &start].concat();
        let locator = [&b"PK\x06\x07\0\0\0\0"[..], &record, &[1, 0, 0, 0]].concat();
        let file = [&bytes[..end], &record64, &locator, &bytes[end..]].concat();
        PytorchFile::parse(&file).map(|file| file.keys())
    };
    let (end, size) = (end as u64, end as u64 - u64::from(start));
    assert_eq!(with(2, size, end), Ok(vec!["w".to_owned()]));
    assert_says(&with(1, size, end).unwrap_err(), "found two that disagree");
    assert_says(&with(2, size - 1, end).unwrap_err(), "found two that disagree");
    assert_says(&with(2, size, end - 1).unwrap_err(), "before its locator");
    assert_says(&with(2, size, u64::MAX).unwrap_err(), "before its locator");
}

#[test]
fn too_many_entries_are_refused_before_they_are_read() {
    let record64 = [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 12], &[0xff; 16], &[0; 16]].concat();
    let locator = [&b"PK\x06\x07\0\0\0\0"[..], &[0; 8], &[1, 0, 0, 0]].concat();
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &[0xff; 12], &[0; 2]].concat();
    let error = PytorchFile::parse(&[record64, locator, end].concat()).unwrap_err();
    assert_says(&error, "expected at most 65536 zip entries, found 18446744073709551615");
}

#[test]
fn an_archive_is_a_little_endian_checkpoint() {
    let with = |name: &str, data: &[u8]| error_of_zip(&[two_entries(), vec![plain_entry(name, data)]].concat());
    assert_says(&with("a/byteorder", b"big"), "expected byte order `little`, found `big`");
    assert_says(&with("b/data.pkl", b""), "expected one `data.pkl`, found several");
    for name in ["a/constants.pkl", "a/code/model.py"] {
        assert_says(&with(name, b""), "found a TorchScript archive");
    }
    assert_says(&error_of_zip(&[plain_entry("weights.npy", b"")]), "found a zip file without a `data.pkl`");
    assert_says(&error_of_zip(&[]), "found a zip file without a `data.pkl`");
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert_says(&PytorchFile::parse(&tar).unwrap_err(), "`torch.save(torch.load(F, weights_only=True), F2)`");
}
