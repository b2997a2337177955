//! Tensors in answers: elements in the type that was asked for, in one of three containers.
//!
//! An element goes from where the runtime left it into the answer's body, and is changed into its type on the way: there is no
//! other copy.

mod json;
mod npz;
mod safetensors;

pub(super) use json::json;
pub(super) use npz::npz;
pub(super) use safetensors::safetensors;

use half::f16;
use half::slice::HalfFloatSliceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of elements; little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Dtype {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE half precision: 11 bits of the fraction, up to 65,504.
    F16,
}

impl Dtype {
    pub(in crate::server) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A tensor of an answer: a row for each image that was not refused.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    /// Of one image.
    pub(super) shape: Vec<usize>,
    /// Pixels of the input for one of a map; 0 for what has no pixels.
    pub(super) stride: usize,
    pub(super) rows: Vec<&'a [f32]>,
    /// Whether each row is to have length 1.
    pub(super) unit: bool,
}

impl Tensor<'_> {
    fn bytes(&self, dtype: Dtype) -> usize {
        self.rows.iter().map(|row| row.len()).sum::<usize>() * dtype.bytes()
    }

    /// With the images' dimension.
    fn stacked(&self) -> Vec<usize> {
        std::iter::once(self.rows.len()).chain(self.shape.iter().copied()).collect()
    }
}

/// Elements that are changed at a time: they stay in the fastest cache.
const BLOCK: usize = 1024;

/// Hands out the bytes of a row's elements, in blocks.
pub(in crate::server) fn write_row(row: &[f32], (dtype, unit): (Dtype, bool), mut out: impl FnMut(&[u8])) {
    let norm = if unit { row.iter().map(|v| v * v).sum::<f32>().sqrt() } else { 1.0 };
    // A row of zeros has no direction, and stays.
    let scale = if norm > 0.0 { 1.0 / norm } else { 1.0 };
    let (mut scaled, mut halves, mut bytes) = ([0.0; BLOCK], [f16::ZERO; BLOCK], [0; 4 * BLOCK]);
    for block in row.chunks(BLOCK) {
        let values = if unit {
            scaled.iter_mut().zip(block).for_each(|(out, value)| *out = value * scale);
            &scaled[..block.len()]
        } else {
            block
        };
        let bytes = &mut bytes[..block.len() * dtype.bytes()];
        match dtype {
            Dtype::F32 => {
                let places = bytes.as_chunks_mut::<4>().0;
                places.iter_mut().zip(values).for_each(|(place, value)| *place = value.to_le_bytes());
            }
            Dtype::F16 => {
                let halves = &mut halves[..block.len()];
                halves.convert_from_f32_slice(values);
                let places = bytes.as_chunks_mut::<2>().0;
                places.iter_mut().zip(halves).for_each(|(place, value)| *place = value.to_le_bytes());
            }
        }
        out(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(row: &[f32], dtype: Dtype, unit: bool) -> Vec<u8> {
        let mut all = Vec::new();
        write_row(row, (dtype, unit), |bytes| all.extend_from_slice(bytes));
        all
    }

    #[test]
    fn elements_are_little_endian_and_of_their_type() {
        let row: Vec<f32> = (0..2500u16).map(|i| f32::from(i) * 0.5 - 3.0).collect();
        let single: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes(&row, Dtype::F32, false), single);
        let half: Vec<u8> = row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(bytes(&row, Dtype::F16, false), half);
    }

    #[test]
    fn a_unit_row_has_length_one_and_zeros_stay() {
        let of = |row: &[f32]| -> Vec<f32> {
            bytes(row, Dtype::F32, true).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        assert_eq!(of(&[3.0, 0.0, -4.0]), [0.6, 0.0, -0.8]);
        assert_eq!(of(&[0.0; 3]), [0.0; 3]);
    }
}
