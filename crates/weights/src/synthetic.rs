//! Weights computed from the key's name and the element's index alone, equal on every machine and in Python
//! (`tests/goldens/synthetic.py`). Parity tests compare networks with them, and benchmarks run on them.
//!
//! An element's bits come from SplitMix64 over a counter that starts at the FNV-1a hash of the key. The key decides how
//! the bits become a value, so that activations stay of order one through the network: batch-norm statistics vary
//! around their neutral values, kernels are uniform with He's variance.

use super::{TensorSource, WeightsError};

/// Fraction of He's bound. With the full bound, the sums of the residual branches grow until all attention gates
/// saturate.
const GAIN: f64 = 0.65;

/// GhostNetV3 adds up to five parallel branches; their batch norms are scaled so that the sum keeps its size.
const BRANCH_SCALE: f64 = 0.5625;

/// Factor on the bound of pointwise convolutions; without it the signal of MobileNetV2 vanishes.
const POINTWISE_GAIN: f64 = 2.0;

/// A source that has every tensor that is requested, with synthetic values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Synthetic;

impl TensorSource for Synthetic {
    fn shape(&self, _key: &str, expected: &[usize]) -> Option<Vec<usize>> {
        Some(expected.to_vec())
    }

    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        Ok(synthetic_tensor(key, shape))
    }

    fn keys(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A source like [`Synthetic`] with a seed: reproducible random weights. Seed 0 gives the values of [`Synthetic`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeded(pub u64);

impl TensorSource for Seeded {
    fn shape(&self, key: &str, expected: &[usize]) -> Option<Vec<usize>> {
        Synthetic.shape(key, expected)
    }

    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        Ok(generate(key, shape, fnv1a(key) ^ self.0))
    }

    fn keys(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The tensor `key` of the given shape, row-major. Keys that are not names of weights (`"input"`) give values in ±2.
#[must_use]
pub fn synthetic_tensor(key: &str, shape: &[usize]) -> Vec<f32> {
    generate(key, shape, fnv1a(key))
}

/// The tensor `key`; `seed` starts the counter of its elements.
fn generate(key: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let kind = key.rsplit('.').next().unwrap_or(key);
    // Evaluated in f64 and rounded once, in the same order as in the Python script.
    let bound = GAIN * (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    let bound = if key.contains(".conv_pw") { POINTWISE_GAIN * bound } else { bound };
    let scale = if key.contains("_rpr_") { BRANCH_SCALE } else { 1.0 };
    let value = |unit: f64| {
        let signed = 2.0 * unit - 1.0;
        match (kind, shape.len()) {
            ("running_mean" | "bias", _) => 0.1 * signed,
            ("running_var", _) => 0.5 + unit,
            ("weight", 1) => scale * (0.5 + unit),
            ("weight", _) => signed * bound,
            _ => 2.0 * signed,
        }
    };
    (0..shape.iter().product::<usize>() as u64).map(|i| value(unit(seed, i)) as f32).collect()
}

/// Element `index` of the stream `seed`: uniform in [0, 1), a multiple of 2⁻²⁴.
fn unit(seed: u64, index: u64) -> f64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 24)
}

fn fnv1a(key: &str) -> u64 {
    key.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}
