//! PyTorch's files, cut off and with flipped bits: reading gives an error or a tensor, and does not panic.

use super::*;
use crate::TensorSource;

const FILES: [&[u8]; 3] = [
    include_bytes!("../../../tests/checkpoints/training.pth.tar"),
    include_bytes!("../../../tests/checkpoints/views.pth"),
    include_bytes!("../../../tests/checkpoints/types.pth"),
];

/// Reads all tensors; a panic fails the test. Returns whether the file could be opened.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(file) = PytorchFile::parse(bytes) else { return false };
    for key in file.keys() {
        let shape = file.shape(&key, &[]).unwrap();
        if let Ok(values) = file.read(&key, &shape) {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{key}");
        }
    }
    true
}

#[test]
fn every_truncated_file_is_an_error() {
    for file in FILES {
        for len in 0..file.len() {
            assert!(!read_all(&file[..len]), "{len} bytes");
        }
        assert!(read_all(file));
    }
}

#[test]
fn every_truncated_pickle_is_an_error() {
    let pickle = one_tensor(6, 0, &[2, 3], &[3, 1]);
    for len in 0..pickle.len() {
        assert!(!read_all(&checkpoint(&pickle[..len], &floats(6))), "{len} bytes");
    }
    assert!(read_all(&checkpoint(&pickle, &floats(6))));
}

#[test]
fn flipped_bits_never_panic() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        // Knuth's linear congruential generator; its high bits are random enough.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut readable = 0;
    for file in FILES {
        for _ in 0..4000 {
            let mut bytes = file.to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
            }
            readable += usize::from(read_all(&bytes));
        }
    }
    // Flips in padding and in values leave a file readable: the test reaches both outcomes.
    assert!((1000..11_000).contains(&readable), "{readable}");
}
